"""Images and labels for calibration, search validation and the final test, as disjoint parts.

A data set is named ``digits``, ``imagefolder:PATH``, ``cifar10:PATH`` or ``package.module:function``.
Nothing is ever selected on test data: the test part is not even decoded before somebody asks for it.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoprune import images
from autoprune.errors import UserError
from autoprune.forward import Example, batch_size, outputs
from autoprune.references import resolve

# The input, and its class numbers (or whatever the caller's own evaluation understands; None when there is nothing).
Batch = tuple[Example, Any]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Splits:
    """The parts of a data set.

    ``calibration`` and ``validation`` are disjoint batches in memory. ``train`` gives the training part
    without the validation images (so it contains the calibration images), ``test`` the test part; each
    call reads afresh, and each is None if there is no such part. ``classes`` are the class names in the
    order of their numbers (the numbers themselves where names are not known, empty without class
    labels). ``fingerprint`` identifies the bytes of calibration and validation. ``tuning`` gives the
    training images that are neither calibration nor validation, None if there are none left.
    """

    name: str
    calibration: list[Batch]
    validation: list[Batch]
    train: Callable[[], Iterable[Batch]] | None
    test: Callable[[], Iterable[Batch]] | None
    classes: tuple[str, ...]
    fingerprint: str
    tuning: Callable[[], Iterable[Batch]] | None = None


def load(
    spec: str,
    calibration: int = 2048,
    validation: int = 2048,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    batch: int = 128,
) -> Splits:
    """The data set that ``spec`` names.

    The training part is permuted by ``torch.randperm`` under ``seed``; the first ``calibration`` images
    are the calibration set, the next ``validation`` the search-validation set. A training part too small
    for both is divided in the same proportion, with a warning.

    Pixels are scaled to [0, 1] and normalised with ``mean`` and ``std``, one number per channel: by
    default ImageNet's for colour, nothing for ``digits``. One number reads the images of a folder as grey.
    ``input_size`` resizes the shorter side to that many pixels and cuts the square in the middle.

    A ``package.module:function`` takes no arguments and returns :class:`Splits`, a tuple (calibration,
    validation[, test]) or a dict with these keys and optionally "train", "tuning" and "classes"; each part is
    anything :func:`batches` takes. Its data is used as it is: sizes, seed and normalisation are its own.
    "classes" without a name in it says that the labels are no class numbers.
    """
    for what, value in (("calibration", calibration), ("validation", validation), ("batch", batch)):
        if value < 1:
            raise UserError(f"{what} = {value}: at least 1 image is needed")
    source, _, rest = spec.partition(":")
    if input_size is not None and input_size < 1:
        raise UserError(f"input_size = {input_size}: it is a number of pixels, at least 1")
    if spec == "digits":
        parts = images.digits()
        look = _look(mean or (0.0,), std or (1.0,), (1,))
    elif source == "imagefolder" and rest:
        look = _look(mean or MEAN, std or STD, (1, 3))
        parts = images.imagefolder(rest, len(look[0]), resized=input_size is not None)
    elif source == "cifar10" and rest:
        look = _look(mean or MEAN, std or STD, (3,))
        parts = images.cifar10(rest)
    elif source and rest:
        return _from_reference(spec, batch)
    else:
        raise UserError(
            f"data {spec!r} is unknown: use digits, imagefolder:PATH, cifar10:PATH or package.module:function"
        )
    training, testing, classes = parts
    if input_size is not None:
        training = images.Resized(training, input_size)
        testing = None if testing is None else images.Resized(testing, input_size)
    return _divide(spec, training, testing, classes, (calibration, validation), seed, look, batch)


def batches(source: Any, name: str, classes: int | None = None, labels: bool = True, batch: int = 128) -> list[Batch]:
    """What a caller gave as data, as a checked list of (input, labels) batches in memory.

    ``source`` is a DataLoader or any other iterable of batches, a Dataset or a tuple (inputs, labels) of
    whole tensors (both cut into batches of ``batch``), or a function without arguments that returns one
    of these. A batch is a pair (input, labels), or a dict with the key "labels". Random transforms and
    shuffling draw from a fixed seed, so that two runs see the same data. ``name`` is the word for
    messages, such as "calibration".

    ``labels=True`` demands one class number in [0, ``classes``) per sample. Otherwise they may be
    anything or absent: a batch that is no pair is then an input, with None for its labels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = list(_pairs(source, name, labels, batch))
    if not found:
        raise UserError(f"the {name} data yields no batch: an iterator that was used up, or an empty data set?")
    return [(x, _check(x, y, f"batch {number} of the {name} data", classes, labels)) for number, (x, y) in found]


def fingerprint(data: Iterable[Batch]) -> str:
    """A short hash of the shapes, types and bytes of all tensors, batch by batch."""
    sha = hashlib.sha256()
    for item in data:
        for tensor in outputs(item):
            sha.update(f"{tuple(tensor.shape)}:{tensor.dtype};".encode())
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        sha.update(b"|")
    return sha.hexdigest()[:16]


# ---------------------------------------------------------------------------- what a caller gives


def _pairs(source: Any, name: str, labels: bool, batch: int) -> Iterator[tuple[int, Batch]]:
    if callable(source) and not isinstance(source, Iterable | Dataset):
        source = source()
    if isinstance(source, Dataset):
        source = DataLoader(source, batch_size=batch)
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor):
        inputs, targets = source
        if not isinstance(targets, Tensor) or len(inputs) != len(targets):
            count = len(targets) if isinstance(targets, Tensor) else type(targets).__name__
            raise UserError(f"the {name} data has {len(inputs)} inputs but labels: {count}; give two tensors as long")
        source = list(zip(torch.split(inputs, batch), torch.split(targets, batch), strict=True)) if len(inputs) else []
    if not isinstance(source, Iterable) or isinstance(source, Tensor | str | Mapping):
        raise UserError(
            f"the {name} data is a {type(source).__name__}: give a DataLoader, a Dataset, a list of "
            "(input, labels) batches or a tuple (inputs, labels) of tensors"
        )
    for number, item in enumerate(source):
        yield number, _pair(item, f"batch {number} of the {name} data", labels)


def _pair(item: Any, where: str, labels: bool) -> Batch:
    if isinstance(item, Mapping) and "labels" in item:
        return {key: value for key, value in item.items() if key != "labels"}, item["labels"]
    if isinstance(item, tuple | list) and len(item) == 2:
        return _tensor(item[0]), item[1]
    if labels:
        what = f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        raise UserError(f"{where} is {what} instead of a pair (input, labels)")
    return _tensor(item), None


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _check(x: Example, y: Any, where: str, classes: int | None, labels: bool) -> Any:
    """The labels as they may be used; wrong ones, and inputs with NaN in them, are refused."""
    samples = batch_size(x)
    if samples < 1:
        raise UserError(f"{where} is empty")
    if any(tensor.is_floating_point() and bool(tensor.isnan().any()) for tensor in outputs(x)):
        raise UserError(f"{where} has NaN among its inputs")
    if not labels:
        return y
    try:
        y = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{where} has labels of type {type(y).__name__}: class numbers are needed") from None
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or tuple(y.shape) != (samples,):
        raise UserError(
            f"{where} has labels of type {y.dtype} and shape {tuple(y.shape)} for {samples} inputs: one class "
            "number per input is needed, or an evaluate function of your own"
        )
    y = y.long()
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        wrong = low if low < 0 else high
        range_ = "not negative" if classes is None else f"in 0..{classes - 1}, as the model has {classes} classes"
        raise UserError(f"{where} has the label {wrong}: class numbers have to be {range_}")
    return y


def _from_reference(spec: str, batch: int) -> Splits:
    function = resolve(spec, "data")
    given = function() if callable(function) else function
    if isinstance(given, Splits):
        return given
    if isinstance(given, tuple | list) and len(given) in (2, 3):
        given = dict(zip(("calibration", "validation", "test"), given, strict=False))
    if not isinstance(given, Mapping) or not {"calibration", "validation"} <= set(given):
        raise UserError(
            f"data {spec!r} gave a {type(given).__name__}: it has to give (calibration, validation[, test]), "
            "a dict with these keys, or autoprune.data.Splits"
        )
    unknown = set(given) - {"calibration", "validation", "test", "train", "tuning", "classes"}
    if unknown:
        raise UserError(f"data {spec!r} gave the unknown part {min(unknown)!r}")
    names = None if given.get("classes") is None else tuple(str(name) for name in given["classes"])
    labels = names != ()
    part = partial(batches, classes=len(names) if names else None, labels=labels, batch=batch)
    calibration, validation = part(given["calibration"], "calibration"), part(given["validation"], "validation")
    if names is None:
        top = max(int(y.max()) for _, y in (*calibration, *validation))
        names = tuple(str(number) for number in range(top + 1))
    return Splits(
        spec,
        calibration,
        validation,
        train=None if given.get("train") is None else partial(part, given["train"], "train"),
        test=None if given.get("test") is None else partial(part, given["test"], "test"),
        classes=names,
        fingerprint=_joint(calibration, validation),
        tuning=None if given.get("tuning") is None else partial(part, given["tuning"], "tuning"),
    )


# ---------------------------------------------------------------------------- images of a known data set


Look = tuple[Tensor, Tensor]  # mean and standard deviation, each of shape (channels, 1, 1)


def _look(mean: Sequence[float], std: Sequence[float], wanted: tuple[int, ...]) -> Look:
    if len(mean) != len(std) or len(mean) not in wanted:
        raise UserError(
            f"mean {tuple(mean)} and std {tuple(std)}: this data takes {' or '.join(map(str, wanted))} numbers in each"
        )
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
        raise UserError(f"mean {tuple(mean)} and std {tuple(std)}: numbers are needed, each std above 0")
    return torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)


def _divide(
    name: str,
    training: images.Part,
    testing: images.Part | None,
    classes: tuple[str, ...],
    sizes: tuple[int, int],
    seed: int,
    look: Look,
    batch: int,
) -> Splits:
    count = len(training.labels)
    calibration, validation = sizes
    if calibration + validation > count:
        first = count * calibration // (calibration + validation)
        if first < 1 or first == count:
            raise UserError(
                f"data {name!r} has {count} training images: too few for {calibration} calibration "
                f"and {validation} validation images"
            )
        warnings.warn(
            f"data {name!r} has {count} training images: {first} are taken for calibration and {count - first} "
            f"for validation, instead of {calibration} and {validation}",
            stacklevel=3,
        )
        calibration, validation = first, count - first
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    left = order[calibration + validation :]
    rest = torch.cat([order[:calibration], left])
    taken = (order[:calibration], order[calibration : calibration + validation])
    chosen = [list(_read(training, part, look, batch)) for part in taken]
    return Splits(
        name,
        calibration=chosen[0],
        validation=chosen[1],
        train=partial(_read, training, rest, look, batch),
        test=None if testing is None else partial(_read, testing, torch.arange(len(testing.labels)), look, batch),
        classes=classes,
        fingerprint=_joint(*chosen),
        tuning=partial(_read, training, left, look, batch) if len(left) else None,
    )


def _read(part: images.Part, chosen: Tensor, look: Look, batch: int) -> Iterator[Batch]:
    """The chosen images, normalised, with their labels."""
    mean, std = look
    for indices in torch.split(chosen, batch):
        pixels = torch.stack(part.read(indices))
        scaled = pixels if pixels.is_floating_point() else pixels.float() / 255
        yield (scaled - mean) / std, part.labels[indices]


def _joint(calibration: list[Batch], validation: list[Batch]) -> str:
    both = f"{fingerprint(calibration)}/{fingerprint(validation)}"
    return hashlib.sha256(both.encode()).hexdigest()[:16]
