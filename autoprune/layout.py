"""The memory layout of images.

A CPU's convolutions are mostly faster with the channels of a pixel side by side ("channels last"), most of all in
networks that concatenate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.forward import call, evaluating


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
