"""Racing: the test and its error, what a stopped candidate is told to be, and that a replay decides the same."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoprune import api
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import FULL, Fidelity
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.race import FIRST, Race
from autoprune.reward import REWARDS
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.space import Group, SearchSpace
from autoprune.trial import Measurement, Trial
from networks import lively

BATCHES = 64
RNG = np.random.default_rng(0)
DIFFICULTY = RNG.gamma(2.0, 0.2, BATCHES)  # of each batch: what makes losses of different networks go together


def raced(race: Race, losses: Sequence[float]) -> int:
    """After how many batches the candidate is stopped, or all of them."""
    return next((seen for seen in range(1, len(losses)) if race.is_lost(losses[:seen])), len(losses))


def gaps(rng: np.random.Generator, mean: float, spread: float = 0.05) -> np.ndarray:
    """Differences between batches that have exactly this mean over all of them."""
    drawn = rng.normal(0, spread, BATCHES)
    return drawn - drawn.mean() + mean


# -- the test --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_a_candidate_that_is_as_good_is_stopped_no_more_often_than_the_error_says(error: float) -> None:
    race, rng = Race(error, tuple(DIFFICULTY)), np.random.default_rng(1)
    stopped = [raced(race, DIFFICULTY + gaps(rng, 0.0)) < BATCHES for _ in range(400)]
    assert 0 < np.mean(stopped) <= error + 2 * math.sqrt(error * (1 - error) / 400)


def test_a_worse_candidate_is_stopped_the_sooner_the_worse_it_is() -> None:
    race, rng = Race(0.01, tuple(DIFFICULTY)), np.random.default_rng(2)
    seen = [np.mean([raced(race, DIFFICULTY + gaps(rng, mean)) for _ in range(50)]) for mean in (0.01, 0.05, 0.2)]
    assert BATCHES > seen[0] > seen[1] > seen[2]
    assert seen[2] <= 2 * FIRST


def test_pairing_tells_what_the_losses_alone_could_not() -> None:
    worse = DIFFICULTY + gaps(np.random.default_rng(3), 0.05, spread=0.02)
    assert raced(Race(0.01, tuple(DIFFICULTY)), worse) < BATCHES
    assert raced(Race(0.01, tuple(np.roll(DIFFICULTY, 1))), worse) == BATCHES


def test_a_better_candidate_and_one_that_is_no_number_run_to_the_end() -> None:
    race = Race(0.01, tuple(DIFFICULTY))
    assert raced(race, DIFFICULTY - 0.1) == BATCHES
    assert raced(race, np.full(BATCHES, math.nan)) == BATCHES


def test_without_a_rival_or_with_few_batches_nobody_is_stopped() -> None:
    assert Race(0.01).looks == () == Race(0.01, (0.0,) * FIRST).looks
    assert raced(Race(0.01), np.full(9, 1e9)) == 9


def test_every_look_comes_before_the_last_batch() -> None:
    looks = Race(0.01, tuple(DIFFICULTY)).looks
    assert looks[0] == FIRST
    assert list(looks) == sorted(set(looks))
    assert looks[-1] < BATCHES


def test_what_is_expected_of_a_stopped_candidate_is_worse_than_the_best_and_close_to_the_truth() -> None:
    race, rng = Race(0.05, tuple(DIFFICULTY)), np.random.default_rng(4)
    for _ in range(20):
        losses = DIFFICULTY + gaps(rng, 0.05)
        seen = raced(race, losses)
        assert seen < BATCHES
        assert race.expected(losses[:seen]) > np.mean(DIFFICULTY)
        error = abs(race.expected(losses[:seen]) - np.mean(losses))
        assert error < 5 * 0.05 / math.sqrt(seen)


@pytest.mark.parametrize("error", [0.0, 0.5, -1.0, math.nan])
def test_an_impossible_error_is_refused(error: float) -> None:
    with pytest.raises(UserError, match="lies in"):
        Race(error)


# -- as a value ------------------------------------------------------------------------------------


def test_a_race_is_a_fidelity_of_its_own_and_a_finished_one_is_not() -> None:
    one, other = Fidelity(race=Race(0.01, (1.0, 2.0))), Fidelity(race=Race(0.01, (1.0, 3.0)))
    assert len({FULL.name, one.name, other.name}) == 3
    assert not one.full
    assert one.finished == FULL
    assert Fidelity(share=0.5, race=Race(0.01)).finished == Fidelity(share=0.5)


@pytest.mark.parametrize("seen", [0.25, 1.0])
def test_losses_survive_the_ledger(tmp_path: Path, seen: float) -> None:
    measured = Measurement(loss=0.1 + 0.2, losses=(0.1, 1 / 3), seen=seen)
    assert Measurement.from_dict(measured.to_dict()) == measured or math.isnan(measured.accuracy)
    path = tmp_path / "ledger.jsonl"
    Ledger(path, "p", SPACE.groups).append(Scheme((1,)), measured, 0.0)
    found = Ledger(path, "p", SPACE.groups).find(Scheme((1,)))
    assert found is not None
    assert (found.losses, found.seen, found.loss) == (measured.losses, seen, measured.loss)
    assert found.stopped == (seen < 1)


# -- in the loop -----------------------------------------------------------------------------------

SPACE = SearchSpace((Group("a", 99, (), tuple(range(1, 100))),), (), {})
BUDGET = Budget(SPACE, {"channels": 90.0}, {"channels": lambda scheme: float(scheme.kept[0])})


def measure(scheme: Scheme, fidelity: Fidelity) -> Measurement:
    """The more channels, the lower the loss; as an evaluator would, it stops where the race is lost."""
    count = scheme.kept[0]
    losses = [float(loss) for loss in DIFFICULTY - count / 100 + gaps(np.random.default_rng(count), 0.0, 0.02)]
    race = fidelity.race
    if race is None:
        return Measurement(loss=sum(losses) / BATCHES, seconds={"total": 1.0})
    seen = raced(race, losses)
    if seen == BATCHES:
        return Measurement(loss=sum(losses) / BATCHES, losses=tuple(losses))
    return Measurement(loss=race.expected(losses[:seen]), losses=tuple(losses[:seen]), seen=seen / BATCHES)


def propose(told: list[list[Trial]] | None = None) -> Generator[list[Scheme], list[Trial], None]:
    for batch in ([50, 20, 40], [30, 60, 20], [61, 30, 95], [70]):
        trials = yield [Scheme((count,)) for count in batch]
        if told is not None:
            told.append(trials)


def drive(
    ledger: Ledger, race: float | None = 0.01, told: list[list[Trial]] | None = None, backwards: bool = False
) -> tuple[Loop, list[tuple[int, bool]]]:
    """The loop at its end, and what was measured: the scheme, and whether it had a rival."""
    asked = []
    loop = Loop(propose(told), BUDGET, REWARDS["neg_loss"], ledger, Stop(), race=race)
    while wanted := loop.ask():
        rival = loop.fidelity.race
        asked += [(scheme.kept[0], rival is not None and bool(rival.losses)) for scheme in wanted]
        results = [(scheme, measure(scheme, loop.fidelity)) for scheme in wanted]
        loop.tell(reversed(results) if backwards else results)
    return loop, asked


def test_every_batch_races_against_the_best_affordable_trial_before_it() -> None:
    loop, asked = drive(Ledger(None, "p", SPACE.groups))
    assert asked == [
        (50, False), (20, False), (40, False), (30, True), (60, True), (61, True), (95, True), (70, True),
    ]  # fmt: skip
    stopped = [trial.scheme.kept[0] for trial in loop.trials if trial.stopped]
    assert stopped == [30]  # 20 and 30 are known when they come again
    assert loop.best is not None
    assert loop.best.scheme.kept == (70,)
    assert loop.effort == len(loop.trials) == 8


def test_a_searcher_hears_of_a_stopped_candidate_what_is_expected_of_it() -> None:
    told: list[list[Trial]] = []
    drive(Ledger(None, "p", SPACE.groups), told=told)
    (first, again), best = [t for batch in told for t in batch if t.scheme.kept == (30,)], told[0][0]
    assert first is again
    assert first.stopped
    assert first.fidelity.name.startswith("race=0.01:")
    assert best.reward > first.reward == -first.measurement.loss > -math.inf
    assert abs(first.measurement.loss - measure(Scheme((30,)), FULL).loss) < 0.05


def test_what_was_stopped_cannot_win_whatever_is_expected_of_it() -> None:
    loop = Loop(propose(), BUDGET, REWARDS["neg_loss"], Ledger(None, "p", SPACE.groups), Stop(), race=0.01)
    lucky = Measurement(loss=-100.0, losses=(0.0,), seen=0.5)
    while wanted := loop.ask():
        loop.tell((s, lucky if s.kept == (30,) else measure(s, loop.fidelity)) for s in wanted)
    assert loop.best is not None
    assert loop.best.scheme.kept == (70,)


def test_a_later_request_in_full_measures_what_was_stopped() -> None:
    ledger = Ledger(None, "p", SPACE.groups)
    drive(ledger)
    assert ledger.find(Scheme((30,))) is None
    loop, asked = drive(ledger, race=None)
    assert asked == [(30, False)]
    assert not any(trial.stopped for trial in loop.trials)
    record = ledger.find(Scheme((30,)))
    assert record is not None
    assert record.loss == measure(Scheme((30,)), FULL).loss


def test_a_replay_and_another_order_of_arrival_decide_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first, _ = drive(Ledger(path, "p", SPACE.groups))
    drive(Ledger(path, "p", SPACE.groups), race=None)  # somebody else measures in full meanwhile
    again, asked = drive(Ledger(path, "p", SPACE.groups))
    other, _ = drive(Ledger(None, "p", SPACE.groups), backwards=True)
    assert asked == []
    for loop in (again, other):
        assert [(t.scheme, t.reward, t.fidelity) for t in loop.trials] == [
            (t.scheme, t.reward, t.fidelity) for t in first.trials
        ]


# -- in the evaluator and a search -----------------------------------------------------------------

COUNT = 24


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 18, 3), nn.ReLU())
    return lively(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 4)))


def images(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches with the labels that the network itself gives, so that the dense one is hard to beat."""
    generator, model = torch.Generator().manual_seed(seed), network()
    inputs = [3 * torch.randn(8, 3, 8, 8, generator=generator) for _ in range(count)]
    with torch.no_grad():
        answers = torch.cat([model(x) for x in inputs])
        labels = (answers - answers.mean(0)).argmax(1).split(8)
    return list(zip(inputs, labels, strict=True))


CALIBRATION, VALIDATION = images(4, 1), images(COUNT, 2)


def make() -> Evaluator:
    model = network()
    return Evaluator(model, trace(model, CALIBRATION[0][0]), CALIBRATION, VALIDATION)


def test_a_candidate_that_is_not_stopped_is_measured_in_full() -> None:
    evaluator, scheme = make(), Scheme((18, 15))
    whole = evaluator(scheme)
    for losses in ((), (100.0,) * COUNT):
        found = evaluator(scheme, fidelity=Fidelity(race=Race(0.01, losses)))
        assert (found.loss, found.accuracy, found.kl) == (whole.loss, whole.accuracy, whole.kl)
        assert not found.stopped
        assert sum(found.losses) / COUNT == pytest.approx(found.loss)
    assert whole.losses == ()


def test_a_lost_race_ends_at_the_first_look_that_tells() -> None:
    evaluator, scheme = make(), Scheme((4, 4))
    losses = evaluator(scheme, fidelity=Fidelity(race=Race(0.01))).losses
    race = Race(0.01, tuple(loss - 1 for loss in losses))
    found = evaluator(scheme, fidelity=Fidelity(race=race))
    assert found.stopped
    assert found.seen == FIRST / COUNT
    assert found.losses == losses[:FIRST]
    assert found.loss == pytest.approx(sum(race.losses) / COUNT + 1)
    assert found.fractions == evaluator(scheme).fractions


def search(root: Path, **options: object) -> api.Run:
    model = network()
    given = {"budget": "macs=60%", "searcher": "random", "trials": 8, "batch": 4, "race": 0.2, "run": "r", **options}
    return api.search(model, CALIBRATION[0][0][:1], CALIBRATION, VALIDATION, root=root, **given)  # type: ignore[arg-type]


def test_a_search_tells_what_it_stopped_and_answers_with_what_it_measured_in_full(tmp_path: Path) -> None:
    run, alone = search(tmp_path / "a"), search(tmp_path / "b", race=None)
    history = run.history()
    stopped = history[history["seen"] < 1]
    assert run.summary["stopped"] == len(stopped) > 0
    assert run.summary["trials"] == 8
    assert (history["seen"] > 0).all()
    assert stopped["fidelity"].str.startswith("race=").all()
    assert (history[history["seen"] == 1]["fidelity"] == "full").all()
    assert run.summary["reward"] == history[history["seen"] == 1]["reward"].max() == alone.summary["reward"]
    again = search(tmp_path / "a")
    assert again.history().equals(history)


def evaluation(model: nn.Module) -> dict[str, float]:
    return {"loss": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "accuracy"}, "it needs class labels and reward neg_loss"),
        ({"evaluate": evaluation}, "it needs class labels and reward neg_loss"),
        ({"objectives": "loss,macs", "searcher": "optuna"}, "missing from a front"),
        ({"race": 0.7}, "race = 0.7"),
    ],
)
def test_a_race_that_cannot_be_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        search(tmp_path, **options)


@pytest.mark.slow
def test_workers_stop_the_same_candidates(tmp_path: Path) -> None:
    here, there = search(tmp_path / "a"), search(tmp_path / "b", workers=2)
    columns = ["trials", "fidelity", "reward", "seen", "kept"]
    assert there.history()[columns].equals(here.history()[columns])
    assert here.summary["stopped"] > 0


def test_the_losses_of_a_race_are_those_of_the_images() -> None:
    evaluator, scheme = make(), Scheme((18, 15))
    model = evaluator.candidate(scheme)
    with torch.no_grad():
        expected = [float(nn.functional.cross_entropy(model(x), y)) for x, y in VALIDATION]
    found = evaluator(scheme, fidelity=Fidelity(race=Race(0.01)))
    assert list(found.losses) == pytest.approx(expected, rel=1e-4)
