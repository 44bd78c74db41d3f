"""Who is told what a search does: a listener, ``(event, facts)``, or several.

docs/tracking.md has every event with its facts. A listener that does not know an event leaves it alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autoprune.errors import UserError
from autoprune.references import stable_name

Listener = Callable[[str, Mapping[str, Any]], Any]
Listeners = Listener | Sequence[Listener] | None

PATIENCE = 3  # errors in a row after which a listener is told of the end alone
ENDS = ("done", "failed")

log = logging.getLogger(__name__)


class Audience:
    """Several listeners as one.

    An error in a listener is worth a warning and not a search: the first of a row is told, and after ``PATIENCE`` of
    them in a row the listener hears of the end alone. Ctrl-C passes.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        for listener in listeners:
            if not callable(listener):
                raise UserError(f"listener {listener!r} cannot be called: give a function (event, facts), or several")
        self._listeners = tuple(listeners)
        self._missed = [0] * len(self._listeners)

    def __call__(self, event: str, facts: Mapping[str, Any]) -> bool:
        """Tell everybody; whether one of them answered that the search may end."""
        answers = [self._tell(number, event, facts) for number in range(len(self._listeners))]
        return any(answers)

    def _tell(self, number: int, event: str, facts: Mapping[str, Any]) -> bool:
        if self._missed[number] >= PATIENCE and event not in ENDS:
            return False
        try:
            answer = bool(self._listeners[number](event, facts))
        except Exception as error:  # noqa: BLE001 - whatever it is, the search is worth more
            self._missed[number] += 1
            self._warn(number, event, error)
            return False
        self._missed[number] = 0
        return answer

    def _warn(self, number: int, event: str, error: Exception) -> None:
        missed, name = self._missed[number], stable_name(self._listeners[number])
        if missed == 1:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("listener %s failed at %r (%s): the search goes on", name, event, why)
        elif missed == PATIENCE:
            log.warning("listener %s failed %d times in a row: it is told of the end alone", name, PATIENCE)


def together(given: Listeners) -> Audience:
    """What a person gave (one listener, several, none) as one."""
    if isinstance(given, Audience):
        return given
    if given is None or callable(given):
        return Audience([given] if given is not None else [])
    return Audience(list(given))


@contextmanager
def farewell(tell: Listener) -> Iterator[None]:
    """Tell of an error that ends the block, so that whoever has something open can close it."""
    try:
        yield
    except BaseException as error:
        tell("failed", {"error": error})
        raise


class Steps:
    """Numbers the full trials of a search from 1, through all its rounds; quick looks are numbered but not told."""

    def __init__(self) -> None:
        self._before = self._last = 0

    def __call__(self, event: str, facts: Mapping[str, Any]) -> int | None:
        """The number of the trial that is told of, if it was measured in full."""
        if event == "started":
            self._before = self._last = 0
        elif event == "tightened":  # another loop, which counts its own
            self._before = self._last
        elif event == "trial":
            self._last = self._before + len(facts["loop"].trials)
            return self._last if facts["trial"].fidelity.full else None
        return None


def numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every finite number of a trial under its tag, for curves."""
    return ((tag, float(value)) for tag, value in _numbers(facts) if math.isfinite(value))


def _numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    trial, loop = facts["trial"], facts["loop"]
    m = trial.measurement
    yield "reward/last", trial.reward
    if loop.best is not None:
        yield "reward/best", loop.best.reward
    yield from ((f"fraction/{name}", value) for name, value in m.fractions.items())
    yield from (("loss", m.loss), ("accuracy", m.accuracy), ("kl", m.kl))
    yield from ((f"metrics/{name}", value) for name, value in m.metrics.items())
    space = loop.budget.space
    rates = space.rates(trial.scheme)
    yield from ((f"kept/{group.name}", float(rate)) for group, rate in zip(space.groups, rates, strict=True))
