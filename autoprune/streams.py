"""Random streams for code that insists on the global ones."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np


class Stream:
    """The global streams of ``random`` and ``numpy.random``, as one's own.

    ``with stream:`` puts them where this stream was left the last time and gives the caller's back at the end.
    Libraries that draw from the global streams (DEAP, Stable-Baselines3's replay buffer) are then repeatable, and
    nobody else notices.
    """

    def __init__(self, seed: int) -> None:
        outside = _state()
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - it is the global stream that is lent
        self._inside = _state()
        self._outside = outside
        _restore(outside)

    def __enter__(self) -> None:
        self._outside = _state()
        _restore(self._inside)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = _state()
        _restore(self._outside)


def _state() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _restore(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
