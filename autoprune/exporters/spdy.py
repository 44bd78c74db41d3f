"""SPDY: a profile, one line ``<sparsity> <layer>`` per layer, for ``adaprune.py load --profile`` and ``spdy.py``.

Sparsities are shares of single weights removed, and only those exist for which a database holds weights: by default
dense and the 41 of ``adaprune.py gen`` (0.4 to 0.99, the density shrinking by the same factor at each step). A layer
gets the nearest to the share of its weights that the scheme removes, and a warning says what that changes. Leave out
the layers that your database leaves out (SPDY skips the first and the last of its networks) with ``skip``.
"""

from __future__ import annotations

from torch import nn

from autoprune.errors import UserError
from autoprune.exporters.cuts import weights, without_pattern
from autoprune.exporters.notice import tell
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "SPDY"
HALF_A_DIGIT = 5e-5
SMALLEST, LARGEST, STEPS = 0.4, 0.99, 40


def database(smallest: float = SMALLEST, largest: float = LARGEST, steps: int = STEPS) -> list[str]:
    """The sparsities of a database as SPDY writes them: dense, then from ``smallest`` to ``largest``."""
    if not 0 < smallest < largest < 1 or steps < 1:
        raise UserError(
            f"{smallest} to {largest} in {steps} steps: sparsities rise between 0 and 1, in at least 1 step"
        )
    factor = ((1 - largest) / (1 - smallest)) ** (1 / steps)
    return ["0.0000", *(f"{1 - (1 - smallest) * factor**step:.4f}" for step in range(steps + 1))]


def profile(
    scheme: Scheme,
    space: SearchSpace,
    model: nn.Module | None = None,
    *,
    smallest: float = SMALLEST,
    largest: float = LARGEST,
    steps: int = STEPS,
    skip: str = "",
) -> str:
    """The profile for a database with these sparsities; ``skip`` names layers, with commas."""
    offered = database(smallest, largest, steps)
    known = {one.layer.name: one for one in weights(scheme, space, TOOL)}
    skipped = [name.strip() for name in skip.split(",") if name.strip()]
    for name in skipped:
        if name not in known:
            raise UserError(f"skip = {name!r}: the network has no convolution or linear layer of that name")
    without_pattern(scheme, space, TOOL)
    lines, changes = [], []
    for name, one in known.items():
        if name in skipped:
            if one.kept < one.entries:
                changes.append(f"{name} {one.removed:.4f} -> left out")
            continue
        sparsity = min(offered, key=lambda text, wanted=one.removed: abs(float(text) - wanted))  # type: ignore[misc]
        if abs(float(sparsity) - one.removed) > HALF_A_DIGIT:
            changes.append(f"{name} {one.removed:.4f} -> {sparsity}")
        lines.append(f"{sparsity} {name}\n")
    tell(f"{TOOL}'s database has no other sparsities", changes)
    return "".join(lines)
