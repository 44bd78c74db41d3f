"""The page of a search: the answer, what every layer keeps, how it was found, how far the numbers can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from autoprune import chart
from autoprune.errors import UserError
from autoprune.page import beside, histories, latency, proxy, rows, sensitivity
from autoprune.page.histories import Past
from autoprune.page.numbers import known, number, percent, share_of
from autoprune.page.parts import Article, Figure, Section, Table
from autoprune.page.provenance import provenance
from autoprune.run import FRONT, SCHEME, Run, read_json

KIND = "search"


def article(run: Run) -> Article:
    """What is told of a search."""
    found, history = rows.rows(run), histories.read(run)
    lead = [text for text in (latency.verdict(run), _remark(run)) if text]
    sections = [
        Section("Before and after", table=rows.table(found)),
        kept(run),
        _search(run, history),
        rows.training(run),
        _front(run, bool(run.config["request"].get("objectives"))),
        _sensitivity(run, history),
        latency.section(run),
        _proxy(run),
    ]
    told = [section for section in sections if section]
    return Article(run.name, KIND, _answer(run, found), lead, told, run.config.get("command"), provenance(run))


def _answer(run: Run, found: rows.Rows) -> str:
    row = rows.answer(found)
    capped = [name for name in run.config["request"]["budget"] if known(row["fractions"].get(name))]
    shares = " and ".join(_share(name, row, found["dense"]) for name in capped)
    key, word = rows.measure(row)
    if not known(found["dense"].get(key)):
        return f"Found: a network with {shares}."
    return (
        f"With {shares} the network has {word} {rows.value(row, key)}; dense it has {rows.value(found['dense'], key)}, "
        f"cut by one rate everywhere {rows.value(found['uniform'], key)}."
    )


def _share(name: str, row: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    """What is kept of a cost; of the latency as it was measured, where it was."""
    if name == "latency" and known(row.get(name)) and known(dense.get(name)):
        return f"{row[name] / dense[name]:.0%} of the measured latency"
    return f"{row['fractions'][name]:.0%} of the {share_of(name)}"


def _remark(run: Run) -> str | None:
    """What a reader would otherwise take for a success or a failure of the method."""
    if run.summary.get("interrupted"):
        return "The search was interrupted: the command below continues it."
    same = run.summary["kept"] == run.summary["uniform"]
    return "Nothing better than uniform rates was found: give the search more trials." if same else None


def kept(run: Run) -> Section:
    """What every layer keeps, as it was found and by uniform rates."""
    noun, names = nouns(run)
    columns = zip(names, *(run.summary[key] for key in ("widths", "kept", "uniform")), strict=True)
    bars = [chart.Bar(name, width, (found, uniform)) for name, width, found, uniform in columns]
    title = f"{noun.capitalize()} kept; grey is the dense width"
    svg = chart.bars(bars, ("found", "uniform rates"), title, shares=noun == "weights")
    lines = [(b.name, str(b.width), *map(str, b.kept), percent(b.kept[0] / b.width, 1)) for b in bars]
    head = ("group", "dense", "found", "uniform rates", "share found")
    return Section("What every layer keeps", figures=[Figure("layers", svg, Table(head, lines))])


def nouns(run: Run) -> tuple[str, list[str]]:
    """What is kept (channels or weights), and the groups it is kept of."""
    path = run.folder / SCHEME
    if not path.is_file():
        raise UserError(f"run {run.name} has no {SCHEME}: its folder is not whole")
    scheme = read_json(path)
    return "channels" if scheme["granularity"] == "channel" else "weights", [g["name"] for g in scheme["groups"]]


def _search(run: Run, history: Sequence[Past]) -> Section | None:
    seen = [
        chart.Seen(trial.trials, trial.reward, trial.counts, _more(trial))
        for trial in history
        if trial.reward is not None
    ]
    if not seen:
        return None
    svg = chart.history(seen, "Reward of every trial, and the best so far")
    figure = Figure("search", svg, Table(HEAD, list(_lines(history))), "all trials")
    return Section("The search", [_spent(run.summary)], figures=[figure])


HEAD = ("trial", "reward", "loss", "accuracy", "affordable", "measured", "kept")


def _lines(history: Sequence[Past]) -> Iterator[tuple[str, ...]]:
    for trial in history:
        reward = "failed" if trial.reward is None else f"{trial.reward:.4f}"
        measured = "in full" if trial.full else "stopped early" if trial.stopped else trial.fidelity
        cells = (f"{trial.trials:.4g}", reward, number(trial.loss), percent(trial.accuracy))
        yield (*cells, "yes" if trial.affordable else "no", measured, " ".join(map(str, trial.kept)))


def _more(trial: Past) -> str:
    accuracy = f", accuracy {percent(trial.accuracy)}" if trial.accuracy is not None else ""
    if not trial.affordable:
        return f"{accuracy}, not affordable"
    if trial.stopped:
        return f"{accuracy}, stopped early"
    return accuracy if trial.full else f"{accuracy}, a quick look"


def _spent(summary: Mapping[str, Any]) -> str:
    """How many trials there were, and what they cost."""
    looks = f", {summary['looks']} quick looks" if summary.get("looks") else ""
    stopped = f", {summary['stopped']} of them stopped early" if summary.get("stopped") else ""
    return (
        f"{summary['trials']} trials{stopped}{looks}, {summary['feasible']} affordable, {summary['failed']} failed, "
        f"{summary['seconds']:.0f} s of measuring; ended because {summary['ended']}."
    )


def _front(run: Run, asked: bool) -> Section | None:
    """The trials that no other dominates, drawn anew from their values: a picture in a folder could be anything."""
    path = run.folder / FRONT
    record = read_json(path) if path.is_file() else {}
    points = record.get("points") or []
    if len(points) < (1 if asked else 3):
        return None
    objectives = {name: str(direction) for name, direction in record["objectives"].items()}
    up, across = list(objectives)[:2]
    values, others = (
        np.array([[told[across], told[up]] for told in several], dtype=np.float64).reshape(-1, 2)
        for several in ([point["values"] for point in points], record.get("others") or [])
    )
    better = {name: "higher" if direction == "maximize" else "lower" for name, direction in objectives.items()}
    axes = (f"{share_of(across)}, {better[across]} is better", f"{share_of(up)}, {better[up]} is better")
    shares = [name == "accuracy" or name in points[0]["fractions"] for name in (across, up)]
    svg = chart.scatter(values, others, "What no other trial beats", axes, shares=(shares[0], shares[1]))
    reference = ", ".join(f"{share_of(name)} {value:.4g}" for name, value in record["reference"].items())
    text = (
        f"{len(points)} of the trials are dominated by none; hypervolume {record['hypervolume']:.4g} from {reference}."
    )
    head = ("point", *(share_of(name) for name in objectives), "accuracy", "kept")
    lines = [
        (
            str(at),
            *(number(p["values"][name], "{:.4g}") for name in objectives),
            percent(p.get("accuracy")),
            str(p["kept"]),
        )
        for at, p in enumerate(points)
    ]
    command = f"autoprune export {run.name} --to csv --point NUMBER writes any of them."
    return Section("Pareto front", [text, command], figures=[Figure("front", svg, Table(head, lines))])


def _sensitivity(run: Run, history: Sequence[Past]) -> Section | None:
    """From the trials of the search itself, or else from an analysis of the same network that lies beside it."""
    own = sensitivity.searched(nouns(run)[1], run.summary["widths"], history)
    if own:
        return sensitivity.section(own, ["Measured by the search itself."])
    there = beside.sensitivity(run)
    if there is None:
        return None
    name, record = there
    note = f"Measured by run {name}, which lies beside this one."
    return beside.sound(lambda: sensitivity.section(sensitivity.recorded(record), [note]))


def _proxy(run: Run) -> Section | None:
    there = beside.proxy(run)
    return None if there is None else beside.sound(lambda: proxy.section(there[1]))
