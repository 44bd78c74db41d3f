"""AIMET: compression ratios for its channel pruning in manual mode.

    pairs = [ModuleCompRatioPair(model.get_submodule(name), ratio) for name, ratio in ratios(scheme, space)]
    ManualModeParams(pairs)

AIMET prunes what a convolution *reads*: a ratio is the kept share of its input channels, of which AIMET takes the
floor, at least one. So a group goes to the convolutions that read it. AIMET chooses channels for each of them by
itself; where several read a group, set ``allow_custom_downsample_ops`` or they cannot disagree. Its maintainers call
this part deprecated.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from autoprune.errors import UserError
from autoprune.exporters.bins import remaining
from autoprune.exporters.cuts import REMEDY, cuts, inputs, layers
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "AIMET"


def ratios(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> list[list[Any]]:
    """``[name, ratio]`` of every convolution that reads a cut group, in forward order."""
    known = layers(space)
    readers: set[str] = set()
    for cut in cuts(scheme, space, TOOL):
        for piece in cut.group.slices:
            if piece.role != "in":
                continue
            layer = known.get(piece.path)
            if layer is None or layer.kind != "conv" or layer.groups > 1:
                raise UserError(
                    f"{cut} are read by {piece.module}, and {TOOL} prunes what ordinary convolutions read; {REMEDY}"
                )
            if piece.positions.size != space.shapes[piece.path][piece.axis]:
                raise UserError(
                    f"{cut} are {piece.positions.size} of the {space.shapes[piece.path][piece.axis]} channels that "
                    f"{layer.name} reads, and {TOOL} has one ratio for all of them; {REMEDY}"
                )
            readers.add(layer.name)
    counts = inputs(scheme, space, TOOL)
    return [[layer.name, remaining(*counts[layer.name])] for layer in known.values() if layer.name in readers]
