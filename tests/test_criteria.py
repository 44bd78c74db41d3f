from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import autoprune
from autoprune import criteria, demo
from autoprune import data as datasets
from autoprune.api import trace
from autoprune.budget import Budget
from autoprune.criteria import (
    CRITERIA,
    act_mean,
    act_std,
    apoz,
    bn_scale,
    combine,
    find,
    fisher,
    fpgm,
    hrank,
    l1,
    l2,
    obs,
    random,
    scores,
    taylor,
)  # fmt: skip
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.patches import draw, output_size, rows
from autoprune.scheme import Scheme
from autoprune.slicing import choose
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
    (found,) = scores(find(criterion), model, statistics)
    return found


# -- what all criteria have in common --------------------------------------------------------------


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ("random", "first")])
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


def test_fpgm_sums_the_distances_to_all_other_filters():
    model = network(conv())
    filters = model[0].weight.detach().flatten(1).numpy()
    expected = [sum(np.sqrt(((a - b) ** 2).sum()) for b in filters) for a in filters]
    np.testing.assert_allclose(score(fpgm, model), expected, rtol=1e-10)


def test_fpgm_sees_no_common_offset_and_norms_do():
    model = network(conv())
    before = {c: score(c, model) for c in (fpgm, l1, l2)}
    model[0].weight.data += torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    np.testing.assert_allclose(score(fpgm, model), before[fpgm], rtol=1e-9)
    assert not np.allclose(score(l1, model), before[l1])
    assert not np.allclose(score(l2, model), before[l2])


def test_fpgm_gives_duplicates_the_same_score():
    model = network(conv())
    model[0].weight.data[4] = model[0].weight.data[1]
    found = score(fpgm, model)
    assert found[4] == pytest.approx(found[1], rel=1e-12)


def test_fpgm_removes_the_most_replaceable_filter_where_l2_removes_the_smallest():
    model = network(conv())
    generator = torch.Generator().manual_seed(0)
    filters = 1 + 0.1 * torch.randn(6, 3, 3, 3, generator=generator, dtype=torch.float64)
    filters[2] *= 0.01  # small and unlike the others
    filters[5] = (filters[0] + filters[1]) / 2  # between two others
    model[0].weight.data = filters
    assert score(fpgm, model).argmin() == 5
    assert score(l2, model).argmin() == 2


# -- chance ----------------------------------------------------------------------------------------


def test_random_scores_come_from_the_seed_and_the_groups_name_alone():
    model = network(conv())
    found = score(random, model)
    np.testing.assert_array_equal(score(random, copy.deepcopy(model), data(seed=1)), found)
    np.testing.assert_array_equal(score("random,seed=0", model), found)
    assert not np.array_equal(score("random,seed=1", model), found)
    space, statistics = facts(model)
    other = replace(space.groups[0], name="another")
    assert not np.array_equal(random(other, model, statistics).numpy(), found)
    with pytest.raises(UserError, match="criterion random: seed = -1"):
        score("random,seed=-1", model)


# -- feature maps ----------------------------------------------------------------------------------


def drawn_maps() -> nn.Module:
    """Channels whose maps are known: 0 the input's first channel, 1 constant, 2 dead, 3 half of 0, 4 and 5 others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), conv()).double().eval()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].weight[0, 0] = 1
        model[0].weight[3, 0] = 0.5
        model[0].bias.copy_(torch.tensor([0.0, 0.7, -100.0, 0.0, 0.1, 0.1]))
    return model


def diagonal() -> list:
    """Images whose first channel is a diagonal matrix with positive entries."""
    (x, y), (z, t) = data((5, 3))
    for images in (x, z):
        images[:, 0] = torch.diag_embed(1 + images[:, 0, 0].abs())
    return [(x, y), (z, t)]


def test_what_criteria_of_maps_say_of_known_maps():
    model, batches = drawn_maps(), diagonal()
    x = torch.cat([images[:, 0] for images, _ in batches])
    shares, means, deviations, ranks = (score(c, model, batches) for c in (apoz, act_mean, act_std, hrank))
    np.testing.assert_allclose(shares[:4], [1 / 6, 1, 0, 1 / 6])
    np.testing.assert_allclose(means[:4], [x.mean(), 0.7, 0, x.mean() / 2])
    np.testing.assert_allclose(deviations[:4], [x.std(correction=0), 0, 0, x.std(correction=0) / 2], atol=1e-12)
    np.testing.assert_allclose(ranks[:4], [6, 1, 0, 6], atol=0.5 / 8)
    assert ranks[2] == 0
    assert ranks[0] > ranks[3] > 6  # equal ranks: the larger map comes first


def test_criteria_of_maps_by_definition():
    model = network(conv())
    maps = model[2](model[1](model[0](torch.cat([x for x, _ in data()])))).detach()
    np.testing.assert_allclose(score(apoz, model), 1 - (maps == 0).double().mean((0, 2, 3)))
    np.testing.assert_allclose(score(act_mean, model), maps.mean((0, 2, 3)))
    np.testing.assert_allclose(score(act_std, model), maps.std((0, 2, 3), correction=0))
    for images in (7, 80):
        ranks = torch.linalg.matrix_rank(maps[:images]).double().mean(0)
        np.testing.assert_allclose(score(f"hrank,images={images}", model), ranks, atol=0.5001 / images)


def test_a_tie_of_ranks_never_outweighs_a_rank():
    model, batches = drawn_maps(), diagonal()
    model[0].bias.data[1] = 1e6
    assert score(hrank, model, batches).argmax() == 0  # rank 6 of small entries, before rank 1 of large ones


def test_a_unit_has_the_mean_of_its_channels():
    model = network(CONSUMERS["groups"]())
    maps = model[2](model[1](model[0](torch.cat([x for x, _ in data()])))).detach()
    means = maps.mean((0, 2, 3))
    np.testing.assert_allclose(score(act_mean, model), (means[:3] + means[3:]) / 2)


def test_a_depthwise_convolutions_map_counts_too():
    torch.manual_seed(0)
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), depthwise, nn.ReLU(), conv()).double().eval()
    x = torch.cat([x for x, _ in data()])
    first, second = (model[:2](x).detach().mean((0, 2, 3)), model[:4](x).detach().mean((0, 2, 3)))
    np.testing.assert_allclose(score(act_mean, model), first + second)


def test_a_transposed_convolutions_map_has_its_channels_in_order():
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Flatten())).double()
    x = torch.cat([x for x, _ in data()])
    np.testing.assert_allclose(score(act_mean, model), model[:2](x).detach().mean((0, 2, 3)))


def test_apoz_leaves_a_group_that_it_cannot_rank_to_l2():
    model = network(conv())
    model[2] = nn.Sigmoid()
    with pytest.warns(StatisticsNotice, match="group 0: all units have the same share of zeros, l2 ranks it"):
        found = score(apoz, model)
    np.testing.assert_array_equal(found, score(l2, model))


@pytest.mark.parametrize("criterion", [apoz, act_mean, act_std, hrank])
def test_a_group_without_a_map_is_refused(criterion):
    def forward(m, x):
        return m.b(functional.relu(functional.linear(x.flatten(1), m.a.weight)))

    torch.manual_seed(0)
    model = lively(Function(forward, a=nn.Linear(108, 5, bias=False), b=nn.Linear(5, 4))).double()
    with pytest.raises(UserError, match=r"criterion \w+: no feature map of group a was seen.*\(a\).*use l2 or obs"):
        score(criterion, model)


def test_ranks_need_an_image():
    with pytest.raises(UserError, match="criterion hrank: images = 0: at least 1"):
        score("hrank,images=0", network(conv()))


# -- gradients -------------------------------------------------------------------------------------


def test_taylor_and_fisher_by_definition():
    model = network(conv())
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    maps = model[:3](x).detach().requires_grad_()
    functional.cross_entropy(model[3](maps), y, reduction="sum").backward()
    slopes = (maps * maps.grad).sum((2, 3)).detach()
    np.testing.assert_allclose(score(taylor, model), slopes.abs().mean(0))
    np.testing.assert_allclose(score(fisher, model), slopes.square().mean(0) / 2)


def test_consumers_together_or_one_by_one():
    model = network(CONSUMERS["several"]())
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    maps = [model[:3](x).detach().requires_grad_() for _ in range(2)]
    answer = (model[3].a(maps[0]) + model[3].b(maps[1])).mean((2, 3))
    functional.cross_entropy(answer, y, reduction="sum").backward()
    a, b = ((m * m.grad).sum((2, 3)).detach().numpy() for m in maps)
    np.testing.assert_allclose(score(taylor, model), np.abs(a + b).mean(0))
    alone = np.stack([np.abs(a).mean(0), np.abs(b).mean(0)])
    for aggregate, expected in (("sum", alone.sum(0)), ("mean", alone.mean(0)), ("max", alone.max(0))):
        np.testing.assert_allclose(score(f"taylor,aggregate={aggregate}", model), expected)
    np.testing.assert_allclose(score("fisher,aggregate=max", model), np.maximum((a**2).mean(0), (b**2).mean(0)) / 2)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_need_labels_or_the_networks_own_answers(criterion):
    model = network(conv())
    batches = [(x, None) for x, _ in data()]
    with pytest.raises(UserError, match="has no class labels.*target=answers"):
        score(criterion, model, batches)
    own = [(x, model(x).argmax(1)) for x, _ in data()]
    np.testing.assert_array_equal(score(f"{criterion},target=answers", model, batches), score(criterion, model, own))


# -- several layers, one score ---------------------------------------------------------------------


def summed() -> nn.Module:
    def forward(m, x):
        return m.head((functional.relu(m.a(x)) + m.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    return lively(Function(forward, a=nn.Conv2d(3, 5, 1), b=nn.Conv2d(3, 5, 1), head=nn.Linear(5, 4))).double()


SIZES = {"none": lambda v: 1.0, "mean": np.mean, "sum": np.sum, "max": np.max, "l2": np.linalg.norm}
TOGETHER = {
    "sum": lambda parts: parts.sum(0),
    "mean": lambda parts: parts.mean(0),
    "max": lambda parts: parts.max(0),
    "l2": lambda parts: np.sqrt((parts**2).sum(0)),
}


@pytest.mark.parametrize("normalise", SIZES)
@pytest.mark.parametrize("aggregate", TOGETHER)
def test_layers_are_scaled_and_then_brought_together(aggregate, normalise):
    model = summed()
    alone = [m.weight.detach().abs().sum((1, 2, 3)).numpy() for m in (model.a, model.b)]
    expected = TOGETHER[aggregate](np.stack([v / SIZES[normalise](v) for v in alone]))
    np.testing.assert_allclose(score(f"l1,aggregate={aggregate},normalise={normalise}", model), expected)
    np.testing.assert_allclose(score(partial(l1, aggregate=aggregate, normalise=normalise), model), expected)


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm"])
def test_scaled_layers_have_an_equal_voice(criterion):
    model = summed()
    before = score(f"{criterion},normalise=mean", model)
    for tensor in (model.b.weight.data, model.b.bias.data):
        tensor *= 1000
    np.testing.assert_allclose(score(f"{criterion},normalise=mean", model), before)
    assert not np.allclose(score(criterion, model), score(criterion, summed()), rtol=0.5)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ("random", "first")])
def test_scaling_by_the_mean_makes_the_mean_one(criterion):
    plain, scaled = (score(f"{criterion},normalise={by}", network(conv())) for by in ("none", "mean"))
    np.testing.assert_allclose(scaled, plain / plain.mean())


def test_scores_of_nothing_stay_nothing():
    assert combine([torch.zeros(3), torch.ones(3)], "sum", "mean").tolist() == [1, 1, 1]


@pytest.mark.parametrize(("options", "message"), [
    ({"aggregate": "median"}, "aggregate = 'median': choose sum, mean, max, l2"),
    ({"normalise": "std"}, "normalise = 'std': choose none, mean, sum, max, l2"),
])  # fmt: skip
def test_an_unknown_way_of_combining_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        l1(trace_one(network(conv())), network(conv()), None, **options)


def trace_one(model: nn.Module) -> Group:
    return facts(model)[0].groups[0]


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
@pytest.mark.parametrize("criterion", ["obs", "taylor", "fisher"])
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


def own(group, model, statistics, *, power: float = 1.0):
    return l1(group, model, statistics) ** power


def test_options_follow_a_name_of_any_kind(monkeypatch):
    monkeypatch.setattr(criteria, "own", own, raising=False)
    found = score("autoprune.criteria:own , power=2", network(conv()))
    np.testing.assert_allclose(found, score(l1, network(conv())) ** 2)


def test_a_record_tells_options_apart():
    model = network(conv())
    space, _ = facts(model)
    named = [
        "l1",
        "l1,aggregate=max",
        "l1,normalise=max",
        partial(l1, aggregate="max"),
        partial(l1, normalise="max"),
        l1,
    ]
    evaluators = [Evaluator(model, space, data(), data(), criterion=one) for one in named]
    assert len({e.fingerprint for e in evaluators}) == len(named)
    assert evaluators[1].protocol["criterion"] == "l1,aggregate=max"


@pytest.mark.parametrize("criterion", ["apoz", "act_mean", "act_std", "hrank", "taylor", "fisher", "obs"])
def test_images_that_are_not_finite_name_the_layer(criterion):
    batches = data()
    batches[1][0][3, 0, 2, 2] = torch.nan
    with pytest.raises(UserError, match="holds nan or inf on (the calibration set|calibration batch 1): look for them"):
        score(f"{criterion},images=80" if criterion == "hrank" else criterion, network(conv()), batches)


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm"])
def test_weights_that_are_not_finite_name_the_layer(criterion):
    model = network(conv())
    _, statistics = facts(model)
    model[0].weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(UserError, match=f"0.weight holds nan or inf: criterion {criterion} cannot rank it"):
        scores(find(criterion), model, statistics)


# -- what they are worth ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["fpgm", "bn_scale", "act_std", "taylor", "fisher", "obs"])
def test_better_than_chance_and_the_reverse_is_worse(criterion, tmp_path, with_digits):
    """Measured on three draws of the images: at most 0.79 and at least 1.25 of the mean loss of random channels."""
    network = demo.digits(with_digits(tmp_path))
    splits = datasets.load("digits", calibration=256, validation=512)
    space = trace(network, torch.zeros(1, 1, 8, 8))
    scheme = Budget.parse("macs=50%", space).fit(np.ones(len(space)))
    evaluator = Evaluator(network, space, splits.calibration, splits.validation, recovery="recalibrate_bn")

    def loss(found: list[np.ndarray]) -> float:
        units = tuple(tuple(map(int, chosen)) for chosen in choose(space, scheme, found))
        return evaluator(Scheme(scheme.kept, indices=units)).loss

    chance = [loss(scores(find(f"random,seed={n}"), network, evaluator.statistics)) for n in range(8)]
    found = scores(find(criterion), network, evaluator.statistics)
    assert loss(found) < 0.88 * np.mean(chance)
    assert loss([-one for one in found]) > 1.12 * np.mean(chance)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["act_std", "taylor", "obs"])
def test_calibration_on_other_images_hurts(criterion, tmp_path, with_digits):
    """Measured on three draws of the images: noise costs 9 points of accuracy at least."""
    network = demo.digits(with_digits(tmp_path))
    splits = datasets.load("digits", calibration=256, validation=512)
    space = trace(network, torch.zeros(1, 1, 8, 8))
    scheme = Budget.parse("macs=50%", space).fit(np.ones(len(space)))
    evaluator = Evaluator(network, space, splits.calibration, splits.validation, recovery="recalibrate_bn")
    generator = torch.Generator().manual_seed(0)
    noise = [(torch.randn(x.shape, generator=generator), y) for x, y in splits.calibration]

    def accuracy(batches) -> float:
        found = scores(find(criterion), network, Statistics(network, space, batches))
        units = tuple(tuple(map(int, chosen)) for chosen in choose(space, scheme, found))
        return evaluator(Scheme(scheme.kept, indices=units)).accuracy

    assert accuracy(splits.calibration) > accuracy(noise) + 0.04


def test_criteria_are_found_by_name_by_reference_and_as_they_are():
    assert find("obs") is obs
    assert find(longest_name) is longest_name
    assert find("autoprune.criteria:l1") is criteria.l1


def test_options_are_said_on_the_command_line(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["search", "--calibration", "64", "--validation", "64", "--searcher", "uniform", "--trials", "1"]
    status, _, errors = command_line(*words, "--run", "one", "--criterion", "fpgm,aggregate=max,normalise=mean")
    assert (status, errors) == (0, "")
    assert autoprune.Run.open("runs/one").config["request"]["criterion"] == "fpgm,aggregate=max,normalise=mean"
    status, _, errors = command_line(*words, "--run", "two", "--criterion", "fpgm,agregate=max")
    assert status == 2
    assert "criterion fpgm has no option 'agregate': its options are aggregate, normalise; close: aggregate" in errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tailor", "criterion 'tailor' is unknown: use random, l1, l2, fpgm, .*; close: taylor"),
        ("tailor,normalise=max", "criterion 'tailor' is unknown"),
        ("l1,max", "criterion 'l1,max': write its options like l1,option=value"),
        ("l1,", "criterion 'l1,': write its options like l1,option=value"),
        ("l1,agregate=max", "criterion l1 has no option 'agregate': its options are aggregate, normalise; close"),
        ("l1,aggregate=joint", "criterion l1: option aggregate='joint': expected sum or mean or max or l2"),
        ("hrank,images=few", "criterion hrank: option images='few': expected a whole number"),
        (partial(l1, aggregate="median"), "criterion l1: option aggregate='median': expected sum or mean or max or l2"),
        (partial(l1, ridge=1), "criterion l1 has no option 'ridge'"),
        ("autoprune.criteria:RIDGE", "criterion 'autoprune.criteria:RIDGE' is a float, not a function"),
        ("no_such_module_here:f", "no module 'no_such_module_here' is installed"),
        (None, "criterion None is neither a name nor a function"),
    ],
)
def test_an_unknown_criterion_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        find(name)
