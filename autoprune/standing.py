"""Where a search stands: what its trials amount to so far, how fast they come, how long it may take."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from autoprune.trial import Trial

BLOCKS = "▁▂▃▄▅▆▇█"
RECENT = 32  # measured trials that the pace is taken from


class Mark(NamedTuple):
    """What was spent at a moment of the clock: trials measured here, their worth in full ones, seconds of measuring."""

    at: float
    measured: int
    effort: float
    seconds: float


class Standing:
    """Hears the trials of a search, and knows what is worth showing of them.

    A trial that a continued run reads from its ledger is done, but says nothing of the pace.
    """

    def __init__(self, trials: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.trials = trials  # wanted, if that is known
        self.timeout: float | None = None
        self.effort = 0.0
        self.seconds = 0.0
        self.affordable = self.failed = self.measured = self.known = 0
        self.best: Trial | None = None
        self.used: dict[str, float] = {}  # shares of the caps, of the best
        self.history: list[float] = []  # best reward after each full trial; -inf before the first affordable one
        self._clock = clock
        self._began = clock()
        self._marks = deque([Mark(self._began, 0, 0.0, 0.0)], maxlen=RECENT + 1)

    def hear(self, facts: Mapping[str, Any]) -> bool:
        """Take a trial; whether it is the new best."""
        trial, loop = facts["trial"], facts["loop"]
        self.trials = loop.stop.trials or self.trials
        self.timeout = loop.stop.timeout
        self.effort, self.seconds, self.affordable = loop.effort, loop.seconds, loop.feasible
        self.failed += trial.failed
        here = bool(facts["measured"])
        self.measured += here
        self.known += not here
        mark = Mark(self._clock(), self.measured, self.effort, self.seconds)
        if here:
            self._marks.append(mark)
        elif not self.measured:
            self._marks[0] = mark  # measuring has not begun
        better = loop.best is not None and loop.best is not self.best
        if better:
            self.best, budget = loop.best, loop.budget
            self.used = {name: budget.costs[name](self.best.scheme) / cap for name, cap in budget.caps.items()}
        if trial.fidelity.full:
            self.history.append(-math.inf if self.best is None else self.best.reward)
        return better

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def share(self) -> float | None:
        """How much of what was allowed is spent, in [0, 1]; None where nothing limits it beforehand."""
        shares = [spent / limit for spent, limit, _ in self._limits()]
        return min(1.0, max(shares)) if shares else None

    @property
    def per_minute(self) -> float | None:
        """Trials measured in a minute, lately; None before the first."""
        first, last = self._marks[0], self._marks[-1]
        spent = (last.at if self.share == 1 else self._clock()) - first.at  # what follows the last trial is no search
        return 60 * (last.measured - first.measured) / spent if self.measured and spent > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until a limit is reached at the present pace; None where that cannot be told."""
        if not self.measured or self.share == 1:
            return None
        first, now = self._marks[0], self._clock()
        waits = [
            max(0.0, limit - spent) * (now - first.at) / (spent - before)
            for spent, limit, before in self._limits()
            if spent > before
        ]
        return min(waits, default=None)

    def _limits(self) -> list[tuple[float, float, float]]:
        """Of everything that is limited: what is spent, its limit, and what was spent where the pace begins."""
        first = self._marks[0]
        limits = ((self.effort, self.trials, first.effort), (self.seconds, self.timeout, first.seconds))
        return [(spent, limit, before) for spent, limit, before in limits if limit]


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as blocks from the lowest to the highest of them; what is not finite is blank.

    With more values than columns a column shows the last of its values, so that the line ends as they do.
    """
    columns = min(width, len(values))
    shown = [values[(column + 1) * len(values) // columns - 1] for column in range(columns)]
    finite = [value for value in values if math.isfinite(value)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)

    def block(value: float) -> str:
        if not math.isfinite(value):
            return " "
        return BLOCKS[round((value - low) / span * (len(BLOCKS) - 1)) if span else 0]

    return "".join(map(block, shown))
