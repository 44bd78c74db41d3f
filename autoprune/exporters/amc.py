"""AMC: the list of channels for ``amc_search.py --job export --channels``.

One number per convolution and linear layer, in the order of ``model.modules()`` and without the depthwise ones: the
channels it *reads* that stay. AMC rounds up to multiples of 8 and to the largest multiple of 8 below the width,
unless a layer stays whole; the nearest of those is written, and a warning says what it changes. AMC prunes the inputs
of linear layers and 1x1 convolutions only, and couples layers for its own MobileNetV2 alone.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from autoprune.errors import UserError
from autoprune.exporters.cuts import REMEDY, inputs, layers
from autoprune.exporters.notice import tell
from autoprune.exporters.sizes import solve
from autoprune.paths import existing
from autoprune.scheme import Scheme
from autoprune.space import Layer, SearchSpace

TOOL = "AMC"
STEP = 8


def channels(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None, *, step: int = STEP) -> str:
    """The numbers with commas; without the model, layers come in forward order. ``step`` is AMC's --channel_round."""
    counts = inputs(scheme, space, TOOL)
    found, changes = [], []
    for layer in _prunable(space, model):
        width, wanted = counts[layer.name]
        if wanted < width and layer.kernel > 1:
            raise UserError(
                f"{layer.name} would read {wanted} of {width} channels with a kernel of {layer.kernel}, and {TOOL} "
                f"prunes what linear layers and 1x1 convolutions read; {REMEDY}"
            )
        count = nearest(width, wanted, step)
        if count != wanted:
            changes.append(f"{layer.name} {wanted} -> {count}")
        found.append(count)
    tell(f"{TOOL} keeps multiples of {step}", changes)
    return ",".join(str(count) for count in found) + "\n"


def read(text: str, space: SearchSpace, model: nn.Module | None = None) -> Scheme:
    """The scheme of a list of channels, the inverse of :func:`channels`; without the model, layers in forward order."""
    found = _prunable(space, model)
    try:
        numbers = [int(part) for part in text.strip().strip(",").split(",")]
    except ValueError:
        raise UserError(
            f"{text.strip()[:40]!r} is no list of channels: whole numbers with commas are expected"
        ) from None
    if len(numbers) != len(found):
        raise UserError(
            f"the list has {len(numbers)} numbers, the network {len(found)} layers that AMC counts: was it made for "
            "another network?"
        )
    axes = {piece.path: piece.axis for group in space.groups for piece in group.slices if piece.role == "in"}
    sizes = {}
    for layer, number in zip(found, numbers, strict=True):
        axis = axes.get(layer.weight, 1)
        entries, rest = divmod(number, layer.groups if axis == 1 else 1)
        if rest or not 0 < entries <= space.shapes[layer.weight][axis]:
            raise UserError(
                f"{layer.name} cannot read {number} channels: it reads {space.shapes[layer.weight][axis]} "
                f"{'per group ' if layer.groups > 1 else ''}in the dense network"
            )
        sizes[layer.weight, axis] = entries
    return solve(sizes, space)


def read_file(path: str | Path, space: SearchSpace) -> Scheme:
    """:func:`read` of a file."""
    return read(existing(path).read_text(encoding="utf-8", errors="replace"), space)


def nearest(width: int, wanted: int, step: int = STEP) -> int:
    """The count nearest to ``wanted`` that AMC can keep of ``width`` channels; the smaller of two as near."""
    possible: list[int] = [*range(step, width, step), width]
    return min(possible, key=lambda count: abs(count - wanted))


def _prunable(space: SearchSpace, model: nn.Module | None) -> list[Layer]:
    """The layers in AMC's order."""
    known = {layer.name: layer for layer in layers(space).values()}
    named = list(known) if model is None else [name for name, _ in model.named_modules() if name in known]
    return [known[name] for name in named if not _depthwise(known[name], space)]


def _depthwise(layer: Layer, space: SearchSpace) -> bool:
    """As AMC sees it: as many groups as input channels, which holds for a convolution of one channel too."""
    return layer.kind == "conv" and space.shapes[layer.weight][1] == 1
