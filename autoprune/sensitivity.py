"""What does each group lose when it alone is cut? The analysis of a network, with no search and no budget.

The folder holds what a run's does up to the ledger, and then ``sensitivity.json`` (the record), ``sensitivity.csv``
(one row per group and count) and ``sensitivity.svg`` (one curve per group).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoprune import page
from autoprune.claim import claim
from autoprune.errors import UserError
from autoprune.ledger import Ledger
from autoprune.listeners import Listener, Listeners, together
from autoprune.loop import Loop, Stop
from autoprune.multiples import Panel, multiples
from autoprune.pool import InProcess, Pool
from autoprune.problem import Noting, Problem
from autoprune.references import stable_name
from autoprune.run import (
    LEDGER,
    ROOT,
    SUMMARY,
    Run,
    make_folder,
    new_name,
    prepare,
    read_json,
    surroundings,
    write_json,
)
from autoprune.searchers import Proposals
from autoprune.searchers.sensitivity import Table, sampled, table
from autoprune.storage import place
from autoprune.trial import Measurement, Trial

if TYPE_CHECKING:
    import pandas as pd

KIND = "sensitivity"
RECORD, ROWS, PICTURE = "sensitivity.json", "sensitivity.csv", "sensitivity.svg"
STEPS = 24  # of a drawn curve

Status = Literal["measured", "failed", "not measured"]


@dataclass(frozen=True)
class Cut:
    """One group alone cut to ``kept`` channels, all others as wide as they may be.

    ``saved`` are the shares of the dense network's costs that go. ``drop`` is how far the reward falls, the furthest
    at this or any larger count (:class:`autoprune.searchers.sensitivity.Table`); None where this count and all
    smaller ones failed. Without a ``measurement`` the drop is 0 because fewer channels already lost nothing.
    """

    kept: int
    saved: Mapping[str, float]
    drop: float | None
    reward: float | None = None
    measurement: Measurement | None = None

    @property
    def status(self) -> Status:
        """What is known of this count."""
        if self.measurement is None:
            return "not measured"
        return "failed" if self.measurement.failed else "measured"

    @property
    def note(self) -> str:
        """Why it is not measured, or why it failed."""
        if self.measurement is None:
            return "already free below"
        return self.measurement.error or ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; the inverse of :meth:`from_dict`."""
        seen = None if self.measurement is None else self.measurement.to_dict()
        known = {"kept": self.kept, "saved": dict(self.saved), "drop": self.drop, "reward": self.reward}
        return {**known, "status": self.status, "note": self.note, "measurement": seen}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Cut:
        """Read a record of :meth:`to_dict`."""
        seen = record["measurement"]
        measurement = None if seen is None else Measurement.from_dict(seen)
        return cls(record["kept"], record["saved"], record["drop"], record["reward"], measurement)


@dataclass(frozen=True)
class Curve:
    """What one group loses, at counts that ascend from its smallest legal one.

    ``largest`` is what the uncut network keeps of its ``width``, ``half`` the legal count nearest to half of that, and
    ``saved`` the shares of the dense network's costs that go with it. A group that cannot be cut has no ``cuts``
    but a ``reason``: nothing is known of how sensitive it is.
    """

    group: str
    width: int
    largest: int
    half: int
    saved: Mapping[str, float] = field(default_factory=dict)
    cuts: tuple[Cut, ...] = ()
    reason: str | None = None

    @cached_property
    def table(self) -> Table:
        """The drops from the smallest count of which something is known; nothing is lost at the largest."""
        known = {cut.kept: cut.drop for cut in self.cuts if cut.drop is not None} | {self.largest: 0.0}
        return Table((tuple(known),), (tuple(known.values()),))

    @property
    def lost(self) -> float | None:
        """The drop at half width, inf where that and everything below failed; None for a group that cannot be cut."""
        if not self.cuts:
            return None
        return math.inf if self.half < self.table.counts[0][0] else self.table.drop(0, self.half)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; the inverse of :meth:`from_dict`."""
        names = ("group", "width", "largest", "half", "saved", "reason")
        record = {name: getattr(self, name) for name in names}
        record["lost"] = "inf" if self.lost == math.inf else self.lost
        return record | {"cuts": [cut.to_dict() for cut in self.cuts]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Curve:
        """Read a record of :meth:`to_dict`."""
        cuts = tuple(Cut.from_dict(cut) for cut in record["cuts"])
        known = {name: record[name] for name in ("group", "width", "largest", "half", "saved", "reason")}
        return cls(**known, cuts=cuts)

    def panel(self) -> Panel:
        """The curve over the kept share of the width."""
        if not self.cuts:
            return Panel(self.group, "cannot be cut")
        smallest = self.table.counts[0][0]
        steps = {smallest + round((self.largest - smallest) * step / STEPS) for step in range(STEPS + 1)}
        line = [(kept / self.width, self.table.drop(0, kept)) for kept in sorted(steps | {*self.table.counts[0]})]
        dots = [
            (cut.kept / self.width, cut.drop) for cut in self.cuts if cut.status == "measured" and cut.drop is not None
        ]
        failed = [cut.kept / self.width for cut in self.cuts if cut.status == "failed"]
        lost = "fails" if self.lost == math.inf else f"{self.lost:.3g}"
        return Panel(self.group, f"{lost} at {self.half} of {self.width}", line, dots, failed)


@dataclass(frozen=True)
class Sensitivity:
    """One curve per group, in forward order, against the network in which nothing is cut.

    ``uncut`` is that network, repaired and measured as every candidate is, and ``value`` its reward; ``reward`` is the
    function's name. ``folder`` is where the analysis lies.
    """

    name: str
    reward: str
    value: float
    uncut: Measurement
    curves: tuple[Curve, ...]
    folder: Path | None = field(default=None, compare=False)

    def ranking(self) -> list[Curve]:
        """The group that loses most at half width first; those that cannot be cut come last."""
        return sorted(self.curves, key=lambda curve: -math.inf if curve.lost is None else curve.lost, reverse=True)

    def frame(self) -> pd.DataFrame:
        """One row per group and count, in forward order; a group that cannot be cut has one row, without numbers.

        Columns: group, width, kept, rate, status ("measured", "failed", "not measured", "cannot be cut"), drop, reward,
        loss, accuracy, kl, ``saved.*`` and ``metrics.*``, and the note that explains the status.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for curve in self.curves:
            of = {"group": curve.group, "width": curve.width}
            if not curve.cuts:
                whole = {"kept": curve.largest, "rate": curve.largest / curve.width, "status": "cannot be cut"}
                rows.append({**of, **whole, "drop": math.nan, "note": curve.reason})
            for cut in curve.cuts:
                seen = cut.measurement or Measurement()
                row = {**of, "kept": cut.kept, "rate": cut.kept / curve.width, "status": cut.status}
                row |= {"drop": cut.drop, "reward": cut.reward}
                row |= {"loss": seen.loss, "accuracy": seen.accuracy, "kl": seen.kl}
                row |= {f"saved.{name}": share for name, share in cut.saved.items()}
                row |= {f"metrics.{name}": value for name, value in seen.metrics.items()}
                rows.append(row | {"note": cut.note})
        made = pd.DataFrame(rows)
        return made[[*(column for column in made if column != "note"), "note"]]

    def picture(self) -> str:
        """The curves as small multiples, in SVG."""
        notes = [
            f"up: how far {self.reward} falls from {self.value:.4g} when this group alone is cut, on one scale",
            "dots are measured, a cross is a count that failed",
        ]
        title = f"{self.name}: sensitivity of every group"
        return multiples([curve.panel() for curve in self.curves], title, "kept share of the width", notes)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        head = {"name": self.name, "reward": self.reward, "value": self.value, "uncut": self.uncut.to_dict()}
        return {**head, "curves": [curve.to_dict() for curve in self.curves]}

    def save(self, path: Path | str) -> None:
        """Write the record as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def read(cls, path: Path | str) -> Sensitivity:
        """The record in a file, or in the folder of an analysis."""
        path = Path(path) / RECORD if Path(path).is_dir() else Path(path)
        record = read_json(path)
        try:
            curves = tuple(Curve.from_dict(curve) for curve in record["curves"])
            uncut = Measurement.from_dict(record["uncut"])
            return cls(record["name"], record["reward"], record["value"], uncut, curves, path.parent)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} does not hold a sensitivity analysis ({error}): make it again") from error


def sensitivity(
    problem: Problem,
    *,
    points: int = 5,
    batch: int = 8,
    run: str | None = None,
    root: Path | str = ROOT,
    ledger: Path | str | None = None,
    listener: Listeners = None,
    pool: Pool | None = None,
) -> Sensitivity:
    """Measure what every group alone loses at ``points`` counts, in the folder ``root/run``.

    The counts are spread evenly from the smallest legal one to the largest, which is not cut. A group that loses
    nothing at one of them is not measured at larger ones. Everything is in the ledger as soon as it is measured: the
    same call continues an analysis that was stopped, and with the same ``ledger`` a search for any budget by a searcher
    that begins with such a table ("sensitivity", "fastnas", "spdy"), told the same ``points``, has it for nothing.
    The problem's budget plays no part. ``batch`` schemes are asked for at a time, which changes no number.

    ``listener(event, facts)`` is told "dense", "trial" (once per measurement, known ones too) and "done".
    ``pool`` (:meth:`Problem.pool`) measures instead of this process, and stays open.
    """
    if batch < 1:
        raise UserError(f"batch={batch}: at least one scheme must be asked for at a time")
    evaluator, space = problem.evaluator, problem.evaluator.space
    next(table(space, batch=batch, points=points))  # refuses wrong points before there is a folder
    tell: Listener = together(listener)
    config = {
        "name": problem.name,
        "request": {**evaluator.protocol, "kind": KIND, "points": points},
        "fingerprint": evaluator.fingerprint,
        "groups": [group.name for group in space.groups],
        "reward": stable_name(problem.reward),
        "source": dict(problem.source),
        "ledger": None if ledger is None else place(ledger),
        **surroundings(),
    }
    folder = make_folder(root, run or new_name(root, problem.name, KIND))
    with claim(folder):
        prepare(folder, config)
        records = Ledger(folder / LEDGER if ledger is None else ledger, evaluator.fingerprint, space.groups)
        problem.check_dense()
        tell("dense", {"measurement": evaluator.dense})
        tables: list[Table] = []

        def proposals() -> Proposals:
            tables.append((yield from table(space, batch=batch, points=points)))

        def heard(trial: Trial, loop: Loop) -> bool:
            tell("trial", {"trial": trial, "loop": loop, "measured": measuring.has(trial)})
            return loop.trials[0].failed  # then there is nothing to compare with

        measuring = Noting(pool or InProcess(evaluator))
        loop = Loop(proposals(), problem.budget, problem.reward, records, Stop(callback=heard))
        try:
            while schemes := loop.ask():
                loop.tell(measuring.measure(schemes, loop.fidelity))
        finally:
            loop.close()
        uncut, *cuts = loop.trials
        if uncut.failed:
            raise UserError(f"the network in which nothing is cut cannot be measured: {uncut.measurement.error}")
        curves = _curves(problem, points, tables[0], cuts)
        reward = str(stable_name(problem.reward)).removeprefix("autoprune.reward:")
        found = Sensitivity(problem.name, reward, uncut.reward, uncut.measurement, curves, folder)
        failed = sum(trial.failed for trial in cuts)
        found.frame().to_csv(folder / ROWS, index=False)
        (folder / PICTURE).write_text(found.picture(), encoding="utf-8")
        found.save(folder / RECORD)
        write_json(folder / SUMMARY, {"trials": len(loop.trials), "failed": failed, "seconds": loop.seconds})
        page.leave(Run.open(folder))
    tell("done", {"sensitivity": found})
    return found


def _curves(problem: Problem, points: int, drops: Table, trials: Sequence[Trial]) -> tuple[Curve, ...]:
    """The table with what was measured, group by group."""
    space, measured = problem.evaluator.space, {trial.scheme: trial for trial in trials}
    curves = []
    for g, group in enumerate(space.groups):
        largest = group.counts[-1]
        half = group.nearest(largest / 2)
        if half == largest:
            reason = f"{largest} is its only legal count"
            curves.append(Curve(group.name, group.width, largest, half, reason=reason))
            continue
        saved = {count: _saved(problem, g, count) for count in {half, *sampled(group, points)}}
        if not any(share > 0 for shares in saved.values() for share in shares.values()):
            reason = "no cost falls with its channels"
            curves.append(Curve(group.name, group.width, largest, half, reason=reason))
            continue
        cuts: list[Cut] = []
        for count in sampled(group, points):
            trial = measured.get(space.largest.replace(g, count))
            failed = trial is not None and trial.failed
            unknown = failed and all(cut.drop is None for cut in cuts)
            drop = None if unknown else drops.drop(g, count)
            reward = None if trial is None or failed else trial.reward
            cuts.append(Cut(count, saved[count], drop, reward, None if trial is None else trial.measurement))
        curves.append(Curve(group.name, group.width, largest, half, saved[half], tuple(cuts)))
    return tuple(curves)


def _saved(problem: Problem, group: int, count: int) -> dict[str, float]:
    """The shares of the dense network's costs that go when one group alone is cut."""
    space = problem.evaluator.space
    cut = space.largest.replace(group, count)
    return {name: (cost(space.largest) - cost(cut)) / cost(space.dense) for name, cost in problem.budget.costs.items()}
