"""Labelled images of known data sets: scikit-learn's digits, folders of image files, CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from autoprune.archives import holding, unpacked
from autoprune.errors import UserError
from autoprune.paths import existing

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_RECORD = 1 + 3 * 32 * 32  # the label, then the planes red, green and blue, row by row
DIGITS_TEST = 360


class Part(Protocol):
    """Labelled images that are read when asked for."""

    @property
    def labels(self) -> Tensor:
        """The class number of every image."""
        ...

    def read(self, chosen: Tensor) -> list[Tensor]:
        """The chosen images as (channels, height, width); bytes, or floats in [0, 1]."""
        ...


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Images in memory, shape (N, channels, height, width)."""

    images: Tensor
    labels: Tensor

    def read(self, chosen: Tensor) -> list[Tensor]:
        return list(self.images[chosen])


@dataclass(frozen=True, eq=False)
class _Files:
    """Image files, read as colour or, with one channel, as grey."""

    paths: tuple[str, ...]
    labels: Tensor
    channels: int
    resized: bool

    def read(self, chosen: Tensor) -> list[Tensor]:
        images = [self._decode(self.paths[index]) for index in chosen.tolist()]
        sizes = {tuple(image.shape[1:]) for image in images}
        if len(sizes) > 1 and not self.resized:
            (h, w), (other_h, other_w) = min(sizes), max(sizes)
            raise UserError(f"the images differ in size ({w}x{h}, {other_w}x{other_h}): give an input size")
        return images

    def _decode(self, path: str) -> Tensor:
        from PIL import Image

        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("L" if self.channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises any of them on a damaged file
            raise UserError(f"the image {path} cannot be decoded: {error}") from None
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], self.channels)).permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class Resized:
    """The images of another part with the shorter side resized, and the square in the middle."""

    part: Part
    size: int

    @property
    def labels(self) -> Tensor:
        """Theirs."""
        return self.part.labels

    def read(self, chosen: Tensor) -> list[Tensor]:
        """The chosen images, all of ``size`` by ``size`` pixels."""
        from torchvision.transforms.v2 import functional

        images = self.part.read(chosen)
        smaller = [functional.resize(image, [self.size], antialias=True) for image in images]
        return [functional.center_crop(image, [self.size, self.size]) for image in smaller]


Parts = tuple[Part, Part | None, tuple[str, ...]]  # training, test, class names


def digits() -> Parts:
    """The 1,797 digits of scikit-learn (Alpaydin and Kaynak, 1998), 360 of them set aside once and for all."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(found.images).float().unsqueeze(1)[order] / 16  # ink in 0..16
    labels = torch.from_numpy(found.target).long()[order]
    return (
        _Pixels(images[DIGITS_TEST:], labels[DIGITS_TEST:]),
        _Pixels(images[:DIGITS_TEST], labels[:DIGITS_TEST]),
        tuple(str(name) for name in found.target_names),
    )


def imagefolder(path: str, channels: int, resized: bool) -> Parts:
    """A folder or archive with train/CLASS/ and, for the test, test/CLASS/ or val."""
    root = unpacked(existing(path))
    folder = holding(root, "train")
    if folder is None:
        raise UserError(f"{root} has no folder train: images lie in train/CLASS/ and, for the test, test/CLASS/ or val")
    training, classes = _files(folder / "train", channels, resized)
    for name in ("test", "val"):
        if (folder / name).is_dir():
            testing, known = _files(folder / name, channels, resized)
            if known != classes:
                odd = min(set(known) ^ set(classes))
                raise UserError(f"{folder}: the classes of train and {name} differ, {odd!r} is in one of them only")
            return training, testing, classes
    return training, None, classes


def _files(folder: Path, channels: int, resized: bool) -> tuple[_Files, tuple[str, ...]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:  # no class folder, or one without images
        raise UserError(f"{folder}: {str(error).splitlines()[0]}") from None
    paths = tuple(path for path, _ in found.samples)
    return _Files(paths, torch.tensor(found.targets), channels, resized), tuple(found.classes)


def cifar10(path: str) -> Parts:
    """A folder or archive as it is published, the binary version or the one for Python."""
    root = unpacked(existing(path))
    binary = holding(root, "data_batch_1.bin")
    if binary is not None:
        files = sorted(binary.glob("data_batch_*.bin"))
        testing = binary / "test_batch.bin"
        return _records(files), _records([testing]) if testing.exists() else None, CIFAR_CLASSES
    python = root if root.name == "cifar-10-batches-py" else root / "cifar-10-batches-py"
    if not python.is_dir():
        raise UserError(
            f"{root} is not CIFAR-10: it holds neither data_batch_1.bin (the binary version) nor cifar-10-batches-py"
        )
    return _pickled(python.parent, train=True), _pickled(python.parent, train=False), CIFAR_CLASSES


def _records(files: Sequence[Path]) -> _Pixels:
    blocks = []
    for file in files:
        block = np.fromfile(file, dtype=np.uint8)
        if len(block) % CIFAR_RECORD or not len(block):
            raise UserError(f"{file} has {len(block)} bytes, not a multiple of {CIFAR_RECORD}: it was cut short")
        blocks.append(block.reshape(-1, CIFAR_RECORD))
    records = np.concatenate(blocks)
    if records[:, 0].max() >= len(CIFAR_CLASSES):
        raise UserError(f"{files[0].parent}: label {records[:, 0].max()} is above 9, so this is not CIFAR-10")
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return _Pixels(images, torch.from_numpy(records[:, 0].astype(np.int64)))


def _pickled(root: Path, train: bool) -> _Pixels:
    """The Python version. torchvision compares checksums with the published ones before it unpickles."""
    from torchvision.datasets import CIFAR10

    try:
        found = CIFAR10(str(root), train=train, download=False)
    except RuntimeError as error:
        raise UserError(f"{root / 'cifar-10-batches-py'}: {str(error).splitlines()[0]}") from None
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return _Pixels(images, torch.tensor(found.targets))
