"""JSON for people: one line for whatever fits on one, and for every list of numbers."""

from __future__ import annotations

import json
from typing import Any

WIDTH = 120


def laid_out(value: Any, indent: int = 0) -> str:
    """The value as JSON; numbers that JSON does not have are refused with a ValueError."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    numbers = isinstance(value, list) and all(isinstance(entry, int | float) for entry in value)
    if not value or numbers or not isinstance(value, dict | list) or (indent and indent + len(flat) < WIDTH):
        return flat
    if isinstance(value, dict):
        names = [json.dumps(str(key), ensure_ascii=False) for key in value]
        parts = [f"{name}: {laid_out(v, indent + 2)}" for name, v in zip(names, value.values(), strict=True)]
        opening, closing = "{", "}"
    else:
        parts = [laid_out(entry, indent + 2) for entry in value]
        opening, closing = "[", "]"
    margin = "\n" + " " * (indent + 2)
    return opening + margin + f",{margin}".join(parts) + "\n" + " " * indent + closing
