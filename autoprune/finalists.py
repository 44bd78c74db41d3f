"""Under a latency budget the answer is measured for real before it is believed.

Inside a search latency is predicted. The best trials at its end are timed as networks; the best one that meets the
budget as measured is the answer. When none does, the cap on the prediction is tightened by what it was off, and the
search goes on from there. What was timed is written down, so that a run that is continued decides the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.fidelity import Fidelity
from autoprune.latency.meter import Meter
from autoprune.latency.stopwatch import Timing
from autoprune.lines import append_records, read_records
from autoprune.loop import Loop
from autoprune.scheme import Scheme
from autoprune.trial import Trial

LATENCY = "latency"
FILE = "latency.jsonl"
FINALISTS = 3
ROUNDS = 4
MARGIN = 0.99  # a tightened cap aims this much below what would just do
ERROR = 0.05
"""A network is never given more than this for the error of measuring it, however restless the machine."""


Timings = Mapping[tuple[int, ...], Timing]
"""By kept counts."""


def ranked(trials: Iterable[Trial], budget: Budget) -> list[Trial]:
    """What was measured in full, the best first: affordable schemes, or all where none is."""
    sound = [trial for trial in trials if trial.fidelity.full and not trial.failed]
    fit = {trial.scheme: trial for trial in sound if budget.allows(trial.scheme)}.values()
    return sorted(fit or sound, key=lambda trial: trial.reward, reverse=True)


def granted(timing: Timing) -> float:
    """The share by which a network may seem too slow, for the error of measuring it."""
    return min(2 * timing.error, ERROR)


@dataclass(eq=False)
class Rounds:
    """One search or several in a row, as one: trials in their order, each once."""

    loops: list[Loop]

    @property
    def budget(self) -> Budget:
        """What was asked for; later rounds have tighter ones."""
        return self.loops[0].budget

    @property
    def trials(self) -> list[Trial]:
        """Distinct trials of all rounds."""
        return list({(t.scheme, t.fidelity): t for loop in self.loops for t in loop.trials}.values())

    @property
    def effort(self) -> float:
        """How many full measurements the trials amount to."""
        return sum(self.price(trial.fidelity) for trial in self.trials)

    @property
    def feasible(self) -> int:
        """How many full trials did not fail and are affordable."""
        return sum(t.fidelity.full and not t.failed and self.budget.allows(t.scheme) for t in self.trials)

    @property
    def seconds(self) -> float:
        """What the trials cost when they were measured."""
        return sum(trial.measurement.seconds.get("total", 0.0) for trial in self.trials)

    def price(self, fidelity: Fidelity) -> float:
        """What a measurement counts as."""
        return self.loops[0].price(fidelity)

    @property
    def best(self) -> Trial | None:
        """The affordable trial with the highest reward, as predicted."""
        return max((loop.best for loop in self.loops if loop.best is not None), key=lambda t: t.reward, default=None)

    @property
    def reason(self) -> str | None:
        """Why the first round ended, and how many followed it."""
        more = len(self.loops) - 1
        return f"{self.loops[0].reason}{f'; {more} more under a tighter latency' if more else ''}"


@dataclass(frozen=True, eq=False)
class Settled:
    """The answer, and every network's timing of the round that decided.

    ``limit`` is what was asked for, in milliseconds.
    """

    best: Trial
    timings: Timings
    limit: float
    rounds: int
    dense: Timing

    @property
    def measured(self) -> float:
        """Milliseconds of the answer."""
        return self.timings[self.best.scheme.kept].median

    @property
    def error(self) -> float:
        """What was granted the answer for the error of measuring it."""
        return granted(self.timings[self.best.scheme.kept])

    @property
    def met(self) -> bool:
        """Whether the answer meets the budget as measured."""
        return self.holds(self.best.scheme)

    def holds(self, scheme: Scheme) -> bool:
        """Whether the scheme was timed, and meets the budget as measured."""
        timing = self.timings.get(scheme.kept)
        return timing is not None and timing.median <= self.limit * (1 + granted(timing))

    def facts(self) -> dict[str, float | int | bool]:
        """What a summary tells."""
        return {
            "limit": self.limit,
            "predicted": self.best.measurement.costs[LATENCY],
            "measured": self.measured,
            "dense": self.dense.median,
            "error": self.error,
            "met": self.met,
            "rounds": self.rounds,
        }


@dataclass(eq=False)
class Finals:
    """Times the best trials of a search and searches on while none of them meets the latency cap.

    ``network(scheme)`` makes what is timed; ``search_on(budget, start, round)`` is a further search.
    """

    budget: Budget
    baseline: Trial
    meter: Meter
    network: Callable[[Scheme], nn.Module]
    search_on: Callable[[Budget, Sequence[Scheme], int], Loop]
    path: Path
    _known: dict[int, Timings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for record in read_records(self.path):
            self._known[record["round"]] = {tuple(kept): Timing(**timing) for kept, timing in record["timings"]}

    def __call__(self, found: Rounds) -> Settled:
        """The answer; ``found`` gets the further rounds."""
        space, cap = self.budget.space, self.budget.caps[LATENCY]
        tight = self.budget
        seen: list[Settled] = []
        for number in range(ROUNDS):
            best = ranked((self.baseline, *found.trials), tight)[:FINALISTS]  # the uniform scheme, if there is no other
            timings = self._time([space.dense, self.baseline.scheme, *(trial.scheme for trial in best)], number)
            dense, limit = timings[space.dense.kept], cap
            if LATENCY in self.budget.relative:
                limit *= dense.median / self.budget.costs[LATENCY](space.dense)
            tried = []
            for trial in best:
                tried.append(Settled(trial, timings, limit, number, dense))
                if tried[-1].met:
                    return tried[-1]
            seen += tried
            over = min(settled.measured for settled in tried) / limit
            tight = replace(self.budget, caps={**self.budget.caps, LATENCY: tight.caps[LATENCY] / over * MARGIN})
            try:
                tight.check()
            except UserError:
                break
            if number < ROUNDS - 1:
                found.loops.append(self.search_on(tight, self._starts(best, tight), number + 1))
        return min(seen, key=lambda settled: settled.measured / settled.limit)

    def _starts(self, best: Sequence[Trial], budget: Budget) -> list[Scheme]:
        return [budget.fit(budget.space.rates(trial.scheme)) for trial in best]

    def _time(self, schemes: Sequence[Scheme], number: int) -> Timings:
        """All of them in one go, so that they compare; what was timed in a round before is not timed again."""
        wanted = list(dict.fromkeys(scheme.kept for scheme in schemes))
        if set(wanted) - set(self._known.get(number, {})):
            timings = self.meter.measure({str(n): self.network(Scheme(kept)) for n, kept in enumerate(wanted)})
            self._known[number] = {kept: timings[str(n)] for n, kept in enumerate(wanted)}
            record = [(kept, timing.to_dict()) for kept, timing in self._known[number].items()]
            append_records(self.path, [{"round": number, "timings": record}])
        return self._known[number]
