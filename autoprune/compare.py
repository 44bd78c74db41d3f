"""Searchers side by side: one problem, equal trials or seconds, several seeds, one shared ledger.

The folder of a comparison holds a run per searcher and seed, the ledger that they share (no scheme is measured twice,
but by two processes at once), and what came out: ``comparison.csv`` (one row a run), ``trials.svg`` and
``seconds.svg`` (the best so far).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoprune import chart, page, searchers, settings
from autoprune.claim import ClaimedError
from autoprune.errors import UserError
from autoprune.listeners import Listeners
from autoprune.loop import Stop
from autoprune.page import curves, histories
from autoprune.pool import Pool
from autoprune.problem import Problem
from autoprune.references import stable_name
from autoprune.run import CONFIG, LEDGER, ROOT, SUMMARY, Run, make_folder, prepare, read_json, surroundings, write_json

if TYPE_CHECKING:
    import pandas as pd

TABLE = "comparison.csv"
PICTURES = {"trials": "trials.svg", "seconds": "seconds.svg"}
KIND = "comparison"
POLL = 5.0  # seconds until a run that another process drives is looked at again

Against = Literal["trials", "seconds"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The finished runs of a comparison, by searcher as it was named."""

    folder: Path
    runs: Mapping[str, Sequence[Run]]

    @classmethod
    def open(cls, folder: Path | str) -> Comparison:
        """A comparison on disk, with those of its runs that have ended by its stop rules, by searcher and seed."""
        found: dict[str, list[Run]] = {}
        rules = read_json(Path(folder) / CONFIG)["stop"] if (Path(folder) / CONFIG).is_file() else {}
        for path in Path(folder).glob(f"*/{SUMMARY}"):
            run = _finished(path.parent, rules)
            if run is not None:
                found.setdefault(_label(run), []).append(run)
        if not found:
            raise UserError(f"{folder} holds no finished run of a comparison: start one with `autoprune compare`")
        return cls(Path(folder), {name: sorted(found[name], key=_seed) for name in sorted(found)})

    def frame(self) -> pd.DataFrame:
        """One row a run: searcher, seed, trials and seconds spent, reward, loss, accuracy, costs, test accuracy."""
        import pandas as pd

        rows = []
        for searcher, several in self.runs.items():
            for run in several:
                summary, answer = run.summary, run.summary["rows"]["found"]
                row: dict[str, Any] = {"searcher": searcher, "seed": _seed(run), "trials": summary["effort"]}
                row |= {key: summary[key] for key in ("seconds", "feasible", "failed", "reward", "uniform_reward")}
                row |= {key: answer.get(key) for key in ("loss", "accuracy", "test_accuracy")}
                row |= {f"fractions.{name}": value for name, value in answer["fractions"].items()}
                rows.append(row | {"ended": summary["ended"], "run": run.name})
        return pd.DataFrame(rows)

    def curves(self, against: Against) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Per searcher: points along "trials" or "seconds", and the best affordable reward up to there, (runs, points).

        Every run begins with the uniform scheme at 0. Where one had stopped, its last value goes on.
        """
        past = {name: [histories.read(run) for run in several] for name, several in self.runs.items()}
        return curves.lines(past, against)

    def write(self) -> None:
        """The table and both pictures, into the folder."""
        frame = self.frame()
        frame.to_csv(self.folder / TABLE, index=False)
        spent = {
            "trials": frame["trials"].sum(),
            "failed": int(frame["failed"].sum()),
            "seconds": frame["seconds"].sum(),
        }
        write_json(self.folder / SUMMARY, {"runs": len(frame), **spent})
        for against, file in PICTURES.items():
            picture = chart.curves(
                self.curves("trials" if against == "trials" else "seconds"),
                f"Best reward so far ({next(iter(self.runs.values()))[0].config['name']})",
                {"trials": "trials", "seconds": "seconds of measuring"}[against],
                "median, and range over the seeds; every run begins with the uniform scheme",
            )
            (self.folder / file).write_text(picture, encoding="utf-8")


def compare(  # noqa: PLR0913 - what a comparison says
    problem: Problem,
    named: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    trials: int | None = 60,
    seconds: float | None = None,
    batch: int = 8,
    run: str,
    root: Path | str = ROOT,
    ledger: Path | str | None = None,
    tell: Callable[[Run], None] | None = None,
    listener: Listeners = None,
    pool: Pool | None = None,
) -> Comparison:
    """Search ``problem`` with every searcher and seed, and write table, curves and ``report.html`` to ``root/run``.

    A searcher is ``name``, or ``name,option=value,…``. Each run ends after ``trials`` (a quick look at a share of
    the images counts as that share) or ``seconds`` of measuring, whichever comes first. All runs share a ledger: what
    one has measured, the next is told at once, and is charged with the trial and the seconds it took.

    The same call continues a comparison that was stopped, others add searchers, seeds or trials to it; runs with fewer
    trials or seconds than the latest call gave are no part of the table until they have been extended. Several
    processes may work on one: a run that another process drives is left to it. ``tell`` hears of every finished run,
    ``listener`` of all that each search tells (:func:`autoprune.search`). ``pool`` (:meth:`Problem.pool`) measures
    instead of this process, and stays open.
    """
    chosen = {text: parse(text) for text in named}
    told_apart = {(name, tuple(sorted(map(str, options.items())))) for name, options in chosen.values()}
    if not named or len(told_apart) != len(named):
        raise UserError(f"searchers {', '.join(named) or '(none)'}: name at least one, and each once")
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds {list(seeds)}: give at least one, and each once")
    stop = Stop(trials, seconds)
    if trials is None and seconds is None:
        raise UserError("a comparison without end: give trials or seconds")
    for name, options in chosen.values():
        problem.configured(name, options, trials=trials)
    folder = make_folder(root, run)
    reward = stable_name(problem.reward)
    request = {
        **problem.evaluator.protocol,
        "kind": KIND,
        "budget": problem.budget.record,
        "reward": reward,
        "batch": batch,
    }
    prepare(folder, {"name": problem.name, "request": request, "stop": stop.rules, **surroundings()})

    waiting = [(text, seed) for seed in seeds for text in named]
    warned: set[str] = set()
    while waiting:
        busy = []
        for text, seed in waiting:
            name, options = chosen[text]
            place = _slug(text, seed)
            try:
                found = _finished(folder / place, stop.rules) or problem.search(
                    name, options, stop=stop, seed=seed, batch=batch, run=place, root=folder,
                    ledger=folder / LEDGER if ledger is None else ledger, listener=listener, pool=pool,
                )  # fmt: skip
            except ClaimedError as error:
                busy.append((text, seed))
                if place not in warned:
                    log.warning("left for later: %s", error)
                warned.add(place)
                continue
            if _interrupted(found):
                raise KeyboardInterrupt
            if tell is not None:
                tell(found)
        waiting = busy
        if waiting:
            time.sleep(POLL)
    comparison = Comparison.open(folder)
    comparison.write()
    page.leave(Run.open(folder))
    return comparison


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``name,option=value,…`` as a searcher's name and its typed options."""
    name, *items = [part.strip() for part in text.split(",")]
    for item in items:
        if "=" not in item:
            raise UserError(f"searcher {text!r}: write its options like {name},option=value")
    given = dict(item.split("=", 1) for item in items)
    return name, settings.read(searchers.find(name), searchers.KIND, given)


def _label(run: Run) -> str:
    """A searcher with its options, as :func:`parse` reads it."""
    request = run.config["request"]
    return ",".join([request["searcher"], *(f"{name}={value}" for name, value in request["options"].items())])


def _seed(run: Run) -> int:
    return int(run.config["request"]["search_seed"])


def _slug(text: str, seed: int) -> str:
    """The folder of one run."""
    return re.sub(r"[^\w.+]+", "-", text).strip("-.") + f"-{seed}"


def _finished(folder: Path, rules: Mapping[str, Any]) -> Run | None:
    """The run in a folder if it ended by these stop rules."""
    if not (folder / SUMMARY).is_file():
        return None
    run = Run.open(folder)
    # Not the rules in its config, which are those of an extension as soon as that has begun.
    return run if run.summary.get("stop") == rules and not _interrupted(run) else None


def _interrupted(run: Run) -> bool:
    return bool(run.summary["interrupted"])
