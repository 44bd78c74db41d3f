"""Rewards: the built-in ones, finding them by name, and what happens when one cannot score."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune import reward
from autoprune.errors import UserError
from autoprune.references import stable_name
from autoprune.reward import REWARDS, configure, find, score
from autoprune.trial import Measurement

ERROR, MACS, PARAMS, SECONDS = 0.25, 4e6, 1e5, 2e-3
SEEN = Measurement(
    loss=0.7,
    accuracy=1 - ERROR,
    kl=0.3,
    calibrated_kl=0.2,
    costs={"macs": MACS, "params": PARAMS, "latency": SECONDS},
    fractions={"macs": 0.4, "params": 0.3, "latency": 0.8},
)


def frugal(m: Measurement, weight: float = 0.2) -> float:
    return m.accuracy - weight * m.costs["macs"] / 1e6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 1 - ERROR),
        ("neg_loss", -0.7),
        ("neg_kl", -0.3),
        ("neg_calibrated_kl", -0.2),
        ("amc_err", -ERROR),
        ("amc_flops", -ERROR * math.log(MACS)),
        ("amc_param", -ERROR * math.log(PARAMS)),
        ("latency_penalised", (1 - ERROR) * 0.8**-0.07),
        ("constraint_punish", 1 - ERROR),
    ],
)
def test_a_built_in_reward_is_its_formula(name: str, expected: float) -> None:
    assert score(find(name), SEEN) == pytest.approx(expected)


def test_the_default_is_built_in_and_needs_no_accuracy() -> None:
    assert score(REWARDS[reward.DEFAULT], Measurement(loss=2.0)) == -2.0


@pytest.mark.parametrize("name", REWARDS)
def test_every_built_in_reward_prefers_the_better_of_two_candidates(name: str) -> None:
    better = Measurement(
        loss=0.1, accuracy=0.95, kl=0.01, calibrated_kl=0.01, costs=SEEN.costs, fractions=SEEN.fractions
    )
    assert score(find(name), better) > score(find(name), SEEN)


@pytest.mark.parametrize(("name", "cost"), [("amc_flops", "macs"), ("amc_param", "params")])
def test_at_equal_accuracy_the_amc_rewards_prefer_the_cheaper(name: str, cost: str) -> None:
    cheaper = Measurement(accuracy=SEEN.accuracy, costs={**SEEN.costs, cost: SEEN.costs[cost] / 2})
    assert score(find(name), cheaper) > score(find(name), SEEN)


def test_a_function_is_its_own_reward() -> None:
    generous = partial(frugal, weight=0.0)
    assert find(frugal) is frugal
    assert score(find(generous), SEEN) == SEEN.accuracy


# --- rewards with options ---


def costing(fraction: float, accuracy: float = 0.8) -> Measurement:
    return Measurement(accuracy=accuracy, costs={"macs": fraction * MACS}, fractions={"macs": fraction})


def test_the_soft_constraint_weighs_accuracy_against_the_cost_as_mnasnet_does() -> None:
    soft = find(partial(REWARDS["latency_penalised"], cost="macs", target=0.5))
    assert score(soft, costing(0.5)) == pytest.approx(0.8)
    assert score(soft, costing(0.25)) > 0.8 > score(soft, costing(1.0))
    # The weight was chosen so that twice the cost is worth 5 % more accuracy.
    assert score(soft, costing(1.0, 0.8 * 1.05)) == pytest.approx(score(soft, costing(0.5)), rel=2e-3)


def test_the_target_of_the_soft_constraint_changes_no_comparison() -> None:
    candidates = [costing(fraction, accuracy) for fraction in (0.2, 0.5, 0.9) for accuracy in (0.7, 0.72, 0.75)]
    orders = [
        sorted(candidates, key=partial(REWARDS["latency_penalised"], cost="macs", target=target))
        for target in (0.1, 0.5, 1.0)
    ]
    assert orders[0] == orders[1] == orders[2]


def test_the_hard_constraint_counts_accuracy_within_the_target_alone() -> None:
    hard = find(partial(REWARDS["constraint_punish"], target=0.4))
    assert score(hard, costing(0.4)) == score(hard, costing(0.1)) == 0.8
    assert score(hard, costing(0.6)) == pytest.approx(0.4 - 0.6)
    assert score(hard, costing(0.6, accuracy=1.0)) < score(hard, costing(0.5, accuracy=0.1)) < 0
    with pytest.raises(UserError, match="constraint_punish is nan: the measurement has no loss, no accuracy"):
        score(hard, costing(0.6, accuracy=math.nan))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("latency_penalised", {"target": 0.0}, "target = 0.0: .* 0 < target <= 1"),
        ("latency_penalised", {"target": math.nan}, "target = nan"),
        ("latency_penalised", {"weight": 0.07}, "weight = 0.07: .*dearer would be better"),
        ("latency_penalised", {"weight": -math.inf}, "weight = -inf"),
        ("latency_penalised", {"wieght": -0.1}, "no option 'wieght': its options are cost, target, w"),
        ("constraint_punish", {"target": 50}, "target = 50: a fraction of the dense network's cost"),
        ("constraint_punish", {"target": "0.5"}, "option target='0.5': expected a number"),
        ("constraint_punish", {"cost": 1}, "option cost=1: expected text"),
        ("accuracy", {"target": 0.5}, "reward accuracy has no option 'target': it has no options"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_is_scored(name: str, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(partial(REWARDS[name], **wrong))


def test_options_of_a_reward_are_read_from_text() -> None:
    made = configure(frugal, {"weight": "0.5"})
    assert score(find(made), SEEN) == SEEN.accuracy - 0.5 * MACS / 1e6
    with pytest.raises(UserError, match="reward frugal has no option 'm'"):
        configure(frugal, {"m": "1"})


def test_a_cost_that_was_not_measured_is_named_beside_those_that_were() -> None:
    with pytest.raises(UserError, match=r"needs 'latency', .* \(its costs: macs\); choose accuracy or amc_err"):
        score(REWARDS["latency_penalised"], costing(0.5))


def test_the_record_of_a_reward_names_its_options() -> None:
    chosen = partial(REWARDS["constraint_punish"], target=0.3, cost="params")
    assert stable_name(chosen) == "autoprune.reward:constraint_punish(cost='params', target=0.3)"


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
    with pytest.raises(
        UserError, match=r"reward accuracy is nan: .*no accuracy, no kl, no calibrated_kl; choose neg_loss$"
    ):
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


@pytest.mark.parametrize("value", [3, np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_a_number_of_any_library_is_a_reward(value: float) -> None:
    assert score(lambda m: value, SEEN) == pytest.approx(float(value))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0.5", r"'0.5' \(str\)"),
        (np.str_("0.5"), r"\(str_\)"),
        (b"0.5", r"b'0.5' \(bytes\)"),
        (None, r"None \(NoneType\)"),
        ((0.5,), r"\(0.5,\) \(tuple\)"),
        (1j, r"1j \(complex\)"),
        ({"reward": 0.5}, r"\(dict\)"),
        (torch.arange(400.0).reshape(20, 20), r"\(Tensor\)"),
        (np.ones((2, 2)), r"\(ndarray\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_is_refused_and_shown_on_one_line(value: object, shown: str) -> None:
    def wrong(m: Measurement) -> Any:
        return value

    with pytest.raises(
        UserError, match=f"^reward wrong returned .*{shown}: a reward must be a finite number$"
    ) as refused:
        score(wrong, SEEN)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_what_a_reward_itself_refuses_is_passed_on_as_it_is() -> None:
    def strict(m: Measurement) -> float:
        raise UserError("strict: this will not do")

    with pytest.raises(UserError, match="^strict: this will not do$"):
        score(strict, SEEN)


def test_an_exception_in_a_reward_is_reported_with_its_name_and_kept_as_the_cause() -> None:
    def broken(m: Measurement) -> float:
        return 1 / 0

    with pytest.raises(UserError, match="broken raised ZeroDivisionError") as refused:
        score(partial(broken), SEEN)
    assert isinstance(refused.value.__cause__, ZeroDivisionError)
