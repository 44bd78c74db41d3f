"""One score per unit out of several layers' scores.

Channels that are cut together are often made by several layers: all that feed one residual sum. A criterion
scores each layer by itself; these are scaled (so that layers with large numbers do not outvote the others) and then
brought together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from autoprune.errors import UserError

Aggregate = Literal["sum", "mean", "max", "l2"]
Normalise = Literal["none", "mean", "sum", "max", "l2"]

AGGREGATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda parts: parts.sum(0),
    "mean": lambda parts: parts.mean(0),
    "max": lambda parts: parts.amax(0),
    "l2": lambda parts: parts.square().sum(0).sqrt(),
}
SIZES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda parts: torch.ones_like(parts[:, :1]),
    "mean": lambda parts: parts.mean(1, keepdim=True),
    "sum": lambda parts: parts.sum(1, keepdim=True),
    "max": lambda parts: parts.amax(1, keepdim=True),
    "l2": lambda parts: parts.norm(dim=1, keepdim=True),
}


def combine(parts: Sequence[Tensor], aggregate: str = "sum", normalise: str = "none") -> Tensor:
    """The layers' scores, each (units,), as one.

    Every layer's scores are first divided by their mean, sum, maximum or Euclidean length (Molchanov et al. 2017 use
    the last); a layer whose scores are all zero stays as it is. Then the layers are summed, averaged, or each unit
    takes its largest score, or the root of the sum of squares.
    """
    if aggregate not in AGGREGATES:
        raise UserError(f"aggregate = {aggregate!r}: choose {', '.join(get_args(Aggregate))}")
    if normalise not in SIZES:
        raise UserError(f"normalise = {normalise!r}: choose {', '.join(get_args(Normalise))}")
    stacked = torch.stack(list(parts))
    sizes = SIZES[normalise](stacked)
    return AGGREGATES[aggregate](stacked / torch.where(sizes == 0, 1.0, sizes))
