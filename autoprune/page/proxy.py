"""How well a fast score ranks schemes, held against their accuracy after a short training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.chart import Axis, Dots, Series, plot
from autoprune.page.numbers import known, number, percent
from autoprune.page.parts import Article, Figure, Section, Table
from autoprune.page.provenance import provenance
from autoprune.run import Run, read_json

KIND, RECORD = "proxy-check", "proxy.json"


def article(run: Run) -> Article:
    """The page of a check."""
    record = read_json(run.folder / RECORD)
    best = max(record["agreement"], key=lambda name: _spearman(record, name))
    answer = (
        f"The score after {best} ranks {len(record['schemes'])} schemes of equal cost best: rank correlation "
        f"{number(record['agreement'][best]['accuracy']['spearman'], '{:.2f}')} with accuracy after training."
    )
    recipe = ", ".join(f"{name} {value}" for name, value in (record["request"].get("recipe") or {}).items())
    facts = [("training", recipe), *provenance(run)]
    return Article(run.name, KIND, answer, [], [section(record)], run.config.get("command"), facts)


def section(record: Mapping[str, Any]) -> Section:
    """The rank correlations, and every scheme's score and accuracy, repair by repair."""
    lines = []
    for name, found in record["agreement"].items():
        by, interval = found["accuracy"], (found["accuracy"].get("low"), found["accuracy"].get("high"))
        bounds = " to ".join(number(bound, "{:.2f}") for bound in interval)
        numbers = (by.get("spearman"), by.get("kendall"), found["loss"].get("spearman"))
        cells = [number(value, "{:.3f}") for value in numbers]
        lines.append((name, cells[0], bounds, cells[1], cells[2]))
    head = ("score after", "Spearman", "90 % of bootstraps", "Kendall", "Spearman with loss")
    text = "A score is the negative validation loss of a candidate; it is good if it ranks schemes as training does."
    figures = [_figure(number_, name, record) for number_, name in enumerate(record["agreement"])]
    return Section("How far the fast score is to be believed", [text], Table(head, lines), figures)


def _figure(place: int, name: str, record: Mapping[str, Any]) -> Figure:
    rows = [row for row in record["schemes"] if known(row["scores"].get(name))]
    points = [(float(row["scores"][name]), float(row["tuned_accuracy"])) for row in rows]
    says = [f"score {score:.4f}, {accuracy:.2%} after training" for score, accuracy in points]
    lines = [(_kept(row["kept"]), f"{x:.4f}", percent(y)) for row, (x, y) in zip(rows, points, strict=True)]
    across = Axis.around("score before training", [x for x, _ in points] or [0.0])
    up = Axis.around("accuracy after training", [y for _, y in points] or [0.0], percent=True)
    title = f"{name}: rank correlation {number(record['agreement'][name]['accuracy'].get('spearman'), '{:.2f}')}"
    svg = plot(title, across, up, [Series("schemes", [Dots(points, says)])])
    return Figure(f"proxy-{place + 1}", svg, Table(("kept", "score", "accuracy after training"), lines))


def _kept(counts: Sequence[int]) -> str:
    return " ".join(map(str, counts))


def _spearman(record: Mapping[str, Any], name: str) -> float:
    found = record["agreement"][name]["accuracy"].get("spearman")
    return float(found) if known(found) else -2.0
