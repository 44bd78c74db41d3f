"""mmrazor: channels kept per unit, for ``target_pruning_ratio`` of ``ItePruneAlgorithm`` or as a ``fix_subnet`` file.

A unit is called after the first layer that makes its channels: ``backbone.layer1.0.conv1_(0, 64)_64`` are channels 0
to 64 of that layer, 64 of them. Despite the option's name the numbers are what is *kept*; whole numbers are taken as
they are, so nothing is rounded. Every group is listed, uncut ones too. mmrazor's models usually have the network
under a prefix such as ``backbone.``.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from autoprune.errors import UserError
from autoprune.exporters.cuts import REMEDY, Cut, cuts, one_by_one
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "mmrazor"


def units(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None, *, prefix: str = "") -> dict[str, int]:
    """Channels kept by the name of every unit."""
    for cut in cuts(scheme, space, TOOL):
        one_by_one(cut, TOOL)
    return {
        key: kept
        for group, kept in zip(space.groups, scheme.kept, strict=True)
        if (key := _key(Cut(group, kept), prefix)) is not None
    }


def _key(cut: Cut, prefix: str) -> str | None:
    """The unit's name; None for a whole group that mmrazor would see otherwise."""
    first = cut.group.slices[0]
    places = first.positions.ravel()
    start, end = int(places[0]), int(places[-1]) + 1
    if cut.group.unit > 1 or first.tensor != "weight" or not np.array_equal(places, np.arange(start, end)):
        if cut.kept == cut.group.width:
            return None
        raise UserError(f"{cut} are no channels side by side of one layer, as {TOOL} names them; {REMEDY}")
    return f"{prefix}{first.module}_({start}, {end})_{cut.group.width}"
