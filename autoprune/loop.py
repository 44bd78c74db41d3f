"""The loop between a searcher, the ledger and whoever measures.

    while schemes := loop.ask():
        loop.tell((scheme, evaluate(scheme, fidelity=loop.fidelity)) for scheme in schemes)

Resume is a cache hit: the searcher is started anew and what the ledger knows is answered at once. So that
a replay decides as the first time, everything here depends on the proposals, in their order, and on recorded
measurements; never on the clock, on the order of arrival or on the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.fidelity import Batch, Fidelity
from autoprune.ledger import Ledger
from autoprune.race import Race
from autoprune.reward import Reward, score
from autoprune.scheme import Scheme
from autoprune.trial import Measurement, Trial

IDLE_BATCHES = 50  # a searcher that repeats itself this often has nothing left to say
ROUNDING = 1e-9  # of a sum of shares


@dataclass(frozen=True)
class Stop:
    """When a search ends; whichever rule holds first, after any trial.

    ``trials`` are distinct schemes; one that is measured on a share of the images counts as that share.
    ``timeout`` counts the seconds the trials took when they were measured, summed over workers.
    ``target`` is a reward that an affordable trial must reach. ``callback(trial, loop)``
    is called after every trial, in a replay too, and ends the search by returning True.
    """

    trials: int | None = None
    timeout: float | None = None
    target: float | None = None
    callback: Callable[[Trial, Loop], bool] | None = None

    @property
    def rules(self) -> dict[str, float | None]:
        """The numbers, as runs record them."""
        return {"trials": self.trials, "timeout": self.timeout, "target": self.target}

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise UserError(f"trials = {self.trials}: a search needs at least one")
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"timeout = {self.timeout}: must be positive seconds")
        if self.target is not None and math.isnan(self.target):
            raise UserError("target = nan: must be a reward")


class Loop:
    """Asks a searcher for batches, has what is new in them measured, and tells it the trials.

    Trials are admitted in proposal order as soon as all before them are known, and each is held against the
    stop rules. ``trials`` is therefore always a beginning of the searcher's proposals. With ``discount=False`` a quick
    look costs a whole trial, for tasks where it takes as long.

    ``race``, an error probability, lets a full measurement end early when the candidate cannot beat the best affordable
    trial of the batches before (:mod:`autoprune.race`). What was stopped is a trial and costs one, is recorded apart
    from full measurements, and cannot win.
    """

    def __init__(
        self,
        searcher: Generator[list[Scheme] | Batch, list[Trial], None],
        budget: Budget,
        reward: Reward,
        ledger: Ledger,
        stop: Stop,
        *,
        discount: bool = True,
        race: float | None = None,
    ) -> None:
        self.budget = budget
        self.discount = discount
        self.race = None if race is None else Race(race)
        self.ledger = ledger
        self.stop = stop
        self._searcher = searcher
        self._reward = reward
        self._trials: dict[tuple[Scheme, Fidelity], Trial] = {}
        self._batch = Batch(())
        self._position = 0  # proposals of the batch that are admitted
        self._started = False
        self._idle = 0
        self._best: Trial | None = None
        self._feasible = 0
        self._effort = 0.0
        self._seconds = 0.0
        self._reason: str | None = None

    @property
    def trials(self) -> list[Trial]:
        """Distinct trials in the order of their proposal, of every fidelity."""
        return list(self._trials.values())

    @property
    def effort(self) -> float:
        """How many full measurements the trials amount to."""
        return self._effort

    def price(self, fidelity: Fidelity) -> float:
        """What a measurement counts as: the share of the images that it uses."""
        return fidelity.share if self.discount else 1.0

    @property
    def fidelity(self) -> Fidelity:
        """How thoroughly the schemes that :meth:`ask` returned are to be measured."""
        return self._batch.fidelity

    @property
    def best(self) -> Trial | None:
        """The first of the full trials with the highest reward that did not fail and that the budget allows."""
        return self._best

    @property
    def feasible(self) -> int:
        """How many full trials did not fail and are affordable."""
        return self._feasible

    @property
    def seconds(self) -> float:
        """What the trials cost when they were measured, summed over workers."""
        return self._seconds

    @property
    def finished(self) -> bool:
        """Whether nothing more will be asked."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Why the search ended, in words; None while it goes on."""
        return self._reason

    def ask(self) -> list[Scheme]:
        """The schemes to measure next: distinct, and not in the ledger. Empty when the search is finished.

        They are to be measured at :attr:`fidelity`. Asked again before everything was told, it names what is still
        missing.
        """
        while True:
            self._admit()
            if self.finished:
                return []
            missing = self._missing()
            if missing:
                return missing
            self._next_batch()

    def tell(self, results: Iterable[tuple[Scheme, Measurement]]) -> None:
        """Record measurements as they arrive, in any order, until every scheme asked for has one.

        Whatever was recorded before an interruption stays. Results that arrive after a stop rule was met are
        recorded all the same, but they are no trials of this search; none has to arrive.
        """
        for scheme, measurement in results:
            if scheme not in self._batch.schemes:
                raise UserError(f"scheme {scheme.kept} was not asked for: tell only what ask() returned")
            self._record(scheme, measurement)
            self._admit()
        missing = [] if self.finished else self._missing()
        if missing:
            raise UserError(f"{len(missing)} schemes asked for have no result, the first is {missing[0].kept}")

    def close(self) -> None:
        """Let the searcher go, which may have something to save, although it is not finished."""
        self._searcher.close()

    def _record(self, scheme: Scheme, measurement: Measurement) -> None:
        try:
            reward = score(self._reward, measurement)
        except UserError:
            # The measurement was expensive and is sound: the next attempt finds it and needs only a better reward.
            self.ledger.append(scheme, measurement, None, self._reached(measurement))
            raise
        self.ledger.append(scheme, measurement, reward, self._reached(measurement))

    def _reached(self, measurement: Measurement) -> Fidelity:
        """How thoroughly it was measured in the end."""
        return self.fidelity if measurement.stopped else self.fidelity.finished

    def _find(self, scheme: Scheme) -> Measurement | None:
        """What the ledger has; of a race first how it ended, as the searcher was told when it ended."""
        return self.ledger.find(scheme, self.fidelity) or self.ledger.find(scheme, self.fidelity.finished)

    def _missing(self) -> list[Scheme]:
        """What must be measured of the batch: not what lies beyond the last trial allowed."""
        new = [scheme for scheme in dict.fromkeys(self._batch.schemes) if not self._is_known(scheme)]
        room = len(new)
        if self.stop.trials is not None:
            room = math.floor((self.stop.trials - self._effort) / self.price(self.fidelity) + ROUNDING)
        return [scheme for scheme in new[:room] if self._find(scheme) is None]

    def _is_known(self, scheme: Scheme) -> bool:
        return (scheme, self.fidelity.finished) in self._trials

    def _admit(self) -> None:
        """Turn proposals into trials, in order, as far as they are measured and no stop rule holds."""
        while not self.finished and self._position < len(self._batch.schemes):
            scheme = self._batch.schemes[self._position]
            if not self._is_known(scheme):
                if (
                    self.stop.trials is not None
                    and self._effort + self.price(self.fidelity) > self.stop.trials + ROUNDING
                ):
                    self._finish(f"{self._effort:g} of {self.stop.trials} trials were made, and no whole one is left")
                    return
                measurement = self._find(scheme)
                if measurement is None:
                    return
                reached = self._reached(measurement)
                self._add(Trial(scheme, measurement, score(self._reward, measurement), reached))
            self._position += 1

    def _add(self, trial: Trial) -> None:
        self._trials[trial.scheme, trial.fidelity.finished] = trial
        self._effort += self.price(trial.fidelity)
        self._seconds += trial.measurement.seconds.get("total", 0.0)
        if trial.fidelity.full and not trial.failed and self.budget.allows(trial.scheme):
            self._feasible += 1
            if self._best is None or trial.reward > self._best.reward:
                self._best = trial
        reason = self._stopped_by(trial)
        if reason is not None:
            self._finish(reason)

    def _stopped_by(self, trial: Trial) -> str | None:
        stop = self.stop
        if stop.callback is not None and stop.callback(trial, self):
            return "the callback ended the search"
        if stop.target is not None and self._best is not None and self._best.reward >= stop.target:
            return f"the target reward {stop.target:g} was reached ({self._best.reward:g})"
        if stop.trials is not None and self._effort >= stop.trials - ROUNDING:
            return f"{stop.trials} trials were made"
        if stop.timeout is not None and self._seconds >= stop.timeout:
            return f"the trials took {self._seconds:.0f} s (timeout {stop.timeout:g} s)"
        return None

    def _next_batch(self) -> None:
        """Tell the searcher the trials of its batch and take its next one."""
        try:
            if self._started:
                answers = [self._trials[scheme, self.fidelity.finished] for scheme in self._batch.schemes]
                batch = Batch.of(self._searcher.send(answers))
            else:
                self._started = True
                batch = Batch.of(next(self._searcher))
        except StopIteration:
            self._finish("the searcher has nothing more to propose")
            return
        except BaseException:
            self._reason = "the searcher failed"
            raise
        for scheme in (*batch.schemes, *batch.fidelity.after):
            self.budget.space.check(scheme)
        self._batch, self._position = self._raced(batch), 0
        self._idle = self._idle + 1 if all(self._is_known(scheme) for scheme in batch.schemes) else 0
        if self._idle == IDLE_BATCHES:
            self._finish(f"the searcher proposed nothing new in {IDLE_BATCHES} batches")

    def _raced(self, batch: Batch) -> Batch:
        """The batch as it is to be measured: against the best so far, if it is to be measured in full."""
        if self.race is None or not batch.fidelity.full:
            return batch
        losses = () if self._best is None else self._best.measurement.losses
        return replace(batch, fidelity=replace(batch.fidelity, race=replace(self.race, losses=losses)))

    def _finish(self, reason: str) -> None:
        self._reason = reason
        self._searcher.close()
