"""A problem to search: one model with its data, budget and reward, for any number of searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from autoprune import front, outcome, page, recover, searchers, settings
from autoprune.budget import Budget
from autoprune.claim import claim
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.exporters.scheme_file import shapes
from autoprune.fidelity import Fidelity
from autoprune.finalists import FILE, LATENCY, Finals, Rounds, Settled, ranked
from autoprune.forward import Example
from autoprune.hints import Hints
from autoprune.latency.calibrate import sliced
from autoprune.latency.meter import Meter
from autoprune.ledger import Ledger
from autoprune.listeners import Listener, Listeners, farewell, together
from autoprune.loop import Loop, Stop
from autoprune.objective import Objective
from autoprune.polish import winner
from autoprune.pool import InProcess, Measuring, Pool, Workers
from autoprune.references import function, stable_name
from autoprune.reward import REWARDS, Reward, score
from autoprune.run import LEDGER, ROOT, Run, make_folder, new_name, prepare, surroundings
from autoprune.scheme import Scheme
from autoprune.searchers import Searcher
from autoprune.space import SearchSpace
from autoprune.storage import place
from autoprune.tensorboard import drawn
from autoprune.trial import Measurement, Trial

AGREEMENT = 1e-4  # of the dense loss: how far a candidate with nothing cut may be from the dense network
INTERRUPTED = "interrupted; the same command continues"
REPEATED = Fidelity(recovery="none")


@dataclass(eq=False)
class Problem:
    """What several searches have in common; :meth:`search` is one of them.

    ``test``, if given (data, or a function that returns it), is looked at once per answer, at the end of a search.
    ``name`` and ``source`` (how to load the network again) are written down. With a ``meter`` networks are timed by
    it, and the answer under a latency cap is one that meets it as measured, see :mod:`autoprune.finalists`.
    """

    evaluator: Evaluator
    budget: Budget
    reward: Reward
    example: Example
    test: Any = None
    name: str = "network"
    source: Mapping[str, Any] = field(default_factory=dict)
    meter: Meter | None = None

    def __post_init__(self) -> None:
        self.uniform = self.budget.fit(np.ones(len(self.budget.space)))  # refuses a budget out of reach
        self._seen: outcome.Seen = {}
        self._agrees = False

    def pool(self, workers: int | Workers = 1) -> Pool:
        """Who measures candidates: this process, or workers on Ray. Close it, or use it as a context."""
        wanted = Workers(workers) if isinstance(workers, int) else workers
        if wanted.here:
            return InProcess(self.evaluator)
        from autoprune.ray_pool import RayPool

        return RayPool(self.evaluator, wanted)

    def configured(
        self,
        searcher: str | Searcher,
        options: Mapping[str, Any],
        start: Sequence[Scheme] = (),
        trials: int | None = None,
    ) -> Searcher:
        """The searcher with its options bound, after it has refused those and the start schemes that are wrong."""
        found = searchers.find(searcher)
        settings.check(found, searchers.KIND, options)
        population = options.get("population", 0)
        if trials is not None and population > trials:
            raise UserError(
                f"population={population} is larger than trials={trials}: the first generation would never be told; "
                f"allow more trials or give a population of at most {trials}"
            )
        bound = partial(found, **options)
        hints = Hints(starts=tuple(start), tuning=self.evaluator.tuning is not None)
        proposals = bound(self.budget.space, self.budget, seed=0, hints=hints, batch=1)
        next(proposals, None)
        proposals.close()
        return bound

    def search(  # noqa: PLR0913 - what a request says
        self,
        searcher: str | Searcher,
        options: Mapping[str, Any] | None = None,
        *,
        stop: Stop,
        seed: int = 0,
        batch: int = 8,
        start: Sequence[Scheme] = (),
        objectives: str | Sequence[str | Reward] = (),
        finish: str | outcome.Finish | None = None,
        polish: str | None = None,
        finalists: int = 1,
        race: float | None = None,
        run: str | None = None,
        root: Path | str = ROOT,
        ledger: Path | str | None = None,
        listener: Listeners = None,
        tensorboard: bool = False,
        pool: Pool | None = None,
    ) -> Run:
        """One search, in the folder ``root/run``; see :func:`autoprune.search`.

        Candidates are measured by ``pool``, which stays open, or in this process.
        """
        tell: Listener = together(listener)
        evaluator, budget = self.evaluator, self.budget
        timed = self.meter is not None and LATENCY in budget.caps
        if timed or budget.space.granularity != "channel":  # searchers know counts that hardware rewards, or a grid
            start = [_legal(scheme, budget.space) for scheme in start]
        train = None if finish is None else function(finish, "finish", {})
        self._check_polish(polish, finalists)
        propose = self.configured(searcher, options or {}, start, stop.trials)
        wanted = self._wanted(objectives, race)
        if wanted and "objectives" in settings.options(propose, searchers.KIND):
            propose = self.configured(propose, {"objectives": wanted}, start)
        config = {
            "name": self.name,
            "request": {
                **evaluator.protocol,
                "budget": budget.record,
                "searcher": stable_name(searcher),
                "options": {key: str(value) for key, value in (options or {}).items()},
                "search_seed": seed,
                "batch": batch,
                "start": [scheme.to_dict() for scheme in start],
                "objectives": [str(objective) for objective in wanted],
                "race": race,
            },
            "fingerprint": evaluator.fingerprint,
            "groups": [group.name for group in evaluator.space.groups],
            "reward": stable_name(self.reward),
            "finish": stable_name(finish),
            "polish": polish,
            "finalists": finalists,
            "source": dict(self.source),
            "example_shape": shapes(self.example),
            "ledger": None if ledger is None else place(ledger),
            "stop": stop.rules,
            **surroundings(),
        }
        folder = make_folder(root, run or new_name(root, self.name, "-".join(budget.caps)))
        with claim(folder), drawn(folder, tell) if tensorboard else nullcontext(tell) as tell, farewell(tell):
            prepare(folder, config)
            tell("started", {"folder": folder, "config": config})
            path = folder / LEDGER if ledger is None else ledger
            records = Ledger(path, evaluator.fingerprint, evaluator.space.groups)
            baseline = self._references(records, tell)
            hints = replace(evaluator.hints(), starts=tuple(start))
            measuring = Noting(pool or InProcess(evaluator))

            def begin(budget: Budget, hints: Hints, seed: int, stop: Stop) -> Loop:
                proposals = propose(budget.space, budget, seed=seed, hints=hints, batch=batch)
                return Loop(
                    proposals, budget, self.reward, records, stop, discount=evaluator.evaluate is None, race=race
                )

            loop = begin(budget, hints, seed, _told(stop, tell, measuring))
            interrupted = drive(loop, measuring)
            best = max((t for t in (baseline, loop.best) if t is not None and not t.failed), key=_reward, default=None)
            if best is None:
                raise UserError(
                    f"no candidate could be measured: {baseline.measurement.error}; see the run's ledger in {folder}"
                )
            rounds, settled = Rounds([loop]), None
            if self.meter is not None and LATENCY in budget.caps and not interrupted:

                def search_on(tight: Budget, starts: Sequence[Scheme], number: int) -> Loop:
                    tell("tightened", {"budget": tight, "round": number})
                    told = _told(_less(stop), tell, measuring)
                    more = begin(tight, replace(hints, starts=tuple(starts)), seed + number, told)
                    drive(more, measuring)
                    return more

                settled = self._settled(baseline, rounds, search_on, folder, tell)
                best = settled.best
            if polish is not None and not interrupted:
                tell("polish", {"repair": polish, "finalists": finalists})
                best, settled, interrupted = _polished(
                    _finalists(best, rounds, settled)[:finalists],
                    settled,
                    partial(winner, repair=polish, ledger=records, pool=measuring, reward=self.reward),
                )
            ended = INTERRUPTED if interrupted else rounds.reason
            judged = wanted or front.usual(budget.caps, evaluator.dense)
            found = outcome.Outcome(
                evaluator, config, best, baseline, rounds, self.reward, ended, interrupted, judged, self.meter, settled,
                polish,
            )  # fmt: skip
            result = outcome.write(found, folder, self.example, self.test, self._seen)
            if train is not None and not interrupted:
                tell("finish", {"function": stable_name(finish)})
                result = outcome.finish(found, train, result, self.test)
            page.leave(result)
        tell("done", {"run": result})
        return result

    def _settled(
        self,
        baseline: Trial,
        rounds: Rounds,
        search_on: Callable[[Budget, Sequence[Scheme], int], Loop],
        folder: Path,
        tell: Listener,
    ) -> Settled:
        """What the meter says of the best, after further searches if need be."""
        assert self.meter is not None
        tell("finalists", {})
        network = partial(sliced, self.evaluator.model, self.evaluator.space)
        return Finals(self.budget, baseline, self.meter, network, search_on, folder / FILE)(rounds)

    def _check_polish(self, polish: str | None, finalists: int) -> None:
        """It must be a repair that this space knows, and several finalists need one."""
        if polish is not None:
            recover.find(polish, self.evaluator.space.granularity)
        if finalists < 1:
            raise UserError(f"finalists = {finalists}: 1 or more of the best candidates are polished")
        if finalists > 1 and polish is None:
            raise UserError(
                f"finalists = {finalists}: only a polish can tell which of them is the best; name one, such as "
                "polish = sequential,sweeps=2"
            )

    def _check_race(self, race: float) -> None:
        """Candidates race on the validation loss: it must be all that decides."""
        losses = self.evaluator.evaluate is None and math.isfinite(self.evaluator.dense.loss)
        if not losses or self.reward is not REWARDS["neg_loss"]:
            raise UserError(
                f"race = {race}: candidates race on the validation loss, so it needs class labels and reward neg_loss"
            )

    def _wanted(self, objectives: str | Sequence[str | Reward], race: float | None) -> tuple[Objective, ...]:
        """What the objectives mean here: the dense network shows what is measured, and no candidate is needed."""
        if race is not None:
            self._check_race(race)
            if objectives:
                raise UserError(
                    f"race = {race}: what it stops is missing from a front, so objectives need all measured"
                )
        if not objectives:
            return ()
        self.check_dense()
        return front.objectives(objectives, self.evaluator.dense)

    def check_dense(self) -> None:
        """A candidate with nothing cut and nothing repaired must be the dense network."""
        if self._agrees:
            return
        dense = self.evaluator.dense
        if dense.failed:
            raise UserError(
                f"the dense network cannot be measured: {dense.error}; check the data and its normalisation"
            )
        whole = self.evaluator(self.evaluator.space.dense, fidelity=REPEATED)
        if whole.failed:
            raise UserError(f"a candidate with nothing cut fails: {whole.error}")
        for name, value in (("loss", dense.loss), ("accuracy", dense.accuracy)):
            other = getattr(whole, name)
            if math.isfinite(value) and abs(other - value) > AGREEMENT * max(1.0, abs(value)):
                raise UserError(
                    f"a candidate with nothing cut has {name} {other:.6g}, the dense network {value:.6g}: "
                    "the network's forward pass is not repeatable, or it shares state that copies lose"
                )
        self._agrees = True

    def _references(self, ledger: Ledger, tell: Listener) -> Trial:
        """What candidates are held against: the dense network, which is told of, and the uniform scheme's trial."""
        self.check_dense()
        tell("dense", {"measurement": self.evaluator.dense})
        baseline = self._baseline(ledger)
        tell("uniform", {"trial": baseline})
        return baseline

    def _baseline(self, ledger: Ledger) -> Trial:
        """The uniform scheme, measured like every candidate."""
        measurement = ledger.find(self.uniform) or self.evaluator(self.uniform)
        try:
            trial = Trial(self.uniform, measurement, score(self.reward, measurement))
        except UserError:
            ledger.append(self.uniform, measurement, None)  # sound, whatever the reward: the next attempt finds it
            raise
        ledger.append(self.uniform, measurement, trial.reward)
        return trial


def _legal(scheme: Scheme, space: SearchSpace) -> Scheme:
    """The scheme, or the largest one below it that the space has."""
    if len(scheme) != len(space):
        return scheme  # refused by whoever reads it
    kept = tuple(group.floor(count) for group, count in zip(space.groups, scheme.kept, strict=True))
    return scheme if kept == scheme.kept else Scheme(kept, scheme.granularity)


class Noting:
    """Measures through a pool, and knows afterwards what it was: of all else the ledger told."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._measured: set[tuple[Scheme, Fidelity]] = set()

    def measure(self, schemes: Iterable[Scheme], fidelity: Fidelity) -> Iterator[tuple[Scheme, Measurement]]:
        """As the pool does."""
        for scheme, measurement in self._pool.measure(schemes, fidelity):
            self._measured.add((scheme, fidelity.finished))
            yield scheme, measurement

    def has(self, trial: Trial) -> bool:
        """Whether this is where the trial was measured."""
        return (trial.scheme, trial.fidelity.finished) in self._measured


def _finalists(best: Trial, rounds: Rounds, settled: Settled | None) -> list[Trial]:
    """The answer so far and the affordable ones behind it; under a latency cap those that meet it as measured."""
    held = rounds.budget.allows if settled is None else settled.holds
    behind = ranked(rounds.trials, rounds.budget)
    return [best, *(trial for trial in behind if trial.scheme != best.scheme and held(trial.scheme))]


def _polished(
    finalists: Sequence[Trial], settled: Settled | None, winning: Callable[[Sequence[Trial]], Trial]
) -> tuple[Trial, Settled | None, bool]:
    """The finalist to answer with, and whether Ctrl-C came before it was known: then it is the first."""
    if len(finalists) == 1:
        return finalists[0], settled, False  # it is polished when it is written down
    try:
        best = winning(finalists)
    except KeyboardInterrupt:
        return finalists[0], settled, True
    return best, settled and replace(settled, best=best), False


def _told(stop: Stop, tell: Listener, measuring: Noting) -> Stop:
    """The stop rules, with a callback that tells of every trial."""

    def callback(trial: Trial, loop: Loop) -> bool:
        asked = stop.callback is not None and stop.callback(trial, loop)
        return bool(tell("trial", {"trial": trial, "loop": loop, "measured": measuring.has(trial)})) or asked

    return Stop(stop.trials, stop.timeout, stop.target, callback)


def _less(stop: Stop) -> Stop:
    """What a round under a tighter latency may cost: a quarter of the search."""
    trials = None if stop.trials is None else max(1, stop.trials // 4)
    return replace(stop, trials=trials, timeout=None if stop.timeout is None else stop.timeout / 4)


def _reward(trial: Trial) -> float:
    return trial.reward


def drive(loop: Loop, pool: Measuring) -> bool:
    """Run the loop to its end; whether Ctrl-C ended it. A stop rule in the middle of a batch leaves its rest out."""
    try:
        while schemes := loop.ask():
            loop.tell(pool.measure(takewhile(lambda _: not loop.finished, schemes), loop.fidelity))
    except KeyboardInterrupt:
        return True
    finally:
        loop.close()
    return False
