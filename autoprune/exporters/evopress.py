"""EvoPress: a configuration, one line ``<layer>: <level>`` per layer, for ``--sparse_config_path``.

Level 0 of EvoPress's database is one sparsity for all layers (``prune.py --sparsity``), and every level removes
``--weights_diff`` single weights more or less, up to ``--num_levels`` either way. A layer gets the level nearest to
the number of its weights that the scheme removes, and a warning says what that changes. Give the three numbers that
your database was made with.
"""

from __future__ import annotations

from torch import nn

from autoprune.errors import UserError
from autoprune.exporters.cuts import weights, without_pattern
from autoprune.exporters.notice import tell
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "EvoPress"


def levels(
    scheme: Scheme,
    space: SearchSpace,
    model: nn.Module | None = None,
    *,
    sparsity: float = 0.5,
    weights_diff: int = 10_000,
    num_levels: int = 8,
) -> str:
    """The configuration of a database with these sparsity levels."""
    if not 0 < sparsity < 1 or weights_diff < 1 or num_levels < 0:
        raise UserError(
            f"sparsity = {sparsity}, weights_diff = {weights_diff}, num_levels = {num_levels}: give a sparsity "
            "between 0 and 1, at least 1 weight and at least 0 levels"
        )
    without_pattern(scheme, space, TOOL)
    lines, changes = [], []
    for one in weights(scheme, space, TOOL):
        wanted = one.entries - one.kept
        level = nearest(one.entries, wanted, sparsity, weights_diff, num_levels)
        found = gone(one.entries, level, sparsity, weights_diff)
        if found != wanted:
            changes.append(f"{one.layer.name} {wanted} -> {found} weights removed")
        lines.append(f"{one.layer.name}: {level}\n")
    tell(f"{TOOL} knows levels only", changes)
    return "".join(lines)


def gone(entries: int, level: int, sparsity: float, weights_diff: int) -> int:
    """Weights that a level removes from a layer with so many ``entries``."""
    return round(entries * sparsity) + level * weights_diff


def nearest(entries: int, wanted: int, sparsity: float, weights_diff: int, num_levels: int) -> int:
    """The level that removes the number of weights nearest to ``wanted``, of those that leave some and add none."""
    possible = [
        level
        for level in range(-num_levels, num_levels + 1)
        if 0 <= gone(entries, level, sparsity, weights_diff) < entries
    ]
    return min(possible, key=lambda level: abs(gone(entries, level, sparsity, weights_diff) - wanted))
