"""Numbers as people read them; what is unknown is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autoprune.cost import LABELS, amount

NONE = "–"


def known(value: Any) -> bool:
    """Whether it is a number with which something can be said."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, form: str = "{:.4f}", scale: float = 1.0) -> str:
    """A number in a form, or a dash."""
    return form.format(scale * value) if known(value) else NONE


def percent(value: Any, digits: int = 2) -> str:
    """A share as per cent."""
    return number(value, f"{{:.{digits}%}}")


def cost(name: str, row: Mapping[str, Any]) -> str:
    """What a network costs, and the share of the dense network's that this is."""
    costs, fractions = row.get("costs") or {}, row.get("fractions") or {}
    if not known(costs.get(name)):
        return NONE
    share = f" ({fractions[name]:.1%})" if known(fractions.get(name)) else ""
    return f"{amount(costs[name])}{share}"


def size(count: Any) -> str:
    """Bytes in a readable unit."""
    if not known(count):
        return NONE
    for scale, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= scale:
            return f"{count / scale:.1f} {suffix}"
    return f"{count:.0f} B"


def share_of(name: str) -> str:
    """What a cost is called where a share of it is told, which has no unit."""
    return LABELS.get(name, name).removesuffix(" (ms)")
