from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from autoprune import data, demo
from autoprune.budget import Budget
from autoprune.calibrated import POWERS, divergences, least
from autoprune.evaluate import Evaluator
from autoprune.search_spaces.traced import trace


def answers(seed: int, images: int = 200, classes: int = 10):
    torch.manual_seed(seed)
    dense = 3 * torch.randn(images, classes)
    return dense, dense + torch.randn(images, classes)


def kl(dense, scores) -> float:
    return float(functional.kl_div(scores.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean"))


def calibrated(dense, scores) -> float:
    return least(divergences(scores.log_softmax(1), dense.log_softmax(1)) / len(dense))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_least_divergence_over_temperatures(seed) -> None:
    """A search over 400 temperatures was within 0.2 % for twelve seeds."""
    dense, scores = answers(seed)
    fine = min(kl(dense, power * scores) for power in torch.logspace(-0.45, 0.3, 400))
    assert calibrated(dense, scores) == pytest.approx(fine, rel=0.01)
    assert calibrated(dense, scores) < kl(dense, scores)


@pytest.mark.parametrize("power", [0.5, 0.7, 1.5, 1.9])
def test_confidence_does_not_count(power) -> None:
    dense, scores = answers(0)
    assert calibrated(dense, power * scores) == pytest.approx(calibrated(dense, scores), rel=0.01)
    assert kl(dense, power * scores) > 1.1 * kl(dense, scores) or power < 1


def test_the_same_answers_have_no_divergence() -> None:
    dense, _ = answers(0)
    assert calibrated(dense, dense) == pytest.approx(0, abs=1e-3)
    assert calibrated(dense, dense) >= 0


def test_beyond_the_temperatures_that_are_tried_the_last_one_counts() -> None:
    dense, scores = answers(0)
    assert calibrated(dense, 10 * scores) == pytest.approx(kl(dense, 10 * POWERS[0] * scores), rel=0.02)


def test_maps_of_classes_count_every_place() -> None:
    dense, scores = answers(0, images=12)
    maps = [values.reshape(3, 2, 2, 10).permute(0, 3, 1, 2) for values in (dense, scores)]
    one = divergences(scores.log_softmax(1), dense.log_softmax(1))
    torch.testing.assert_close(divergences(maps[1].log_softmax(1), maps[0].log_softmax(1)), one, rtol=1e-4, atol=0)


def test_a_measurement_has_it(tmp_path, with_digits) -> None:
    network, splits = demo.digits(with_digits(tmp_path)), data.load("digits", 200, 200)
    space = trace(network, splits.validation[0][0][:1])
    evaluator = Evaluator(network, space, splits.calibration, splits.validation)
    assert evaluator.dense.calibrated_kl == pytest.approx(0, abs=1e-3)
    seen = evaluator(Budget.parse("macs=30%", space).fit([1.0] * len(space)))
    assert 0 < seen.calibrated_kl <= seen.kl
    assert math.isnan(evaluator.observe(network, splits.validation).calibrated_kl)
