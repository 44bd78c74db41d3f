"""The loop: what is asked, what is told, when it ends, and that a replay decides the same."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.ledger import Ledger
from autoprune.loop import IDLE_BATCHES, Loop, Stop
from autoprune.reward import REWARDS, Reward
from autoprune.scheme import Scheme
from autoprune.space import Group, SearchSpace
from autoprune.trial import Measurement, Trial

Searcher = Generator[list[Scheme], list[Trial], None]

WIDTH = 30
SPACE = SearchSpace(tuple(Group(name, WIDTH, (), tuple(range(1, WIDTH + 1))) for name in ("a", "b")), (), {})
CAP = 40.0
BUDGET = Budget(SPACE, {"channels": CAP}, {"channels": lambda scheme: float(sum(scheme.kept))})
BATCH = 4


def climb(seed: int = 0, batch: int = BATCH) -> Searcher:
    """Random steps from the best scheme seen: what is proposed depends on everything that was told, in its order."""
    rng = random.Random(seed)
    best = Trial(Scheme((10, 10)), Measurement(), -math.inf)
    while True:
        steps = [tuple(max(1, min(WIDTH, n + rng.randint(-5, 5))) for n in best.scheme.kept) for _ in range(batch)]
        trials = yield [Scheme(kept) for kept in steps]
        for position, trial in enumerate(trials):
            if trial.reward + position * 1e-6 > best.reward:
                best = trial


def fixed(*batches: list[tuple[int, int]], heard: list[list[Trial]] | None = None) -> Searcher:
    for batch in batches:
        trials = yield [Scheme(kept) for kept in batch]
        if heard is not None:
            heard.append(trials)


def measure(scheme: Scheme) -> Measurement:
    """A landscape with its peak at (25, 12); schemes that keep 13 channels of "a" fail."""
    if scheme.kept[0] == 13:
        return Measurement(error="unlucky", seconds={"total": 1.0})
    a, b = scheme.kept
    return Measurement(loss=float((a - 25) ** 2 + (b - 12) ** 2), accuracy=a / 100, seconds={"total": a / 10})


class Meter:
    """Measures, and remembers what."""

    def __init__(self, order: Callable[[list[Scheme]], list[Scheme]] = list) -> None:
        self.measured: list[Scheme] = []
        self.order = order

    def __call__(self, schemes: list[Scheme]) -> Iterator[tuple[Scheme, Measurement]]:
        for scheme in self.order(schemes):
            self.measured.append(scheme)
            yield scheme, measure(scheme)


def loop(
    searcher: Searcher, ledger: Ledger | None = None, reward: Reward = REWARDS["neg_loss"], **stop: object
) -> Loop:
    ledger = ledger if ledger is not None else Ledger(None, "p", SPACE.groups)
    return Loop(searcher, BUDGET, reward, ledger, Stop(**stop))  # type: ignore[arg-type]


def drive(search: Loop, meter: Meter | None = None) -> Meter:
    meter = meter or Meter()
    while schemes := search.ask():
        search.tell(meter(schemes))
    return meter


def kept(trials: list[Trial]) -> list[tuple[int, ...]]:
    return [trial.scheme.kept for trial in trials]


def test_a_searcher_is_told_its_whole_batch_in_the_order_of_its_proposals() -> None:
    heard: list[list[Trial]] = []
    batches = [[(3, 1), (1, 1), (3, 1)], [(2, 2), (1, 1)]]
    search = loop(fixed(*batches, heard=heard))
    meter = drive(search, Meter(order=lambda schemes: schemes[::-1]))
    assert [kept(trials) for trials in heard] == batches
    assert kept(search.trials) == [(3, 1), (1, 1), (2, 2)]
    assert sorted(scheme.kept for scheme in meter.measured) == [(1, 1), (2, 2), (3, 1)]
    assert all(trial.reward == -measure(trial.scheme).loss for trials in heard for trial in trials)
    assert search.finished
    assert search.reason == "the searcher has nothing more to propose"
    assert search.ask() == []


def test_asking_names_new_schemes_once_and_again_what_is_missing() -> None:
    search = loop(fixed([(1, 1), (2, 1), (1, 1), (3, 1)]))
    asked = search.ask()
    assert [scheme.kept for scheme in asked] == [(1, 1), (2, 1), (3, 1)]
    assert search.ask() == asked
    with pytest.raises(UserError, match=r"2 schemes.*\(1, 1\)"):
        search.tell([(asked[1], measure(asked[1]))])
    assert search.ask() == [asked[0], asked[2]]
    search.tell((scheme, measure(scheme)) for scheme in [asked[2], asked[0]])
    assert kept(search.trials) == [(1, 1), (2, 1), (3, 1)]


def test_a_scheme_that_was_not_asked_for_is_refused() -> None:
    search = loop(fixed([(1, 1)]))
    with pytest.raises(UserError, match="not asked"):
        search.tell([(Scheme((1, 1)), measure(Scheme((1, 1))))])
    search.ask()
    with pytest.raises(UserError, match=r"\(2, 2\) was not asked"):
        search.tell([(Scheme((2, 2)), measure(Scheme((2, 2))))])
    assert len(search.ledger) == 0


def test_a_result_that_arrives_twice_counts_once() -> None:
    search = loop(fixed([(1, 1), (2, 2)]))
    first, second = search.ask()
    search.tell([(first, measure(first)), (first, Measurement(loss=-1e9)), (second, measure(second))])
    assert [trial.measurement for trial in search.trials] == [measure(first), measure(second)]


def test_every_result_is_recorded_before_the_next_is_fetched() -> None:
    search = loop(fixed([(1, 1), (2, 2), (3, 3)]))
    asked = search.ask()

    def results() -> Iterator[tuple[Scheme, Measurement]]:
        for number, scheme in enumerate(asked):
            assert len(search.ledger) == number
            yield scheme, measure(scheme)

    search.tell(results())
    assert len(search.ledger) == 3


def test_a_longer_run_replays_the_shorter_one_and_measures_only_what_is_new(tmp_path: Path) -> None:
    undisturbed = loop(climb(), trials=20)
    drive(undisturbed)
    path = tmp_path / "ledger.jsonl"
    first = loop(climb(), Ledger(path, "p", SPACE.groups), trials=10)
    assert len(drive(first).measured) == len(first.trials) == 10
    second = loop(climb(), Ledger(path, "p", SPACE.groups), trials=20)
    meter = drive(second)
    assert len(meter.measured) == 10
    assert second.trials == undisturbed.trials
    assert second.seconds == undisturbed.seconds
    assert second.best == undisturbed.best
    again = loop(climb(), Ledger(path, "p", SPACE.groups), trials=20)
    assert again.ask() == []
    assert again.trials == undisturbed.trials


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_arrival_changes_nothing(seed: int) -> None:
    in_order, shuffled = loop(climb(), trials=30), loop(climb(), trials=30)
    drive(in_order)
    chance = random.Random(seed)
    drive(shuffled, Meter(order=lambda schemes: chance.sample(schemes, len(schemes))))
    assert shuffled.trials == in_order.trials
    assert shuffled.best == in_order.best


@pytest.mark.parametrize("allowed", [1, 2, 5, 8])
def test_no_more_is_measured_than_the_trials_allowed(allowed: int) -> None:
    heard: list[list[Trial]] = []
    batches = [[(1, n) for n in range(1, 5)], [(1, 2), (2, 1), (1, 1), (2, 2), (2, 3)], [(9, 9)]]
    search = loop(fixed(*batches, heard=heard), trials=allowed)
    meter = drive(search)
    assert kept(search.trials) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3), (9, 9)][:allowed]
    assert len(meter.measured) == allowed
    assert search.finished
    if allowed < 8:
        assert search.reason == f"{allowed} trials were made"


def test_trials_of_another_run_count_only_where_they_are_proposed() -> None:
    ledger = Ledger(None, "p", SPACE.groups)
    for known in [(1, 3), (8, 8)]:
        ledger.append(Scheme(known), measure(Scheme(known)), 0.0)
    search = loop(fixed([(1, 1), (1, 2), (1, 3), (1, 4)]), ledger, trials=3)
    assert [scheme.kept for scheme in search.ask()] == [(1, 1), (1, 2)]
    drive(search)
    assert kept(search.trials) == [(1, 1), (1, 2), (1, 3)]


def test_a_failed_candidate_is_a_trial_that_can_never_be_the_best() -> None:
    heard: list[list[Trial]] = []
    search = loop(fixed([(13, 1)], [(1, 1)], heard=heard))
    search.tell([(Scheme(s.kept), measure(s)) for s in search.ask()])
    assert search.best is None
    assert search.feasible == 0
    drive(search)
    assert heard[0][0].failed
    assert heard[0][0].reward == -math.inf
    assert search.best == heard[1][0]
    assert (len(search.trials), search.feasible) == (2, 1)


def test_the_best_is_affordable_and_the_first_of_equals() -> None:
    peak, affordable, equal = (27, 14), (25, 8), (21, 12)
    assert sum(peak) > CAP
    assert measure(Scheme(peak)).loss < measure(Scheme(affordable)).loss
    search = loop(fixed([peak, (1, 1), affordable, equal]))
    drive(search)
    assert measure(Scheme(equal)).loss == measure(Scheme(affordable)).loss
    assert search.best is not None
    assert search.best.scheme.kept == affordable
    assert search.feasible == 3


def test_the_target_ends_the_search_at_the_trial_that_reaches_it() -> None:
    steps = [(n, 12) for n in range(14, 28)]
    search = loop(fixed(steps[:3], steps[3:10], steps[10:]), target=-100.0)
    meter = drive(search)
    assert kept(search.trials)[-1] == (15, 12)
    assert "target" in str(search.reason)
    assert len(meter.measured) == len(search.ledger) == 3  # the batch was under way: measured, recorded, no trial


def test_a_target_must_be_reached_by_an_affordable_trial() -> None:
    search = loop(fixed([(25, 16)], [(25, 15)], [(1, 1)]), target=-16.0)
    drive(search)
    assert kept(search.trials) == [(25, 16), (25, 15)]


def test_the_timeout_counts_recorded_seconds_so_that_a_replay_ends_at_the_same_trial() -> None:
    ledger = Ledger(None, "p", SPACE.groups)
    first = loop(climb(), ledger, timeout=9.0)
    drive(first)
    costs = [trial.measurement.seconds["total"] for trial in first.trials]
    assert sum(costs[:-1]) < 9.0 <= sum(costs)
    assert first.seconds == pytest.approx(sum(costs))
    second = loop(climb(), ledger, timeout=9.0)
    assert second.ask() == []
    assert second.trials == first.trials
    assert "timeout 9 s" in str(second.reason)


def test_the_callback_sees_every_trial_in_order_and_may_end_the_search() -> None:
    calls: list[tuple[Scheme, int]] = []

    def enough(trial: Trial, search: Loop) -> bool:
        calls.append((trial.scheme, len(search.trials)))
        return len(search.trials) == 6

    ledger = Ledger(None, "p", SPACE.groups)
    first = loop(climb(), ledger, callback=enough)
    drive(first)
    assert calls == [(trial.scheme, number) for number, trial in enumerate(first.trials, start=1)]
    assert len(calls) == 6
    assert first.reason == "the callback ended the search"
    calls.clear()
    second = loop(climb(), ledger, callback=enough)
    assert second.ask() == []
    assert [scheme for scheme, _ in calls] == [trial.scheme for trial in first.trials]


def test_a_stopped_search_needs_no_more_results() -> None:
    search = loop(fixed([(1, 1), (2, 2), (3, 3)]), callback=lambda trial, search: True)

    def until_finished() -> Iterator[tuple[Scheme, Measurement]]:
        for scheme in search.ask():
            yield scheme, measure(scheme)
            if search.finished:
                return

    search.tell(until_finished())
    assert kept(search.trials) == [(1, 1)]
    assert len(search.ledger) == 1


def test_a_searcher_that_only_repeats_itself_is_ended() -> None:
    def stubborn() -> Searcher:
        yield [Scheme((1, 1))]
        yield [Scheme((2, 2))]
        while True:
            yield [Scheme((1, 1)), Scheme((2, 2))]

    search = loop(stubborn())
    meter = drive(search)
    assert len(meter.measured) == len(search.trials) == 2
    assert search.reason == f"the searcher proposed nothing new in {IDLE_BATCHES} batches"


def test_a_searcher_that_has_something_new_in_the_end_is_not_ended() -> None:
    pause: list[list[tuple[int, int]]] = [[(1, 1)]] * (IDLE_BATCHES - 1)
    search = loop(fixed([(1, 1)], *pause, [(2, 2)], *pause, [], [(3, 3)]))
    drive(search)
    assert kept(search.trials) == [(1, 1), (2, 2)]
    patient = loop(fixed([(1, 1)], *pause, [(2, 2)], *pause, [(3, 3)]))
    drive(patient)
    assert kept(patient.trials) == [(1, 1), (2, 2), (3, 3)]


def test_a_replay_of_known_schemes_is_not_taken_for_repetition() -> None:
    batches: list[list[tuple[int, int]]] = [[(1 + n % WIDTH, 1 + n // WIDTH)] for n in range(2 * IDLE_BATCHES)]
    ledger = Ledger(None, "p", SPACE.groups)
    drive(loop(fixed(*batches), ledger))
    again = loop(fixed(*batches), ledger)
    assert drive(again).measured == []
    assert len(again.trials) == 2 * IDLE_BATCHES


def test_an_exception_in_a_searcher_reaches_the_caller() -> None:
    def broken() -> Searcher:
        yield [Scheme((1, 1))]
        raise LookupError("a defect")

    search = loop(broken())
    with pytest.raises(LookupError, match="a defect"):
        drive(search)
    assert search.finished
    assert search.reason == "the searcher failed"
    assert search.best is not None


def test_a_scheme_that_the_space_cannot_have_is_refused() -> None:
    with pytest.raises(UserError, match="group b: 31"):
        loop(fixed([(1, 31)])).ask()


def test_a_stopped_searcher_is_closed() -> None:
    closed: list[bool] = []

    def careful() -> Searcher:
        try:
            yield from climb()
        finally:
            closed.append(True)

    drive(loop(careful(), trials=3))
    assert closed == [True]


def test_an_interrupted_batch_keeps_what_was_recorded_and_goes_on_where_it_was(tmp_path: Path) -> None:
    undisturbed = loop(climb(), trials=12)
    drive(undisturbed)
    path = tmp_path / "ledger.jsonl"
    search = loop(climb(), Ledger(path, "p", SPACE.groups), trials=12)
    drive_once = Meter()
    search.tell(drive_once(search.ask()))

    def interrupted(schemes: list[Scheme]) -> Iterator[tuple[Scheme, Measurement]]:
        yield from drive_once(schemes[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.tell(interrupted(search.ask()))
    assert search.trials == undisturbed.trials[: BATCH + 2]
    assert search.best is not None
    assert not search.finished
    assert len(Ledger(path, "p", SPACE.groups)) == BATCH + 2
    resumed = loop(climb(), Ledger(path, "p", SPACE.groups), trials=12)
    for again in (search, resumed):
        drive(again)
        assert again.trials == undisturbed.trials


def test_another_reward_reuses_the_measurements() -> None:
    ledger = Ledger(None, "p", SPACE.groups)
    batch = [(10, 1), (25, 12), (28, 12)]
    drive(loop(fixed(batch), ledger))
    search = loop(fixed(batch), ledger, reward=REWARDS["accuracy"])
    assert drive(search).measured == []
    assert [trial.reward for trial in search.trials] == [0.10, 0.25, 0.28]


def test_a_reward_that_cannot_score_does_not_lose_the_measurement() -> None:
    ledger = Ledger(None, "p", SPACE.groups)
    search = loop(fixed([(1, 1), (2, 2)]), ledger, reward=REWARDS["neg_kl"])
    with pytest.raises(UserError, match=r"neg_kl.*choose neg_loss"):
        drive(search)
    assert ledger.find(Scheme((1, 1))) == measure(Scheme((1, 1)))
    again = loop(fixed([(1, 1), (2, 2)]), ledger)
    assert [scheme.kept for scheme in drive(again).measured] == [(2, 2)]


@pytest.mark.parametrize(
    "stop", [{"trials": 0}, {"trials": -1}, {"timeout": 0.0}, {"timeout": math.nan}, {"target": math.nan}]
)
def test_a_stop_rule_that_makes_no_sense_is_refused(stop: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(stop))):
        Stop(**stop)  # type: ignore[arg-type]


def test_without_a_stop_rule_the_searcher_decides() -> None:
    search = loop(fixed([(1, 1)]))
    assert search.stop == replace(search.stop) == Stop()
    drive(search)
    assert len(search.trials) == 1


# Run by a process of its own, which is then killed. It says what it has recorded: the loop fetches the
# next result only after the one before is in the ledger.
VICTIM = """
import sys
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("test_loop", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
sys.modules["test_loop"] = tests
spec.loader.exec_module(tests)

search = tests.loop(tests.climb(), tests.Ledger(Path(sys.argv[2]), "p", tests.SPACE.groups))

def results(schemes):
    for scheme in schemes:
        yield scheme, tests.measure(scheme)
        print(*scheme.kept, flush=True)

while schemes := search.ask():
    search.tell(results(schemes))
"""


@pytest.mark.parametrize("wait", [3, 40])
def test_kill_9_loses_nothing_that_was_recorded_and_nothing_is_recorded_twice(wait: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, __file__, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(wait)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.read().splitlines(keepends=True)
    process.wait()
    recorded = [Scheme(tuple(map(int, line.split()))) for line in said if line.endswith("\n")]

    ledger = Ledger(path, "p", SPACE.groups)
    survived = len(ledger)
    assert len(set(recorded)) == len(recorded) <= survived <= len(recorded) + 1
    assert all(ledger.find(scheme) == measure(scheme) for scheme in recorded)
    undisturbed, resumed = loop(climb(), trials=survived + 10), loop(climb(), ledger, trials=survived + 10)
    drive(undisturbed)
    assert len(drive(resumed).measured) == 10
    assert resumed.trials == undisturbed.trials
    assert not ledger.frame().duplicated(["kept.a", "kept.b"]).any()


def test_a_loop_that_is_closed_lets_its_searcher_go() -> None:
    ended = []

    def searcher() -> Generator[list[Scheme], list[Trial], None]:
        try:
            while True:
                yield [SPACE.dense]
        finally:
            ended.append(True)

    loop = Loop(searcher(), BUDGET, REWARDS["neg_loss"], Ledger(None, "p", SPACE.groups), Stop())
    loop.ask()
    loop.close()
    assert ended == [True]
