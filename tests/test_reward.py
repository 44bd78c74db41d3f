"""Rewards: the built-in ones, finding them by name, and what happens when one cannot score."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import pytest

from autoprune import reward
from autoprune.errors import UserError
from autoprune.reward import REWARDS, find, score
from autoprune.trial import Measurement

ERROR, MACS, PARAMS = 0.25, 4e6, 1e5
SEEN = Measurement(loss=0.7, accuracy=1 - ERROR, kl=0.3, costs={"macs": MACS, "params": PARAMS})


def frugal(m: Measurement, weight: float = 0.2) -> float:
    return m.accuracy - weight * m.costs["macs"] / 1e6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 1 - ERROR),
        ("neg_loss", -0.7),
        ("neg_kl", -0.3),
        ("amc_err", -ERROR),
        ("amc_flops", -ERROR * math.log(MACS)),
        ("amc_param", -ERROR * math.log(PARAMS)),
    ],
)
def test_a_built_in_reward_is_its_formula(name: str, expected: float) -> None:
    assert score(find(name), SEEN) == pytest.approx(expected)


def test_the_default_is_built_in_and_needs_no_accuracy() -> None:
    assert score(REWARDS[reward.DEFAULT], Measurement(loss=2.0)) == -2.0


@pytest.mark.parametrize("name", REWARDS)
def test_every_built_in_reward_prefers_the_better_of_two_candidates(name: str) -> None:
    better = Measurement(loss=0.1, accuracy=0.95, kl=0.01, costs=SEEN.costs)
    assert score(find(name), better) > score(find(name), SEEN)


@pytest.mark.parametrize(("name", "cost"), [("amc_flops", "macs"), ("amc_param", "params")])
def test_at_equal_accuracy_the_amc_rewards_prefer_the_cheaper(name: str, cost: str) -> None:
    cheaper = Measurement(accuracy=SEEN.accuracy, costs={**SEEN.costs, cost: SEEN.costs[cost] / 2})
    assert score(find(name), cheaper) > score(find(name), SEEN)


def test_a_function_is_its_own_reward() -> None:
    generous = partial(frugal, weight=0.0)
    assert find(frugal) is frugal
    assert score(find(generous), SEEN) == SEEN.accuracy


def test_a_reward_is_found_by_module_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mylab_rewards.py").write_text("def halved(m):\n    return m.accuracy / 2\n\nlevel = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert score(find("mylab_rewards:halved"), SEEN) == (1 - ERROR) / 2
    for wrong in ("mylab_rewards:absent", "mylab_rewards:level", "no_such_module_here:x"):
        with pytest.raises(UserError, match=wrong.partition(":")[2]):
            find(wrong)
    sys.modules.pop("mylab_rewards")


def test_an_unknown_name_is_refused_with_the_close_one_and_all_that_are_known() -> None:
    with pytest.raises(UserError, match=r"'acuracy'.*close: accuracy") as refused:
        find("acuracy")
    assert all(name in str(refused.value) for name in REWARDS)


def test_what_is_neither_name_nor_function_is_refused() -> None:
    with pytest.raises(UserError, match="3"):
        find(3)  # type: ignore[arg-type]


def test_a_failed_candidate_is_worth_minus_infinity_and_never_reaches_the_reward() -> None:
    def unreachable(m: Measurement) -> float:
        raise AssertionError

    assert score(unreachable, Measurement(error="out of memory")) == -math.inf


def test_a_reward_that_lacks_its_number_is_refused_naming_those_that_work() -> None:
    with pytest.raises(UserError, match=r"reward accuracy is nan: .*no accuracy, no kl; choose neg_loss$"):
        score(REWARDS["accuracy"], Measurement(loss=1.0))
    with pytest.raises(UserError, match=r"amc_flops needs 'macs'.*; choose neg_loss or accuracy or amc_err$"):
        score(REWARDS["amc_flops"], Measurement(loss=1.0, accuracy=0.5))
    with pytest.raises(UserError, match="function of your own"):
        score(REWARDS["neg_loss"], Measurement(metrics={"bleu": 0.3}))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_reward_that_is_not_finite_is_refused_by_name(value: float) -> None:
    def hopeless(m: Measurement) -> float:
        return value

    with pytest.raises(UserError, match=f"hopeless is {value}.*finite number"):
        score(hopeless, SEEN)


def test_an_exception_in_a_reward_is_reported_with_its_name_and_kept_as_the_cause() -> None:
    def broken(m: Measurement) -> float:
        return 1 / 0

    with pytest.raises(UserError, match="broken raised ZeroDivisionError") as refused:
        score(partial(broken), SEEN)
    assert isinstance(refused.value.__cause__, ZeroDivisionError)
