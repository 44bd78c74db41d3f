"""autoprune: how many channels every layer of a trained network keeps, searched under a budget.

    run = autoprune.search(model, example, calibration, validation, budget="macs=50%")
    run.scheme, run.model, run.trials()

The nouns: a ``SearchSpace`` of groups, a ``Scheme`` (kept channels, one integer per group), a ``Budget``, an
``Evaluator`` that turns schemes into measurements, a ``Ledger`` that remembers them, a ``Loop`` that asks
a searcher and tells it. Everything is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Budget": "budget",
    "Evaluator": "evaluate",
    "Group": "space",
    "Hints": "hints",
    "Ledger": "ledger",
    "Loop": "loop",
    "Measurement": "trial",
    "Run": "run",
    "Scheme": "scheme",
    "SearchSpace": "space",
    "Stop": "loop",
    "Trial": "trial",
    "UserError": "errors",
    "load_pruned": "pruned",
    "runs": "run",
    "search": "api",
    "trace": "api",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list of strings, made from the table


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autoprune' has no attribute {name!r}")
    value = getattr(import_module(f"autoprune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
