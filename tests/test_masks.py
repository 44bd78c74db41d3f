"""Masks keep exactly what they say, nest, and survive optimizers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from autoprune import masks
from autoprune.errors import UserError


@pytest.mark.parametrize("entries", [1, 7, 1000, 9408])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_removes_exactly_the_rounded_share(entries: int, share: float) -> None:
    mask = masks.highest(torch.randn(entries), masks.kept(entries, share))
    assert int((~mask).sum()) == min(round(share * entries), entries - 1)


def test_masks_are_nested_whatever_ties_there_are() -> None:
    scores = torch.randint(0, 4, (50, 20), generator=torch.Generator().manual_seed(0)).float()
    found = [masks.highest(scores, masks.kept(1000, share / 100)) for share in range(0, 100, 3)]
    for less, more in pairwise(found):
        assert bool((less | ~more).all())  # what the sparser one keeps, the denser one keeps


def test_equal_scores_neither_go_nor_stay_together() -> None:
    mask = masks.highest(torch.ones(4, 5), 7)
    assert int(mask.sum()) == 7
    assert mask.flatten().nonzero().flatten().tolist() == list(range(13, 20))


def test_no_kept_score_is_below_a_removed_one() -> None:
    scores = torch.randn(300, generator=torch.Generator().manual_seed(1))
    mask = masks.highest(scores, 123)
    assert scores[mask].min() >= scores[~mask].max()


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8), (3, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_n_of_m_holds_in_every_block(n: int, m: int, axis: int) -> None:
    scores = torch.randn(24, 48, 3, 3)
    mask = masks.highest_of(scores, n, m, axis)
    assert mask.shape == scores.shape
    blocks, stays = (tensor.movedim(axis, -1).unflatten(-1, (-1, m)) for tensor in (scores, mask))
    assert bool((stays.sum(-1) == n).all())
    least = blocks.masked_fill(~stays, torch.inf).amin(-1)
    most = blocks.masked_fill(stays, -torch.inf).amax(-1)
    assert bool((least > most).all())


def test_n_of_m_needs_a_divisor() -> None:
    with pytest.raises(UserError, match="4 does not divide the 27 entries of axis 1"):
        masks.highest_of(torch.randn(8, 27), 2, 4)


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_sparsity_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="at least 0 and below 1"):
        masks.kept(10, share)


def test_one_ranking_over_all_tensors_keeps_the_total_and_one_of_each() -> None:
    scores = {"a": torch.rand(100), "b": torch.rand(50) * 1e-6}
    found = masks.ranked(scores, 0.5)
    assert sum(int(mask.sum()) for mask in found.values()) == 75
    assert int(found["b"].sum()) == 1 and bool(found["b"][scores["b"].argmax()])


def test_weights_are_chosen_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert list(masks.weights(model)) == ["0.weight", "3.weight"]
    assert list(masks.weights(model, exclude=["3"])) == ["0.weight"]
    with pytest.raises(UserError, match="'7' names no weight"):
        masks.weights(model, include=["7"])
    with pytest.raises(UserError, match="no weight is left"):
        masks.weights(model, exclude=["*"])


def test_shared_weights_are_listed_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(masks.weights(model)) == ["0.weight"]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_masked_weights_stay_zero_through_momentum_and_decay(optimizer: type[torch.optim.Optimizer]) -> None:
    model = nn.Linear(20, 10)
    found = masks.uniform({"weight": model.weight.detach().abs()}, 0.9)
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    descent = optimizer(model.parameters(), lr=0.1, weight_decay=0.1, **options)
    model(torch.randn(5, 20)).square().mean().backward()
    descent.step()  # momentum for all weights, from before the mask
    with masks.held(model, found, descent):
        for _ in range(5):
            descent.zero_grad()
            model(torch.randn(5, 20)).square().mean().backward()
            descent.step()
            assert int(model.weight.count_nonzero()) == int(found["weight"].sum())
    assert masks.sparsity(model, ["weight"]) == pytest.approx(0.9)
    assert bool((masks.present(model, ["weight"])["weight"] == found["weight"]).all())
