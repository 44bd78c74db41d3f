"""Criteria that read gradients: what the loss of each image does, to first order, when a channel is scaled.

They need class labels, or with ``target="answers"`` take the network's own answers for labels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from autoprune.criteria.coupling import Normalise, combine
from autoprune.criteria.filters import stand_in
from autoprune.slopes import Effects, Target
from autoprune.space import Group
from autoprune.statistics import Statistics

Aggregate = Literal["joint", "sum", "mean", "max", "l2"]
UNSEEN = "nothing was observed of its consumers"


def taylor(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "joint",
    normalise: Normalise = "none",
    target: Target = "labels",
) -> Tensor:
    """First-order change of the loss when the channel is zeroed, |sum a * dC/da| per image (Molchanov et al. 2017).

    The activation a is what the group's consumers read; the sum goes over its positions, and by default over all
    consumers before the absolute value is taken (``joint``), which is the effect on the loss. Otherwise each consumer
    has a score of its own.
    """
    found = _effects(group, statistics, target)
    if found is None:
        return stand_in(group, model, statistics, UNSEEN)
    if aggregate == "joint":
        return combine([torch.from_numpy(found.absolute)], "sum", normalise)
    return combine([torch.from_numpy(part) for part in found.absolutes], aggregate, normalise)


def fisher(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "joint",
    normalise: Normalise = "none",
    target: Target = "labels",
) -> Tensor:
    """Half of the mean over images of (sum a * dC/da)^2 (Theis et al. 2018; for coupled channels Liu et al. 2021).

    The second-order change of the loss when the channel is zeroed, with the empirical Fisher information in place of
    the Hessian. Options as in :func:`taylor`.
    """
    found = _effects(group, statistics, target)
    if found is None:
        return stand_in(group, model, statistics, UNSEEN)
    if aggregate == "joint":
        return combine([torch.from_numpy(found.square / 2)], "sum", normalise)
    return combine([torch.from_numpy(part / 2) for part in found.squares], aggregate, normalise)


def _effects(group: Group, statistics: Statistics, target: Target) -> Effects | None:
    return statistics.effects(target)[statistics.space.groups.index(group)]
