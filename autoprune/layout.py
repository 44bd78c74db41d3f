"""The memory layout of images, and how many of them pass at a time.

A CPU's convolutions are mostly faster with the channels of a pixel side by side ("channels last"), most of all in
networks that concatenate. And it is faster with few images at a time, whose feature maps stay in its cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.forward import call, evaluating, logits

PART = 384 * 2**10  # bytes of images that pass at a time
FEWEST = 4  # images
CACHE = (
    32 * 2**20
)  # bytes of weights; larger ones are read from memory again for every part, and cost more than it saves
EXACT = 1e-4  # of the largest answer: what rounding may change


class ChannelsLast(Sequence[tuple[Any, Any]]):
    """Batches in this layout, converted as they are read, so that the set is not held twice."""

    def __init__(self, batches: Sequence[tuple[Any, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ChannelsLast(self.batches[index])
        return _arranged(self.batches[index])

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return map(_arranged, self.batches)


class Parts(Sequence[tuple[Any, Any]]):
    """Batches of images cut into even parts of some ``PART`` bytes, as they are read; other batches stay whole."""

    def __init__(self, batches: Sequence[tuple[Any, Any]]) -> None:
        self.batches = batches
        self.places = [place for number, batch in enumerate(batches) for place in _places(number, *batch)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number, part = self.places[index]
        inputs, labels = self.batches[number]
        return (inputs, labels) if part is None else (inputs[part], None if labels is None else labels[part])


def _places(number: int, inputs: Any, labels: Any) -> list[tuple[int, slice | None]]:
    """The batch and, if it is cut, the images of each part."""
    if not (isinstance(inputs, Tensor) and inputs.dim() > 1 and (labels is None or _are_as_many(labels, inputs))):
        return [(number, None)]
    count = min(math.ceil(inputs.nbytes / PART), len(inputs) // FEWEST)
    edges = [len(inputs) * edge // max(1, count) for edge in range(max(1, count) + 1)]
    return [(number, slice(start, stop)) for start, stop in pairwise(edges)]


def _are_as_many(labels: Any, inputs: Tensor) -> bool:
    return isinstance(labels, Tensor) and labels.dim() > 0 and len(labels) == len(inputs)


def runs_in_parts(model: nn.Module, parts: Parts) -> bool:
    """Whether parts pay and the network sees every image by itself, as its answers to the first batch show."""
    own = [place for number, place in parts.places if number == 0]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if next(model.parameters()).device.type != "cpu" or len(own) < 2 or weights > CACHE:
        return False
    try:
        with torch.inference_mode(), evaluating(model):
            whole = logits(call(model, parts.batches[0][0]))
            apart = torch.cat([logits(call(model, parts.batches[0][0][part])) for part in own])
    except Exception:  # noqa: BLE001 - whatever is wrong shows again with whole batches
        return False
    return whole.shape == apart.shape and bool((whole - apart).abs().max() <= EXACT * whole.abs().max())


def _arranged(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    inputs, labels = batch
    images = _channels_last(inputs)
    return inputs if images is None else images, labels


def runs_channels_last(model: nn.Module, inputs: Any) -> bool:
    """Whether the layout pays and the network takes it; code that calls ``view`` on feature maps does not."""
    images = _channels_last(inputs)
    if next(model.parameters()).device.type != "cpu" or images is None:
        return False
    try:
        with torch.inference_mode(), evaluating(model):
            call(model, images[:1])
    except Exception:  # noqa: BLE001 - the ordinary layout then works, or shows the reason again
        return False
    return True


def _channels_last(inputs: Any) -> Tensor | None:
    if isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.is_floating_point():
        return inputs.contiguous(memory_format=torch.channels_last)
    return None
