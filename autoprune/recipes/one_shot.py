"""One shot: rank the weights by magnitude and zero the lowest, perhaps followed by new batch-norm statistics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from autoprune import masks, recover
from autoprune.errors import UserError
from autoprune.recipes import Tell
from autoprune.recipes.data import Batches, Data
from autoprune.recipes.rates import counts
from autoprune.recover import BN_IMAGES, Context
from autoprune.space import SearchSpace
from autoprune.statistics import Statistics

Ranking = Literal["uniform", "normalised", "global"]


def magnitude(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int,
    tell: Tell,
    rates: Mapping[str, float] | None = None,
    recalibrate: bool = True,
) -> nn.Module:
    """The largest weights of every layer stay: the same share everywhere, or 1 - ``rates`` by name."""
    return _masked(model, kept(model, names, sparsity, "uniform", rates), data, recalibrate=recalibrate)


def global_magnitude(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int,
    tell: Tell,
    normalise: bool = True,
    recalibrate: bool = True,
) -> nn.Module:
    """One ranking over all layers, of |w|, or of |w| / ||W|| with W the weights of the layer (``normalise``).

    The norm spares small layers, whose weights are a larger part of it (POT, Lazarevich et al. 2021).
    """
    ranking: Ranking = "normalised" if normalise else "global"
    return _masked(model, kept(model, names, sparsity, ranking), data, recalibrate=recalibrate)


def kept(
    model: nn.Module,
    names: Sequence[str],
    sparsity: float,
    ranking: Ranking,
    rates: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Masks by magnitude that leave exactly the asked share: the same in every layer, or where one ranking puts them.

    ``rates``, the shares to remove by name, come with the ranking "uniform" alone: they take its place.
    """
    scores = {name: model.get_parameter(name).detach().abs() for name in names}
    if ranking == "uniform":
        left = counts({name: score.numel() for name, score in scores.items()}, sparsity, rates)
        return {name: masks.highest(score, left[name]) for name, score in scores.items()}
    if rates is not None:
        raise UserError(f"ranking {ranking!r} and rates both say where weights go: give one of them")
    if ranking == "normalised":
        scores = {name: score / score.norm().clamp_min(1e-30) for name, score in scores.items()}
    return masks.ranked(scores, sparsity)


def _masked(model: nn.Module, chosen: masks.Masks, data: Data, *, recalibrate: bool) -> nn.Module:
    sparse = copy.deepcopy(model).eval()
    masks.impose(sparse, chosen)
    if recalibrate:
        recalibrated(sparse, data.calibration)
    return sparse


def recalibrated(sparse: nn.Module, batches: Batches, images: int = BN_IMAGES) -> nn.Module:
    """The network itself, with batch-norm statistics estimated anew."""
    recover.recalibrate_bn(sparse, unpruned(sparse, batches), images)
    return sparse


def unpruned(model: nn.Module, batches: Batches, seed: int = 0) -> Context:
    """What a recovery needs to know of a network that keeps all its channels."""
    space = SearchSpace((), (), {})
    return Context(model, space, (), Statistics(model, space, batches, seed=seed), batches)
