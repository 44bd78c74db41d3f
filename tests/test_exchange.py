"""Exchanges between groups: who grows, who pays, and that most others stay as they are."""

from __future__ import annotations

import numpy as np
import pytest

import toy
from autoprune.searchers.exchange import exchange

SWAPS = 2


@pytest.mark.parametrize("text", ["macs=50%", "params=40%"])
@pytest.mark.parametrize("seed", range(3))
def test_some_groups_grow_some_pay_and_the_budget_is_used_up(seed: int, text: str) -> None:
    space = toy.resnet(blocks=3)
    budget, rng = toy.capped(space, text), np.random.default_rng(seed)
    parent = budget.fit(rng.uniform(0.3, 1.0, len(space)))
    found = [child for _ in range(50) if (child := exchange(budget, parent, 0.25, SWAPS, rng)) is not None]
    assert found
    for child in found:
        assert budget.allows(child)
        assert any(a > b for a, b in zip(child.kept, parent.kept, strict=True))
        assert 1 <= sum(a < b for a, b in zip(child.kept, parent.kept, strict=True)) <= SWAPS
        for g, group in enumerate(space.groups):
            larger = [count for count in group.counts if count > child.kept[g]][:1]
            assert not any(budget.allows(child.replace(g, count)) for count in larger)


def test_most_groups_keep_their_very_counts() -> None:
    space = toy.resnet()
    budget, rng = toy.capped(space, "macs=50%"), np.random.default_rng(0)
    parent = budget.fit(rng.uniform(0.3, 1.0, len(space)))
    children = [exchange(budget, parent, 0.25, 1, rng) for _ in range(50)]
    changed = [sum(a != b for a, b in zip(child.kept, parent.kept, strict=True)) for child in children if child]
    assert np.median(changed) == 2


def test_the_smallest_network_has_nothing_to_pay_with() -> None:
    space = toy.chain((8, 8))
    budget = toy.capped(space, "smallest")
    parent = budget.fit(np.ones(len(space)))
    assert [exchange(budget, parent, 0.5, 1, np.random.default_rng(seed)) for seed in range(5)] == [None] * 5
