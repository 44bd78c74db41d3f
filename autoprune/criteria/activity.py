"""Criteria that read feature maps, behind the activation that follows a layer: zeros, mean, deviation, rank.

:mod:`autoprune.feature_maps` says where exactly. A unit of several channels has their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from autoprune.criteria.coupling import Aggregate, Normalise, combine
from autoprune.criteria.filters import stand_in
from autoprune.errors import UserError
from autoprune.feature_maps import Vector
from autoprune.space import Group
from autoprune.statistics import Statistics

RANK_IMAGES = 128  # a singular value decomposition per image and channel


def apoz(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "sum",
    normalise: Normalise = "none",
) -> Tensor:
    """Share of the map's entries that are not zero: 1 - APoZ, the average percentage of zeros (Hu et al. 2016).

    Where all units have the same share, as behind an activation that never gives zero, l2 ranks the group, with a
    notice.
    """
    shares = {path: 1 - found.zeros for path, found in statistics.activations.items()}
    score = combine(_by_unit(group, statistics, shares, "apoz"), aggregate, normalise)
    if len(score) > 1 and score.min() == score.max():
        return stand_in(group, model, statistics, "all units have the same share of zeros")
    return score


def act_mean(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "sum",
    normalise: Normalise = "none",
) -> Tensor:
    """Mean absolute value of the map's entries over images and positions (Molchanov et al. 2017).

    Behind a ReLU that is their mean, as in the paper.
    """
    means = {path: found.magnitude for path, found in statistics.activations.items()}
    return combine(_by_unit(group, statistics, means, "act_mean"), aggregate, normalise)


def act_std(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "sum",
    normalise: Normalise = "none",
) -> Tensor:
    """Standard deviation of the map's entries over images and positions (Molchanov et al. 2017)."""
    deviations = {path: found.deviation for path, found in statistics.activations.items()}
    return combine(_by_unit(group, statistics, deviations, "act_std"), aggregate, normalise)


def hrank(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    images: int = RANK_IMAGES,
    aggregate: Aggregate = "sum",
    normalise: Normalise = "none",
) -> Tensor:
    """Mean matrix rank of the map over the first ``images`` images (Lin et al. 2020).

    The tolerance is that of ``torch.linalg.matrix_rank``. Small maps tie; the magnitude of the entries decides between
    equal ranks, by adding less than the smallest step that a mean rank can make. The map of a linear layer has rank
    0 or 1.
    """
    if images < 1:
        raise UserError(f"criterion hrank: images = {images}: at least 1 is needed")
    ranks = {}
    for path, found in statistics.ranks(images).items():
        largest = float(found.magnitude.max())
        ranks[path] = found.rank + (0.5 / found.images) * (found.magnitude / largest if largest else 0.0)
    return combine(_by_unit(group, statistics, ranks, "hrank"), aggregate, normalise)


def _by_unit(group: Group, statistics: Statistics, of_channels: Mapping[str, Vector], criterion: str) -> list[Tensor]:
    """Each layer's numbers by unit, (units,): the mean of the unit's channels."""
    pieces = [piece for piece in group.slices if piece.role != "in" and piece.path in of_channels]
    if not pieces:
        layers = ", ".join(dict.fromkeys(p.module for p in group.slices if p.role == "out")) or "none of its own"
        raise UserError(
            f"criterion {criterion}: no feature map of group {group.name} was seen on the calibration set: the layers "
            f"that make its channels ({layers}) do not run as modules there; use l2 or obs, or leave the group out"
        )
    parts = []
    for piece in pieces:
        layer: Any = statistics.producers[piece.path]
        channels = piece.positions
        if isinstance(layer, _ConvTransposeNd) and piece.axis == 1:  # the axis counts within a convolution group
            starts = np.arange(layer.groups) * layer.weight.shape[1]
            channels = (starts[:, None, None] + channels).swapaxes(0, 1).reshape(group.units, -1)
        parts.append(torch.from_numpy(of_channels[piece.path][channels].mean(1)))
    return parts
