"""What the shell completes: names that are known without loading anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import typer


def of(*names: str) -> Callable[[str], list[str]]:
    """Completes to one of the names."""

    def complete(incomplete: str) -> list[str]:
        return starting(incomplete, names)

    return complete


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Completes to a run in the folder of runs."""
    folder = Path(ctx.params.get("root") or "runs")
    try:
        return starting(incomplete, sorted(path.parent.name for path in folder.glob("*/config.json")))
    except OSError:  # a folder that may not be read has no runs for us
        return []


def starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """The names that begin so."""
    return [name for name in names if name.startswith(incomplete)]
