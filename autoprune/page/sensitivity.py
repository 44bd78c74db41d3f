"""What every group loses when it alone is cut: from an analysis, or from the trials of a search that began with one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoprune.multiples import Panel, multiples
from autoprune.page.histories import Past
from autoprune.page.numbers import NONE, number, percent
from autoprune.page.parts import Article, Figure, Section, Table
from autoprune.page.provenance import provenance
from autoprune.run import Run, read_json
from autoprune.searchers.sensitivity import Table as Drops

KIND, RECORD = "sensitivity", "sensitivity.json"
STEPS, COLUMNS = 24, 4
NOTE = "up: how far the reward falls when this group alone is cut; dots are measured, a cross failed"


@dataclass(frozen=True)
class Curve:
    """What a group loses by the number that it keeps; ``failed`` are counts that could not be measured."""

    name: str
    width: int
    largest: int
    drops: Mapping[int, float]
    failed: Sequence[int] = ()

    @property
    def half(self) -> float | None:
        """What is lost at half of what the uncut network keeps; None where that lies below everything known."""
        table, count = self._table, max(1, round(self.largest / 2))
        return table.drop(0, count) if count >= table.counts[0][0] else None

    def panel(self) -> Panel:
        """The curve over the kept share of the width."""
        if not self.drops and not self.failed:
            return Panel(self.name, "cannot be cut")
        table = self._table
        smallest = table.counts[0][0]
        steps = {smallest + round((self.largest - smallest) * step / STEPS) for step in range(STEPS + 1)}
        line = [(kept / self.width, table.drop(0, kept)) for kept in sorted(steps | {*table.counts[0]})]
        dots = [(kept / self.width, drop) for kept, drop in self.drops.items()]
        says = [f"{self.name} keeps {kept} of {self.width}: {drop:.4g} lost" for kept, drop in self.drops.items()]
        note = f"{number(self.half, '{:.3g}') if self.half is not None else 'fails'} at half width"
        return Panel(self.name, note, line, dots, [kept / self.width for kept in self.failed], says)

    @property
    def _table(self) -> Drops:
        """Nothing is lost at the largest count, and never less when more is cut."""
        known, worst = {self.largest: 0.0}, 0.0
        for kept in sorted(self.drops, reverse=True):
            if kept < self.largest:
                worst = max(worst, self.drops[kept])
                known[kept] = worst
        counts = sorted(known)
        return Drops((tuple(counts),), (tuple(known[count] for count in counts),))


def article(run: Run) -> Article:
    """The page of an analysis."""
    record = read_json(run.folder / RECORD)
    curves = recorded(record)
    ranked = sorted((curve for curve in curves if curve.drops), key=_loss, reverse=True)
    uncut = record["uncut"].get("accuracy")
    answer = (
        f"Cut to half alone, {ranked[0].name} loses most and {ranked[-1].name} least."
        if len(ranked) > 1
        else "Too little can be cut to compare groups."
    )
    trials = f"{run.summary['trials']} measurements, {run.summary['failed']} failed, {run.summary['seconds']:.0f} s."
    told = f"The reward is {record['reward']}, {record['value']:.4g} with nothing cut"
    lead = [f"{told}{'' if uncut is None else f' (accuracy {percent(uncut)})'}. {trials}"]
    notes = [curve["reason"] for curve in record["curves"] if curve.get("reason")]
    facts = provenance(run)
    return Article(run.name, KIND, answer, lead, [section(curves, notes)], run.config.get("command"), facts)


def section(curves: Sequence[Curve], notes: Sequence[str] = ()) -> Section:
    """The curves as small pictures on the same axes, and as a table."""
    svg = multiples(
        [c.panel() for c in curves], "Sensitivity of every group", "kept share of the width", [NOTE], COLUMNS
    )
    figure = Figure("sensitivity", svg, Table(("group", "kept", "of", "lost"), list(_lines(curves))), wide=True)
    return Section("What every group loses when it alone is cut", list(dict.fromkeys(notes)), figures=[figure])


def recorded(record: Mapping[str, Any]) -> list[Curve]:
    """The curves in the record of an analysis."""
    curves = []
    for told in record["curves"]:
        cuts = told["cuts"]
        drops = {int(cut["kept"]): float(cut["drop"]) for cut in cuts if _sound(cut)}
        failed = [int(cut["kept"]) for cut in cuts if cut["status"] == "failed"]
        curves.append(Curve(told["group"], told["width"], told["largest"], drops, failed))
    return curves


def searched(names: Sequence[str], widths: Sequence[int], history: Sequence[Past]) -> list[Curve]:
    """The curves that the trials of a search amount to, if it cut groups one at a time; else none.

    Searchers that begin with a table measure the uncut network, and then schemes that differ from it in one group.
    """
    trials = {trial.kept: trial.reward for trial in history if trial.full}
    if not trials:
        return []
    largest = tuple(map(max, zip(*trials, strict=True)))
    base = trials.get(largest)
    cuts: dict[int, dict[int, float | None]] = {}
    for kept, reward in trials.items():
        cut = [group for group, count in enumerate(kept) if count != largest[group]]
        if len(cut) == 1:
            cuts.setdefault(cut[0], {})[kept[cut[0]]] = reward
    if base is None or len(cuts) < max(2, len(names) / 2):
        return []
    curves = []
    for group, (name, width) in enumerate(zip(names, widths, strict=True)):
        seen = cuts.get(group, {})
        drops = {kept: max(0.0, base - reward) for kept, reward in seen.items() if reward is not None}
        failed = [kept for kept, reward in seen.items() if reward is None]
        curves.append(Curve(name, width, largest[group], drops, failed))
    return curves


def _sound(cut: Mapping[str, Any]) -> bool:
    return cut["status"] == "measured" and cut["drop"] is not None


def _loss(curve: Curve) -> float:
    return math.inf if curve.half is None else curve.half


def _lines(curves: Sequence[Curve]) -> Iterator[tuple[str, ...]]:
    for curve in curves:
        if not curve.drops and not curve.failed:
            yield curve.name, str(curve.largest), str(curve.width), "cannot be cut"
        for kept in sorted({*curve.drops, *curve.failed}):
            lost = curve.drops.get(kept)
            yield curve.name, str(kept), str(curve.width), "failed" if lost is None else number(lost, "{:.4g}") or NONE
