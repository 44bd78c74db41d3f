"""Correct a table by a handful of whole networks, and say how well it then predicts others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoprune.errors import UserError
from autoprune.forward import Example
from autoprune.latency.conditions import Conditions
from autoprune.latency.predict import FEATURES, UNCORRECTED, TableLatency, liked
from autoprune.latency.stopwatch import SURE, Timing
from autoprune.latency.table import Table
from autoprune.latency.units import units
from autoprune.operations import Operations
from autoprune.scheme import Scheme
from autoprune.slicing import prune
from autoprune.space import SearchSpace

NETWORKS = 20
FEW = 8
"""Networks that a device elsewhere is asked about, where each may take minutes."""
CHECKS = 12
REPEATS = 11
PRIMITIVES = 600
RIDGE = 0.02
"""How strongly weights are held to those of an uncorrected table, in squared relative error per network."""
HELD, LEAST = 0.03, 0.25
"""How strongly the weight of a signature is held to that of its kind, and how far it may fall below."""


def random_schemes(space: SearchSpace, number: int, seed: int) -> list[Scheme]:
    """Schemes spread over all sizes: a mean rate drawn evenly, and rates around it for every group."""
    generator = np.random.default_rng(seed)
    schemes = []
    for _ in range(number):
        mean = generator.uniform(0.15, 1.0)
        schemes.append(space.floor(np.clip(mean + generator.uniform(-0.3, 0.3, len(space)), 0.0, 1.0)))
    return schemes


def fitting_schemes(space: SearchSpace, number: int, seed: int = 0) -> list[Scheme]:
    """The schemes that a correction is fitted to: the dense one, the smallest one, and random ones."""
    return [space.dense, space.smallest, *random_schemes(space, number - 2, seed)]


@dataclass(frozen=True, eq=False)
class Sample:
    """How long networks take, in milliseconds at the speed that the machine had when the dense one took ``dense``.

    ``drift`` is how far its speed was from that at worst (a fraction), ``spread`` a measurement's usual one.
    """

    ms: NDArray[np.float64]
    dense: Timing
    drift: float
    spread: float


def measured(
    model: nn.Module,
    example: Example,
    space: SearchSpace,
    schemes: Sequence[Scheme],
    conditions: Conditions,
    dense: float | None = None,
) -> Sample:
    """How long the networks of these schemes take. Which channels stay makes no difference.

    Several take turns, the dense network among them: what it takes tells how fast the machine is just then, and all
    are told at the speed at which it takes ``dense`` milliseconds (default: what it takes at first). No more take
    turns than :data:`PRIMITIVES` allows: oneDNN remembers how it computes 1,024 layers, and networks that push each
    other out of that memory are slower than any is alone.
    """
    layers = sum(isinstance(module, nn.Linear | _ConvNd) for module in model.modules())
    together = max(2, PRIMITIVES // max(1, layers))
    ms: list[float] = []
    spreads, speeds, first = [], [], None
    for start in range(0, len(schemes), together):
        several = [space.dense, *schemes[start : start + together]]
        networks = {str(n): sliced(model, space, scheme) for n, scheme in enumerate(several)}
        timings = conditions.measure(networks, example, REPEATS, until=SURE, own=True)  # they are ours
        first = first or timings["0"]
        speeds.append((dense or first.median) / timings["0"].median)
        ms += [timings[str(n)].median * speeds[-1] for n in range(1, len(several))]
        spreads += [timing.spread for timing in timings.values()]
    if first is None:
        raise UserError("there is no scheme to measure: give at least one")
    return Sample(np.array(ms), first, float(np.abs(np.array(speeds) - 1).max()), float(np.median(spreads)))


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
    conditions: Conditions | None = None,
    seed: int = 0,
    tell: Callable[[str, Mapping[str, Any]], None] = lambda event, facts: None,
) -> Table:
    """The table with a correction for this space, and how it did on networks it was not fitted to.

    Networks are timed under the table's ``conditions``, or under others that its predictions shall be corrected to.

    The correction minimises relative errors over non-negative weights, held to the uncorrected table's. It is kept
    under :func:`correction_key`, with the mean and the greatest absolute relative error, and Spearman's correlation
    between predicted and measured latencies, of :data:`CHECKS` other random schemes. All of them have widths that the
    hardware likes (:func:`autoprune.latency.predict.liked`), as those of a search under a latency cap: a width that is
    slower than a wider one is predicted as fast as that, for costs must not fall when more is kept.
    """
    raw = TableLatency(operations, units(operations), table)
    tried = liked(space, raw)
    fitted = fitting_schemes(tried, NETWORKS, seed)
    checked = random_schemes(tried, CHECKS, seed + 1)
    conditions = conditions or table.conditions
    sample = measured(model, example, space, [*fitted, *checked], conditions)
    ms = sample.ms
    details = np.array([raw.details(np.array(scheme.kept, dtype=np.float64)) for scheme in (*fitted, *checked)])
    weights = fit(features_of(fitted, raw), ms[: len(fitted)])
    weights = refined(weights, raw, details[: len(fitted)], ms[: len(fitted)])
    predicted = details @ raw.vector(weights)
    record = {
        "weights": weights,
        "dense": sample.dense.to_dict(),
        "fitted": [list(pair) for pair in zip(predicted[: len(fitted)], ms[: len(fitted)], strict=True)],
        "checked": [list(pair) for pair in zip(predicted[len(fitted) :], ms[len(fitted) :], strict=True)],
        "uncorrected": agreement(details[len(fitted) :] @ raw.vector(UNCORRECTED), ms[len(fitted) :]),
        **agreement(predicted[len(fitted) :], ms[len(fitted) :]),
        "spread": sample.spread,
        "drift": sample.drift,
    }
    tell("calibrated", record)
    known = {**table.calibrations, correction_key(space, table, conditions): record}
    return Table(table.conditions, table.machine, table.entries, known)


def correction_key(space: SearchSpace, table: Table, conditions: Conditions) -> str:
    """What a correction is kept under: the space, and the conditions where they are not the table's."""
    return space.fingerprint if conditions == table.conditions else f"{space.fingerprint}:{conditions}"


def features_of(schemes: Sequence[Scheme], raw: TableLatency) -> NDArray[np.float64]:
    """What :data:`FEATURES` are of each scheme, shape (schemes, features)."""
    return np.array([raw.features(np.array(scheme.kept, dtype=np.float64)) for scheme in schemes])


def fit(features: NDArray[np.float64], ms: NDArray[np.float64]) -> dict[str, float]:
    """Non-negative weights of :data:`FEATURES` with the least relative error."""
    from scipy.optimize import nnls

    relative = features / ms[:, None]
    size = np.abs(relative).mean(0)
    held = np.sqrt(RIDGE * len(ms)) * np.diag(np.where(size > 0, size, 1.0))
    target = held @ np.array([UNCORRECTED[name] for name in FEATURES])
    weights = nnls(np.vstack([relative, held]), np.concatenate([np.ones(len(ms)), target]))[0]
    return {name: float(weight) for name, weight in zip(FEATURES, weights, strict=True)}


def refined(
    weights: Mapping[str, float], raw: TableLatency, details: NDArray[np.float64], ms: NDArray[np.float64]
) -> dict[str, float]:
    """The same with a weight for every signature, where that lessens relative errors.

    ``details`` are :meth:`TableLatency.details` by network. A weight is held to that of its kind, so that a handful of
    networks cannot lead it astray, and no piece becomes free.
    """
    from scipy.optimize import nnls

    relative, start = details / ms[:, None], raw.vector(weights)
    size = np.abs(relative).mean(0)
    held = np.sqrt(HELD * len(ms)) * np.diag(np.where(size > 0, size, 1.0))
    target = np.concatenate([np.ones(len(ms)), held @ start])
    matrix = np.vstack([relative, held])
    found = LEAST * start + nnls(matrix, target - matrix @ (LEAST * start))[0]
    *pieces, megabytes, calls = found.tolist()
    return {**weights, "megabytes": megabytes, "calls": calls, **dict(zip(raw.signatures, pieces, strict=True))}


def agreement(predicted: NDArray[np.float64], ms: NDArray[np.float64]) -> dict[str, float]:
    """Mean and greatest absolute error as fractions of what was measured, and Spearman's rank correlation."""
    from scipy.stats import spearmanr

    errors = np.abs(predicted - ms) / ms
    return {"mape": float(errors.mean()), "worst": float(errors.max()), "spearman": float(spearmanr(predicted, ms)[0])}
