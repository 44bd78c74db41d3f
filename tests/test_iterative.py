"""Iterative magnitude pruning: the algebra of rates, thresholds, masks that hold, rounds that go on."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from autoprune import data, masks
from autoprune.errors import UserError
from autoprune.finetune import judge
from autoprune.recipes.data import Data
from autoprune.recipes.iterative import iterative, smallest, thinner
from autoprune.recipes.rounds import SCHEDULES, shrinking, sparsities

NAMES = ["0.weight", "5.weight"]
OPTIONS = {"names": NAMES, "rounds": 3, "epochs": 2, "lr": 0.05}


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.4), nn.Linear(6 * 36, 10)
    )


@pytest.fixture(scope="module")
def splits() -> Data:
    found = data.load("digits", 200, 200)
    return Data(found.calibration, list(found.train())[:3], found.validation)


def everything(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in NAMES}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class TestRates:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("rounds", [1, 2, 10])
    def test_a_schedule_never_falls_and_ends_as_asked(self, schedule: str, rounds: int) -> None:
        path = sparsities(schedule, 0.9, rounds)
        assert len(path) == rounds
        assert path[-1] == pytest.approx(0.9)
        assert path == sorted(path)
        assert path[0] > 0

    def test_a_geometric_round_keeps_the_same_share_of_what_is_left(self) -> None:
        kept = [1.0, *(1 - sparsity for sparsity in sparsities("geometric", 0.9, 10))]
        for before, after in pairwise(kept):
            assert after / before == pytest.approx(0.1**0.1)
        assert 1 - kept[1] == pytest.approx(0.2057, abs=5e-5)

    def test_a_cubic_schedule_takes_most_at_first(self) -> None:
        path = [0.0, *sparsities("cubic", 0.8, 5)]
        steps = [after - before for before, after in pairwise(path)]
        assert steps == sorted(steps, reverse=True)
        assert path[3] == pytest.approx(0.8 - 0.8 * (1 - 3 / 5) ** 3)

    @pytest.mark.parametrize(("sparsity", "levels"), [(0.0, 1), (0.2, 1), (0.21, 2), (0.36, 2), (0.9, 11)])
    def test_rounds_of_a_share_go_on_until_it_is_reached(self, sparsity: float, levels: int) -> None:
        path = shrinking(sparsity, 0.2)
        assert len(path) == levels
        assert path[-1] == sparsity
        for number, before in enumerate(path[:-1], 1):
            assert 1 - before == pytest.approx(0.8**number)
        assert 1 - path[-1] >= 0.8**levels - 1e-12

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: sparsities("linear", 0.5, 3), "'linear' is unknown"), (lambda: sparsities("cubic", 1.0, 3), "1.0"),
            (lambda: sparsities("cubic", 0.5, 0), "rounds = 0"), (lambda: shrinking(0.5, 1.0), "share = 1.0"),
            (lambda: shrinking(-0.1, 0.2), "-0.1"), (lambda: shrinking(math.nan, 0.2), "nan"),
        ],
    )  # fmt: skip
    def test_rates_that_are_none_are_refused(self, call, message: str) -> None:
        with pytest.raises(UserError, match=message):
            call()


class TestMasks:
    @pytest.mark.parametrize("scope", ["global", "uniform", "quality"])
    def test_rounds_nest_whatever_survivors_become(self, scope) -> None:
        model = small()
        entries = sum(model.get_parameter(name).numel() for name in NAMES)
        found = everything(model)
        for sparsity in sparsities("geometric", 0.9, 4):
            before, found = found, smallest(model, found, sparsity, scope)
            for name, mask in found.items():
                assert not bool((mask & ~before[name]).any())
                with torch.no_grad():  # a training may take a survivor anywhere, to zero as well
                    model.get_parameter(name).normal_().mul_(torch.rand(mask.shape) < 0.7)
            count = sum(int((~mask).sum()) for mask in found.values())
            assert abs(count - sparsity * entries) <= 0.5

    def test_a_quality_is_one_threshold_in_deviations(self) -> None:
        """What goes are all weights below q std(w), with one q for all layers (Han et al.)."""
        model = small()
        with torch.no_grad():
            model[5].weight.mul_(20)
        found = smallest(model, everything(model), 0.6, "quality")
        removed, kept = [], []
        for name in NAMES:
            weight = model.get_parameter(name).detach()
            sizes = weight.abs() / weight.std(correction=0)
            removed.append(float(sizes[~found[name]].max()))
            kept.append(float(sizes[found[name]].min()))
        assert max(removed) <= min(kept)
        alike = smallest(model, everything(model), 0.6, "global")
        assert masks.kept(54, 0.6) / 2 > int(alike["0.weight"].sum())  # without it, the smaller layer goes first

    def test_later_deviations_are_of_what_is_left(self) -> None:
        model = small()
        half = smallest(model, everything(model), 0.5, "uniform")
        masks.impose(model, half)
        found = smallest(model, half, 0.75, "quality")
        sizes = {}
        for name in NAMES:
            weight = model.get_parameter(name).detach()
            left = weight[half[name]]
            deviation = (left.square().mean() - left.mean().square()).sqrt()
            sizes[name] = weight.abs() / deviation
        removed = max(float(sizes[name][half[name] & ~found[name]].max()) for name in NAMES)
        assert removed <= min(float(sizes[name][found[name]].min()) for name in NAMES)


class TestDropout:
    def test_it_shrinks_with_the_connections_that_are_left(self) -> None:
        model = small()
        found = {"5.weight": masks.highest(model[5].weight.detach().abs(), 540)}
        with thinner(model, found):
            assert model[4].p == pytest.approx(0.4 * math.sqrt(540 / 2160))
        assert model[4].p == 0.4


class TestMethod:
    def test_survivors_are_trained_on_from_their_values(self, splits: Data, tmp_path) -> None:
        """With hardly any learning rate they end where they were; the rest is zero, and nothing is drawn anew."""
        model = small()
        found = iterative(model, 0.8, splits, folder=tmp_path, **{**OPTIONS, "lr": 1e-9})
        expected = masks.ranked({name: model.get_parameter(name).detach().abs() for name in NAMES}, 0.8)
        for name, mask in expected.items():
            assert torch.allclose(found.get_parameter(name), model.get_parameter(name) * mask, atol=1e-6)

    def test_rounds_hold_nest_and_go_on_where_they_were_stopped(self, splits: Data, tmp_path) -> None:
        model = small()
        before = copy.deepcopy(model)
        heard: list = []
        options = {**OPTIONS, "weight_decay": 0.01, "dropout": True}
        whole = iterative(model, 0.9, splits, folder=tmp_path / "whole", tell=heard.append, **options)
        assert same(before, model)
        assert not whole.training
        entries = sum(model.get_parameter(name).numel() for name in NAMES)
        assert round(masks.sparsity(whole, NAMES) * entries) == round(0.9 * entries)
        assert [(facts["round"], facts["epoch"]) for facts in heard] == [(r, e) for r in (1, 2, 3) for e in (1, 2)]
        assert heard[0]["sparsity"] == pytest.approx(1 - 0.1 ** (1 / 3))

        def stop(facts) -> None:
            if (facts["round"], facts["epoch"]) == (2, 1):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            iterative(model, 0.9, splits, folder=tmp_path / "part", tell=stop, **options)
        heard.clear()
        again = iterative(model, 0.9, splits, folder=tmp_path / "part", tell=heard.append, **options)
        assert [(facts["round"], facts["epoch"]) for facts in heard] == [(2, 2), (3, 1), (3, 2)]
        assert same(whole, again)
        with pytest.raises(UserError, match=r"weights: .* -> "):  # another network
            iterative(whole, 0.9, splits, folder=tmp_path / "part", **options)

    def test_layers_may_have_rates_of_their_own(self, splits: Data, tmp_path) -> None:
        rates = {"0.weight": 0.25, "5.weight": 0.9}
        sparsity = (0.25 * 54 + 0.9 * 2160) / (54 + 2160)
        model = iterative(small(), sparsity, splits, folder=tmp_path, rates=rates, **OPTIONS)
        for name, rate in rates.items():
            entries = model.get_parameter(name).numel()
            assert abs(masks.sparsity(model, [name]) - rate) * entries <= 1
        with pytest.raises(UserError, match=r"say nothing about 5\.weight"):
            iterative(small(), 0.5, splits, folder=tmp_path, rates={"0.weight": 0.5}, **OPTIONS)

    def test_it_needs_images_to_train_on(self, splits: Data, tmp_path) -> None:
        with pytest.raises(UserError, match="iterative trains the network"):
            iterative(small(), 0.5, Data(splits.calibration), folder=tmp_path, **OPTIONS)

    def test_retraining_brings_back_what_pruning_cost(self, splits: Data, tmp_path) -> None:
        """Both ways of retraining; which of them is better is measured by benchmarks/tickets.py."""
        assert splits.train is not None and splits.validation is not None
        options = {"names": NAMES, "lr": 0.1, "batch": 32}
        dense = iterative(small(), 0.0, splits, folder=tmp_path / "dense", rounds=1, epochs=8, **options)
        cut = copy.deepcopy(dense)
        masks.impose(cut, masks.ranked({name: cut.get_parameter(name).detach().abs() for name in NAMES}, 0.95))
        once = iterative(dense, 0.95, splits, folder=tmp_path / "1", schedule="one_shot", rounds=1, epochs=6, **options)
        often = iterative(dense, 0.95, splits, folder=tmp_path / "3", rounds=3, epochs=2, **options)
        loss = {name: judge(m, splits.validation)[0] for name, m in {"cut": cut, "once": once, "often": often}.items()}
        assert loss["once"] < 0.8 * loss["cut"]  # 0.47 to 0.57 of it in five seeds
        assert loss["often"] < 0.8 * loss["cut"]  # 0.44 to 0.72
