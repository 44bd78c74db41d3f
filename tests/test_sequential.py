from __future__ import annotations

import copy
import math
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune import sums
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import Fidelity
from autoprune.recover import Context, find, least_squares, recalibrate_bn
from autoprune.rectifiers import Clip
from autoprune.search_spaces.traced import trace
from autoprune.sequential import _Walk, sequential
from autoprune.slicing import prune
from autoprune.statistics import Statistics, StatisticsNotice
from autoprune.targets import Sampling, Targets, affine, joined, record
from autoprune.threads import fixed_threads
from networks import NETWORKS, Function, draw, lively

TIGHT = 1e-10  # a ridge that does not show


def batches(shape, sizes=(30, 30), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, *shape, generator=generator, dtype=dtype), None) for size in sizes]


def context_of(model: nn.Module, data, removed=(0,), **options) -> Context:
    """All groups lose the units ``removed``."""
    space = trace(model, data[0][0])
    assert len(space)
    kept = [np.delete(np.arange(group.units), removed) for group in space.groups]
    return Context(model, space, kept, Statistics(model, space, data, **options), data)


def pruned(context: Context) -> nn.Module:
    return prune(context.model, context.space, context.kept).eval()


def repaired(context: Context, **options) -> nn.Module:
    candidate = pruned(context)
    sequential(candidate, context, **options)
    return candidate


def answers(model: nn.Module, data) -> Tensor:
    with torch.no_grad():
        return model(torch.cat([x for x, _ in data]))


def error(model: nn.Module, context: Context, data=None) -> float:
    """Mean square of what the answers are off, as a share of the dense network's variance."""
    data = context.batches if data is None else data
    dense = answers(context.model, data)
    return float((answers(model, data) - dense).square().mean() / dense.var())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# -- nothing is lost where nothing has to be -------------------------------------------------------

CONSUMERS = {
    "3x3": lambda: nn.Conv2d(6, 4, 3),
    "1x1": lambda: nn.Conv2d(6, 4, 1),
    "stride": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "groups": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "reflect": lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    "no bias": lambda: nn.Conv2d(6, 4, 3, padding=1, bias=False),
    "norm": lambda: nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
    "bias and norm": lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
    "bare norm": lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU()),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, 4)),
    "pooled": lambda: nn.Sequential(nn.AvgPool2d(6), nn.Flatten(), nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)),
}


def mixed(producer: nn.Module, groups: int = 1) -> None:
    """Make the first channel of every convolution group a mix of the group's others."""
    weight, bias = producer.weight.data, producer.bias.data
    width = len(weight) // groups
    for first in range(0, len(weight), width):
        factors = torch.linspace(-1, 2, width - 1, dtype=weight.dtype)
        others = slice(first + 1, first + width)
        weight[first] = (factors.reshape(-1, *[1] * (weight.dim() - 1)) * weight[others]).sum(0)
        bias[first] = (factors * bias[others]).sum()


def cut_between(consumer: str, dtype: torch.dtype = torch.float64) -> Context:
    """A network whose first group alone is cut; the cut channel is a mix of the others."""
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), CONSUMERS[consumer]())).to(dtype)
    mixed(model[0], groups=2 if consumer == "groups" else 1)
    context = context_of(model, batches((3, 8, 8), (150, 150), dtype))
    whole = [np.arange(group.units) for group in context.space.groups[1:]]
    return replace(context, kept=[context.kept[0], *whole])


@pytest.mark.parametrize(("dtype", "ridge", "tolerance"), [(torch.float64, TIGHT, 1e-6), (torch.float32, 1e-7, 1e-4)])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_channel_that_is_a_mix_of_others_is_removed_without_loss(consumer, dtype, ridge, tolerance):
    context = cut_between(consumer, dtype)
    dense, data = answers(context.model, context.batches), context.batches
    assert (answers(pruned(context), data) - dense).abs().max() > 0.01
    assert (answers(repaired(context, ridge=ridge), data) - dense).abs().max() < tolerance * dense.abs().max()


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Linear(5, 6), nn.Linear(6, 4)), (7, 5)),
        ((nn.Conv1d(5, 6, 1), nn.Conv1d(6, 4, 3, padding=1)), (5, 9)),
        ((nn.Conv3d(5, 6, 1), nn.Conv3d(6, 4, 2)), (5, 3, 3, 3)),
    ],
    ids=["tokens", "conv1d", "conv3d"],
)
def test_it_is_so_for_tokens_and_any_number_of_axes(layers, shape):
    model = lively(nn.Sequential(*copy.deepcopy(layers))).double()
    mixed(model[0])
    context = context_of(model, batches(shape))
    assert error(repaired(context, ridge=TIGHT), context) < 1e-12 < error(pruned(context), context)


def damaged_trunk(add) -> nn.Module:
    """A branch whose reader cannot be solved, being no module, and a second branch behind it."""

    def forward(m, x):
        x = x + functional.linear(m.a(x), m.sealed)
        return m.out(add(x, m.b))

    sealed = nn.Parameter(0.3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(3)))
    model = Function(forward, a=nn.Linear(5, 6), sealed=sealed, b=nn.Linear(5, 5), out=nn.Identity())
    model = lively(model).double()
    mixed(model.a)
    return model


SUMS = {
    "shortcut first": lambda x, branch: x + branch(x),
    "branch first": lambda x, branch: branch(x) + x,
    "in place": lambda x, branch: branch(x).add_(x),
    "dropped out": lambda x, branch: x + functional.dropout(branch(x), training=False),
}


@pytest.mark.parametrize("add", SUMS)
def test_a_branch_takes_the_damage_of_its_own_shortcut_back(add):
    context = context_of(damaged_trunk(SUMS[add]), batches((5,), (60,)))
    with pytest.warns(StatisticsNotice, match="sealed"):
        candidate = repaired(context, ridge=TIGHT)
    assert error(candidate, context) < 1e-12 < error(pruned(context), context)


def test_a_residual_network_is_restored_when_every_branch_lost_a_mix():
    def forward(m, x):
        x = m.stem(x)
        x = x + m.bn1(m.b1(m.a1(x)))
        x = x + m.bn2(m.b2(m.a2(x)))
        return m.head(x.mean((2, 3)))

    torch.manual_seed(0)
    names = {"stem": nn.Conv2d(3, 5, 1), "head": nn.Linear(5, 4)}
    for number in "12":
        names |= {f"a{number}": nn.Conv2d(5, 7, 3), f"b{number}": nn.Conv2d(7, 5, 3, padding=2, bias=False)}
        names |= {f"bn{number}": nn.BatchNorm2d(5)}
    model = lively(Function(forward, **names)).double()
    mixed(model.a1)
    mixed(model.a2)
    data = batches((3, 8, 8), (50, 50))
    space = trace(model, data[0][0])
    kept = [np.delete(np.arange(g.units), [0] if g.name in {"a1", "a2"} else []) for g in space.groups]
    context = Context(model, space, kept, Statistics(model, space, data), data)
    assert sum(len(k) < g.units for k, g in zip(kept, space.groups, strict=True)) == 2
    assert error(repaired(context, ridge=TIGHT), context) < 1e-10 < error(pruned(context), context)


# -- the best there is -----------------------------------------------------------------------------


def chain() -> nn.Module:
    torch.manual_seed(0)
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 9, 3, bias=False), nn.BatchNorm2d(9), nn.ReLU(),
            nn.Conv2d(9, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5),
        )
    ).double()  # fmt: skip


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_the_last_weights_are_those_of_a_direct_solution_from_what_the_candidate_gives(ridge):
    context = context_of(chain(), batches((3, 8, 8), (400, 400)), removed=(0, 2))
    candidate = repaired(context, ridge=ridge)
    images = torch.cat([x for x, _ in context.batches])
    with torch.no_grad():
        x, target = candidate[:8](images), context.model(images)
    before = pruned(context)[8].weight.detach()
    centred, wanted = x - x.mean(0), target - target.mean(0)
    damping = (ridge * float(centred.square().sum(0).mean())) ** 0.5
    design = torch.cat([centred, damping * torch.eye(x.shape[1], dtype=x.dtype)])
    rest = torch.cat([wanted - centred @ before.T, torch.zeros(x.shape[1], 5, dtype=x.dtype)])
    weight = before + torch.linalg.lstsq(design, rest).solution.T
    torch.testing.assert_close(candidate[8].weight.detach(), weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(candidate[8].bias.detach(), target.mean(0) - weight @ x.mean(0), rtol=1e-6, atol=1e-8)


def test_every_round_lowers_the_error_that_a_rectifier_lets_through():
    model, data = chain(), batches((3, 8, 8), (300, 300))
    recalibrate_bn(model, Context(model, None, (), None, data))
    nn.init.zeros_(model[3].bias)  # half of the values are cut off
    context = context_of(model, data, removed=(0, 2, 5))
    images = torch.cat([x for x, _ in context.batches])
    errors = []
    for rounds in (0, 1, 2, 5, 20):
        candidate = repaired(context, ridge=TIGHT, rounds=rounds, sampling=Sampling(rows=10**7))
        with torch.no_grad():
            answers, targets = candidate[:4](images), context.model[:4](images)[:, context.kept[1]]
        errors.append(float((Clip(0.0, math.inf).aim(answers, targets) - answers).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_it_is_better_than_layers_that_know_nothing_of_the_errors_before_them():
    for seed in range(3):
        context = context_of(chain(), batches((3, 8, 8), (300, 300), seed=seed), removed=(0, 1, 3))
        unseen = batches((3, 8, 8), (200,), seed=100 + seed)
        apart = pruned(context)
        least_squares(apart, context)
        recalibrate_bn(apart, context)
        assert error(repaired(context), context, unseen) < 0.8 * error(apart, context, unseen)


def test_depthwise_and_grouped_layers_are_solved_too():
    torch.manual_seed(0)
    model = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1),
        )
    ).double()  # fmt: skip
    context = context_of(model, batches((3, 10, 10), (100, 100)))
    candidate, plain = repaired(context), pruned(context)
    assert not any(torch.equal(candidate[at].weight, plain[at].weight) for at in (5, 7))
    assert error(candidate, context) < 0.5 * error(plain, context)


# -- what stays as it is ---------------------------------------------------------------------------


def test_where_nothing_is_cut_nothing_changes():
    for model in (chain(), damaged_trunk(SUMS["in place"])):
        data = batches((5,) if isinstance(model, Function) else (3, 8, 8))
        context = replace(context_of(model, data))
        context = replace(context, kept=[np.arange(group.units) for group in context.space.groups])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StatisticsNotice)
            assert same(repaired(context), model)


def test_layers_before_the_first_cut_keep_their_weights_and_statistics():
    context = context_of(chain(), batches((3, 8, 8), (60, 60)))
    context = replace(context, kept=[*map(np.arange, (8, 9)), context.kept[2]])
    candidate = repaired(context)
    assert same(candidate[:5], context.model[:5])
    assert not torch.equal(candidate[8].weight, pruned(context)[8].weight)


def test_the_model_its_modes_and_the_hooks_are_left_as_they_were():
    context = context_of(chain(), batches((3, 8, 8), (150,)))
    before = copy.deepcopy(context.model)
    context.model[3].train()
    candidate = pruned(context)
    candidate[1].train()
    sequential(candidate, context)
    assert same(before, context.model)
    assert context.model[3].training and candidate[1].training and not candidate[3].training
    for module in (*context.model.modules(), *candidate.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_the_batch_norm_behind_a_solved_layer_has_the_statistics_of_what_it_reads():
    context = context_of(chain(), batches((3, 8, 8), (300, 300)))
    candidate = repaired(context)
    with torch.no_grad():
        reads = candidate[:3](torch.cat([x for x, _ in context.batches])).transpose(0, 1).flatten(1)
    torch.testing.assert_close(candidate[3].running_mean, reads.mean(1), rtol=0.02, atol=0.02)
    torch.testing.assert_close(candidate[3].running_var, reads.var(1), rtol=0.05, atol=0.0)
    again = copy.deepcopy(candidate)
    recalibrate_bn(again, context)
    assert error(again, context) < 1.1 * error(candidate, context) + 1e-4


def test_a_batch_norm_that_reads_something_else_is_recalibrated_on_the_way():
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1))).double()
    context = context_of(model, batches((3, 8, 8)))
    candidate = repaired(context)
    with torch.no_grad():
        reads = candidate[:2](torch.cat([x for x, _ in context.batches])).transpose(0, 1).flatten(1)
    torch.testing.assert_close(candidate[2].running_mean, reads.mean(1))
    torch.testing.assert_close(candidate[2].running_var, reads.var(1))


def test_a_batch_norm_that_has_lost_a_channels_scale_does_not_blow_the_weights_up():
    model = chain()
    model[3].weight.data[4] = 0
    context = context_of(model, batches((3, 8, 8), (200, 200)))
    candidate = repaired(context)
    assert candidate[2].weight.abs().max() < 100 * model[2].weight.abs().max()
    assert error(candidate, context) < error(pruned(context), context)
    model[3].weight.data.zero_()
    assert all(torch.isfinite(t).all() for t in repaired(replace(context, remembered={})).state_dict().values())


# -- any network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_repaired_or_left_alone(name):
    torch.manual_seed(0)
    model, example, _ = NETWORKS[name]()
    model = lively(model).double()
    space = trace(model, example)
    kept = draw(space, np.random.default_rng(0))
    context = Context(model, space, kept, Statistics(model, space, [(example, None)]), [(example, None)])
    candidate = pruned(context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StatisticsNotice)  # of two images, and of layers that are no modules
        sequential(candidate, context)
    assert all(torch.isfinite(t).all() for t in candidate.state_dict().values() if t.is_floating_point())


def test_a_layer_that_cannot_be_solved_is_named():
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(4, 3, 1)))
    context = context_of(model, batches((3, 8, 8), dtype=torch.float32))
    candidate = pruned(context)
    with pytest.warns(StatisticsNotice, match=r"2\.weight: not seen to run once .* leaves their weights as they are"):
        sequential(candidate, context)
    assert torch.equal(candidate[2].weight, pruned(context)[2].weight)


@pytest.mark.parametrize("where", ["twice", "never", "limit", "doubled"])
def test_layers_that_do_not_run_once_as_weight_times_input_within_the_limit_keep_their_weights(where):
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    def forward(m, x):
        x = functional.relu(m.a(x))
        x = functional.conv2d(x, m.b.weight, m.b.bias) if where == "never" else m.b(x)
        return m.c(functional.relu(m.b(x.relu()) if where == "twice" else x))

    torch.manual_seed(0)
    layer = (Doubled if where == "doubled" else nn.Conv2d)(6, 6, 1)
    model = lively(Function(forward, a=nn.Conv2d(3, 6, 1), b=layer, c=nn.Conv2d(6, 4, 1)))
    limit = {"gram_limit": 8 * 6**2 - 1} if where == "limit" else {}
    context = context_of(model, batches((3, 8, 8), dtype=torch.float32), **limit)
    with pytest.warns(StatisticsNotice, match=r"b\.weight"):
        assert torch.equal(repaired(context).b.weight, pruned(context).b.weight)


def test_layers_that_read_tokens_first_keep_their_weights():
    def forward(m, x):
        return m.b(functional.relu(m.a(x.transpose(0, 1)))).mean(0)

    torch.manual_seed(0)
    model = lively(Function(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)))
    for tokens in (7, 128):
        data = batches((tokens, 5), (128, 128), torch.float32)
        context = Context(model, trace(model, data[0][0][:2]), [np.arange(6)], None, data)
        context = replace(context, statistics=Statistics(model, context.space, data))
        candidate = pruned(context)
        with pytest.warns(StatisticsNotice, match=r"b\.weight"):
            sequential(candidate, context)
        assert same(candidate, pruned(context))


def test_examples_of_several_tensors_are_joined_and_cut():
    first = ({"x": torch.zeros(3, 2), "y": [torch.ones(3, 4), 7]}, None)
    second = ({"x": torch.ones(2, 2), "y": [torch.zeros(2, 4), 7]}, None)
    other = ({"x": torch.ones(2, 5), "y": [torch.zeros(2, 4), 7]}, None)
    example, images = joined([first, second, other], 99)
    assert (images, example["x"].tolist(), example["y"][1]) == (5, [[0, 0]] * 3 + [[1, 1]] * 2, 7)
    example, images = joined([first, second], 4)
    assert (images, example["y"][0].shape) == (4, (4, 4))


# -- sums ------------------------------------------------------------------------------------------


def found_sums(forward, **layers) -> dict[str, sums.Sum]:
    model = Function(forward, **layers).eval()
    course = sums.follow(model, {name: (layer, layer) for name, layer in layers.items()}, torch.randn(2, 3, 4, 4))
    return dict(course.sums)


def conv() -> nn.Module:
    return nn.Conv2d(3, 3, 1)


def test_the_layer_that_runs_last_completes_a_sum():
    assert set(found_sums(lambda m, x: m.b(x.sin()) + m.a(x.cos()), a=conv(), b=conv())) == {"a"}
    assert set(found_sums(lambda m, x: (y := x.relu()) + m.a(y), a=conv())) == {"a"}


def test_a_shortcut_made_after_the_layer_is_no_shortcut():
    assert found_sums(lambda m, x: m.a(x) + functional.pad(x[:, :2], (0, 0, 0, 0, 0, 1)), a=conv()) == {}


def test_what_is_changed_on_the_way_is_not_taken_for_a_sum():
    def activated(m, x):
        y = x.sin()
        return functional.relu(m.a(y), inplace=True) + y

    def changed(m, x):
        y = x.sin()
        z = m.a(y)
        y.mul_(2)
        return z + y

    def through_a_view(m, x):
        y = x.sin()
        z = m.a(y)
        z[:, :1].mul_(2)
        return z + y

    def scaled(m, x):
        return torch.add((y := x.sin()), m.a(y), alpha=2)

    def doubled(m, x):
        return (y := m.a(x)) + y

    for forward in (activated, changed, through_a_view, scaled, doubled):
        assert found_sums(forward, a=conv()) == {}, forward.__name__


def test_a_sum_behind_an_activation_that_hides_in_a_batch_norm_is_not_a_target():
    class Active(nn.BatchNorm2d):
        def forward(self, x):
            return functional.relu(super().forward(x))

    torch.manual_seed(0)
    model = Function(
        lambda m, x: m.c((y := m.a(x)) + m.bn(m.b(y))), a=conv(), b=nn.Conv2d(3, 3, 1), bn=Active(3), c=conv()
    )
    context = context_of(lively(model).double(), batches((3, 4, 4)))
    found = record(context.model, context.statistics, context.batches, Sampling())
    assert (found.layers["b.weight"].norm, found.layers["b.weight"].sum) == ("bn", None)
    plain = replace(
        context, model=lively(Function(model._put_together, a=conv(), b=conv(), bn=nn.BatchNorm2d(3), c=conv()))
    )
    assert (
        record(plain.model.double(), context.statistics, context.batches, Sampling()).layers["b.weight"].sum is not None
    )


# -- data ------------------------------------------------------------------------------------------


def test_what_is_recorded_stays_within_its_bounds():
    context = context_of(chain(), batches((3, 8, 8), (200, 200)))
    outputs = 8 + 9 + 8 + 5

    def taken(**bounds) -> Targets:
        return record(context.model, context.statistics, context.batches, Sampling(**bounds))

    def rows(targets: Targets, path: str) -> int:
        return sum(map(len, targets.layers[path].values))

    assert taken(images=50).images == 50
    assert taken(activations=1).images == 2
    assert rows(taken(rows=4000), "2.weight") == 4000
    assert rows(taken(rows=4001), "8.weight") == 400  # there is one position
    assert taken(memory=4 * outputs * 30).images == 30
    small = taken(memory=4 * outputs * 800)
    assert sum(v.numel() for t in small.layers.values() for v in t.values) <= outputs * 800


def test_targets_are_the_dense_networks_outputs_behind_the_batch_norm():
    context = context_of(chain(), batches((3, 8, 8), (20,)))
    found = record(context.model, context.statistics, context.batches, Sampling(rows=10**6))
    expected = context.model[:4](context.batches[0][0]).detach()
    torch.testing.assert_close(found.layers["2.weight"].values[0], expected.movedim(1, -1).reshape(-1, 9))
    factor, constant = affine(context.model[3])
    torch.testing.assert_close(context.model[3].weight * (1e-5 + context.model[3].running_var) ** -0.5, factor)
    assert constant.shape == (9,)


def test_the_dense_network_is_recorded_once_for_all_candidates(monkeypatch):
    context = context_of(chain(), batches((3, 8, 8), (150,)))
    first = repaired(context)
    (known,) = context.remembered.values()
    monkeypatch.setattr("autoprune.sequential.record", lambda *_: pytest.fail("it ran again"))
    assert same(first, repaired(context))
    assert list(context.remembered.values()) == [known]


def test_shortcuts_are_let_go_when_their_sum_is_repaired(monkeypatch):
    walks = []

    class Spied(_Walk):
        def solve(self, path, layer, inputs):
            super().solve(path, layer, inputs)
            walks.append(len(self._held))

    monkeypatch.setattr("autoprune.sequential._Walk", Spied)

    def forward(m, x):
        for name in "abcd":
            x = x + getattr(m, name)(x)
        return m.head(m.last(x))

    names = {name: nn.Linear(6, 6) for name in "abcd"}
    model = lively(Function(forward, **names, last=nn.Linear(6, 7), head=nn.Linear(7, 5))).double()
    repaired(context_of(model, batches((6,))))
    assert len(walks) == 6
    assert max(walks) <= 1


def test_another_model_is_recorded_anew():
    context = context_of(chain(), batches((3, 8, 8), (150,)))
    repaired(context)
    other = replace(context, model=copy.deepcopy(context.model))
    other.model[8].weight.data.mul_(2)
    assert same(repaired(other), repaired(replace(other, remembered={})))


def test_a_share_of_the_images_is_the_first_of_them():
    context = context_of(chain(), batches((3, 8, 8), (300, 100)))
    part = repaired(replace(context, share=0.5), sampling=Sampling(rows=400 * 16))
    few = replace(context, batches=batches((3, 8, 8), (300, 100))[:1], remembered={})
    few = replace(few, batches=[(few.batches[0][0][:200], None)])
    alone = repaired(few, sampling=Sampling(rows=200 * 16))
    for (name, a), b in zip(part.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_with_too_few_rows_the_rank_is_told_and_the_ridge_grows():
    context = context_of(chain(), batches((3, 8, 8), (40,)))
    with pytest.warns(StatisticsNotice, match=r"8\.weight: 40 calibration rows have rank 40 at most, 112 are needed"):
        candidate = repaired(context)
    unseen = batches((3, 8, 8), (200,), seed=9)
    assert error(candidate, context, unseen) < 3 * error(pruned(context), context, unseen)


def test_results_are_the_same_each_time_and_the_seed_draws_the_positions():
    data = batches((3, 8, 8), (100, 100))

    def made(seed: int) -> nn.Module:
        return repaired(context_of(chain(), data, seed=seed), sampling=Sampling(rows=2000))

    with fixed_threads(1):
        first, again, other = made(0), made(0), made(1)
    assert same(first, again)
    assert not same(first, other)


# -- bad input -------------------------------------------------------------------------------------


def test_a_dense_network_that_is_not_finite_is_refused_by_layer():
    context = context_of(chain(), batches((3, 8, 8)))
    context.model[2].weight.data[1] = torch.nan
    with pytest.raises(UserError, match=r"2\.weight: the dense network's output is not finite"):
        sequential(pruned(context), context)


def test_a_candidate_that_is_not_finite_is_refused_by_layer():
    context = context_of(chain(), batches((3, 8, 8)))
    candidate = pruned(context)
    candidate[0].weight.data[1] = torch.inf
    with pytest.raises(UserError, match=r"2\.weight: what the candidate feeds this layer is not finite"):
        sequential(candidate, context)
    assert not any(m._forward_pre_hooks for m in candidate.modules())


def test_a_granularity_without_channels_is_refused():
    context = context_of(chain(), batches((3, 8, 8)))
    with pytest.raises(UserError, match="does not know 'weight' granularity"):
        sequential(pruned(context), replace(context, space=replace(context.space, granularity="weight")))


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_is_refused(ridge):
    with pytest.raises(UserError, match="ridge = "):
        sequential(chain(), context_of(chain(), batches((3, 8, 8))), ridge=ridge)


def test_a_sampling_of_nothing_is_refused():
    with pytest.raises(UserError, match="rows = 0"):
        Sampling(rows=0)


# -- as a recovery ---------------------------------------------------------------------------------


def evaluator(recovery="sequential") -> Evaluator:
    model = chain().float()
    data = [(x, torch.zeros(len(x), dtype=torch.long)) for x, _ in batches((3, 8, 8), (200, 200), torch.float32)]
    unseen = [(x, torch.zeros(len(x), dtype=torch.long)) for x, _ in batches((3, 8, 8), (150,), torch.float32, seed=5)]
    return Evaluator(model, trace(model, data[0][0]), data, unseen, recovery=recovery)


def test_an_evaluator_takes_it_by_name_alone_joined_and_as_a_fidelity():
    half = evaluator().space.floor([0.6] * 3)
    names = ("none", "sequential", "sequential + recalibrate_bn", "least_squares+sequential")
    seen = {name: evaluator(name)(half).kl for name in names}
    assert all(kl < 0.5 * seen["none"] for name, kl in seen.items() if name != "none")
    cheap = evaluator("none")(half, fidelity=Fidelity(share=0.5, recovery="sequential"))
    assert cheap.kl < 0.5 * seen["none"]


def test_copies_of_a_prepared_evaluator_have_its_targets_and_measure_the_same():
    first = evaluator()
    first.prepare()
    second = pickle.loads(pickle.dumps(first))
    (known,) = second._remembered.values()
    assert known.model is second.model
    half = first.space.floor([0.5] * 3)
    assert first(half).loss == second(half).loss
    assert list(second._remembered.values()) == [known]


def test_the_recovery_is_found_by_name():
    assert find(sequential) is sequential
    context = context_of(chain(), batches((3, 8, 8), (60,)))
    candidate = pruned(context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StatisticsNotice)
        find("sequential")(candidate, context)
        assert same(candidate, repaired(context))


# -- trained networks ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121"])
def test_networks_of_torchvision_are_repaired(name):
    import torchvision

    torch.manual_seed(0)
    model = lively(getattr(torchvision.models, name)(num_classes=10))
    data = batches((3, 64, 64), (16, 16), torch.float32)
    recalibrate_bn(model, Context(model, None, (), None, data))
    space = trace(model, data[0][0][:1])
    kept = [np.arange(group.units)[: max(1, group.units * 3 // 4)] for group in space.groups]
    context = Context(model, space, kept, Statistics(model, space, data), data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StatisticsNotice)
        candidate, plain = repaired(context), pruned(context)
    recalibrate_bn(plain, context)
    assert error(candidate, context) < 0.5 * error(plain, context)
