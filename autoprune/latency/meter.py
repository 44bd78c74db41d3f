"""Timing whole networks: on this machine, or by a function that has another device do it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from autoprune.errors import UserError
from autoprune.forward import Example
from autoprune.latency.conditions import Conditions
from autoprune.latency.stopwatch import SURE, Timing
from autoprune.references import stable_name

TIMEOUT = 600.0

Remote = Callable[[nn.Module], "float | Sequence[float]"]
"""Milliseconds of one forward pass of a network, or several measurements of them."""


@dataclass(frozen=True, eq=False)
class Meter:
    """How networks are timed: ``measure({name: network}) -> {name: Timing}``, and under which conditions, in words."""

    measure: Callable[[Mapping[str, nn.Module]], Mapping[str, Timing]]
    conditions: str


def here(conditions: Conditions, example: Example) -> Meter:
    """Timed on this machine."""
    return Meter(lambda networks: conditions.measure(networks, example, until=SURE), str(conditions))


def elsewhere(function: Remote, timeout: float = TIMEOUT) -> Meter:
    """Timed by ``function(network)``, one network after the other; each may take ``timeout`` seconds."""

    def measure(networks: Mapping[str, nn.Module]) -> dict[str, Timing]:
        return {name: _asked(function, network, timeout) for name, network in networks.items()}

    return Meter(measure, f"measured by {stable_name(function)}")


def _asked(function: Remote, network: nn.Module, timeout: float) -> Timing:
    name = stable_name(function)
    answer: list[Any] = []
    failure: list[Exception] = []

    def ask() -> None:
        try:
            answer.append(function(network))
        except Exception as error:  # noqa: BLE001 - told in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # one that hangs must not keep the process alive
    thread.start()
    thread.join(timeout)
    if failure:
        raise UserError(f"latency function {name} failed: {type(failure[0]).__name__}: {failure[0]}") from failure[0]
    if not answer:
        raise UserError(f"latency function {name} gave no answer within {timeout:g} s: is the device there?")
    values = answer[0] if isinstance(answer[0], list | tuple) else [answer[0]]
    for value in values or [None]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise UserError(f"latency function {name} answered {answer[0]!r}: positive milliseconds are needed")
    return Timing.of([value / 1e3 for value in values])
