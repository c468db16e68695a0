from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from methods.data import load_data


def write(path: Path, colour: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, n in (("train", 4), ("test", 2)):
        for c in ("cat", "dog"):
            for k in range(n):
                write(tmp_path / "set" / split / c / f"{k}.png", 10 * k)
    return tmp_path / "set"


def test_digits():
    data = load_data("digits")
    assert len(data.train) + len(data.test) == 1797
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images.max() == 255
    # a fifth of every class
    assert (data.test.labels.bincount() / (data.train.labels.bincount() + data.test.labels.bincount()) > 0.19).all()


def test_the_held_out_part_is_the_same_every_time_and_disjoint():
    one, two = load_data("digits"), load_data("digits")
    assert torch.equal(one.train.images, two.train.images)
    assert torch.equal(one.test.labels, two.test.labels)


def test_npz_in_one_file(npz: Path):
    data = load_data(str(npz))
    assert (len(data.train), len(data.test), data.channels, data.image_size) == (78, 18, 3, 12)
    assert data.classes == ("0", "1", "2")


def test_npz_in_two_files(tmp_path: Path):
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    for name, n in (("train", 5), ("test", 3)):
        np.savez(tmp_path / f"{name}.npz", images=images[:n], labels=np.arange(n) % 2, classes=["a", "b"])
    for source in (tmp_path, tmp_path / "train.npz"):
        data = load_data(str(source))
        assert (len(data.train), len(data.test), data.classes) == (5, 3, ("a", "b"))
        assert torch.equal(data.train.images[:, 0], torch.from_numpy(images))


def test_statistics_are_those_of_the_pixels(npz: Path):
    data = load_data(str(npz))
    pixels = data.train.images.double() / 255
    mean, std = data.statistics()
    torch.testing.assert_close(mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, pixels.std((0, 2, 3), correction=0).float())


def test_folder_with_train_and_test(folder: Path):
    data = load_data(str(folder))
    assert (len(data.train), len(data.test), data.classes) == (8, 4, ("cat", "dog"))
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4


def test_folder_of_classes_holds_out_a_fifth(folder: Path):
    for k in range(4, 10):
        write(folder / "train" / "cat" / f"{k}.png")
        write(folder / "train" / "dog" / f"{k}.png")
    data = load_data(str(folder / "train"))
    assert (len(data.train), len(data.test)) == (16, 4)


def test_folder_with_only_a_train_part_holds_out_a_fifth(folder: Path):
    for c in ("cat", "dog"):
        write(folder / "train" / c / "4.png")
    shutil.rmtree(folder / "test")
    data = load_data(str(folder))
    assert (len(data.train), len(data.test), data.classes) == (8, 2, ("cat", "dog"))


def test_flat_folder_has_no_labels(tmp_path: Path):
    for k in range(10):
        write(tmp_path / f"{k}.png")
    data = load_data(str(tmp_path))
    assert not data.labelled
    assert (len(data.train), len(data.test)) == (8, 2)


def test_mixed_sizes_and_modes_become_squares_of_one_size(tmp_path: Path):
    write(tmp_path / "a.png", 0, (20, 10))
    write(tmp_path / "b.png", 255, (10, 30), "L")
    for k in range(8):
        write(tmp_path / f"c{k}.png", (0, 0, 0, 9), (7, 7), "RGBA")
    assert load_data(str(tmp_path)).image_size == 10
    data = load_data(str(tmp_path), image_size=16)
    assert data.train.images.shape[1:] == (3, 16, 16)


def refused(source: Path | str, **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_data(str(source), **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_nothing_there(tmp_path: Path):
    assert "nothing at" in refused(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path):
    assert "found none" in refused(tmp_path)


def test_a_broken_image_is_named_and_refused(folder: Path):
    whole = (folder / "train" / "cat" / "1.png").read_bytes()
    (folder / "train" / "cat" / "1.png").write_bytes(whole[:40])
    message = refused(folder)
    assert "1 of 12 images" in message
    assert "1.png" in message
    assert "--skip-broken" in message


def test_a_broken_image_is_named_and_left_out_if_asked(folder: Path, capsys: pytest.CaptureFixture):
    (folder / "train" / "dog" / "2.png").write_bytes(b"not an image")
    data = load_data(str(folder), skip_broken=True)
    assert (len(data.train), len(data.test)) == (7, 4)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3
    assert "2.png" in capsys.readouterr().out


def test_too_few_images(tmp_path: Path):
    write(tmp_path / "a.png")
    assert "got 1 and 0" in refused(tmp_path)


def test_only_broken_images_are_refused_even_so(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert "1 of 1" in refused(tmp_path, skip_broken=True)


def test_a_class_only_in_the_test_part(folder: Path):
    write(folder / "test" / "owl" / "0.png")
    assert "owl" in refused(folder)


def test_images_too_many_for_the_memory(folder: Path):
    assert refused(folder, image_size=10_000_000).startswith("image_size:")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3)}, "`images`"),
        ({"images": np.zeros((4, 8, 8, 3))}, "uint8"),
        ({"images": np.zeros((4, 8, 8, 4), np.uint8)}, "uint8"),
        ({"images": np.zeros((4, 8, 6, 3), np.uint8)}, "square"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "4 labels"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(4)}, "whole numbers"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.full(4, 7), "classes": ["a"]}, "0 ... 0"),
    ],
)
def test_arrays_that_are_not_images_and_labels(tmp_path: Path, arrays: dict, said: str):
    np.savez(tmp_path / "x.npz", **arrays)
    assert said in refused(tmp_path / "x.npz")


def test_half_an_npz(npz: Path):
    npz.write_bytes(npz.read_bytes()[:-200])
    assert "cannot read" in refused(npz)
