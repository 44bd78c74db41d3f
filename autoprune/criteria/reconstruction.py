"""The criterion that looks ahead to repair: what is lost when the consumers' other weights take over."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.criteria.coupling import Normalise, combine
from autoprune.criteria.filters import stand_in
from autoprune.errors import UserError
from autoprune.gram import Gram
from autoprune.obs import Reader, eliminate
from autoprune.patches import WeightLayer
from autoprune.space import Group, Slice
from autoprune.statistics import Statistics

RIDGE = 1e-3  # added to the diagonal of a Gram matrix, relative to its mean


def obs(
    group: Group, model: nn.Module, statistics: Statistics, *, ridge: float = RIDGE, normalise: Normalise = "none"
) -> Tensor:
    """Reconstruction error of the consumers' outputs when all other weights are re-fitted.

    Greedy backward elimination (see :mod:`autoprune.obs`): a unit's score is the error, as a share of the
    outputs' mean square, at which it leaves, so one pass ranks the units for every count. ``ridge`` is relative to
    the mean diagonal of the Gram matrix.
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        raise UserError(f"criterion obs: ridge = {ridge}: a finite number >= 0")
    readers = [
        reader
        for piece in group.slices
        if piece.role == "in" and piece.path in statistics.grams
        for reader in _readers(piece, statistics.consumers[piece.path], statistics.grams[piece.path], ridge)
    ]
    if not readers:
        return stand_in(group, model, statistics, "nothing was observed of its consumers")
    return combine([eliminate(readers, group.units)], "sum", normalise)


def _readers(piece: Slice, layer: WeightLayer, gram: Gram, ridge: float) -> Iterator[Reader]:
    """The layer's convolution groups, each with the columns that belong to the units, unit by unit."""
    if not torch.isfinite(gram.second).all():
        raise UserError(
            f"{piece.module}: what the layer reads holds nan or inf on the calibration set: look for them in the "
            "images and in the network's weights and batch-norm statistics"
        )
    weight = layer.weight.detach().cpu().double()
    taps = weight[0, 0].numel()
    columns = torch.from_numpy((piece.positions[:, :, None] * taps + np.arange(taps)).ravel())
    for second, part in zip(gram.second, weight.reshape(len(gram.second), -1, weight[0].numel()), strict=True):
        damped = second.clone()
        damped.diagonal().add_(ridge * float(second.diagonal().mean()) + 1e-12)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        energy = float((part @ second * part).sum())
        yield Reader(inverse[columns][:, columns], part.T[columns], energy)
