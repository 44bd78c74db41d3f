"""Correct a table by a handful of whole networks, and say how well it then predicts others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autoprune.forward import Example
from autoprune.latency.predict import FEATURES, UNCORRECTED, TableLatency
from autoprune.latency.stopwatch import SURE, Timing
from autoprune.latency.table import Table
from autoprune.latency.units import units
from autoprune.operations import Operations
from autoprune.scheme import Scheme
from autoprune.slicing import prune
from autoprune.space import SearchSpace

NETWORKS = 8
CHECKS = 12
REPEATS = 11
RIDGE = 0.02
"""How strongly weights are held to those of an uncorrected table, in squared relative error per network."""


def random_schemes(space: SearchSpace, number: int, seed: int) -> list[Scheme]:
    """Schemes spread over all sizes: a mean rate drawn evenly, and rates around it for every group."""
    generator = np.random.default_rng(seed)
    schemes = []
    for _ in range(number):
        mean = generator.uniform(0.15, 1.0)
        schemes.append(space.floor(np.clip(mean + generator.uniform(-0.3, 0.3, len(space)), 0.0, 1.0)))
    return schemes


def measured(
    model: nn.Module,
    example: Example,
    space: SearchSpace,
    schemes: Sequence[Scheme],
    table: Table,
    repeats: int = REPEATS,
) -> list[Timing]:
    """How long the networks of these schemes take, interleaved. Which channels stay makes no difference."""
    networks = {str(n): sliced(model, space, scheme) for n, scheme in enumerate(schemes)}
    # they are ours, and may be many
    timings = table.conditions.measure(networks, example, repeats, until=SURE, own=True)
    return [timings[name] for name in networks]


def sliced(model: nn.Module, space: SearchSpace, scheme: Scheme) -> nn.Module:
    """A network of the scheme's widths: the first channels, not repaired."""
    return prune(model, space, [np.arange(count // g.unit) for count, g in zip(scheme.kept, space.groups, strict=True)])


def calibrated(
    table: Table,
    model: nn.Module,
    example: Example,
    space: SearchSpace,
    operations: Operations,
    *,
    seed: int = 0,
    tell: Callable[[str, Mapping[str, Any]], None] = lambda event, facts: None,
) -> Table:
    """The table with a correction for this space, and how it did on networks it was not fitted to.

    The correction minimises relative errors over non-negative weights, held to the uncorrected table's. It is kept
    under the space's fingerprint, with the mean and the greatest absolute relative error, and Spearman's correlation
    between predicted and measured latencies, of :data:`CHECKS` other random schemes.
    """
    raw = TableLatency(operations, units(operations), table)
    fitted = [space.dense, space.smallest, *random_schemes(space, NETWORKS - 2, seed)]
    checked = random_schemes(space, CHECKS, seed + 1)
    timings = measured(model, example, space, [*fitted, *checked], table)
    ms = np.array([timing.median for timing in timings])
    features = np.array([raw.features(np.array(scheme.kept, dtype=np.float64)) for scheme in (*fitted, *checked)])
    weights = fit(features[: len(fitted)], ms[: len(fitted)])
    predicted = features @ np.array([weights[name] for name in FEATURES])
    record = {
        "weights": weights,
        "dense": timings[0].to_dict(),
        "fitted": [list(pair) for pair in zip(predicted[: len(fitted)], ms[: len(fitted)], strict=True)],
        "checked": [list(pair) for pair in zip(predicted[len(fitted) :], ms[len(fitted) :], strict=True)],
        "uncorrected": agreement(features[len(fitted) :] @ np.array(list(UNCORRECTED.values())), ms[len(fitted) :]),
        **agreement(predicted[len(fitted) :], ms[len(fitted) :]),
        "spread": float(np.median([timing.spread for timing in timings])),
    }
    tell("calibrated", record)
    return Table(table.conditions, table.machine, table.entries, {**table.calibrations, space.fingerprint: record})


def fit(features: NDArray[np.float64], ms: NDArray[np.float64]) -> dict[str, float]:
    """Non-negative weights of :data:`FEATURES` with the least relative error."""
    from scipy.optimize import nnls

    relative = features / ms[:, None]
    size = np.abs(relative).mean(0)
    held = np.sqrt(RIDGE * len(ms)) * np.diag(np.where(size > 0, size, 1.0))
    target = held @ np.array([UNCORRECTED[name] for name in FEATURES])
    weights = nnls(np.vstack([relative, held]), np.concatenate([np.ones(len(ms)), target]))[0]
    return {name: float(weight) for name, weight in zip(FEATURES, weights, strict=True)}


def agreement(predicted: NDArray[np.float64], ms: NDArray[np.float64]) -> dict[str, float]:
    """Mean and greatest absolute error as fractions of what was measured, and Spearman's rank correlation."""
    from scipy.stats import spearmanr

    errors = np.abs(predicted - ms) / ms
    return {"mape": float(errors.mean()), "worst": float(errors.max()), "spearman": float(spearmanr(predicted, ms)[0])}
