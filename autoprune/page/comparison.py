"""The page of a comparison: who found what at equal cost, and how soon."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence

from autoprune.errors import UserError
from autoprune.page import curves, histories
from autoprune.page.numbers import NONE, number, percent
from autoprune.page.parts import Article, Section, Table
from autoprune.page.provenance import provenance
from autoprune.run import SUMMARY, Run

KIND, FILE = "comparison", "comparison.csv"

Row = Mapping[str, str]


def article(run: Run) -> Article:
    """What is told of a comparison, the best searcher first."""
    found = _rows(run)
    medians = {name: statistics.median(_numbers(rows, "reward")) for name, rows in found.items()}
    ranked = sorted(found, key=lambda name: medians[name], reverse=True)
    seeds = max(len(rows) for rows in found.values())
    answer = f"{ranked[0]} found the best reward, {medians[ranked[0]]:.4f} (median of {seeds} runs)."
    if len(ranked) > 1:
        answer = f"{answer[:-1]}; {ranked[-1]} the worst, {medians[ranked[-1]]:.4f}."
    past = {name: [histories.read(_part(run, row)) for row in found[name]] for name in ranked}
    figures = [curves.figure(past, against) for against in curves.ALONG]
    sections = [
        Section("Side by side", table=_table({name: found[name] for name in ranked})),
        Section("The best so far", ["Every run begins with the uniform scheme."], figures=figures),
        Section("Every run", table=_runs(found)),
    ]
    return Article(run.name, KIND, answer, [], sections, run.config.get("command"), provenance(run))


def _rows(run: Run) -> dict[str, list[Row]]:
    """The lines of the table by searcher, of runs whose folders are there."""
    path = run.folder / FILE
    if not path.is_file():
        raise UserError(f"run {run.name} has no {FILE} yet: let the comparison finish first")
    found: dict[str, list[Row]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (run.folder / row["run"]).parent == run.folder and (run.folder / row["run"] / SUMMARY).is_file():
                found.setdefault(row["searcher"], []).append(row)
    if not found:
        raise UserError(f"run {run.name} holds no finished run of its comparison: its folder is not whole")
    return found


def _part(run: Run, row: Row) -> Run:
    return Run.open(run.folder / row["run"])


def _numbers(rows: Iterable[Row], key: str) -> list[float]:
    """The values of a column where there are any."""
    return [float(row[key]) for row in rows if row.get(key)]


def _table(found: Mapping[str, Sequence[Row]]) -> Table:
    lines = []
    for name, rows in found.items():
        rewards, tests = _numbers(rows, "reward"), _numbers(rows, "test_accuracy")
        trials, seconds = (statistics.median(_numbers(rows, key)) for key in ("trials", "seconds"))
        test = percent(statistics.fmean(tests)) if tests else NONE
        spread = f"{max(rewards) - min(rewards):.4f}"
        median = f"{statistics.median(rewards):.4f}"
        lines.append((name, f"{len(rows)} × {trials:g}", f"{seconds:.0f}", median, spread, test))
    head = ("searcher", "runs × trials", "seconds", "reward, median", "its range", "test accuracy, mean")
    return Table(head, lines, 3)


def _runs(found: Mapping[str, Sequence[Row]]) -> Table:
    keys = {"seed": "{:.0f}", "trials": "{:.4g}", "seconds": "{:.1f}", "reward": "{:.4f}", "uniform_reward": "{:.4f}"}
    lines = [
        (
            name,
            *(number(float(row[key]), form) for key, form in keys.items()),
            percent(float(row["test_accuracy"])) if row.get("test_accuracy") else NONE,
            row.get("ended") or NONE,
        )
        for name, rows in found.items()
        for row in rows
    ]
    return Table(
        ("searcher", "seed", "trials", "seconds", "reward", "uniform", "test accuracy", "ended because"), lines
    )
