"""Frank-Wolfe: regions and their corners, the optimizer, the initialisation, the method from scratch to sparse."""

from __future__ import annotations

import copy
import math
from itertools import combinations, product

import pytest
import torch
from torch import nn

from autoprune import data, masks
from autoprune.errors import UserError
from autoprune.finetune import Method as Training
from autoprune.finetune import Recipe, descent, finetune, judge
from autoprune.recipes.data import Data
from autoprune.recipes.frank_wolfe import FrankWolfe, frank_wolfe, groups, regions
from autoprune.recipes.frank_wolfe_init import frank_wolfe_init
from autoprune.recipes.initialisation import norms, redraw
from autoprune.recipes.regions import REGIONS, SHIFTS, Polytope, SupportBall, gap, stride, within

RESCALES = ("gradient", "diameter", "fast_gradient", None)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10)
    )


NAMES = ["0.weight", "4.weight"]


@pytest.fixture(scope="module")
def splits() -> Data:
    found = data.load("digits", 200, 200)
    return Data(found.calibration, list(found.train())[:4], found.validation)


class TestRegions:
    @pytest.mark.parametrize("k", [1, 2, 4, 5])
    @pytest.mark.parametrize("seed", range(5))
    def test_no_corner_of_the_polytope_is_lower(self, k: int, seed: int) -> None:
        slope, region = random(5, seed=seed), Polytope(k, 0.7)
        corners = []
        for where in combinations(range(5), k):
            for signs in product((-0.7, 0.7), repeat=k):
                corner = torch.zeros(5)
                corner[list(where)] = torch.tensor(signs)
                corners.append(corner)
        found = region.corner(slope)
        assert any(torch.allclose(found, corner) for corner in corners)
        assert float(found @ slope) == pytest.approx(min(float(corner @ slope) for corner in corners))
        assert float(found @ slope) == pytest.approx(-0.7 * float(slope.abs().topk(k).values.sum()))

    @pytest.mark.parametrize("k", [1, 2, 4, 5])
    def test_no_point_of_the_support_ball_is_lower(self, k: int) -> None:
        """On one support a linear function is least straight against its slope there; so all supports are tried."""
        slope, region = random(5, seed=k), SupportBall(k, 0.7)
        found = region.corner(slope)
        lowest = min(-0.7 * float(slope[list(where)].norm()) for where in combinations(range(5), k))
        assert float(found @ slope) == pytest.approx(lowest)
        assert float(found.norm()) == pytest.approx(0.7)
        assert int(found.count_nonzero()) == k

    @pytest.mark.parametrize("ball", REGIONS)
    @pytest.mark.parametrize("slope", [random(4, 3, 3), torch.zeros(4, 3, 3), torch.eye(6).reshape(4, 3, 3)])
    def test_a_corner_has_exactly_k_entries_and_lies_on_the_edge(self, ball: str, slope: torch.Tensor) -> None:
        region = REGIONS[ball](7, 2.0)
        corner = region.corner(slope)
        exact = ball == "polytope" or int(slope.count_nonzero()) > 7 or not slope.any()
        assert corner.shape == slope.shape
        assert int(corner.count_nonzero()) == (7 if exact else 6)
        assert region.gauge(corner) == pytest.approx(1)

    @pytest.mark.parametrize("ball", REGIONS)
    def test_what_is_between_corners_is_inside(self, ball: str) -> None:
        region = REGIONS[ball](4, 1.5)
        corners = torch.stack([region.corner(random(20, seed=seed)) for seed in range(30)])
        for seed in range(20):
            shares = torch.softmax(3 * random(30, seed=100 + seed), 0)
            assert region.gauge(shares @ corners) <= 1 + 1e-6

    def test_the_support_norm_is_between_the_norms_it_joins(self) -> None:
        for seed in range(10):
            x = random(12, seed=seed)
            assert SupportBall(1, 1.0).gauge(x) == pytest.approx(float(x.abs().sum()), rel=1e-6)
            assert SupportBall(12, 1.0).gauge(x) == pytest.approx(float(x.norm()), rel=1e-6)
            values = [SupportBall(k, 1.0).gauge(x) for k in range(1, 13)]
            assert values == sorted(values, reverse=True)

    @pytest.mark.parametrize("seed", range(4))
    def test_the_support_norm_is_the_dual_of_the_top_k_norm(self, seed: int) -> None:
        """The largest <x, u> over all u whose two largest entries have norm 1; directions u on a fine grid."""
        x = random(3, seed=seed)
        polar, around = torch.meshgrid(
            torch.linspace(0, math.pi, 401), torch.linspace(0, 2 * math.pi, 801), indexing="ij"
        )
        u = torch.stack([polar.sin() * around.cos(), polar.sin() * around.sin(), polar.cos()], -1)
        largest = float(((u @ x) / u.abs().topk(2).values.norm(dim=-1)).max())
        gauge = SupportBall(2, 1.0).gauge(x)
        assert largest <= gauge + 1e-6
        assert largest == pytest.approx(gauge, rel=5e-3)

    @pytest.mark.parametrize("shift", SHIFTS)
    @pytest.mark.parametrize("ball", REGIONS)
    def test_a_shift_ends_inside_and_keeps_the_direction(self, ball: str, shift: str) -> None:
        region = REGIONS[ball](9, 0.3)
        for seed in range(10):
            outside = 3 * random(8, 8, seed=seed)
            assert region.gauge(outside) > 1
            moved = SHIFTS[shift](outside, region)
            assert region.gauge(moved) <= 1 + 1e-6
            ratios = moved / outside
            assert torch.allclose(ratios, ratios.mean().expand_as(ratios), rtol=1e-4)
            inside = moved * 0.5
            assert torch.equal(SHIFTS[shift](inside, region), inside)

    def test_the_released_shift_is_its_formula(self) -> None:
        x, region = random(40), Polytope(12, 0.1)
        m = min(math.floor(float(x.abs().sum() / x.abs().max())), 12)
        assert torch.allclose(SHIFTS["floor"](x, region), x * m * 0.1 / x.abs().sum())
        assert torch.allclose(SHIFTS["divide"](x, region), x / max(x.abs().max() / 0.1, x.abs().sum() / 1.2))

    @pytest.mark.parametrize(("k", "radius"), [(0, 1.0), (3, 0.0), (3, math.nan)])
    def test_regions_that_are_none_are_refused(self, k: int, radius: float) -> None:
        for region in REGIONS.values():
            with pytest.raises(UserError, match=f"k = {k}, radius = {radius}"):
                region(k, radius)


class TestWidths:
    def test_the_radius_is_that_of_the_papers_example(self) -> None:
        """A 3x3 convolution of 64 channels: weights uniform in +-1/sqrt(fan-in), of norm sqrt(n / (3 fan-in))."""
        model = nn.Conv2d(64, 64, 3)
        found = regions(model, ["weight"], draws=5)["weight"]
        entries, fan_in = model.weight.numel(), 64 * 9
        assert found.k == int(0.05 * entries)
        assert found.radius == pytest.approx(15 * math.sqrt(entries / (3 * fan_in)) / math.sqrt(found.k), rel=0.01)
        ball = regions(model, ["weight"], draws=5, ball="support")["weight"]
        assert ball.diameter == pytest.approx(found.diameter, rel=1e-6)

    def test_small_tensors_have_a_least_k(self) -> None:
        found = regions(nn.Linear(30, 4), ["weight", "bias"], draws=3)
        assert (found["weight"].k, found["bias"].k) == (10, 4)

    def test_tensors_of_one_shape_have_widths_of_their_own(self) -> None:
        norm = nn.BatchNorm1d(16)
        assert norms(norm, ["weight", "bias"], 3) == {"weight": 4.0, "bias": 1.0}

    def test_sampling_changes_nothing(self) -> None:
        model = small()
        before = copy.deepcopy(model.state_dict())
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        regions(model, NAMES)
        assert torch.equal(torch.rand(3), expected)
        assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))

    def test_weights_are_drawn_anew_under_a_seed(self) -> None:
        one, other, third = small(), small(), small()
        for model, seed in ((one, 3), (other, 3), (third, 4)):
            redraw(model, seed)
        assert torch.equal(one[0].weight, other[0].weight)
        assert not torch.equal(one[0].weight, small()[0].weight)
        assert not torch.equal(one[0].weight, third[0].weight)
        with pytest.raises(UserError, match="is a Odd without reset_parameters"):
            redraw(nn.Sequential(Odd()), 0)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class TestOptimizer:
    @pytest.mark.parametrize("rescale", RESCALES)
    @pytest.mark.parametrize("ball", REGIONS)
    @pytest.mark.parametrize("lr", [0.01, 1.0, 50.0])
    def test_points_stay_in_their_region(self, ball: str, rescale: str | None, lr: float) -> None:
        region = REGIONS[ball](6, 0.4)
        point = nn.Parameter(random(10, 5))
        optimizer = FrankWolfe([{"params": [point], "region": region}], lr=lr, rescale=rescale)
        for number in range(15):
            assert region.gauge(point.detach()) <= 1 + 1e-5
            point.grad = random(10, 5, seed=number) * 10 ** (number % 5 - 3)
            slope = optimizer.state[point]["slope"] if number else point.grad
            toward = region.corner(slope) - point.detach()
            assert 0 <= float(stride(lr, rescale, slope, toward, region)) <= 1
            optimizer.step()

    @pytest.mark.parametrize("rescale", RESCALES)
    def test_a_step_is_as_long_as_its_rule_says(self, rescale: str | None) -> None:
        region, lr = Polytope(8, 3.0), 0.05
        point = nn.Parameter(within(random(100), region))
        optimizer = FrankWolfe([{"params": [point], "region": region}], lr=lr, rescale=rescale)
        before, point.grad = point.detach().clone(), random(100, seed=1)
        optimizer.step()
        way = region.corner(point.grad) - before
        expected = {
            "gradient": lr * point.grad.norm(),
            "diameter": lr / (2 * 3.0 * math.sqrt(8)) * way.norm(),
            "fast_gradient": lr * point.grad.norm() / (3.0 * math.sqrt(8)) * way.norm(),
            None: lr * way.norm(),
        }[rescale]
        moved = point.detach() - before
        assert float(moved.norm()) == pytest.approx(float(expected), rel=1e-4)
        assert float(moved @ way) == pytest.approx(float(moved.norm() * way.norm()), rel=1e-4)

    def test_what_is_not_voted_for_shrinks(self) -> None:
        region = Polytope(3, 1.0)
        point = nn.Parameter(0.1 * random(20))
        optimizer = FrankWolfe([{"params": [point], "region": region}], lr=0.2, rescale=None)
        before, point.grad = point.detach().clone(), random(20, seed=1)
        optimizer.step()
        rest = region.corner(point.grad) == 0
        assert torch.allclose(point.detach()[rest], 0.8 * before[rest])

    def test_the_slope_averages_gradients_and_begins_with_the_first(self) -> None:
        free = nn.Parameter(torch.zeros(4))
        optimizer = FrankWolfe([free], lr=0.5, momentum=0.9)
        gradients = [random(4, seed=seed) for seed in range(3)]
        slope, expected = gradients[0], torch.zeros(4)
        for number, gradient in enumerate(gradients):
            slope = gradient if number == 0 else 0.9 * slope + 0.1 * gradient
            expected = expected - 0.5 * slope
            free.grad = gradient
            optimizer.step()
        assert torch.allclose(free.detach(), expected, atol=1e-7)

    def test_the_gap_closes_on_a_convex_loss_and_bounds_the_distance(self) -> None:
        """Least squares whose free minimum lies outside; with shares 2 / (t + 2) the gap falls like 1 / t."""
        A, region = random(30, 10).double(), Polytope(2, 0.5)
        target = A @ (0.3 * random(10, seed=1).double())
        point = nn.Parameter(torch.zeros(10, dtype=torch.double))
        optimizer = FrankWolfe([{"params": [point], "region": region}], rescale=None, momentum=0.0)
        gaps, losses = [], []
        for number in range(600):
            loss = (A @ point - target).square().mean() / 2
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            gaps.append(gap(point.detach(), point.grad, region))
            for group in optimizer.param_groups:
                group["lr"] = 2 / (number + 2)
            optimizer.step()
        assert min(gaps) >= -1e-9
        least = min(losses)
        assert all(loss - least <= gap + 1e-9 for loss, gap in zip(losses, gaps, strict=True))
        assert region.gauge(point.detach()) == pytest.approx(1, abs=0.02)
        assert min(gaps[-50:]) < 0.01 * gaps[0]
        assert min(gaps[-50:]) < min(gaps[150:200]) / 2

    @pytest.mark.parametrize("seed", range(2))
    def test_a_sparse_regression_concentrates_where_gradient_descent_does_not(self, seed: int) -> None:
        """40 equations for 80 unknowns, of which 5 count: the hull of sparse points finds them."""
        A = random(40, 80, seed=seed)
        truth = torch.zeros(80)
        truth[torch.randperm(80, generator=torch.Generator().manual_seed(seed))[:5]] = 1.0
        found = {}
        for way in ("frank_wolfe", "sgd"):
            point = nn.Parameter(0.3 * random(80, seed=10 + seed))
            region = Polytope(5, 1.0)
            optimizer: torch.optim.Optimizer = torch.optim.SGD([point], lr=0.02)
            if way == "frank_wolfe":
                optimizer = FrankWolfe([{"params": [point], "region": region}], lr=0.02, momentum=0.0)
            for number in range(250):
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * (1 - number / 250)
                optimizer.zero_grad()
                (A @ point - A @ truth).square().mean().backward()
                optimizer.step()
            found[way] = float(point.detach().square()[truth > 0].sum() / point.detach().square().sum())
        assert found["frank_wolfe"] > 0.95  # above 0.999 in three seeds; SGD 0.46 at most
        assert found["sgd"] < 0.7

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"lr": -1.0}, "lr = -1.0"), ({"momentum": 1.0}, "momentum = 1.0"),
            ({"rescale": "length"}, "'length' is unknown"), ({"shift": "ceil"}, "'ceil' is unknown"),
        ],
    )  # fmt: skip
    def test_wrong_settings_are_refused(self, given: dict, message: str) -> None:
        with pytest.raises(UserError, match=message):
            FrankWolfe([nn.Parameter(torch.ones(3))], **given)

    def test_a_k_beyond_the_tensor_is_refused(self) -> None:
        with pytest.raises(UserError, match="k = 4: the tensor has 3 entries"):
            FrankWolfe([{"params": [nn.Parameter(torch.ones(3))], "region": Polytope(4, 1.0)}])


class TestInitialisation:
    @staticmethod
    def after_one_step(model: nn.Module, train: list, found: dict) -> float:
        """The mean loss on other images after one step on each of several batches, each from the same weights."""
        losses = []
        for number in range(6):
            moved = copy.deepcopy(model).train()
            optimizer = FrankWolfe(groups(moved, found), lr=1.0)
            inputs, labels = train[number % 3]
            descent(Recipe(), None)(moved, optimizer, inputs, labels, 0)
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(moved(train[3][0]), train[3][1]).item())
        return sum(losses) / len(losses)

    def test_the_first_step_leads_further_down(self, splits: Data) -> None:
        assert splits.train is not None
        train = list(splits.train)
        for seed in range(3):
            model = small()
            redraw(model, seed)
            found = regions(model, NAMES, draws=5)
            scaled = copy.deepcopy(model)
            factors = frank_wolfe_init(scaled, found, train, iterations=20, batch=64, rate=0.01)
            # by 0.1 to 0.6 in four seeds
            assert self.after_one_step(scaled, train, found) < self.after_one_step(model, train, found) - 0.03
            for name, parameter in model.named_parameters():
                factor = factors.get(name, 1.0)  # a bias of batch norm is zero, and has none
                assert torch.allclose(scaled.get_parameter(name), factor * parameter, atol=1e-6)
                assert factor >= 0.0
            assert torch.equal(scaled[1].running_mean, model[1].running_mean)

    def test_it_needs_images_and_iterations(self, splits: Data) -> None:
        assert splits.train is not None
        images, labels = splits.train[0]
        with pytest.raises(UserError, match="2 images"):
            frank_wolfe_init(small(), {}, [(images[:2], labels[:2])])
        with pytest.raises(UserError, match="iterations = 0"):
            frank_wolfe_init(small(), {}, splits.train, iterations=0)


class TestMethod:
    def test_a_stopped_training_goes_on_to_the_same_weights(self, splits: Data, tmp_path) -> None:
        model = small()
        before = copy.deepcopy(model.state_dict())
        options = {"names": NAMES, "epochs": 3, "tau": 2.0, "init": 2}
        whole = frank_wolfe(model, 0.8, splits, folder=tmp_path / "whole", **options)

        def stop(facts) -> None:
            if facts["epoch"] == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            frank_wolfe(model, 0.8, splits, folder=tmp_path / "part", tell=stop, **options)
        heard: list = []
        found = frank_wolfe(model, 0.8, splits, folder=tmp_path / "part", tell=heard.append, **options)
        assert [facts["epoch"] for facts in heard] == [3]
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), found.state_dict().values(), strict=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
        assert not found.training
        entries = sum(model.get_parameter(name).numel() for name in NAMES)
        assert round(masks.sparsity(found, NAMES) * entries) == round(0.8 * entries)

        def trained(facts) -> None:
            raise AssertionError(facts)

        denser = frank_wolfe(model, 0.5, splits, folder=tmp_path / "part", tell=trained, **options)
        kept = found[0].weight != 0
        assert torch.equal(denser[0].weight[kept], found[0].weight[kept])
        with pytest.raises(UserError, match=r"tau: 2\.0 -> 3\.0"):
            frank_wolfe(model, 0.8, splits, folder=tmp_path / "part", **{**options, "tau": 3.0})

    def test_as_released_every_tensor_has_a_region(self, splits: Data, tmp_path) -> None:
        model = small()
        found = regions(model, [name for name, _ in model.named_parameters()], seed=0)
        trained = frank_wolfe(
            model, 0.0, splits, names=NAMES, folder=tmp_path, constrain="all", shift="floor", epochs=1, start="weights"
        )
        for name, region in found.items():
            assert region.gauge(trained.get_parameter(name)) <= 1 + 1e-5

    def test_it_says_what_is_missing(self, splits: Data, tmp_path) -> None:
        with pytest.raises(UserError, match="needs training batches"):
            frank_wolfe(small(), 0.5, Data(splits.calibration), names=NAMES, folder=tmp_path)
        for wrong in ({"fraction": 0.0}, {"least": 0}, {"tau": 0.0}):
            key, value = next(iter(wrong.items()))
            with pytest.raises(UserError, match=f"{key} = {value}"):
                frank_wolfe(small(), 0.5, splits, names=NAMES, folder=tmp_path, **wrong)
        with pytest.raises(UserError, match=r"no parameter 7\.weight"):
            frank_wolfe(small(), 0.5, splits, names=["7.weight"], folder=tmp_path)
        with pytest.raises(UserError, match="at least 0 and below 1"):
            frank_wolfe(small(), 1.0, splits, names=NAMES, folder=tmp_path)

    def test_weights_end_near_zero_and_zeroing_them_costs_less_than_after_sgd(self, splits: Data, tmp_path) -> None:
        sgd, trained = small(), {}
        redraw(sgd, 0)
        assert splits.train is not None and splits.validation is not None
        recipe = Recipe(epochs=20, lr=0.1, batch=64)
        finetune(sgd, splits.train, splits.validation, tmp_path / "sgd", recipe, method=Training(keep="last"))
        trained["sgd"] = sgd
        trained["frank_wolfe"] = frank_wolfe(
            small(), 0.0, splits, names=NAMES, folder=tmp_path / "fw", epochs=20, batch=64, tau=1.0
        )
        near, fall = {}, {}
        for way, network in trained.items():
            tensors = [network.get_parameter(name).detach().abs() for name in NAMES]
            near[way] = sum(int((t < 0.01 * t.max()).sum()) for t in tensors) / sum(t.numel() for t in tensors)
            dense = judge(network, splits.validation)[1]
            masks.impose(network, masks.ranked(dict(zip(NAMES, tensors, strict=True)), 0.85))
            fall[way] = dense - judge(network, splits.validation)[1]
        assert near["frank_wolfe"] > 5 * near["sgd"]  # 80 % against 4 % in four seeds
        assert fall["frank_wolfe"] < fall["sgd"] - 0.05  # 1 point against 10 to 26
