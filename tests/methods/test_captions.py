from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from methods.data import load_data


def written(folder: Path, lines: list[str], name: str = "pairs.tsv", images: int = 10) -> Path:
    folder.mkdir(exist_ok=True)
    for k in range(images):
        Image.new("RGB", (8, 8), (20 * k, 0, 0)).save(folder / f"{k}.png")
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


PLAIN = [f"{k}.png\tcaption {k}" for k in range(10)]


def test_without_a_header_the_columns_are_file_and_caption(tmp_path: Path):
    data = load_data(str(written(tmp_path, PLAIN)))
    assert (len(data.train), len(data.test), data.labelled, data.name) == (8, 2, False, "pairs")
    assert sorted(data.train.captions + data.test.captions) == sorted(f"caption {k}" for k in range(10))
    for part in (data.train, data.test):  # every caption stayed with its image
        assert [f"caption {int(image[0, 0, 0]) // 20}" for image in part.images] == list(part.captions)


def test_a_header_names_the_columns_in_any_order(tmp_path: Path):
    lines = ["group\ttitle\tfilepath", *(f"{'ab'[k % 2]}\tcaption {k}\t{k}.png" for k in range(10))]
    data = load_data(str(written(tmp_path, lines)))
    assert data.classes == ("a", "b")
    assert all(
        label == int(caption[-1]) % 2 for label, caption in zip(data.train.labels, data.train.captions, strict=True)
    )


def test_train_and_val_beside_each_other(tmp_path: Path):
    written(tmp_path, PLAIN[:7], "train.tsv")
    written(tmp_path, PLAIN[7:], "val.tsv")
    for source in (tmp_path, tmp_path / "train.tsv"):
        data = load_data(str(source))
        assert (len(data.train), len(data.test)) == (7, 3)
        assert not set(data.train.ids.tolist()) & set(data.test.ids.tolist())


def test_pairs_that_show_or_say_the_same_share_an_id_and_a_part(tmp_path: Path):
    lines = ["0.png\ta cat", "1.png\ta cat", "1.png\tan animal", "2.png\tan animal", *PLAIN[3:]]
    data = load_data(str(written(tmp_path, lines)))
    parts = data.train, data.test
    whole = [pair for part in parts for pair in zip(part.captions, part.ids.tolist(), strict=True)]
    assert len({id for caption, id in whole if caption.startswith("a")}) == 1
    assert len({id for _, id in whole}) == 8
    assert not set(data.train.ids.tolist()) & set(data.test.ids.tolist())


def test_a_column_of_ids_says_it_otherwise(tmp_path: Path):
    lines = ["file\tcaption\tid", *(f"{k}.png\tthe same\t{k // 2}" for k in range(10))]
    data = load_data(str(written(tmp_path, lines)))
    assert len(set(data.train.ids.tolist()) | set(data.test.ids.tolist())) == 5


def test_bad_rows_are_left_out_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = written(tmp_path, [*PLAIN, "11.png\tno such file", "1.png", "2.png\t", "\ta caption", ""])
    path.write_bytes(path.read_bytes() + b"3.png\t\xff\xfe\n4.pn")
    data = load_data(str(path))
    assert len(data.train) + len(data.test) == 10
    said = capsys.readouterr().out
    assert "left out 7 of 17 rows" in said
    for line in ("line 11: no file 11.png", "line 12: no caption", "line 14: no file", "line 16: not UTF-8", "line 17"):
        assert line in said


def test_an_image_that_cannot_be_read_is_left_out_with_its_captions(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = written(tmp_path, [*PLAIN, "9.png\tthe same again"])
    (tmp_path / "9.png").write_bytes(b"half an ima")
    data = load_data(str(path))
    assert len(data.train) + len(data.test) == 9
    assert "9.png" in capsys.readouterr().out


def test_a_file_without_a_good_row(tmp_path: Path):
    path = written(tmp_path, ["no tabs here", "nor here"])
    with pytest.raises(ValueError, match=r"data: expected rows of an image file, a tab and a caption in [^\n]*line 1"):
        load_data(str(path))
    path.write_text("")
    with pytest.raises(ValueError, match="found none"):
        load_data(str(path))


def test_other_captions_are_other_data(tmp_path: Path):
    data = load_data(str(written(tmp_path, PLAIN)))
    other = replace(data, train=replace(data.train, captions=("x", *data.train.captions[1:])))
    assert torch.equal(data.train.images, other.train.images)
    assert data.fingerprint() != other.fingerprint()
