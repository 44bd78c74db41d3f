"""The page of ``autoprune sparsify``: the sparse network beside the dense one, and what each tensor keeps."""

from __future__ import annotations

from autoprune import chart
from autoprune.page import rows
from autoprune.page.numbers import known, percent
from autoprune.page.parts import Article, Figure, Section, Table
from autoprune.page.provenance import provenance
from autoprune.run import Run

KIND = "sparsity"


def article(run: Run) -> Article:
    """What is told of a sparse network."""
    summary, found = run.summary, rows.rows(run)
    zeros = f"{summary['sparsity']:.2%} of {sum(summary['widths']):,} weights are zero"
    last = rows.answer(found)
    key, word = rows.measure(last)
    judged = known(last.get(key)) and known(found["dense"].get(key))
    values = [rows.value(row, key) for row in (last, found["dense"])] if judged else []
    answer = f"{zeros}; the network has {word} {values[0]}, dense it has {values[1]}." if values else f"{zeros}."
    sections = [
        Section("Before and after", table=rows.table(found)),
        Section("What every tensor keeps", figures=[_kept(run)]),
        rows.training(run),
    ]
    told = [section for section in sections if section]
    return Article(run.name, KIND, answer, [], told, run.config.get("command"), provenance(run))


def _kept(run: Run) -> Figure:
    names = run.config["request"].get("weights") or run.config["groups"]
    columns = zip(names, run.summary["widths"], run.summary["kept"], strict=True)
    bars = [chart.Bar(name, width, (kept,)) for name, width, kept in columns]
    svg = chart.bars(bars, ("kept",), "Share of the weights kept, tensor by tensor", shares=True)
    lines = [(bar.name, f"{bar.width:,}", f"{bar.kept[0]:,}", percent(bar.kept[0] / bar.width)) for bar in bars]
    return Figure("tensors", svg, Table(("tensor", "weights", "kept", "share"), lines))
