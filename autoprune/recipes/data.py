"""What a sparsifying method may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, overload

import torch
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.forward import batch_size
from autoprune.slicing import named_tensors

Batch = tuple[Any, Any]
Batches = Sequence[Batch]


@dataclass(frozen=True, eq=False)
class Data:
    """Calibration batches, and where there are any, batches to train on and batches to judge by.

    A batch is a pair (input, class numbers). ``calibration`` is all that a post-training method sees, and it may come
    without labels (None in their place); ``train`` contains the calibration images; ``validation`` shares no image with
    either. A method that needs more than calibration asks for it by :meth:`training`, :meth:`judging` and
    :meth:`labelled`, which say what is missing.
    """

    calibration: Batches
    train: Batches | None = None
    validation: Batches | None = None

    def __post_init__(self) -> None:
        if not len(self.calibration):
            raise UserError("the calibration data holds no batch: every method needs some images")

    @cached_property
    def images(self) -> int:
        """How many calibration images there are."""
        return sum(batch_size(inputs) for inputs, _ in self.calibration)

    def at_least(self, images: int, method: str) -> None:
        """Refuse calibration data too small for a method."""
        if self.images < images:
            raise UserError(
                f"method {method}: {self.images} calibration images are too few, at least {images} are needed"
            )

    def inputs(self, method: str) -> Tensor:
        """All calibration images as one tensor."""
        parts = [inputs for inputs, _ in self.calibration]
        if not all(isinstance(part, Tensor) for part in parts):
            raise UserError(f"method {method} takes inputs that are one tensor each, not tuples or dicts of them")
        return torch.cat(parts)

    def labelled(self, method: str) -> Batches:
        """The calibration batches, for a method that needs their labels."""
        if any(labels is None for _, labels in self.calibration):
            raise UserError(f"method {method} needs the labels of the calibration images, which have none")
        return self.calibration

    def training(self, method: str) -> Batches:
        """The training batches, for a method that trains on labels."""
        if self.train is None:
            raise UserError(
                f"method {method} trains the network and needs training batches, which this data does not have: give "
                "them, or use a method that needs calibration images alone, such as unipts"
            )
        return self.train

    def judging(self, method: str) -> Batches:
        """The validation batches, for a method that keeps the best of several networks."""
        if self.validation is None:
            raise UserError(f"method {method} chooses by validation images, which this data does not have: give some")
        return self.validation


def identity(model: nn.Module, *others: Tensor) -> str:
    """A short hash of a network's tensors and of images or masks: what the checkpoints in a folder belong to."""
    sha = sha256()
    for tensor in (*(tensor for _, tensor in named_tensors(model)), *others):
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


class Deferred(Sequence[Batch]):
    """Batches that are read when somebody looks at them, and then stay in memory."""

    def __init__(self, read: Callable[[], Iterable[Batch]]) -> None:
        self._read = read

    @cached_property
    def _batches(self) -> list[Batch]:
        return list(self._read())

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> list[Batch]: ...
    def __getitem__(self, at: int | slice) -> Batch | list[Batch]:
        """The batch, or batches, at a position."""
        return self._batches[at]
