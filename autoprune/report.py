"""Tables for people: what a space offers, what a budget asks, what a run found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from autoprune.cost import LABELS, TensorSizes, amount, layer_shares

if TYPE_CHECKING:
    import pandas as pd

    from autoprune.budget import Budget
    from autoprune.difference import Difference
    from autoprune.latency.stopwatch import Timing
    from autoprune.run import Run
    from autoprune.scheme import Scheme
    from autoprune.space import Group, SearchSpace

METRICS = {
    "accuracy": "validation accuracy",
    "loss": "validation loss",
    "kl": "KL to dense",
    "test_accuracy": "test accuracy",
}


def size(count: float) -> str:
    """Bytes in a readable unit."""
    for scale, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= scale:
            return f"{count / scale:.1f} {suffix}"
    return f"{count:.0f} B"


def groups(space: SearchSpace) -> list[Table]:
    """What may be pruned, and what may not and why."""
    shares, sizes = layer_shares(space), TensorSizes(space, tuple(space.shapes))(space.dense)
    parameters = dict(zip(space.shapes, sizes / sizes.sum(), strict=True))
    table = Table(
        "group",
        "cut together with",
        "width",
        "allowed counts",
        "MACs touched",
        "params touched",
        title="What may be pruned",
    )
    table.columns[0].no_wrap = True  # names are what patterns are written for
    table.columns[1].overflow = "fold"
    for column in (2, 4, 5):
        table.columns[column].justify = "right"
    for group in space.groups:
        macs = sum(shares.get(name, 0.0) for name in group.members)
        weights = sum(parameters.get(path, 0.0) for path in group.tensors)
        members = ", ".join(_beside(name, group.name) for name in group.members if name != group.name)
        table.add_row(group.name, members, str(group.width), counts(group), f"{macs:.1%}", f"{weights:.1%}")
    tables = [table]
    if space.left_out:
        left = Table("layer", "MACs", f"why its {space.noun} stay", title="What stays whole")
        left.columns[0].no_wrap = True
        left.columns[1].justify = "right"
        for item in space.left_out:
            left.add_row(item.name, f"{shares.get(item.name, 0.0):.1%}", item.reason)
        tables.append(left)
    return tables


def _beside(name: str, root: str) -> str:
    """A member's name, less the beginning that it shares with the group's: ``….bn1`` beside ``layer1.0.conv1``."""
    parts, own = name.split("."), root.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(parts, own, strict=False)) if a != b), 0)
    return f"….{'.'.join(parts[shared:])}" if shared else name


def counts(group: Group) -> str:
    """Legal kept counts in few words."""
    steps = {b - a for a, b in zip(group.counts, group.counts[1:], strict=False)}
    if len(group.counts) == 1:
        return str(group.counts[0])
    if len(steps) == 1:
        step = steps.pop()
        return f"{group.counts[0]}–{group.counts[-1]}" + (f" by {step}" if step > 1 else "")
    return (
        f"{group.counts[0]}, {group.counts[1]}, … {group.counts[-1]}"
        if len(group.counts) > 3
        else ", ".join(map(str, group.counts))
    )


def preflight(budget: Budget, uniform: Scheme) -> Table:
    """The budget between the smallest and the dense network."""
    table = Table("cost", "smallest", "budget", "uniform", "dense", title="Budget")
    for name, cap in budget.caps.items():
        low, high = budget.reachable()[name]
        used = budget.costs[name](uniform)
        table.add_row(
            name,
            f"{amount(low)} ({low / high:.1%})",
            f"{amount(cap)} ({cap / high:.1%})",
            f"{amount(used)} ({used / high:.1%})",
            amount(high),
        )
    return table


def comparison(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Dense, uniform and found, side by side: one line a quantity."""
    table = Table("", *rows)
    for column in table.columns[1:]:
        column.justify = "right"
    for key, label in METRICS.items():
        if any(row.get(key) is not None for row in rows.values()):
            table.add_row(label, *(_metric(key, row.get(key)) for row in rows.values()))
    own = dict.fromkeys(name for row in rows.values() for name in row.get("metrics", {}) if name not in METRICS)
    for name in own:
        table.add_row(name, *(f"{row['metrics'].get(name, float('nan')):.4g}" for row in rows.values()))
    for name in dict.fromkeys(name for row in rows.values() for name in row.get("costs", {})):
        table.add_row(
            LABELS.get(name, name),
            *(f"{amount(row['costs'][name])} ({row['fractions'][name]:.1%})" for row in rows.values()),
        )
    if all("latency" in row for row in rows.values()):
        table.add_row("latency, measured", *(f"{1e3 * row['latency']:.2f} ms" for row in rows.values()))
    return table


def appraisal(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """The dense network and schemes of it, one line each; accuracy and loss without a word are on validation images."""
    sound = [row for row in rows.values() if "error" not in row]
    known = [name for name in ("accuracy", "loss", "test_accuracy") if any(row.get(name) is not None for row in sound)]
    own = list(dict.fromkeys(name for row in sound for name in row["metrics"] if name not in known))
    costs = list(sound[0]["costs"])
    headings = [name.replace("_", " ") for name in known] + own + [LABELS.get(name, name) for name in costs]
    table = Table("", *headings, "latency")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in rows.items():
        if "error" in row:
            table.add_row(name, f"failed: {row['error']}")
            continue
        cells = [_metric(key, row.get(key)) for key in known]
        cells += [f"{row['metrics'][key]:.4g}" if key in row["metrics"] else "–" for key in own]
        cells += [f"{amount(row['costs'][cost])} {row['fractions'][cost]:.1%}" for cost in costs]
        table.add_row(name, *cells, f"{1e3 * row['latency']:.2f} ms")
    return table


def difference(found: Difference) -> Table:
    """One line a group, and the costs where both are known."""
    table = Table("group", "dense", *found.names, "difference", title=f"{found.moved} {found.noun} apart")
    for row in found.rows:
        apart = row.second - row.first
        table.add_row(row.name, str(row.width), str(row.first), str(row.second), f"{apart:+d}" if apart else "")
    for name, (one, two) in found.costs.items():
        table.add_row(LABELS.get(name, name), "", amount(one), amount(two), f"{two / one - 1:+.1%}")
    return table


def timings(found: Mapping[str, Timing], title: str) -> Table:
    """One line a network: median, quartiles, and how many times as fast as the first."""
    table = Table("network", "median", "quartiles", "speed-up", title=title)
    first = next(iter(found.values())).median
    for name, timing in found.items():
        quartiles = f"{timing.low:.3f}-{timing.high:.3f} ms"
        table.add_row(name, f"{timing.median:.3f} ms", quartiles, f"{first / timing.median:.2f}")
    return table


def epoch(facts: Mapping[str, float], epochs: int) -> str:
    """One line of a training."""
    return (
        f"epoch {facts['epoch']:.0f}/{epochs}: loss {facts['loss']:.4f}, "
        f"validation loss {facts['validation_loss']:.4f}, validation accuracy {facts['validation_accuracy']:.2%}"
    )


def scored(row: Mapping[str, Any]) -> str:
    """One scheme of a proxy check."""
    scores = ", ".join(f"{name} {score:.4f}" for name, score in row["scores"].items() if score is not None)
    return f"{scores}; after training {row['tuned_accuracy']:.2%}"


def proxies(record: Mapping[str, Any]) -> Table:
    """How well each repair's score ranks the schemes."""
    table = Table("score after", "Spearman", "90 % of bootstraps", "Kendall", "Spearman with loss")
    for name, found in record["agreement"].items():
        by = found["accuracy"]
        interval = f"{by['low']:.2f} to {by['high']:.2f}"
        table.add_row(
            name, f"{by['spearman']:.3f}", interval, f"{by['kendall']:.3f}", f"{found['loss']['spearman']:.3f}"
        )
    return table


def agreement(facts: Mapping[str, Any]) -> str:
    """How well a latency table predicts networks it was not corrected by."""
    return (
        f"predicted against measured, {len(facts['checked'])} random networks: mean error {facts['mape']:.1%}, "
        f"worst {facts['worst']:.1%}, rank correlation {facts['spearman']:.3f}"
    )


def verdict(facts: Mapping[str, Any]) -> str:
    """Whether the latency that was asked for is met, in one line."""
    met = "met" if facts["met"] else "NOT met"
    return (
        f"latency: asked for {facts['limit']:.3g} ms, predicted {facts['predicted']:.3g} ms, measured "
        f"{facts['measured']:.3g} ms: {met} (error of measuring {facts['error']:.1%}); "
        f"{facts['dense'] / facts['measured']:.2f} times as fast as the dense network"
    )


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2%}" if "accuracy" in name else f"{value:.4f}"


def runs(found: Sequence[Run]) -> Table:
    """One line a run."""
    table = Table("run", "model", "searcher", "trials", "reward", "uniform", "disk")
    for run in found:
        summary, request = run.summary, run.config.get("request", {})
        table.add_row(
            run.name,
            str(run.config.get("name", "")),
            str(request.get("searcher", request.get("method", request.get("kind", "")))),
            str(summary.get("trials", "–" if summary else "unfinished")),
            *(f"{summary[key]:.4f}" if key in summary else "–" for key in ("reward", "uniform_reward")),
            size(run.size),
        )
    return table


def spent(summary: Mapping[str, Any]) -> str:
    """What a search measured, in words."""
    if not summary["looks"]:
        stopped = summary.get("stopped", 0)
        return f"{summary['trials']} trials{f' ({stopped} stopped early)' if stopped else ''}"
    return f"{summary['effort']:g} trials ({summary['trials']} in full and {summary['looks']} quick looks)"


def finished(run: Run) -> str:
    """One line for a run of a comparison that has ended."""
    request, summary = run.config["request"], run.summary
    options = "".join(f",{name}={value}" for name, value in request["options"].items())
    return (
        f"{request['searcher']}{options}, seed {request['search_seed']}: reward {summary['reward']:.4f} "
        f"(uniform {summary['uniform_reward']:.4f}) in {spent(summary)}, {summary['seconds']:.0f} s; "
        f"{summary['ended']}"
    )


def searchers(frame: pd.DataFrame) -> Table:
    """One line per searcher of a comparison, the best first.

    Runs and their trials, medians of seconds and reward, the range of the reward, the mean test accuracy.
    """
    table = Table("searcher", "trials", "seconds", "reward", "range", "test")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    best_first = frame.groupby("searcher")["reward"].median().sort_values(ascending=False).index
    for name in best_first:
        runs = frame[frame["searcher"] == name]
        middle = runs.median(numeric_only=True)
        table.add_row(
            str(name),
            f"{len(runs)} × {middle['trials']:g}",
            f"{middle['seconds']:.0f}",
            f"{middle['reward']:.4f}",
            f"{runs['reward'].max() - runs['reward'].min():.4f}",
            _percent(runs["test_accuracy"].astype(float).mean()),
        )
    return table


def _percent(value: float) -> str:
    return "–" if value != value else f"{value:.2%}"  # noqa: PLR0124 - not NaN


def front(facts: Mapping[str, Any], points: pd.DataFrame) -> Table:
    """One line a point of a Pareto front; costs are shares of the dense network's."""
    arrows = {"maximize": "↑", "minimize": "↓"}
    shares = {column.removeprefix("fractions.") for column in points.columns if column.startswith("fractions.")}
    objectives = facts["objectives"]
    reference = ", ".join(f"{LABELS.get(name, name)} {value:.4g}" for name, value in facts["reference"].items())
    caption = f"hypervolume {facts['hypervolume']:.4g} from {reference}"
    headings = [f"{LABELS.get(name, name)} {arrows[direction]}" for name, direction in objectives.items()]
    table = Table("point", *headings, title="Pareto front", caption=caption)
    for column in table.columns:
        column.justify = "right"
    for number, point in points.iterrows():
        cells = (f"{point[name]:.1%}" if name in shares else _metric(name, float(point[name])) for name in objectives)
        table.add_row(str(number), *cells)
    return table


def sensitivity(record: Mapping[str, Any]) -> Table:
    """One line a group, the most sensitive first: what is lost and saved at half width, and what was measured.

    ``record`` is what :meth:`autoprune.sensitivity.Sensitivity.to_dict` gives and ``sensitivity.json`` holds.
    """
    table = Table("group", "half", "lost", "MACs saved", "lost by number kept", title="Sensitivity")
    table.caption, table.caption_justify = "\n".join(_remarks(record)), "left"
    table.columns[0].no_wrap = True
    for column in table.columns[1:4]:
        column.justify = "right"
    lost = {curve["group"]: float("-inf" if curve["lost"] is None else curve["lost"]) for curve in record["curves"]}
    for curve in sorted(record["curves"], key=lambda curve: lost[curve["group"]], reverse=True):
        if curve["lost"] is None:
            table.add_row(curve["group"], "", "–", "–", f"cannot be cut: {curve['reason']}")
            continue
        table.add_row(
            curve["group"],
            f"{curve['half']} of {curve['width']}",
            "fails" if curve["lost"] == "inf" else f"{curve['lost']:.3g}",
            f"{curve['saved']['macs']:.1%}" if "macs" in curve["saved"] else "–",
            "  ".join(_cut(cut) for cut in curve["cuts"]),
        )
    return table


def _cut(cut: Mapping[str, Any]) -> str:
    """A count and the drop there, in one word that no line break divides."""
    drop = {"failed": "failed", "not measured": "free"}.get(cut["status"]) or f"{cut['drop']:.2g}"
    return f"{cut['kept']}:{drop}"


def _remarks(record: Mapping[str, Any]) -> Iterator[str]:
    """What the lines of the table are to be read against, and why counts have no number."""
    accuracy = record["uncut"]["accuracy"]
    uncut = "nothing cut" if accuracy is None else f"nothing cut, accuracy {accuracy:.2%}"
    yield f"lost: how far {record['reward']} falls from {record['value']:.4g} ({uncut}) with this group alone cut"
    cuts = [(curve["group"], cut) for curve in record["curves"] for cut in curve["cuts"]]
    if any(cut["status"] == "not measured" for _, cut in cuts):
        yield "free: not measured, for fewer already lost nothing"
    yield from (f"{name} at {cut['kept']} failed: {cut['note']}" for name, cut in cuts if cut["status"] == "failed")


def narrowed(names: Sequence[str], widths: Sequence[int], kept: Sequence[int]) -> Table:
    """Kept channels or weights per group."""
    table = Table("group", "kept", "of", "")
    for column in (1, 2):
        table.columns[column].justify = "right"
    for name, width, count in zip(names, widths, kept, strict=True):
        table.add_row(name, str(count), str(width), "█" * max(1, round(24 * count / width)))
    return table
