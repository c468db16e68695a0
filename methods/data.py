"""Data sets: square uint8 images in memory, a train and a test part, labels where there are any.

Every image is read before training starts, so that a broken one is found in the first minute and not in the tenth hour,
and a batch is one indexing operation afterwards.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
HELD_OUT = 0.2


@dataclass(frozen=True)
class Split:
    images: Tensor  # uint8 [N, C, S, S]
    labels: Tensor | None  # int64 [N]
    captions: tuple[str, ...] | None = None
    ids: Tensor | None = None  # int64 [N], the same for pairs of image and caption that show or say the same

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Data:
    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        return self.train.labels is not None and self.test.labels is not None

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every channel of the training images, in [0, 1]."""
        counts = [torch.bincount(c.reshape(-1).int(), minlength=256).double() for c in self.train.images.unbind(1)]
        value = torch.arange(256, dtype=torch.float64) / 255
        mean = torch.stack([(n * value).sum() / n.sum() for n in counts])
        square = torch.stack([(n * value**2).sum() / n.sum() for n in counts])
        return mean.float(), (square - mean**2).clamp_min(1e-6).sqrt().float()

    def fingerprint(self) -> str:
        """Tells these training images from others: a resumed run must see the same ones."""
        shape = "x".join(map(str, self.train.images.shape))
        crc = zlib.crc32(self.train.images.numpy().tobytes())
        if self.train.captions is not None:
            crc = zlib.crc32("\n".join(self.train.captions).encode(), crc)
        return f"{shape} crc32 {crc:08x}"


def load_data(source: str, *, image_size: int | None = None, skip_broken: bool = False, progress: bool = False) -> Data:
    """``digits``, ``cifar10:ROOT``, ``stl10:ROOT``, an ``.npz``, a ``.tsv`` of image files and captions, a folder with
    ``train.npz`` or ``train.tsv``, or an image folder.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: nothing there, nothing readable, a broken image, a missing
            package; one line that names the file.
    """
    data = _load(source, image_size, skip_broken, progress)
    if min(len(data.train), len(data.test)) < 2:
        have = f"{len(data.train)} and {len(data.test)}"
        raise ValueError(f"data: expected at least 2 images to train on and 2 to test on in {source!r}, got {have}")
    return data


def _load(source: str, image_size: int | None, skip_broken: bool, progress: bool) -> Data:
    if source == "digits":
        return _digits()
    library, _, root = source.partition(":")
    if library in ("cifar10", "stl10"):
        return _torchvision(library, root or "data")
    path = Path(source)
    if not path.exists():
        kinds = "digits, cifar10, stl10, an .npz, a .tsv or a folder"
        raise FileNotFoundError(f"data: expected {kinds}, nothing at {source!r}")
    if (path / "train.tsv").exists():
        path = path / "train.tsv"
    if path.is_file():
        if path.suffix == ".tsv":
            from methods.captions import load_pairs

            return load_pairs(path, image_size, progress)
        if path.suffix != ".npz":
            raise ValueError(f"data: expected an .npz, a .tsv or a folder, got the file {source!r}")
        beside = path.with_name("test.npz")
        return _npz(path, beside if path.name == "train.npz" and beside.exists() else None)
    if (path / "train.npz").exists():
        held_out = path / "test.npz"
        return _npz(path / "train.npz", held_out if held_out.exists() else None)
    return _folder(path, image_size, skip_broken, progress)


# ------------------------------------------------------------------------------------------------------- in arrays
def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("data: digits needs scikit-learn: pip install 'ssl_kernels[train]'") from error
    d = load_digits()
    # 17 levels of grey, 0 to 16
    images = torch.from_numpy((d.images * 15.9375).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(d.target.astype(np.int64))
    return _hold_out("digits", images, labels, tuple("0123456789"))


def _torchvision(name: str, root: str) -> Data:
    from methods.encoders import import_torchvision

    datasets = import_torchvision("datasets")
    try:
        if name == "cifar10":
            train, test = (datasets.CIFAR10(root, train=part) for part in (True, False))
            parts = [Split(_to_chw(d.data), torch.tensor(d.targets)) for d in (train, test)]
        else:
            train, test = (datasets.STL10(root, split=part) for part in ("train", "test"))
            parts = [Split(torch.from_numpy(d.data), torch.from_numpy(d.labels).long()) for d in (train, test)]
    except RuntimeError as error:
        how = f"torchvision.datasets.{name.upper()}({root!r}, download=True)"
        raise FileNotFoundError(f"data: no readable {name} under {root!r}; {how} fetches it") from error
    return Data(name, *parts, tuple(train.classes))


def _npz(path: Path, test: Path | None) -> Data:
    images, labels, classes = _arrays(path)
    if test is None:
        return _hold_out(path.stem, images, labels, classes)
    test_images, test_labels, _ = _arrays(test)
    if test_images.shape[1:] != images.shape[1:]:
        wanted, got = tuple(images.shape[1:]), tuple(test_images.shape[1:])
        raise ValueError(f"data: expected images [C, H, W] = {wanted} in {test} as in {path.name}, got {got}")
    return Data(path.parent.name, Split(images, labels), Split(test_images, test_labels), classes)


def _arrays(path: Path) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as z:
            arrays = {name: z[name] for name in z.files}
    except Exception as error:  # zipfile, zlib, numpy and the file system each have their own
        raise ValueError(f"data: cannot read {path}: {error}") from error
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None:
        raise ValueError(f"data: expected an array `images` in {path}, got {', '.join(arrays) or 'nothing'}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        wanted = "uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
        raise ValueError(f"data: expected images {wanted} in {path}, got {images.dtype} {list(images.shape)}")
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"data: expected square images in {path}, got {images.shape[1]} x {images.shape[2]}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"data: expected {len(images)} labels in {path}, got shape {list(labels.shape)}")
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"data: expected whole numbers as labels in {path}, got {labels.dtype}")
    names = arrays.get("classes", np.unique(labels) if labels is not None else np.array([]))
    if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(
            f"data: expected labels 0 ... {len(names) - 1} in {path}, got {labels.min()} ... {labels.max()}"
        )
    tensor = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return _to_chw(images), tensor, tuple(str(c) for c in names)


def _to_chw(images: np.ndarray) -> Tensor:
    images = images[..., None] if images.ndim == 3 else images
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _hold_out(name: str, images: Tensor, labels: Tensor | None, classes: tuple[str, ...]) -> Data:
    """A fifth of every class (of all, without labels) as the test part: the same ones in every run."""
    generator = torch.Generator().manual_seed(0)
    groups = [torch.arange(len(images))] if labels is None else [(labels == c).nonzero()[:, 0] for c in labels.unique()]
    test = torch.zeros(len(images), dtype=torch.bool)
    for members in groups:
        shuffled = members[torch.randperm(len(members), generator=generator)]
        test[shuffled[: int(HELD_OUT * len(members))]] = True
    pick = lambda rows: Split(images[rows], None if labels is None else labels[rows])  # noqa: E731
    return Data(name, pick(~test), pick(test), classes)


# ------------------------------------------------------------------------------------------------------ in folders
def _folder(root: Path, size: int | None, skip_broken: bool, progress: bool) -> Data:
    train = root / "train"
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if train.is_dir() and not tests and not _images_in(train):
        root = train  # and not a class of trains
    if train.is_dir() and tests:
        classes = _class_names(train)
        files, labels = _list(train, classes)
        test_files, test_labels = _list(tests[0], classes)
    else:
        classes = _class_names(root)
        files, labels = _list(root, classes)
        test_files, test_labels = [], None
    if not files:
        kinds = " ".join(sorted(SUFFIXES))
        raise ValueError(f"data: expected images ({kinds}) in {root} or in one folder per class, found none")
    everything = files + test_files
    pixels, good = decode(everything, size, skip_broken, progress)
    is_train = torch.arange(len(everything)) < len(files)
    all_labels = None if labels is None else torch.tensor(labels + (test_labels or []))
    rows = [part.nonzero()[:, 0] for part in (good & is_train, good & ~is_train)]
    parts = [Split(pixels[r], None if all_labels is None else all_labels[r]) for r in rows]
    if test_files:
        return Data(root.name, *parts, classes)
    return _hold_out(root.name, parts[0].images, parts[0].labels, classes)


def _class_names(root: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(d.name for d in root.iterdir() if d.is_dir() and any(_images_in(d))))
    except OSError as error:
        raise ValueError(f"data: cannot read {root}: {error.strerror}") from error


def _images_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())


def _list(root: Path, classes: Sequence[str]) -> tuple[list[Path], list[int] | None]:
    """The files, and the number of the class folder each is in (None where they lie in ``root`` itself)."""
    if not classes:
        return _images_in(root), None
    unknown = sorted({d.name for d in root.iterdir() if d.is_dir() and any(_images_in(d))} - set(classes))
    if unknown:
        raise ValueError(f"data: expected the classes of the train folder in {root}, got also {', '.join(unknown)}")
    found = [(f, k) for k, c in enumerate(classes) if (root / c).is_dir() for f in _images_in(root / c)]
    return [f for f, _ in found], [k for _, k in found]


def decode(files: list[Path], size: int | None, skip: bool, progress: bool) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, S, S] and which of the files could be read."""
    from tqdm import tqdm

    if size is None:
        size = next((min(224, *s) for s in map(_size_of, files) if s), 224)
    _check_memory(len(files), size)
    pixels = torch.zeros(len(files), 3, size, size, dtype=torch.uint8)
    broken: dict[int, str] = {}

    def read(k: int) -> None:
        try:
            pixels[k] = _read(files[k], size)
        except Exception as error:  # whatever a decoder meets in a broken file: it is named below
            broken[k] = f"{files[k]}: {error}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(read, range(len(files))), "reading", len(files), disable=not progress, leave=False))
    if broken:
        first = "; ".join(broken[k] for k in sorted(broken)[:3]) + ("; ..." if len(broken) > 3 else "")
        if not skip or len(broken) == len(files):
            hint = "" if skip else "; --skip-broken leaves them out"
            raise ValueError(f"data: {len(broken)} of {len(files)} images cannot be read: {first}{hint}")
        print(f"left out {len(broken)} of {len(files)} images that cannot be read: {first}")
    good = torch.ones(len(files), dtype=torch.bool)
    good[list(broken)] = False
    return pixels, good


def _check_memory(count: int, size: int) -> None:
    need, have = count * 3 * size * size, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > 0.7 * have:
        raise ValueError(
            f"image_size: {count} images of {size} x {size} need {need / 2**30:.1f} GiB, the machine has"
            f" {have / 2**30:.1f}; choose a smaller --image-size"
        )


def _pillow() -> Callable:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("data: image folders need Pillow: pip install 'ssl_kernels[train]'") from error
    return Image


def _size_of(file: Path) -> tuple[int, int] | None:
    try:
        with _pillow().open(file) as image:
            return image.size
    except OSError:
        return None


def _read(file: Path, size: int) -> Tensor:
    """Shorter side resized to ``size``, then the middle square."""
    Image = _pillow()
    with Image.open(file) as image:
        image = image.convert("RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        w, h = (max(size, round(side * scale)) for side in image.size)
        left, top = (w - size) // 2, (h - size) // 2
        image = image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
