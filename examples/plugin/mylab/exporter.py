"""A scheme in the form of something else."""

from __future__ import annotations

from torch import nn

from autoprune.scheme import Scheme
from autoprune.space import SearchSpace


def latex(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None, caption: str = "Channels kept") -> str:
    """A table for a paper."""
    rows = []
    for group, kept in zip(space.groups, scheme.kept, strict=True):
        name = group.name.replace("_", r"\_")
        rows.append(rf"    {name} & {group.width} & {kept} \\")
    head = ["\\begin{table}", f"  \\caption{{{caption}}}", "  \\begin{tabular}{lrr}", r"    group & dense & kept \\"]
    return "\n".join([*head, *rows, "  \\end{tabular}", "\\end{table}", ""])
