"""One live line for a training or a method that says how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

NUMBERS = ("round", "level", "epoch", "loss", "validation_accuracy", "best")  # what people like to see of a record


class Bar:
    """Shows the last record that it was told: the share that is ``done`` of all, and its numbers.

    It is a context, and nothing where the console is no terminal. ``what`` is shown where a record does not name its
    ``stage`` or ``method``, ``of`` is how many there are where a record does not say so.
    """

    def __init__(self, console: Console, what: str, of: int | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._what, self._of = what, of
        self._task = self._bar.add_task(what, total=of)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Take one record."""
        done, of = facts.get("done", facts.get("epoch")), facts.get("of", facts.get("epochs", self._of))
        shown = [
            f"{key.replace('_', ' ')} {facts[key]:.4g}" for key in NUMBERS if isinstance(facts.get(key), int | float)
        ]
        stage = str(facts.get("stage", facts.get("method", self._what)))
        self._bar.update(self._task, description=" ".join([stage, *shown]), completed=done or 0, total=of)
