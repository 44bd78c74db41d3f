from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from autoprune.latency.stairs import STEPS, find

SEEDS = range(40)


def times(
    step: int, noise: float, seed: int, *, spacing: int = 1, tread: float = 0.0, uneven: bool = False
) -> tuple[list[int], list[float]]:
    """Times at 33 neighbouring lengths: stairs of ``step`` (0: a line), of which ``tread`` is a line."""
    chance = np.random.default_rng(seed)
    high = int(chance.integers(36, 120)) * spacing
    lengths = np.arange(high - 32 * spacing, high + 1, spacing)
    top = -(-lengths // step) * step if step else lengths
    rise = chance.uniform(0.5, 1.5, 1000)[top // max(step, 1)] if uneven else 1.0
    ms = ((1 - tread) * rise * top + tread * lengths) * (1 + noise * chance.standard_normal(33))
    return lengths.tolist(), ms.tolist()


def found(step: int, noise: float, **options: object) -> Counter[int]:
    return Counter(find(*times(step, noise, seed, **options)) for seed in SEEDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("tread", [0.0, 0.15])
def test_stairs_are_found_exactly_where_nothing_disturbs(step: int, tread: float) -> None:
    assert found(step, 0.0, tread=tread) == {step: len(SEEDS)}


@pytest.mark.parametrize("step", [8, 16, 32])
def test_stairs_may_be_of_any_height(step: int) -> None:
    assert found(step, 0.005, uneven=True)[step] >= 0.8 * len(SEEDS)


@pytest.mark.parametrize(
    ("step", "noise", "share"), [(8, 0.01, 0.6), (16, 0.01, 0.7), (16, 0.02, 0.6), (32, 0.03, 0.5)]
)
def test_stairs_are_found_in_noise(step: int, noise: float, share: float) -> None:
    seen = found(step, noise)
    assert seen[step] >= share * len(SEEDS)
    assert set(seen) <= {1, 2, 4, 8, 16, 32} and not any(other > step for other in seen)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.02, 0.03])
@pytest.mark.parametrize("spacing", [1, 2, 9])
def test_a_line_has_no_stairs(noise: float, spacing: int) -> None:
    assert found(0, noise, spacing=spacing)[spacing] >= 0.95 * len(SEEDS)


def test_times_that_do_not_change_have_no_stairs() -> None:
    chance = np.random.default_rng(0)
    seen = Counter(find(range(1, 34), (1 + 0.02 * chance.standard_normal(33)).tolist()) for _ in range(200))
    assert seen[1] >= 190


def test_steps_are_multiples_of_the_lengths_own_step() -> None:
    assert found(8, 0.0, spacing=2) == {8: len(SEEDS)}
    assert found(24, 0.0, spacing=3) == {24: len(SEEDS)}


def test_few_lengths_do_not_fail() -> None:
    assert find([7, 8], [1.0, 1.0]) == 1
    assert find(list(range(1, 10)), [1.0] * 8 + [2.0]) in (1, 2, 4, 8)
