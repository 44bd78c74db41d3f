"""Tables for people: what a space offers, what a budget asks, what a run found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from autoprune.cost import LABELS, TensorSizes, layer_shares

if TYPE_CHECKING:
    from autoprune.budget import Budget
    from autoprune.run import Run
    from autoprune.scheme import Scheme
    from autoprune.space import Group, SearchSpace

METRICS = {
    "accuracy": "validation accuracy",
    "loss": "validation loss",
    "kl": "KL to dense",
    "test_accuracy": "test accuracy",
}


def amount(value: float) -> str:
    """A count with three or four digits and a suffix: 62.9M."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.4g}"


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
        weights = sum(parameters.get(path, 0.0) for path in {piece.path for piece in group.slices})
        members = ", ".join(_beside(name, group.name) for name in group.members if name != group.name)
        table.add_row(group.name, members, str(group.width), counts(group), f"{macs:.1%}", f"{weights:.1%}")
    tables = [table]
    if space.left_out:
        left = Table("layer", "MACs", "why its channels stay", title="What stays whole")
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
        table.add_row("latency, one sample", *(f"{1e3 * row['latency']:.2f} ms" for row in rows.values()))
    return table


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
            str(request.get("searcher", "")),
            str(summary.get("trials", "unfinished")),
            f"{summary['reward']:.4f}" if summary else "–",
            f"{summary['uniform_reward']:.4f}" if summary else "–",
            size(run.size),
        )
    return table


def narrowed(names: Sequence[str], widths: Sequence[int], kept: Sequence[int]) -> Table:
    """Kept channels per group."""
    table = Table("group", "kept", "of", "")
    for column in (1, 2):
        table.columns[column].justify = "right"
    for name, width, count in zip(names, widths, kept, strict=True):
        table.add_row(name, str(count), str(width), "█" * max(1, round(24 * count / width)))
    return table
