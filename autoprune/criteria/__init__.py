"""Criteria: which channels stay. One score per unit of a group, high = keep; one family of criteria per file.

A criterion is a function ``(group, model, statistics, **options) -> Tensor`` with one entry per unit (a unit is a
channel; in a group that a grouped convolution takes part in, one channel of every convolution group).
``group.slices`` say where the units lie in the network's tensors, ``statistics`` knows what the dense network does on
the calibration set. Options are keyword arguments with a type and a default: ``l1,aggregate=max,normalise=mean`` on
the command line, ``functools.partial(l1, aggregate="max")`` in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune import settings
from autoprune.criteria.activity import act_mean, act_std, apoz, hrank
from autoprune.criteria.chance import random
from autoprune.criteria.coupling import combine
from autoprune.criteria.filters import bn_scale, fpgm, l1, l2
from autoprune.criteria.gradients import fisher, taylor
from autoprune.criteria.reconstruction import RIDGE, obs
from autoprune.errors import UserError
from autoprune.references import function
from autoprune.statistics import Statistics

__all__ = [
    "CRITERIA", "RIDGE", "Criterion", "act_mean", "act_std", "apoz", "bn_scale", "combine", "find", "fisher", "fpgm",
    "hrank", "l1", "l2", "obs", "random", "scores", "taylor",
]  # fmt: skip

Criterion = Callable[..., Tensor]
"""``(group, model, statistics, **options) -> Tensor``."""

CRITERIA: Mapping[str, Criterion] = {
    criterion.__name__: criterion
    for criterion in (random, l1, l2, fpgm, bn_scale, apoz, act_mean, act_std, hrank, taylor, fisher, obs)
}
KIND = settings.Kind("criterion", positions=3)


def find(criterion: str | Criterion) -> Criterion:
    """A criterion by its name, by ``package.module:function``, or the function itself.

    Options may follow a name: ``name,option=value,…``. Those that do not exist, or have values of another type, are
    refused, in a ``functools.partial`` too.
    """
    if isinstance(criterion, str):
        found: Criterion = settings.named(criterion, KIND, CRITERIA)
    else:
        found = function(criterion, KIND.name, CRITERIA)
    settings.check(found, KIND, {})
    return found


def scores(criterion: Criterion, model: nn.Module, statistics: Statistics) -> list[NDArray[np.float64]]:
    """The criterion applied to every group, checked: one finite score per unit."""
    result = []
    for group in statistics.space.groups:
        score = torch.as_tensor(criterion(group, model, statistics)).detach().cpu().double()
        if tuple(score.shape) != (group.units,):
            raise UserError(
                f"criterion {_name(criterion)} gave shape {tuple(score.shape)} for group {group.name}: "
                f"one score per unit, ({group.units},), is needed"
            )
        if not torch.isfinite(score).all():
            raise UserError(f"criterion {_name(criterion)} gave a score that is not finite for group {group.name}")
        result.append(score.numpy())
    return result


def _name(criterion: Criterion) -> str:
    function = criterion.func if isinstance(criterion, partial) else criterion
    return getattr(function, "__name__", None) or repr(criterion)
