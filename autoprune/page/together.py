"""Several searches side by side: their answers, how soon they were found, and what each keeps of every layer."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune import chart
from autoprune.page import curves, histories, rows
from autoprune.page.parts import Figure, Section, Table
from autoprune.run import Run

PROTOCOL = ("reward", "fingerprint")  # what makes rewards comparable


def sections(runs: Sequence[Run], names: Sequence[str]) -> list[Section]:
    """What searches have in common, under ``names`` that tell them apart."""
    tables = [{line[0]: line for line in rows.table(rows.rows(run)).rows} for run in runs]
    labels = dict.fromkeys(label for table in tables for label in table)
    lines = [(label, *(table[label][-1] if label in table else "–" for table in tables)) for label in labels]
    told = [Section("Side by side", table=Table(("answer of", *names), lines))]
    if len({tuple(str(run.config.get(key)) for key in PROTOCOL) for run in runs}) == 1:
        past = {name: [histories.read(run)] for name, run in zip(names, runs, strict=True)}
        told.append(Section("The searches", figures=[curves.figure(past, "trials")]))
    else:
        text = "The runs measured in different ways or have different rewards, so their curves are not drawn together."
        told.append(Section("The searches", [text]))
    layers = [(run.config["groups"], run.summary["widths"]) for run in runs]
    if all(each == layers[0] for each in layers):
        told.append(Section("What every layer keeps", figures=[_layers(runs, names)]))
    return told


def _layers(runs: Sequence[Run], names: Sequence[str]) -> Figure:
    groups, widths = runs[0].config["groups"], runs[0].summary["widths"]
    kept = zip(*(run.summary["kept"] for run in runs), strict=True)
    bars = [chart.Bar(*row) for row in zip(groups, widths, kept, strict=True)]
    svg = chart.bars(bars, names, "What every run keeps; grey is the dense width")
    lines = [(bar.name, str(bar.width), *map(str, bar.kept)) for bar in bars]
    return Figure("layers", svg, Table(("group", "dense", *names), lines))
