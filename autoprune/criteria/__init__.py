"""Criteria: which channels stay. One score per unit of a group, high = keep; one family of criteria per file.

A criterion is a function ``(group, model, statistics, **options) -> Tensor`` with one entry per unit (a unit is a
channel; in a group that a grouped convolution takes part in, one channel of every convolution group).
``group.slices`` say where the units lie in the network's tensors, ``statistics`` knows what the dense network does on
the calibration set. Options are keyword arguments with a type and a default: ``l1,aggregate=max,normalise=mean`` on
the command line, ``functools.partial(l1, aggregate="max")`` in Python.

In a space of single weights a criterion has the same arguments and gives one score per entry of ``group.tensor``; the
criteria for those are in :mod:`autoprune.criteria.entries`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune import settings
from autoprune.criteria import entries
from autoprune.criteria.activity import act_mean, act_std, apoz, hrank
from autoprune.criteria.chance import random
from autoprune.criteria.coupling import combine
from autoprune.criteria.filters import bn_scale, fpgm, l1, l2
from autoprune.criteria.gradients import fisher, taylor
from autoprune.criteria.order import first
from autoprune.criteria.reconstruction import RIDGE, obs
from autoprune.errors import UserError
from autoprune.references import function
from autoprune.scheme import NOUNS, Granularity
from autoprune.space import Group
from autoprune.statistics import Statistics

__all__ = [
    "CRITERIA", "OF_WEIGHTS", "RIDGE", "Criterion", "act_mean", "act_std", "apoz", "bn_scale", "combine", "find",
    "first", "fisher", "fpgm", "hrank", "l1", "l2", "obs", "random", "scores", "taylor",
]  # fmt: skip

Criterion = Callable[..., Tensor]
"""``(group, model, statistics, **options) -> Tensor``."""

CRITERIA: Mapping[str, Criterion] = {
    criterion.__name__: criterion
    for criterion in (random, l1, l2, fpgm, bn_scale, apoz, act_mean, act_std, hrank, taylor, fisher, obs, first)
}
"""What scores channels."""
OF_WEIGHTS: Mapping[str, Criterion] = {
    criterion.__name__: criterion
    for criterion in (entries.magnitude, entries.layer_normalised, entries.lamp, entries.taylor, entries.random)
}
"""What scores single weights."""
KIND = settings.Kind("criterion", positions=3)


def find(criterion: str | Criterion, granularity: Granularity = "channel") -> Criterion:
    """A criterion by its name, by ``package.module:function``, or the function itself.

    Options may follow a name: ``name,option=value,…``. Those that do not exist, or have values of another type, are
    refused, in a ``functools.partial`` too; so is a built-in criterion for something else than ``granularity`` removes.
    """
    known, others = (CRITERIA, OF_WEIGHTS) if granularity == "channel" else (OF_WEIGHTS, CRITERIA)
    name = criterion.partition(",")[0].strip() if isinstance(criterion, str) else ""
    if name in others and name not in known:
        raise _of_others(name, known, granularity)
    if isinstance(criterion, str):
        found: Criterion = settings.named(criterion, KIND, known)
    else:
        found = function(criterion, KIND.name, known)
    if (found.func if isinstance(found, partial) else found) in others.values():
        raise _of_others(_name(found), known, granularity)
    settings.check(found, KIND, {})
    return found


def _of_others(name: str, known: Mapping[str, Criterion], granularity: Granularity) -> UserError:
    other = NOUNS["weight" if granularity == "channel" else "channel"]
    return UserError(
        f"criterion {name} scores {other}, and this search space removes {NOUNS[granularity]}: use {', '.join(known)}"
    )


def scores(criterion: Criterion, model: nn.Module, statistics: Statistics) -> list[NDArray[np.float64]]:
    """The criterion applied to every group, checked: one finite score per unit, or per entry of a tensor."""
    result = []
    for group in statistics.space.groups:
        score = torch.as_tensor(criterion(group, model, statistics)).detach().cpu().double()
        if group.tensor is not None:
            result.append(_of_entries(criterion, group, score, statistics.space.shapes[group.tensor]))
            continue
        if tuple(score.shape) != (group.units,):
            raise UserError(
                f"criterion {_name(criterion)} gave shape {tuple(score.shape)} for group {group.name}: "
                f"one score per unit, ({group.units},), is needed"
            )
        if not torch.isfinite(score).all():
            raise UserError(f"criterion {_name(criterion)} gave a score that is not finite for group {group.name}")
        result.append(score.numpy())
    return result


def _of_entries(criterion: Criterion, group: Group, score: Tensor, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The scores of a tensor's entries in memory order."""
    if tuple(score.shape) != tuple(shape):
        raise UserError(
            f"criterion {_name(criterion)} gave shape {tuple(score.shape)} for {group.tensor}: one score per weight, "
            f"{tuple(shape)}, is needed"
        )
    if not torch.isfinite(score).all():
        raise UserError(f"criterion {_name(criterion)} gave a score that is not finite for {group.tensor}")
    flat: NDArray[np.float64] = score.flatten().numpy()
    return flat


def _name(criterion: Criterion) -> str:
    function = criterion.func if isinstance(criterion, partial) else criterion
    return getattr(function, "__name__", None) or repr(criterion)
