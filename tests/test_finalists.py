"""A latency cap holds for the answer as measured, whatever the prediction said."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import toy
from autoprune.budget import Budget
from autoprune.cost import costs
from autoprune.finalists import ERROR, FILE, FINALISTS, Finals, Rounds
from autoprune.latency.meter import Meter
from autoprune.latency.stopwatch import Timing
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.reward import neg_loss
from autoprune.scheme import Scheme
from autoprune.searchers import find
from autoprune.trial import Measurement, Trial

SPACE = toy.chain((8, 16, 12), pixels=(64, 16, 4))
LANDSCAPE = toy.landscape(SPACE, seed=3)


def predicted(scheme) -> float:
    """Milliseconds: a part that no width changes, and one for the channels."""
    return 1.0 + float(np.sum(SPACE.rates(scheme)))


FUNCTIONS = {**costs(SPACE), "latency": predicted}


def measure(scheme) -> Measurement:
    absolute = {name: float(cost(scheme)) for name, cost in FUNCTIONS.items()}
    fractions = {name: absolute[name] / FUNCTIONS[name](SPACE.dense) for name in absolute}
    return Measurement(-LANDSCAPE(scheme), 0.5, costs=absolute, fractions=fractions, seconds={"total": 1.0})


class Device:
    """Times a "network" (its scheme) by what was predicted, off by a factor; counts what it is asked."""

    def __init__(self, off=lambda scheme: 1.0, spread: float = 0.0) -> None:
        self.off, self.spread = off, spread
        self.asked: list[list[tuple[int, ...]]] = []

    def __call__(self, networks):
        self.asked.append([scheme.kept for scheme in networks.values()])
        timings = {}
        for name, scheme in networks.items():
            ms = predicted(scheme) * self.off(scheme)
            timings[name] = Timing(ms, ms * (1 - self.spread / 2), ms * (1 + self.spread / 2), 9)
        return timings


class Search:
    """One search under a latency cap on the toy, as a problem does it."""

    def __init__(self, tmp_path, device: Device, budget: str = "latency=2.5ms", trials: int = 24) -> None:
        self.budget = Budget.parse(budget, SPACE, FUNCTIONS)
        self.ledger = Ledger(tmp_path / "ledger.jsonl", "toy", SPACE.groups)
        self.trials, self.tightened = trials, []
        uniform = self.budget.fit(np.ones(3))
        self.baseline = Trial(uniform, measure(uniform), LANDSCAPE(uniform))
        self.rounds = Rounds([self.run(self.budget, (), 0)])
        self.finals = Finals(
            self.budget, self.baseline, Meter(device, "a toy"), lambda scheme: scheme, self.run, tmp_path / FILE
        )
        self.settled = self.finals(self.rounds)

    def run(self, budget, starts, number):
        if number:
            self.tightened.append(budget.caps["latency"])
        hints = replace(toy.unit_scores(SPACE), starts=tuple(starts))
        proposals = find("swap")(SPACE, budget, seed=number, hints=hints, batch=4)
        loop = Loop(proposals, budget, neg_loss, self.ledger, Stop(self.trials if not number else self.trials // 4))
        while schemes := loop.ask():
            loop.tell((scheme, measure(scheme)) for scheme in schemes)
        return loop


def ms(search: Search) -> float:
    return search.settled.timings[search.settled.best.scheme.kept].median


def test_a_right_prediction_settles_at_once_on_the_best_trial(tmp_path) -> None:
    device = Device()
    search = Search(tmp_path, device)
    assert search.settled.met
    assert search.settled.best == search.rounds.loops[0].best
    assert (len(device.asked), search.tightened, search.settled.rounds) == (1, [], 0)
    assert len(device.asked[0]) <= 2 + FINALISTS
    assert device.asked[0][0] == SPACE.dense.kept


@pytest.mark.parametrize("off", [1.03, 1.1, 1.25])
def test_an_optimistic_prediction_is_searched_on_until_the_budget_is_met(tmp_path, off) -> None:
    search = Search(tmp_path, Device(lambda scheme: off))
    assert search.settled.met
    assert ms(search) <= 2.5 * (1 + search.settled.error)
    assert search.tightened
    assert search.tightened == sorted(search.tightened, reverse=True)
    assert search.tightened[0] < 2.5
    assert search.settled.best in search.rounds.trials
    assert search.settled.facts()["measured"] == ms(search)
    assert search.settled.facts()["dense"] == pytest.approx(off * predicted(SPACE.dense))


def test_the_best_reward_among_those_that_meet_the_budget_wins(tmp_path) -> None:
    """Networks with an odd first width are slow on this device: the best even one is taken."""
    search = Search(tmp_path, Device(lambda scheme: 1.3 if scheme.kept[0] % 2 else 1.0), trials=40)
    assert search.settled.met
    timed = search.settled.timings
    better = [t for t in search.rounds.trials if t.scheme.kept in timed and t.reward > search.settled.best.reward]
    assert all(timed[t.scheme.kept].median > 2.5 for t in better)


def test_another_finalist_may_be_the_answer_if_it_was_timed_and_is_fast_enough(tmp_path) -> None:
    settled = Search(tmp_path, Device(lambda scheme: 1.3 if scheme.kept[0] % 2 else 1.0), trials=40).settled
    fast = {kept for kept, timing in settled.timings.items() if timing.median <= 2.5}
    assert {kept for kept in settled.timings if settled.holds(Scheme(kept))} == fast
    assert not settled.holds(Scheme((1, 1, 1)))  # fast, but nobody has timed it
    other = next(Trial(Scheme(kept), Measurement(costs={"latency": 2.0}), 0.0) for kept in sorted(fast))
    facts = replace(settled, best=other).facts()
    assert facts["measured"] == settled.timings[other.scheme.kept].median
    assert (facts["predicted"], facts["met"]) == (2.0, True)


def test_a_relative_budget_is_held_against_the_dense_network_as_measured(tmp_path) -> None:
    """The whole device is twice as slow as the table said: half is still half."""
    search = Search(tmp_path, Device(lambda scheme: 2.0), "latency=60%")
    assert search.settled.met
    assert search.settled.limit == pytest.approx(0.6 * 2 * predicted(SPACE.dense))
    assert not search.tightened


def test_what_cannot_be_met_is_said_and_the_fastest_is_the_answer(tmp_path) -> None:
    search = Search(tmp_path, Device(lambda scheme: 5.0))
    assert not search.settled.met
    assert search.settled.facts()["met"] is False
    assert ms(search) > 2.5


def test_measuring_errors_are_granted_up_to_a_limit(tmp_path) -> None:
    for folder in ("quiet", "noisy"):
        (tmp_path / folder).mkdir()
    quiet = Search(tmp_path / "quiet", Device(lambda scheme: 1.02)).settled
    noisy = Search(tmp_path / "noisy", Device(lambda scheme: 1.02, spread=2.0)).settled
    assert quiet.error == 0
    assert quiet.rounds >= 1
    assert (noisy.error, noisy.rounds) == (ERROR, 0)


def test_a_continued_run_decides_the_same_and_times_nothing_again(tmp_path) -> None:
    first = Search(tmp_path, Device(lambda scheme: 1.1))
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text() + '{"round": 3, "timi')  # killed while writing
    device = Device(lambda scheme: 3.0)
    again = Search(tmp_path, device)
    assert again.settled.best == first.settled.best
    assert again.settled.facts() == first.settled.facts()
    assert not device.asked


def test_what_is_timed_after_a_kill_in_mid_line_is_known_to_the_next_run(tmp_path) -> None:
    (tmp_path / FILE).write_text('{"round": 0, "timi')
    first = Search(tmp_path, Device(lambda scheme: 1.1))
    device = Device(lambda scheme: 3.0)
    assert Search(tmp_path, device).settled.facts() == first.settled.facts()
    assert not device.asked


def test_rounds_are_told_as_one_search(tmp_path) -> None:
    search = Search(tmp_path, Device(lambda scheme: 1.1))
    rounds = search.rounds
    assert len(rounds.loops) > 1
    schemes = [trial.scheme for trial in rounds.trials]
    assert len(set(schemes)) == len(schemes) == rounds.effort == rounds.seconds
    assert rounds.feasible == sum(search.budget.allows(scheme) for scheme in schemes)
    assert "under a tighter latency" in (rounds.reason or "")


def test_the_file_is_plain_json_lines(tmp_path) -> None:
    Search(tmp_path, Device())
    (line,) = (tmp_path / FILE).read_text().splitlines()
    record = json.loads(line)
    assert record["round"] == 0
    assert tuple(record["timings"][0][0]) == SPACE.dense.kept
