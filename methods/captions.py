"""Images with captions, from a ``.tsv``: one pair a line, the image files relative to it.

A first line of names is understood (``file`` and ``caption``, ``id`` and ``label`` where there are such columns);
without one, the first column is the file and the second the caption. A row that cannot be used is left out and named,
not a reason to stop: files of captions are large and never clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from methods.data import HELD_OUT, Data, Split, decode

NAMES = {
    "file": ("file", "filepath", "image", "path"),
    "caption": ("caption", "title", "text"),
    "id": ("id",),
    "label": ("label", "class", "group"),
}
LISTED = 10


@dataclass(frozen=True)
class Pair:
    file: Path
    caption: str
    id: str | None
    label: str | None


def load_pairs(path: Path, image_size: int | None, progress: bool) -> Data:
    """``path`` as the training part and ``val.tsv`` or ``test.tsv`` beside a ``train.tsv`` as the test part.

    Without one, a fifth of the ids are held out. Pairs with the same entry in the column ``id`` share an id; without
    that column, those with the same image file or the same caption do.
    """
    beside = [path.with_name(f"{name}.tsv") for name in ("val", "test")] if path.name == "train.tsv" else []
    tables = [path, *[p for p in beside if p.exists()][:1]]
    parts = [_read(table, image_size) for table in tables]
    pairs = [pair for part in parts for pair in part]
    files = list(dict.fromkeys(pair.file for pair in pairs))
    pixels, good = decode(files, image_size, skip=True, progress=progress)
    row_of = {file: k for k, file in enumerate(files)}
    rows = torch.tensor([row_of[pair.file] for pair in pairs])

    names = sorted({pair.label for pair in pairs if pair.label is not None})
    labels = torch.tensor([names.index(pair.label) for pair in pairs]) if names else None
    ids = _ids(pairs)
    if len(parts) > 1:
        test = torch.arange(len(pairs)) >= len(parts[0])
    else:
        order = torch.randperm(int(ids.max()) + 1, generator=torch.Generator().manual_seed(0))
        test = (order < HELD_OUT * len(order))[ids]

    def split(which: Tensor) -> Split:
        keep = (which & good[rows]).nonzero()[:, 0]
        captions = tuple(pairs[k].caption for k in keep.tolist())
        return Split(pixels[rows[keep]], None if labels is None else labels[keep], captions, ids[keep])

    return Data(path.stem if len(parts) == 1 else path.parent.name, split(~test), split(test), tuple(names))


def _read(path: Path, image_size: int | None) -> list[Pair]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"data: cannot read {path}: {error.strerror}") from error
    columns, first = _columns(lines[0].decode(errors="replace").split("\t") if lines else [])
    pairs, bad = [], []
    for number, line in enumerate(lines[first:], first + 1):
        try:
            pairs.append(_pair(path.parent, columns, line.decode()))
        except ValueError as error:
            bad.append(f"line {number}: {'not UTF-8' if isinstance(error, UnicodeDecodeError) else error}")
    if bad:
        more = [f"and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
        print(f"left out {len(bad)} of {len(lines) - first} rows of {path}:", *bad[:LISTED], *more, sep="\n  ")
    if not pairs:
        why = f"; {bad[0]}" if bad else ""
        raise ValueError(f"data: expected rows of an image file, a tab and a caption in {path}, found none{why}")
    return pairs


def _columns(header: Sequence[str]) -> tuple[dict[str, int], int]:
    """Where each column is, and the number of the first line that is a pair."""
    lower = [name.strip().lower() for name in header]
    found = {
        column: next(k for k, name in enumerate(lower) if name in names)
        for column, names in NAMES.items()
        if any(name in names for name in lower)
    }
    return (found, 1) if {"file", "caption"} <= found.keys() else ({"file": 0, "caption": 1}, 0)


def _pair(root: Path, columns: dict[str, int], line: str) -> Pair:
    cells = [cell.strip() for cell in line.split("\t")]
    values = {column: cells[k] if k < len(cells) else "" for column, k in columns.items()}
    for column, value in values.items():
        if not value:
            raise ValueError(f"no {column}")
    file = root / values["file"]
    if not file.is_file():
        raise ValueError(f"no file {values['file']}")
    return Pair(file, values["caption"], values.get("id"), values.get("label"))


def _ids(pairs: Sequence[Pair]) -> Tensor:
    """``[N]``, from 0: the same number for pairs that show or say the same."""
    parent = list(range(len(pairs)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = k = parent[parent[k]]
        return k

    seen: dict[tuple[str, object], int] = {}
    for k, pair in enumerate(pairs):
        keys = [("id", pair.id)] if pair.id is not None else [("file", pair.file), ("caption", pair.caption)]
        for key in keys:
            parent[root(k)] = root(seen.setdefault(key, k))
    return torch.tensor([root(k) for k in range(len(pairs))]).unique(return_inverse=True)[1]
