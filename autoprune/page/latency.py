"""How well latency was predicted: the calibration of the table that a run believed, and its answer as it was timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoprune.chart import COLOURS, QUIET, Axis, Dots, Series, Trace, plot
from autoprune.page.numbers import known, number, percent
from autoprune.page.parts import Figure, Section, Table
from autoprune.run import Run

KINDS = {"fitted": "fitted to these", "checked": "not seen by the fit"}


def verdict(run: Run) -> str | None:
    """Whether a latency cap holds, as it was measured."""
    facts = run.summary.get("latency")
    if not facts:
        return None
    held = "holds" if facts["met"] else "does not hold"
    return (
        f"The cap of {facts['limit']:.3f} ms {held}: {facts['measured']:.3f} ms measured, "
        f"{facts['predicted']:.3f} ms predicted, {facts['dense']:.3f} ms dense "
        f"({facts['dense'] / facts['measured']:.2f} times as fast)."
    )


def section(run: Run) -> Section | None:
    """Predicted against measured milliseconds of the networks that the table was corrected by, and of others."""
    record = run.summary.get("calibration")
    if not record:
        return None
    pairs = {kind: _pairs(record.get(kind)) for kind in KINDS}
    facts = run.summary.get("latency")
    if facts:
        pairs["answer"] = _pairs([(facts["predicted"], facts["measured"])])
    every = [value for several in pairs.values() for pair in several for value in pair]
    if not every:
        return None
    across, up = Axis.around("measured, ms", every), Axis.around("predicted, ms", every)
    ends = (across.low, across.high)
    series = [Series("", [Trace([(ends[0], ends[0]), (ends[1], ends[1])])], QUIET, "2 3")]
    for number_, (kind, several) in enumerate(pairs.items()):
        points = [(measured, predicted) for predicted, measured in several]
        name = KINDS.get(kind, "the answer of this run")
        dots = Dots(points, list(_says(points, name)), radius=6 if kind == "answer" else 4, hollow=kind == "fitted")
        series += [Series(name, [dots], COLOURS[(0, 0, 1)[number_]])] if points else []
    title, note = "Latency predicted and measured", ["on the dotted line a prediction is right"]
    lines = [
        (KINDS.get(kind, "the answer"), f"{predicted:.4f}", f"{measured:.4f}", f"{predicted / measured - 1:+.1%}")
        for kind, several in pairs.items()
        for predicted, measured in several
    ]
    head = ("network", "predicted, ms", "measured, ms", "off by")
    figure = Figure("latency", plot(title, across, up, series, note), Table(head, lines))
    return Section("How well latency is predicted", [_told(record)], figures=[figure])


def _told(record: Mapping[str, Any]) -> str:
    if not known(record.get("mape")):
        return "The table was corrected by what the device said of a few networks, and not checked on others."
    return (
        f"Over {len(record['checked'])} networks that the table was not fitted to, the mean absolute error (MAPE) is "
        f"{percent(record['mape'], 1)}, the greatest {percent(record.get('worst'), 1)}, and the rank correlation "
        f"(Spearman) {number(record.get('spearman'), '{:.3f}')}."
    )


def _pairs(found: Sequence[Sequence[float]] | None) -> list[tuple[float, float]]:
    """(predicted, measured), where both are known."""
    return [(float(a), float(b)) for a, b in found or () if known(a) and known(b) and b > 0]


def _says(points: Sequence[tuple[float, float]], name: str) -> Iterator[str]:
    yield from (f"{name}: measured {across:.3f} ms, predicted {up:.3f} ms" for across, up in points)
