"""How many weights every layer keeps: the same share everywhere, or as rates say, and exactly so many together."""

from __future__ import annotations

from collections.abc import Mapping

from autoprune import masks
from autoprune.errors import UserError
from autoprune.references import close

ROUNDING = 1e-6  # weights: a share is a quotient
TOLERANCE = 0.001  # of all weights: how far rates may be from the sparsity that was asked for


def counts(sizes: Mapping[str, int], sparsity: float, rates: Mapping[str, float] | None = None) -> dict[str, int]:
    """Kept weights by name; together they are what ``masks.kept`` leaves of all, and one stays in each at least.

    ``rates`` are the shares to *remove* by name; without them all layers lose the same share. What rounding leaves
    goes to the layers that lost most by it, the first among equals.
    """
    asked = masks.kept(sum(sizes.values()), sparsity)
    if asked < len(sizes):
        raise UserError(
            f"sparsity {sparsity}: {asked} weights would be left for {len(sizes)} layers, one each at least"
        )
    wanted = {name: size * asked / sum(sizes.values()) for name, size in sizes.items()}
    if rates is not None:
        check(rates, sizes, sparsity)
        wanted = {name: size * (1 - rates[name]) for name, size in sizes.items()}
    found = {name: min(sizes[name], max(1, int(share))) for name, share in wanted.items()}
    missing = asked - sum(found.values())
    step = 1 if missing > 0 else -1
    while missing:  # most often a single round
        order = sorted(found, key=lambda name: step * (found[name] - wanted[name]))
        movable = [name for name in order if 1 <= found[name] + step <= sizes[name]]
        for name in movable[: abs(missing)]:
            found[name] += step
            missing -= step
    return found


def floored(sizes: Mapping[str, int], rates: Mapping[str, float]) -> dict[str, int]:
    """Kept weights where exactly floor(s n) of every layer go, as UniPTS's release counts."""
    return {name: max(1, size - int(rates[name] * size + ROUNDING)) for name, size in sizes.items()}


def check(rates: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> None:
    """Refuse rates for other layers, out of range, or of another sparsity."""
    for name in rates:
        if name not in sizes:
            raise UserError(f"the rates name {name!r}, which is not pruned here{close(name, list(sizes))}")
    for name in sizes:
        if name not in rates:
            raise UserError(f"the rates say nothing about {name}: give one for every layer, 0 where all of it stays")
        if not 0 <= rates[name] < 1:
            raise UserError(f"the rate of {name} is {rates[name]}: the share to remove is at least 0 and below 1")
    together = sum(size * rates[name] for name, size in sizes.items()) / sum(sizes.values())
    if abs(together - sparsity) > TOLERANCE:
        raise UserError(f"the rates remove {together:.2%} of all weights together, and {sparsity:.2%} was asked for")
