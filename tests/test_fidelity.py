"""Quick looks: what a fidelity means, how the loop charges for it, and what the evaluator then looks at."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import pytest
import torch
from torch import nn

from autoprune import forward, recover
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import FULL, Batch, Fidelity
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.reward import REWARDS
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.space import Group, SearchSpace
from autoprune.trial import Measurement, Trial
from networks import lively

SPACE = SearchSpace((Group("a", 99, (), tuple(range(1, 100))),), (), {})
BUDGET = Budget(SPACE, {"channels": 90.0}, {"channels": lambda scheme: float(scheme.kept[0])})
QUARTER = Fidelity(share=0.25)


def schemes(*kept: int) -> list[Scheme]:
    return [Scheme((count,)) for count in kept]


def drive(*batches: Batch | list[Scheme], ledger: Ledger | None = None, **stop: float) -> tuple[Loop, list[str]]:
    """A loop over fixed batches, and what had to be measured; a quick look rewards a scheme 10 too high."""
    asked = []

    def propose() -> Generator[Batch | list[Scheme], list[Trial], None]:
        for batch in batches:
            told = yield batch
            assert [trial.fidelity for trial in told] == [Batch.of(batch).fidelity] * len(told)

    ledger = Ledger(None, "p", SPACE.groups) if ledger is None else ledger
    loop = Loop(propose(), BUDGET, REWARDS["neg_loss"], ledger, Stop(**stop))  # type: ignore[arg-type]
    while wanted := loop.ask():
        asked += [f"{scheme.kept[0]} {loop.fidelity.name}" for scheme in wanted]
        bonus = 0 if loop.fidelity.full else 10
        loop.tell((scheme, Measurement(loss=-scheme.kept[0] - bonus, seconds={"total": 1.0})) for scheme in wanted)
    return loop, asked


# --- names ---


def test_a_fidelity_is_known_by_what_it_spares_and_what_came_before() -> None:
    assert FULL.name == "full" == Fidelity(share=1.0).name
    assert QUARTER.name == "share=0.25"
    assert Fidelity(0.5, "none").name == "share=0.5,recovery=none"
    on_the_way = {Fidelity(after=tuple(schemes(*way))).name for way in ((5,), (5, 4), (4, 5), (4,))}
    assert len(on_the_way) == 4
    assert Fidelity(after=tuple(schemes(5))).full
    assert not QUARTER.full
    assert not Fidelity(recovery="none").full


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan, math.inf])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"share = .*lies in \(0, 1\]"):
        Fidelity(share)


# --- the loop ---


def test_a_quick_look_costs_its_share_of_a_trial() -> None:
    loop, asked = drive(Batch(schemes(1, 2, 3, 4), QUARTER), schemes(5, 6), schemes(7), trials=3)
    assert asked == [*(f"{n} share=0.25" for n in (1, 2, 3, 4)), "5 full", "6 full"]
    assert loop.effort == 3
    assert loop.reason == "3 trials were made"


@pytest.mark.parametrize(("allowed", "looks"), [(1, 4), (2, 8)])
def test_no_more_is_looked_at_than_the_trials_allow(allowed: int, looks: int) -> None:
    _, asked = drive(Batch(schemes(*range(1, 12)), QUARTER), trials=allowed)
    assert len(asked) == looks


def test_a_third_three_times_is_one_trial() -> None:
    _, asked = drive(Batch(schemes(1, 2, 3, 4), Fidelity(share=1 / 3)), trials=1)
    assert len(asked) == 3


def test_a_whole_trial_is_not_begun_when_less_than_one_is_left() -> None:
    for allowed, made in ((1, 1), (2, 2)):
        loop, asked = drive(Batch(schemes(1, 2, 3), QUARTER), schemes(5, 6), trials=allowed)
        assert loop.effort == 0.75 + made - 1
        assert len(asked) == 3 + made - 1
        assert "no whole one is left" in str(loop.reason)


def test_without_a_discount_a_look_costs_a_whole_trial() -> None:
    ledger = Ledger(None, "p", SPACE.groups)

    def propose() -> Generator[Batch, list[Trial], None]:
        yield Batch(schemes(1, 2, 3, 4), QUARTER)

    loop = Loop(propose(), BUDGET, REWARDS["neg_loss"], ledger, Stop(trials=2), discount=False)
    assert len(loop.ask()) == 2


def test_what_was_only_looked_at_never_wins() -> None:
    loop, _ = drive(
        schemes(20), Batch(schemes(30, 25), QUARTER), schemes(25), Batch(schemes(40), Fidelity(1.0, "none"))
    )
    assert loop.best is not None
    assert loop.best.scheme == Scheme((25,))
    assert loop.feasible == 2
    assert len(loop.trials) == 5


def test_a_target_is_not_reached_by_a_look() -> None:
    loop, _ = drive(Batch(schemes(30), QUARTER), schemes(20), schemes(33), schemes(34), target=33)
    assert loop.best is not None
    assert loop.best.scheme == Scheme((33,))


def test_looks_are_recorded_apart_and_found_again() -> None:
    ledger = Ledger(None, "p", SPACE.groups)
    batches = (Batch(schemes(1, 2), QUARTER), schemes(2, 3), Batch(schemes(2, 4), QUARTER))
    loop, asked = drive(*batches, ledger=ledger)
    assert asked == ["1 share=0.25", "2 share=0.25", "2 full", "3 full", "4 share=0.25"]
    again, nothing = drive(*batches, ledger=ledger)
    assert nothing == []
    assert again.trials == loop.trials
    assert ledger.find(Scheme((2,)), QUARTER) != ledger.find(Scheme((2,)))


# --- the evaluator ---


class Seen(nn.Module):
    """Notes how many images pass, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images += len(x)
        return x


def batches(sizes: Sequence[int], seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 3, 8, 8, generator=draw), torch.randint(0, 4, (n,), generator=draw)) for n in sizes]


@pytest.fixture
def evaluator() -> Evaluator:
    torch.manual_seed(0)
    network = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )
    )  # fmt: skip
    calibration, validation = batches((16, 16), 0), batches((20, 20, 8), 1)
    return Evaluator(network, trace(network, calibration[0][0]), calibration, validation)


HALF = Scheme((4, 3))


@pytest.mark.parametrize(("share", "images"), [(1.0, 48), (0.5, 24), (0.25, 12), (1 / 48, 2), (0.9, 44)])
def test_the_validation_of_a_share_is_that_of_its_first_images(evaluator: Evaluator, share: float, images: int) -> None:
    candidate = evaluator.candidate(HALF)
    whole = (
        torch.cat([x for x, _ in evaluator.validation])[:images],
        torch.cat([y for _, y in evaluator.validation])[:images],
    )
    expected = evaluator.observe(candidate, [whole])
    seen = evaluator.observe(candidate, share=share)
    assert (seen.loss, seen.accuracy) == (pytest.approx(expected.loss), pytest.approx(expected.accuracy))
    assert math.isfinite(seen.kl)


def test_recalibration_of_a_share_reads_its_first_images(evaluator: Evaluator) -> None:
    counted = Seen()
    network = nn.Sequential(counted, *evaluator.model)
    context = recover.Context(evaluator.model, evaluator.space, [], evaluator.statistics, evaluator.calibration, 0.25)
    recover.recalibrate_bn(network, context)
    assert counted.images == 8


def test_a_measurement_at_a_share_is_another_and_repeatable(evaluator: Evaluator) -> None:
    full, look = evaluator(HALF), evaluator(HALF, fidelity=Fidelity(share=0.5))
    assert look.loss != full.loss
    assert evaluator(HALF, fidelity=Fidelity(share=0.5)).loss == look.loss
    assert look.costs == full.costs
    plain = evaluator(HALF, fidelity=Fidelity(recovery="none"))
    assert plain.kl > full.kl


def test_a_repair_that_does_not_exist_ends_the_search_and_is_no_failed_candidate(evaluator: Evaluator) -> None:
    with pytest.raises(UserError, match="'nonne' is unknown"):
        evaluator(HALF, fidelity=Fidelity(recovery="nonne"))


@pytest.mark.parametrize(
    ("sizes", "share", "left"), [((4, 4), 0.6, [4]), ((4, 4), 0.7, [4, 2]), ((1, 1, 1), 1 / 3, [1, 1])]
)
def test_a_single_sample_is_left_out_behind_others(sizes: tuple[int, ...], share: float, left: list[int]) -> None:
    assert [len(x) for x, _ in forward.leading(batches(sizes, 0), share)] == left


def test_the_first_samples_of_nested_batches_are_taken_and_the_rest_stays() -> None:
    inputs = {"x": torch.arange(6), "mask": (torch.arange(12).reshape(6, 2), torch.tensor(3.0)), "scale": 2}
    (cut,) = forward.leading([(inputs, torch.arange(6))], 0.5)
    assert cut[0]["x"].tolist() == cut[1].tolist() == [0, 1, 2]
    assert cut[0]["mask"][0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert cut[0]["mask"][1] == 3
    assert cut[0]["scale"] == 2
