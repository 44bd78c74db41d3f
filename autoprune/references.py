"""Python objects by name: ``package.module:object``, the way the command line names custom code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from autoprune.errors import UserError


def function(given: Any, kind: str, known: Mapping[str, Any]) -> Any:
    """The function of some kind (a reward, a searcher, …) that a person named, or handed over as it is.

    ``known`` maps the built-in names to functions, or to where they are ("module:name", for what is heavy to
    import). Installed packages announce theirs under the entry point group ``autoprune.<kind>``; a built-in
    name wins. Any other function goes by ``package.module:name``, which imports its module.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise UserError(f"{kind} {given!r} is neither a name nor a function")
        return given
    found = known.get(given, given)
    if isinstance(found, str):
        found = resolve(found, kind) if ":" in found else _announced(given, kind, known)
    if not callable(found):
        raise UserError(f"{kind} {given!r} is a {type(found).__name__}, not a function")
    return found


def _announced(name: str, kind: str, known: Mapping[str, Any]) -> Any:
    announced = {point.name: point for point in entry_points(group=f"autoprune.{kind}")}
    if name in announced:
        return announced[name].load()
    names = [*known, *announced]
    listed = f"{', '.join(names)} or " if names else ""
    raise UserError(f"{kind} {name!r} is unknown: use {listed}a package.module:function{close(name, names)}")


def resolve(reference: str, kind: str) -> Any:
    """The object that ``package.module:object`` names; ``kind`` says in messages what it is wanted for.

    The current directory is importable, as under ``python -m``. An exception that the module itself
    raises while it is imported is not touched: it belongs to the module's author.
    """
    module, colon, attribute = reference.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise UserError(f"{kind} {reference!r} is not a reference to Python code: write it like package.module:name")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
        importlib.invalidate_caches()
    try:
        return resolve_name(reference)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if module == absent or module.startswith(f"{absent}."):
            raise UserError(
                f"{kind} {reference!r}: no module {absent!r} is installed or found under {Path.cwd()}"
            ) from None
        raise UserError(f"{kind} {reference!r}: {module} imports {absent!r}, which is not installed") from error
    except AttributeError:
        if module not in sys.modules:
            raise
        holder, name = sys.modules[module], ""
        for name in attribute.split("."):
            if not hasattr(holder, name):
                raise UserError(f"{kind} {reference!r}: no {name!r} there{close(name, dir(holder))}") from None
            holder = getattr(holder, name)
        raise


def close(name: str, known: list[str] | tuple[str, ...]) -> str:
    """The end of a message about an unknown name: ``; close: a, b``, or nothing when none is close."""
    matches = get_close_matches(name, known, n=4, cutoff=0.6)
    return f"; close: {', '.join(matches)}" if matches else ""


def stable_name(given: object) -> str | None:
    """How a record names a function, the same in every session; a name, or None, is returned as it is."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, partial):
        keywords = sorted(given.keywords.items())
        values = [_value(value) for value in given.args] + [f"{name}={_value(value)}" for name, value in keywords]
        return f"{stable_name(given.func)}({', '.join(values)})"
    return f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', type(given).__name__)}"


def _value(value: object) -> str:
    return f"{stable_name(value)}" if callable(value) else repr(value)
