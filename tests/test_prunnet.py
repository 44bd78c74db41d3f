"""PrunNet: nested masks, gradients of weights and scores, one joint step, and networks of any capacity afterwards."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from autoprune import checkpoint, data, masks
from autoprune.architectures import digits
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.finetune import Method, Recipe, finetune, judge
from autoprune.recipes import prunnet as recipe_file
from autoprune.recipes import source
from autoprune.recipes.conflict import SUM, Integration
from autoprune.recipes.prunnet import CAPACITIES, Joint, look, prunnet, rest
from autoprune.recipes.scores import Scored
from autoprune.recover import reestimate
from autoprune.retrieval import asymmetric
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.search_spaces.weights import define


def small(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 16, 10),
    )  # fmt: skip


def scored(seed: int = 1) -> Scored:
    return Scored(small(seed), ["0.weight", "3.weight"], seed).train()


def batch(seed: int = 0, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(10, (count,), generator=generator)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestScores:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_smaller_subnetwork_is_part_of_every_larger_one(self, seed) -> None:
        network = Scored(digits(), list(masks.weights(digits(), exclude=["linear"])), seed)
        capacities = sorted(np.random.default_rng(seed).uniform(0.001, 1, 12).tolist())
        nested = network.nested(capacities)
        for less, more in itertools.pairwise(nested):
            assert all(bool((more[name] | ~less[name]).all()) for name in less)
        for capacity, found in zip(capacities, nested, strict=True):
            for name, score in zip(network.names, network.scores, strict=True):
                count = int(found[name].sum())
                assert abs(count - capacity * score.numel()) <= 1
                assert torch.equal(found[name], masks.highest(score.detach().abs(), count))
        alone = network.masks(capacities[5])
        assert all(torch.equal(alone[name], nested[5][name]) for name in network.names)

    def test_equal_scores_and_signs(self) -> None:
        network = scored()
        with torch.no_grad():
            network.scores[0].fill_(-0.5)
            network.scores[1].copy_(torch.linspace(-1, 0.5, network.scores[1].numel()).reshape(4, 6, 3, 3))
        assert int(network.masks(0.5)["0.weight"].sum()) == 27
        assert bool(network.masks(0.1)["3.weight"].flatten()[:10].all())  # the large negative ones
        assert int(network.masks(1e-9)["0.weight"].sum()) == 1

    def test_they_start_kaiming_uniform_whatever_the_weights_are(self) -> None:
        network = Scored(digits(), ["blocks.3.conv2.weight"], 0)
        score = network.scores[0].detach()
        bound = 1 / math.sqrt(48 * 9)  # a = √5: gain √(1/3), times √(3 / fan in)
        assert float(score.abs().max()) <= bound
        assert float(score.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
        again = Scored(copy.deepcopy(network.network), ["blocks.3.conv2.weight"], 0)
        assert torch.equal(again.scores[0], score)
        assert not torch.equal(Scored(digits(), ["blocks.3.conv2.weight"], 1).scores[0], score)

    def test_the_whole_is_the_dense_network_bit_for_bit(self) -> None:
        network = scored().eval()
        inputs, _ = batch()
        with torch.no_grad():
            assert torch.equal(network(inputs), network.network(inputs))
            assert torch.equal(network.subnetwork(1.0)(inputs), network.network(inputs))

    def test_a_subnetwork_is_a_copy_with_zeros(self) -> None:
        network = scored()
        before = tensors(network)
        found = network.subnetwork(0.3)
        assert not found.training
        for name in network.names:
            weight = network.network.get_parameter(name)
            expected = weight * masks.highest(
                network.scores[network.names.index(name)].abs(), masks.kept(weight.numel(), 0.7)
            )
            assert torch.equal(found.get_parameter(name), expected)
        with torch.no_grad():
            found[0].weight.fill_(3.0)
        assert same(tensors(network), before)

    @pytest.mark.parametrize("capacity", [0.0, -0.1, 1.2, math.nan])
    def test_what_is_no_share_is_refused(self, capacity) -> None:
        with pytest.raises(UserError, match=f"capacity {capacity}"):
            scored().masks(capacity)


class TestPass:
    def test_gradients_go_straight_through_the_ranking(self) -> None:
        """Against autograd: (mask + |s| - |s| without gradient) x W has the value mask x W and the derivative W."""
        network = scored()
        kept = network.masks(0.4)
        inputs, labels = batch()
        found = look(network, inputs, labels, kept).gradients
        copied = copy.deepcopy(network)
        used, soft = {}, []
        for name, score in zip(copied.names, copied.scores, strict=True):
            gate = kept[name] + score.abs() - score.abs().detach()
            used[name] = gate * copied.network.get_parameter(name)
            soft.append(score)
        loss = functional.cross_entropy(functional_call(copied.network, used, (inputs,)), labels)
        expected = torch.autograd.grad(loss, [*copied.weights(), *soft, *rest(copied)])
        for name, own, exact in zip(network.names, found.weights, expected[:2], strict=True):
            torch.testing.assert_close(own, exact)
            assert not bool(own[~kept[name]].any())
        for name, own, exact in zip(network.names, found.scores, expected[2:4], strict=True):
            torch.testing.assert_close(own, exact * kept[name])
            assert not bool(own[~kept[name]].any())
            assert bool(exact[~kept[name]].any())  # a removed position has a slope, and does not get it
        for own, exact in zip(found.others, expected[4:], strict=True):
            torch.testing.assert_close(own, exact)

    def test_the_dense_pass_moves_every_score(self) -> None:
        network = scored()
        inputs, labels = batch()
        found = look(network, inputs, labels).gradients
        loss = functional.cross_entropy(network.network(inputs), labels)
        exact = torch.autograd.grad(loss, [*network.weights(), *rest(network)])
        for own, expected in zip([*found.weights, *found.others], exact, strict=True):
            assert torch.equal(own, expected)
        for own, slope, weight, score in zip(found.scores, exact[:2], network.weights(), network.scores, strict=True):
            torch.testing.assert_close(own, slope * weight * score.sign())
            assert bool((own != 0).float().mean() > 0.9)

    def test_at_full_capacity_a_subnetwork_is_the_dense_pass(self) -> None:
        network = scored()
        inputs, labels = batch()
        whole, masked = look(network, inputs, labels), look(network, inputs, labels, network.masks(1.0))
        assert torch.equal(whole.loss, masked.loss)
        assert all(torch.equal(a, b) for a, b in zip(whole.gradients.weights, masked.gradients.weights, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(whole.gradients.scores, masked.gradients.scores, strict=True))

    def test_only_the_dense_pass_leaves_a_trace(self) -> None:
        network = scored()
        before = tensors(network)
        inputs, labels = batch()
        look(network, inputs, labels, network.masks(0.5), compatibility=1.0)
        assert same(tensors(network), before)
        assert all(parameter.grad is None for parameter in network.parameters())
        plain = copy.deepcopy(network.network)
        plain(inputs)
        look(network, inputs, labels)
        assert same(tensors(network.network), tensors(plain))
        assert all(parameter.grad is None for parameter in network.parameters())

    def test_the_compatibility_loss_draws_features_toward_those_of_the_dense_network(self) -> None:
        network = scored()
        inputs, labels = batch()
        dense = look(network, inputs, labels, compatibility=2.0)
        assert dense.features is not None
        torch.testing.assert_close(dense.loss, look(network, inputs, labels).loss)
        kept = network.masks(0.4)
        plain = look(network, inputs, labels, kept)
        drawn = look(network, inputs, labels, kept, toward=dense.features, compatibility=2.0)
        assert plain.features is None
        assert drawn.features is not None
        distance = functional.mse_loss(drawn.features, dense.features)
        assert float(distance) > 0
        torch.testing.assert_close(drawn.loss, plain.loss + 2 * distance)
        half = look(network, inputs, labels, kept, toward=dense.features, compatibility=1.0)
        for none, one, two in zip(*(p.gradients.weights for p in (plain, half, drawn)), strict=True):
            torch.testing.assert_close(two - none, 2 * (one - none), rtol=1e-3, atol=1e-6)

    def test_a_gradient_is_clipped_as_one(self) -> None:
        network = scored()
        found = look(network, *batch(), network.masks(0.5)).gradients
        parts = [*found.weights, *found.scores, *found.others]
        norm = float(torch.cat([part.flatten() for part in parts]).norm())
        whole = found.clipped(2 * norm)
        assert all(
            torch.equal(a, b) for a, b in zip(parts, [*whole.weights, *whole.scores, *whole.others], strict=True)
        )
        half = found.clipped(norm / 2)
        for own, before in zip([*half.weights, *half.scores, *half.others], parts, strict=True):
            torch.testing.assert_close(own, before / 2, rtol=1e-4, atol=1e-9)


class TestStep:
    @staticmethod
    def still(network: Scored) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=0.0)

    @pytest.mark.parametrize("clip", [100.0, 0.5])
    def test_it_is_one_copy_per_capacity_and_the_sum(self, clip) -> None:
        """The published way, with copies: masked weights in each, its gradients clipped; the rest follows the dense."""
        network = scored()
        inputs, labels = batch()
        expected = []
        for capacity in (1.0, 0.6, 0.2):
            copied = copy.deepcopy(network)
            masks.impose(copied.network, network.masks(capacity))
            functional.cross_entropy(copied(inputs), labels).backward()
            wanted = {}
            for name, weight, score in zip(network.names, network.weights(), network.scores, strict=True):
                slope = copied.network.get_parameter(name).grad * network.masks(capacity)[name]
                wanted[name], wanted[f"score of {name}"] = slope, slope * weight.detach() * score.detach().sign()
            others = [parameter.grad for parameter in rest(copied)]
            total = torch.cat([g.flatten() for g in [*wanted.values(), *others]]).norm()
            scale = 1.0 if capacity == 1 else min(1.0, clip / float(total))
            expected.append(({name: g * scale for name, g in wanted.items()}, others))
        joint = Joint([0.6, 0.2], SUM, clip=clip)
        optimizer = self.still(network)
        joint.step(network, optimizer, inputs, labels, 0)
        summed = {name: sum(own[name] for own, _ in expected) for name in expected[0][0]}
        total = torch.cat([g.flatten() for g in [*summed.values(), *expected[0][1]]]).norm()
        scale = min(1.0, clip / float(total))
        for name, weight, score in zip(network.names, network.weights(), network.scores, strict=True):
            torch.testing.assert_close(weight.grad, summed[name] * scale, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(score.grad, summed[f"score of {name}"] * scale, rtol=1e-4, atol=1e-7)
        for parameter, gradient in zip(rest(network), expected[0][1], strict=True):
            torch.testing.assert_close(parameter.grad, gradient * scale, rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize("how", [Integration(), Integration("last", "tensor", 1.0)])
    def test_gradients_are_merged_as_asked_in_an_order_of_seed_and_epoch(self, how) -> None:
        inputs, labels = batch()
        capacities = [0.5, 0.3, 0.2, 0.1, 0.05]  # so small that they disagree
        network = scored()
        passes = [look(copy.deepcopy(network), inputs, labels)]
        passes += [look(network, inputs, labels, kept) for kept in network.nested(capacities)]
        wanted = [[*one.gradients.weights, *one.gradients.scores] for one in passes]
        found = []
        for seed, epoch in ((7, 2), (7, 3), (8, 2)):
            network = scored()
            Joint(capacities, how, seed=seed).step(network, self.still(network), inputs, labels, epoch)
            expected = how.merge(wanted, torch.Generator().manual_seed(seed * 1_000_003 + epoch))
            found.append([parameter.grad for parameter in (*network.weights(), *network.scores)])
            for own, other in zip(found[-1], expected, strict=True):
                torch.testing.assert_close(own, other)
        assert not any(torch.allclose(found[0][0], other[0]) for other in found[1:])
        assert not torch.allclose(found[0][0], SUM.merge(wanted)[0])

    def test_running_statistics_are_the_dense_networks(self) -> None:
        network = scored()
        plain = copy.deepcopy(network.network)
        inputs, labels = batch()
        plain(inputs)
        loss = Joint(CAPACITIES, Integration()).step(network, self.still(network), inputs, labels, 0)
        assert same(tensors(network.network), tensors(plain))
        assert math.isfinite(loss)


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return data.load("digits", 400, 200)


@pytest.fixture(scope="module")
def few(splits):
    return list(splits.train())[:3]


QUICK = Recipe(epochs=2, lr=0.1, batch=64)


class TestTraining:
    def test_a_stopped_training_goes_on_to_the_same_weights(self, few, tmp_path) -> None:
        whole = prunnet(small(), None, few, [], tmp_path / "whole", recipe=QUICK, seed=3)

        def kill(facts) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prunnet(small(), None, few, [], tmp_path / "part", recipe=QUICK, seed=3, tell=kill)
        resumed = prunnet(small(), None, few, [], tmp_path / "part", recipe=QUICK, seed=3)
        assert same(tensors(resumed), tensors(whole))
        other = prunnet(small(), None, few, [], tmp_path / "other", recipe=QUICK, seed=4)
        assert not same(tensors(other), tensors(whole))

    def test_a_folder_of_another_training_is_refused(self, few, tmp_path) -> None:
        prunnet(small(), None, few, [], tmp_path, recipe=QUICK)
        for options, message in (({"alpha": 1.0}, "alpha: 0.5 -> 1.0"), ({"seed": 1}, "score_seed: 0 -> 1")):
            with pytest.raises(UserError, match=message):
                prunnet(small(), None, few, [], tmp_path, recipe=QUICK, **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"capacities": (0.5, 1.5)}, "capacity 1.5"), ({"capacities": ()}, r"capacities = \(\)"),
            ({"capacities": "0.5,half"}, "capacities = '0.5,half'"),
            ({"compatibility": -1.0}, "compatibility = -1.0"), ({"clip": 0.0}, "clip = 0.0"),
            ({"projection": "first"}, "'first' is unknown"), ({"dense": ("head",)}, "'head' names no weight"),
            ({"dense": ("*",)}, "no weight is left"),
        ],
    )  # fmt: skip
    def test_bad_options_are_refused(self, options, message, few, tmp_path) -> None:
        with pytest.raises(UserError, match=message):
            prunnet(small(), None, few, [], tmp_path, recipe=QUICK, **options)

    def test_options_may_be_text_and_the_seed_is_the_recipes(self, few, tmp_path) -> None:
        one = Recipe(epochs=1, batch=128, seed=6)
        text = prunnet(small(), None, few, [], tmp_path / "a", recipe=one, capacities="0.5,0.25", dense="7,0.weight")
        values = prunnet(
            small(), None, few, [], tmp_path / "b", recipe=one, capacities=[0.25, 0.5], dense=["7", "0"], seed=6
        )
        assert text.names == ("3.weight",)
        assert same(tensors(text), tensors(values))

    def test_the_classifier_stays_dense_unless_told_otherwise(self, few, tmp_path) -> None:
        one = Recipe(epochs=1, batch=128)
        assert prunnet(small(), None, few, [], tmp_path / "a", recipe=one).names == ("0.weight", "3.weight")
        assert prunnet(small(), None, few, [], tmp_path / "b", recipe=one, dense=("0",)).names == (
            "3.weight",
            "7.weight",
        )
        mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))  # no batch norm, no filters
        found = prunnet(mlp, None, few, [], tmp_path / "c", recipe=one, compatibility=0.5)
        assert found.names == ("1.weight",)
        headless = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        assert prunnet(headless, None, few, [], tmp_path / "d", recipe=one).names == ("0.weight",)


class TestSearch:
    """What a search reads off a trained folder."""

    def test_candidates_keep_the_highest_scores_of_every_tensor(self, splits, few, tmp_path) -> None:
        network = small()
        space = define(network, few[0][0], exclude=["7"])
        trained = source.train("prunnet", network, space, few, [], tmp_path, recipe=QUICK, options={"seed": 2})
        assert isinstance(trained, Scored)
        found = source.read(tmp_path, small(5), space)
        evaluator = Evaluator(
            found.model, space, splits.calibration, splits.validation, criterion=found.criterion,
            recovery=found.recovery, identity=found.identity,
        )  # fmt: skip
        entries = dict(zip((group.tensor for group in space.groups), (27, 54), strict=True))  # 50 % and 25 %
        candidate = evaluator.candidate(Scheme(tuple(entries.values()), "weight"))
        expected = copy.deepcopy(trained.network)
        for name, score in zip(trained.names, trained.scores, strict=True):
            masks.impose(expected, {name: masks.highest(score.detach().abs(), entries[name])})
        reestimate(expected, splits.calibration)
        assert tensors(candidate).keys() == tensors(expected).keys()
        for name, tensor in tensors(candidate).items():
            torch.testing.assert_close(tensor, tensors(expected)[name])
        assert evaluator.observe(evaluator.candidate(space.dense)).accuracy > 0.2

    def test_spaces_that_do_not_fit_are_refused_before_any_training(self, few, tmp_path) -> None:
        inputs = few[0][0]
        with pytest.raises(UserError, match="no channels"):
            prunnet(small(), trace(small().eval(), inputs[:1]), few, [], tmp_path, recipe=QUICK)
        with pytest.raises(UserError, match=r"7\.weight stays dense"):
            prunnet(small(), define(small(), inputs), few, [], tmp_path, recipe=QUICK)
        assert not list(tmp_path.iterdir())

    def test_a_file_of_another_network_is_refused(self, few) -> None:
        space = define(small(), few[0][0], exclude=["7"])
        wrong = checkpoint.tensors(Scored(small(), ["0.weight"]))
        with pytest.raises(UserError, match=r"scores\.1"):
            recipe_file.read(small(), space, wrong, {"dense": None})


@pytest.fixture(scope="module")
def trained(splits, tmp_path_factory) -> Scored:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("prunnet")
    return prunnet(digits(), None, list(splits.train()), [], folder, recipe=Recipe(epochs=3, lr=0.1, batch=64))


@pytest.fixture(scope="module")
def usual(splits, tmp_path_factory) -> nn.Module:
    """Another network, trained alone and as usual."""
    torch.manual_seed(100)
    network, quick = digits(), Recipe(epochs=3, lr=0.1, batch=64, seed=100)
    folder = tmp_path_factory.mktemp("usual")
    finetune(network, list(splits.train()), [], folder, quick, method=Method(keep="last"))
    return network


@pytest.fixture(scope="module")
def test_images(splits):
    return list(splits.test())


def ready(scored: Scored, capacity: float, splits: data.Splits) -> nn.Module:
    found = scored.subnetwork(capacity)
    reestimate(found, splits.calibration)
    return found


class TestBehaviour:
    """The digits network, three epochs. What five seeds gave stands beside each bound."""

    @pytest.mark.parametrize("capacity", [0.2, 0.3, 0.4, 0.5, 0.6, 0.8])  # 0.3 and 0.5 were not trained
    def test_every_capacity_is_near_the_dense_network(self, capacity, trained, splits, test_images) -> None:
        dense = judge(trained, test_images)[1]
        assert dense > 0.9  # 0.967 to 0.981
        assert judge(ready(trained, capacity, splits), test_images)[1] > dense - 0.06  # 0.019 below at worst

    def test_without_new_statistics_a_small_one_is_lost(self, trained, splits, test_images) -> None:
        plain = judge(trained.subnetwork(0.2), test_images)[1]
        assert plain < judge(ready(trained, 0.2, splits), test_images)[1] - 0.5  # 0.78 and more

    def test_it_beats_the_largest_weights_of_a_network_trained_alone(self, trained, usual, splits, test_images) -> None:
        assert judge(usual, test_images)[1] > 0.9
        pruned = copy.deepcopy(usual)
        sizes = {name: usual.get_parameter(name).detach().abs() for name in trained.names}
        masks.impose(pruned, masks.uniform(sizes, 0.8))
        reestimate(pruned, splits.calibration)
        own = judge(ready(trained, 0.2, splits), test_images)[1]
        assert own > judge(pruned, test_images)[1] + 0.1  # 0.25 and more

    def test_a_small_query_finds_what_the_dense_network_filed(self, trained, usual, splits, test_images) -> None:
        own = asymmetric(ready(trained, 0.2, splits), trained.network, test_images)["cross"]
        assert own.mean_average_precision > 0.85  # 0.94 and more
        stranger = asymmetric(usual, trained.network, test_images)
        assert stranger["self"].mean_average_precision > 0.85
        assert stranger["cross"].mean_average_precision < 0.5  # 0.20 and less
