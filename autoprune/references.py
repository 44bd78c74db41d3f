"""Python objects by name: ``package.module:object``, the way the command line names custom code."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from autoprune.errors import UserError


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
