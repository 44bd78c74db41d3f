"""What trials found: the best so far of several searches, every trial of one, fronts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.chart.ink import COLOURS, KEPT, QUIET
from autoprune.chart.plot import Axis, Dots, Point, Series, Trace, looks, plot

Line = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Where the points of a line lie, ascending from 0, and its values: one row per seed."""


def curves(lines: Mapping[str, Line], title: str, across: str, note: str) -> str:
    """One line per name: the median of its rows, in a band from the lowest to the highest.

    Values that are not finite leave a gap at the beginning. The vertical axis spans the medians.
    """
    medians = {name: np.median(rows, axis=0) for name, (_, rows) in lines.items()}
    finite = np.concatenate([median[np.isfinite(median)] for median in medians.values()])
    longest = max(float(at[-1]) for at, _ in lines.values()) or 1.0
    series = []
    for number, (name, (places, rows)) in enumerate(lines.items()):
        line = _finite(places, medians[name])
        around = [*_finite(places, rows.min(axis=0)), *reversed(_finite(places, rows.max(axis=0)))]
        ends = [] if not line else [Dots([line[-1]], [f"{name}: {line[-1][1]:.4f} after {line[-1][0]:.4g} {across}"])]
        series.append(Series(name, [Trace(around, filled=True), Trace(line), *ends], *looks(number)))
    return plot(title, Axis(across, 0.0, longest), Axis.around("reward", finite.tolist()), series, [note])


def _finite(places: NDArray[np.float64], values: NDArray[np.float64]) -> list[Point]:
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    return [(at, value) for at, value in pairs if np.isfinite(value)]


def scatter(
    front: NDArray[np.float64],
    others: NDArray[np.float64],
    title: str,
    axes: tuple[str, str],
    note: str = "",
    shares: tuple[bool, bool] = (False, False),
) -> str:
    """Dots at (across, up), one a row: ``front`` in blue and numbered from 0, ``others`` as grey rings.

    ``axes`` are the words along and up the side; those of ``shares`` are told in per cent.
    """
    dots = np.concatenate([front, others])
    across, up = (Axis.around(axes[n], dots[:, n].tolist(), percent=shares[n]) for n in range(2))
    forms = ["{:.2%}" if share else "{:.4g}" for share in shares]
    words = [axis.split(",")[0] for axis in axes]

    def says(kind: str, rows: NDArray[np.float64]) -> list[str]:
        told = [[form.format(value) for form, value in zip(forms, row, strict=True)] for row in rows.tolist()]
        return [f"{kind.format(n)}: {words[0]} {x}, {words[1]} {y}" for n, (x, y) in enumerate(told)]

    points: list[list[Point]] = [[(x, y) for x, y in rows.tolist()] for rows in (others, front)]
    numbers = [str(number) for number in range(len(front))]
    series = [
        Series("dominated by another", [Dots(points[0], says("a trial", others), radius=3, hollow=True)], QUIET),
        Series("on the front", [Dots(points[1], says("point {}", front), numbers)], KEPT),
    ]
    return plot(title, across, up, series if len(others) else series[1:], [note] if note else [])


@dataclass(frozen=True)
class Seen:
    """A trial: where it lies along the search, its reward, whether it counts, and what else to say of it."""

    at: float
    reward: float
    counts: bool
    more: str = ""


def history(trials: Sequence[Seen], title: str) -> str:
    """A dot for each trial that counts and a ring for each that does not; a line follows the best so far.

    The vertical axis spans the middle of what counts: what lies far below is drawn at its foot.
    """
    last = max(trial.at for trial in trials) or 1.0
    counted = np.array([t.reward for t in trials if t.counts] or [t.reward for t in trials])
    high, low = float(counted.max()), float(np.quantile(counted, 0.1))
    room = 0.08 * (high - low or 1.0)

    def dots(kept: Sequence[Seen], *, hollow: bool) -> Dots:
        says = [f"trial {t.at:.4g}: reward {t.reward:.4f}{t.more}" for t in kept]
        return Dots([(t.at, t.reward) for t in kept], says, radius=3.5 if hollow else 4, hollow=hollow)

    steps: list[Point] = []
    best = -np.inf
    for trial in trials:
        if trial.counts and trial.reward > best:
            steps += [(trial.at, best)] if steps else []
            best = trial.reward
            steps.append((trial.at, best))
    series = [Series("best so far", [Trace([*steps, (last, best)])], COLOURS[1])] if steps else []
    good, bad = [t for t in trials if t.counts], [t for t in trials if not t.counts]
    series += [Series("not affordable, or a quick look", [dots(bad, hollow=True)], QUIET)] if bad else []
    series += [Series("affordable trials", [dots(good, hollow=False)], KEPT)] if good else []
    notes = ["what lies further below is drawn at the foot"] if min(t.reward for t in trials) < low - room else []
    return plot(title, Axis("trials", 0.0, last), Axis("reward", low - room, high + room), series, notes)
