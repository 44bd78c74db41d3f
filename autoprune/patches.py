"""A convolution or linear layer as a matrix product: the rows it multiplies its weight with.

With ``weight.reshape(groups, outputs / groups, d)``, d = input channels per convolution group x kernel size,
``answers = rows @ weight.mT + bias`` at every output position. A row is a patch of the input, or a token.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

WeightLayer = nn.Linear | _ConvNd
"""Layers that have rows; transposed convolutions, though of that type, have none."""


def has_rows(layer: nn.Module) -> TypeGuard[WeightLayer]:
    """Whether the layer is a matrix product in this sense, by its type."""
    return isinstance(layer, WeightLayer) and not isinstance(layer, _ConvTransposeNd)


def regular(layer: WeightLayer, x: Tensor, output: Tensor) -> bool:
    """Whether the output is as large as the layer's own padding and stride make it."""
    return isinstance(layer, nn.Linear) or tuple(output.shape[2:]) == output_size(layer, x)


def output_size(layer: WeightLayer, x: Tensor) -> tuple[int, ...]:
    """Output positions per sample along each axis: pixels of a convolution, tokens of a linear layer."""
    if isinstance(layer, nn.Linear):
        return (math.prod(x.shape[1:-1]),)
    before, after = _padding(layer)
    return tuple(
        (size + lead + trail - dilation * (kernel - 1) - 1) // stride + 1
        for size, lead, trail, dilation, kernel, stride in zip(
            x.shape[2:], before, after, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    )


def draw(total: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """``count`` of ``total`` positions without repetition, ascending; all of them when there are no more."""
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:count].sort().values


def rows(layer: WeightLayer, x: Tensor, chosen: Tensor) -> Tensor:
    """What the layer multiplies its weight with at the ``chosen`` positions of every sample.

    Shape (convolution groups, samples x chosen, d).
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])[:, chosen.to(x.device)].reshape(1, -1, x.shape[-1])
    patches = _seen(layer, x, chosen, 0.0)
    grouped = patches.reshape(len(x), len(chosen), -1, layer.groups, x.shape[1] // layer.groups)
    return grouped.permute(3, 0, 1, 4, 2).reshape(layer.groups, len(x) * len(chosen), -1)


def spots(layer: WeightLayer, size: tuple[int, ...], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of its input, ``size`` along each axis, that the layer reads at the ``chosen`` of its output.

    With them, which of these it reads through each tap, (chosen, taps); -1 where it reads zeros that it has padded.
    """
    if isinstance(layer, nn.Linear):
        return chosen, torch.arange(len(chosen))[:, None]
    positions = torch.arange(float(math.prod(size)), dtype=torch.double).reshape(1, 1, *size)
    seen = _seen(layer, positions, chosen, -1.0).reshape(len(chosen), -1).long()
    found, reads = torch.unique(seen, return_inverse=True)
    padded = int(found[0] < 0)
    return found[padded:], reads - padded


def _seen(layer: _ConvNd, x: Tensor, chosen: Tensor, padding: float) -> Tensor:
    """What a convolution's taps see at the ``chosen`` positions: (samples, chosen, *kernel, channels)."""
    dims = len(layer.kernel_size)
    places = torch.unravel_index(chosen, output_size(layer, x))
    before, after = _padding(layer)
    if any(before) or any(after):
        ends = [entries for axis in reversed(range(dims)) for entries in (before[axis], after[axis])]
        zeros = layer.padding_mode == "zeros"
        x = functional.pad(x, ends, value=padding) if zeros else functional.pad(x, ends, mode=layer.padding_mode)
    index: list[Any] = [slice(None)]
    for axis, place in enumerate(places):
        taps = place[:, None] * layer.stride[axis] + torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
        index.append(taps.reshape(len(chosen), *[-1 if other == axis else 1 for other in range(dims)]).to(x.device))
    return x.movedim(1, -1)[tuple(index)]  # several times faster in this order


def answers(layer: WeightLayer, output: Tensor, chosen: Tensor) -> Tensor:
    """The layer's output where :func:`rows` was taken: (convolution groups, samples x chosen, outputs / groups)."""
    chosen = chosen.to(output.device)
    if isinstance(layer, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])[:, chosen].reshape(1, -1, output.shape[-1])
    picked = output.flatten(2)[:, :, chosen]
    grouped = picked.reshape(len(output), layer.groups, -1, len(chosen))
    return grouped.permute(1, 0, 3, 2).reshape(layer.groups, len(output) * len(chosen), -1)


def product(layer: WeightLayer, rows: Tensor) -> Tensor:
    """The output that the weight gives for these rows, in the shape of :func:`answers`."""
    groups = len(rows)
    result = rows @ layer.weight.reshape(groups, -1, rows.shape[2]).mT
    return result if layer.bias is None else result + layer.bias.reshape(groups, 1, -1)


def _padding(layer: _ConvNd) -> tuple[list[int], list[int]]:
    """Entries added before and after each axis."""
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size), [0] * len(layer.kernel_size)
    if layer.padding == "same":
        total = [dilation * (kernel - 1) for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    both = [int(entries) for entries in layer.padding]
    return both, both
