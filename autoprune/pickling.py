"""Which part of a thing cannot be pickled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any


def culprit(thing: Any, place: str = "evaluator", seen: frozenset[int] = frozenset()) -> tuple[str, Any]:
    """The innermost part that cannot be pickled, and the way to it."""
    from ray import cloudpickle

    for name, part in _parts(thing):
        if id(part) in seen:
            continue
        try:
            cloudpickle.dumps(part)
        except Exception:  # noqa: BLE001 - whatever it raises, that is the part
            return culprit(part, f"{place}.{name}", seen | {id(thing)})
    return place, thing


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Mapping):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple):
        yield from ((str(number), item) for number, item in enumerate(thing))
    elif isinstance(thing, functools.partial):
        yield from (("func", thing.func), ("args", thing.args), ("keywords", thing.keywords))
    elif inspect.isfunction(thing):
        around = inspect.getclosurevars(thing)
        yield from (*around.nonlocals.items(), *around.globals.items())
    elif inspect.ismethod(thing):
        yield "__self__", thing.__self__
    elif not isinstance(thing, type) and hasattr(thing, "__dict__"):
        yield from vars(thing).items()
