from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune import criteria
from autoprune.criteria import CRITERIA, bn_scale, find, l1, l2, obs, scores
from autoprune.errors import UserError
from autoprune.patches import draw, output_size, rows
from autoprune.search_spaces.traced import trace
from autoprune.space import Group, SearchSpace
from autoprune.statistics import Statistics, StatisticsNotice
from networks import Function, lively

ALL = 10**6  # positions: every one


def data(sizes=(40, 40), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, 3, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(0, 4, (n,), generator=generator),
        )
        for n in sizes
    ]


def network(consumer: nn.Module, *, norm: bool = True, width: int = 6) -> nn.Module:
    """One group of ``width`` channels and what reads it."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, width, 3, bias=not norm), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
    return lively(nn.Sequential(*stem, consumer)).double()


def conv(outputs: int = 4, **options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, outputs, 3, **options), nn.AdaptiveAvgPool2d(1), nn.Flatten())


CONSUMERS = {
    "conv": conv,
    "groups": lambda: conv(groups=2),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 16, 4)),
    "norm": lambda: nn.Sequential(
        nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "none": lambda: conv(bias=False),
    "several": lambda: Function(
        lambda m, x: (m.a(x) + m.b(x)).mean((2, 3)), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 3, padding=1)
    ),
}


def facts(model: nn.Module, batches=None) -> tuple[SearchSpace, Statistics]:
    batches = batches or data()
    space = trace(model, batches[0][0])
    return space, Statistics(model, space, batches, positions=ALL)


def score(criterion, model: nn.Module, batches=None) -> np.ndarray:
    space, statistics = facts(model, batches)
    assert len(space) == 1
    (found,) = scores(criterion, model, statistics)
    return found


# -- what all criteria have in common --------------------------------------------------------------


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_exchanging_channels_exchanges_their_scores(criterion, consumer):
    model = network(CONSUMERS[consumer]())
    space, statistics = facts(model)
    (group,) = space.groups
    (before,) = scores(CRITERIA[criterion], model, statistics)
    order = np.random.default_rng(0).permutation(group.units)
    exchanged = copy.deepcopy(model)
    tensors = dict([*exchanged.named_parameters(), *exchanged.named_buffers()])
    with torch.no_grad():
        for piece in group.slices:
            to, source = (torch.from_numpy(p.ravel()) for p in (piece.positions, piece.positions[order]))
            tensor = tensors[piece.path]
            tensor.copy_(tensor.clone().index_copy(piece.axis, to, tensor.index_select(piece.axis, source)))
    torch.testing.assert_close(exchanged(data()[0][0]), model(data()[0][0]))
    after = score(CRITERIA[criterion], exchanged)
    np.testing.assert_allclose(after, before[order], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_score_per_unit_that_is_finite_and_not_negative(criterion):
    found = score(CRITERIA[criterion], network(CONSUMERS["groups"]()))
    assert found.shape == (3,)
    assert found.dtype == np.float64
    assert (found >= 0).all()
    assert len(set(found)) > 1


@pytest.mark.parametrize("criterion", CRITERIA)
def test_how_the_images_are_cut_into_batches_makes_no_difference(criterion):
    model = network(conv())
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    whole, *others = (
        score(CRITERIA[criterion], model, list(zip(x.split(sizes), y.split(sizes), strict=True)))
        for sizes in (80, 33, [1, 70, 9])
    )
    for other in others:
        np.testing.assert_allclose(other, whole, rtol=1e-8)


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [l1, l2])
def test_norms_scale_with_the_weights(criterion):
    model = network(conv())
    before = score(criterion, model)
    model[0].weight.data *= -3
    np.testing.assert_allclose(score(criterion, model), 3 * before)


def test_norms_are_those_of_the_filters_that_make_the_channel():
    model = network(conv())
    filters = model[0].weight.detach().flatten(1)
    np.testing.assert_allclose(score(l1, model), filters.abs().sum(1))
    np.testing.assert_allclose(score(l2, model), filters.norm(dim=1))


def test_layers_whose_outputs_are_summed_add_their_norms():
    def forward(m, x):
        return m.head((functional.relu(m.a(x)) + m.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    model = lively(Function(forward, a=nn.Conv2d(3, 5, 1), b=nn.Conv2d(3, 5, 1), head=nn.Linear(5, 4))).double()
    filters = torch.cat([model.a.weight, model.b.weight], 1).detach().flatten(1)
    np.testing.assert_allclose(score(l1, model), filters.abs().sum(1))
    np.testing.assert_allclose(score(l2, model), filters.norm(dim=1))


def test_a_unit_of_a_grouped_convolution_counts_all_its_channels():
    model = network(CONSUMERS["groups"]())
    filters = model[0].weight.detach().flatten(1).abs().sum(1)
    np.testing.assert_allclose(score(l1, model), filters[:3] + filters[3:])


def test_a_transposed_convolution_makes_channels_along_its_second_axis():
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.Conv2d(5, 4, 1))).double()
    np.testing.assert_allclose(score(l1, model), model[0].weight.detach().abs().sum((0, 2, 3)))


def test_bn_scale_is_the_absolute_factor_of_the_channel():
    model = network(conv())
    model[1].weight.data[2] = -9
    np.testing.assert_allclose(score(bn_scale, model), model[1].weight.detach().abs())


def test_bn_scale_is_refused_where_there_is_no_batch_norm():
    with pytest.raises(
        UserError, match="criterion bn_scale: no batch norm scales the channels of 0; use l1, taylor or obs"
    ):
        score(bn_scale, network(conv(), norm=False))


# -- reconstruction error --------------------------------------------------------------------------


def refitted(model: nn.Module, group: Group, removed: list[int], ridge: float) -> float:
    """Squared error of the group's consumers without these units, all other weights at their best."""
    inputs: dict[str, torch.Tensor] = {}
    layers = {piece.path: model.get_submodule(piece.module) for piece in group.slices if piece.role == "in"}
    handles = [
        layer.register_forward_pre_hook(lambda _, x, path=path: inputs.update({path: x[0].detach()}))
        for path, layer in layers.items()
    ]
    model(torch.cat([x for x, _ in data()]))
    for handle in handles:
        handle.remove()
    error = 0.0
    for piece in (piece for piece in group.slices if piece.role == "in"):
        layer = layers[piece.path]
        weight = layer.weight.detach()
        taps = weight[0, 0].numel()
        everything = draw(int(np.prod(output_size(layer, inputs[piece.path]))), ALL)
        reads = rows(layer, inputs[piece.path], everything)
        centred = layer.bias is not None or any(isinstance(m, nn.BatchNorm2d) for m in model[-1])
        gone = {int(p) * taps + t for p in piece.positions[removed].ravel() for t in range(taps)}
        for read, part in zip(reads, weight.reshape(len(reads), -1, reads.shape[2]), strict=True):
            read = read - read.mean(0) if centred else read
            damping = (len(read) * ridge * read.square().mean()).sqrt() * torch.eye(reads.shape[2])
            read = torch.cat([read, damping.to(read)])
            target = read @ part.T
            stays = [c for c in range(read.shape[1]) if c not in gone]
            best = torch.linalg.lstsq(read[:, stays], target).solution
            error += float((read[:, stays] @ best - target).square().sum() / (len(read) - read.shape[1]))
    return error


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_obs_first_removes_the_unit_whose_removal_costs_least_after_refitting(consumer):
    model = network(CONSUMERS[consumer]())
    space, statistics = facts(model)
    (group,) = space.groups
    ridge = 1e-3
    (found,) = scores(partial(obs, ridge=ridge), model, statistics)
    costs = [refitted(model, group, [unit], ridge) for unit in range(group.units)]
    first = int(found.argmin())
    assert first == int(np.argmin(costs))
    second = int(found.argsort()[1])
    pairs = {u: refitted(model, group, [first, u], ridge) for u in range(group.units) if u != first}
    assert second == min(pairs, key=lambda u: pairs[u])
    assert found[second] / found[first] == pytest.approx(
        max(1, (pairs[second] - costs[first]) / costs[first]), rel=1e-6
    )


def test_obs_is_a_share_of_the_consumers_output():
    model = network(CONSUMERS["none"]())
    space, statistics = facts(model)
    (found,) = scores(partial(obs, ridge=1e-9), model, statistics)
    first = int(found.argmin())
    x = model[2](model[1](model[0](torch.cat([x for x, _ in data()])))).detach()
    energy = float(model[3][0](x).detach().square().sum(1).mean())
    assert found[first] == pytest.approx(refitted(model, space.groups[0], [first], 1e-9) / energy, rel=1e-4)
    before = found.copy()
    model[3][0].weight.data *= 10
    np.testing.assert_allclose(score(partial(obs, ridge=1e-9), model), before, rtol=1e-6)


@pytest.mark.parametrize("consumer", ["conv", "flatten", "several"])
def test_obs_removes_a_duplicated_channel_at_no_cost(consumer):
    model = network(CONSUMERS[consumer]())
    for tensor in (model[0].weight.data, *(getattr(model[1], n).data for n in ("weight", "bias"))):
        tensor[4] = tensor[1]
    for tensor in (model[1].running_mean, model[1].running_var):
        tensor[4] = tensor[1]
    found = score(partial(obs, ridge=1e-9), model)
    assert int(found.argmin()) in (1, 4)
    assert found.min() < 1e-6
    assert np.sort(found)[1] > 1e-4


def test_obs_of_a_dead_channel_is_nothing():
    model = network(conv())
    model[1].bias.data[3] = -100
    found = score(partial(obs, ridge=1e-9), model)
    assert int(found.argmin()) == 3
    assert found[3] < 1e-6 * np.sort(found)[1]


@pytest.mark.filterwarnings("ignore::autoprune.statistics.StatisticsNotice")
@pytest.mark.parametrize("criterion", ["obs", "taylor"])
def test_l2_stands_in_with_a_notice_where_no_consumer_can_be_observed(criterion):
    def forward(m, x):
        return functional.linear(functional.relu(m.a(x.flatten(1))), m.b.weight)

    torch.manual_seed(0)
    model = lively(Function(forward, a=nn.Linear(108, 5), b=nn.Linear(5, 4))).double()
    space, statistics = facts(model)
    with pytest.warns(StatisticsNotice, match="group a: nothing was observed of its consumers, l2 ranks it"):
        (found,) = scores(CRITERIA[criterion], model, statistics)
    np.testing.assert_array_equal(found, l2(space.groups[0], model, statistics).numpy())


# -- custom criteria, and criteria by name ---------------------------------------------------------


def longest_name(group, model, statistics):
    return [len(group.name)] * group.units


def test_a_criterion_may_return_anything_that_becomes_a_tensor():
    assert score(longest_name, network(conv())).tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda group, model, statistics: torch.zeros(group.units + 1),
            r"gave shape \(7,\) for group 0: one score per unit",
        ),
        (lambda group, model, statistics: torch.zeros(group.units, 1), r"gave shape \(6, 1\)"),
        (lambda group, model, statistics: torch.full((group.units,), torch.nan), "gave a score that is not finite"),
    ],
)
def test_a_criterion_with_the_wrong_answer_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        score(wrong, network(conv()))


def test_criteria_are_found_by_name_by_reference_and_as_they_are():
    assert find("obs") is obs
    assert find(longest_name) is longest_name
    assert find("autoprune.criteria:l1") is criteria.l1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tailor", "criterion 'tailor' is unknown: use l1, l2, bn_scale, taylor, obs .*; close: taylor"),
        ("autoprune.criteria:RIDGE", "criterion 'autoprune.criteria:RIDGE' is a float, not a function"),
        ("no_such_module_here:f", "no module 'no_such_module_here' is installed"),
        (None, "criterion None is neither a name nor a function"),
    ],
)
def test_an_unknown_criterion_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        find(name)
