from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune import recover
from autoprune.errors import UserError
from autoprune.patches import draw, output_size, rows
from autoprune.recover import Context, compose, find, least_squares, recalibrate_bn
from autoprune.search_spaces.traced import trace
from autoprune.slicing import prune
from autoprune.statistics import Statistics, StatisticsNotice
from networks import Function, lively

ALL = 10**6  # positions: every one


def batches(shape, sizes=(6, 6), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, *shape, generator=generator, dtype=dtype), None) for size in sizes]


def images(data) -> torch.Tensor:
    return torch.cat([x for x, _ in data])


def context_of(model: nn.Module, data, removed=(0,), **options) -> Context:
    """All groups lose the units ``removed``."""
    space = trace(model, data[0][0])
    assert len(space)
    kept = [np.delete(np.arange(group.units), removed) for group in space.groups]
    return Context(model, space, kept, Statistics(model, space, data, **{"positions": ALL, **options}), data)


def pruned(context: Context) -> nn.Module:
    return prune(context.model, context.space, context.kept).eval()


def answers(model: nn.Module, data) -> torch.Tensor:
    with torch.no_grad():
        return model(images(data))


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# -- least squares: nothing is lost where nothing has to be ----------------------------------------

CONSUMERS = {
    "3x3": lambda: nn.Conv2d(6, 4, 3),
    "1x1": lambda: nn.Conv2d(6, 4, 1),
    "stride": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "dilation": lambda: nn.Conv2d(6, 4, 2, dilation=2, padding=1),
    "oblong": lambda: nn.Conv2d(6, 4, (1, 3), stride=(2, 1), padding=(0, 1)),
    "groups": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "reflect": lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(6, 4, 3, padding=2, padding_mode="circular"),
    "same": lambda: nn.Conv2d(6, 4, 3, padding="same", dilation=2),
    "no bias": lambda: nn.Conv2d(6, 4, 3, padding=1, bias=False),
    "norm": lambda: nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, 4)),
    "pooled": lambda: nn.Sequential(nn.AvgPool2d(6), nn.Flatten(), nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)),
}


def mixed(producer: nn.Module, groups: int) -> nn.Module:
    """Make the first channel of every convolution group a mix of the group's others."""
    weight, bias = producer.weight.data, producer.bias.data
    width = len(weight) // groups
    for first in range(0, len(weight), width):
        factors = torch.linspace(-1, 2, width - 1, dtype=weight.dtype)
        others = slice(first + 1, first + width)
        weight[first] = (factors.reshape(-1, *[1] * (weight.dim() - 1)) * weight[others]).sum(0)
        bias[first] = (factors * bias[others]).sum()
    return producer


@pytest.mark.parametrize(("dtype", "ridge", "tolerance"), [(torch.float64, 1e-12, 1e-8), (torch.float32, 1e-6, 1e-4)])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_channel_that_is_a_mix_of_others_is_removed_without_loss(consumer, dtype, ridge, tolerance):
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), CONSUMERS[consumer]())).to(dtype)
    mixed(model[0], groups=2 if consumer == "groups" else 1)
    data = batches((3, 8, 8), dtype=dtype, sizes=(60, 60))
    context = context_of(model, data)
    candidate = pruned(context)
    dense, cut = answers(model, data), answers(candidate, data)
    least_squares(candidate, context, ridge=ridge)
    assert (cut - dense).abs().max() > 0.01
    assert (answers(candidate, data) - dense).abs().max() < tolerance * dense.abs().max()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)), (7, 5)),
        (nn.Sequential(nn.Conv1d(5, 6, 1), nn.Conv1d(6, 4, 3, padding=1)), (5, 9)),
        (nn.Sequential(nn.Conv3d(5, 6, 1), nn.Conv3d(6, 4, 2)), (5, 3, 3, 3)),
    ],
    ids=["tokens", "conv1d", "conv3d"],
)
def test_it_is_so_for_tokens_and_any_number_of_axes(model, shape):
    model = lively(copy.deepcopy(model)).double()
    mixed(model[0], groups=1)
    data = batches(shape)
    context = context_of(model, data)
    candidate = pruned(context)
    least_squares(candidate, context, ridge=1e-12)
    torch.testing.assert_close(answers(candidate, data), answers(model, data), rtol=1e-7, atol=1e-7)


def test_a_duplicated_channel_is_removed_without_loss_behind_an_activation():
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))).double()
    for tensor in (model[0].weight.data, model[0].bias.data):
        tensor[0] = tensor[4]
    data = batches((3, 8, 8))
    context = context_of(model, data)
    candidate = pruned(context)
    least_squares(candidate, context, ridge=1e-12)
    torch.testing.assert_close(answers(candidate, data), answers(model, data), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("consumer", ["bias", "norm"])
def test_a_constant_channel_moves_into_the_bias_or_the_running_mean(consumer):
    rest = [nn.Conv2d(6, 4, 3)] if consumer == "bias" else [nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)]
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *rest)).double()
    model[0].weight.data[0], model[0].bias.data[0] = 0, 3.0
    data = batches((3, 8, 8))
    context = context_of(model, data)
    candidate = pruned(context)
    least_squares(candidate, context)  # even with a ridge
    torch.testing.assert_close(answers(candidate, data), answers(model, data), rtol=1e-9, atol=1e-9)
    assert torch.equal(candidate[2].weight, model[2].weight[:, 1:])


# -- least squares: the best there is --------------------------------------------------------------


def solved(layer: nn.Module, x: torch.Tensor, kept: torch.Tensor, ridge: float, centred: bool):
    """Weights and the lost mean per output channel, by orthogonal factorisation of all rows."""
    weights, lost = [], []
    groups = getattr(layer, "groups", 1)
    taps = layer.weight[0, 0].numel()
    stays = (kept[:, None] * taps + torch.arange(taps)).ravel()
    gone = torch.tensor([c for c in range(layer.weight[0].numel()) if c not in stays.tolist()])
    parts = layer.weight.detach().reshape(groups, -1, layer.weight[0].numel())
    total = int(np.prod(output_size(layer, x)))
    for read, weight in zip(rows(layer, x, draw(total, ALL)), parts, strict=True):
        mean = read.mean(0)
        moved = read - mean if centred else read
        damping = ridge * float(moved.square().mean())
        design = torch.cat([moved[:, stays], (len(read) * damping) ** 0.5 * torch.eye(len(stays), dtype=read.dtype)])
        target = torch.cat([moved[:, gone] @ weight[:, gone].T, torch.zeros(len(stays), len(weight), dtype=read.dtype)])
        taken = torch.linalg.lstsq(design, target).solution.T
        weights.append(weight[:, stays] + taken)
        lost.append(weight[:, gone] @ mean[gone] - taken @ mean[stays])
    return torch.cat(weights).reshape(len(layer.weight), len(kept), *layer.weight.shape[2:]), torch.cat(lost)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
@pytest.mark.parametrize("consumer", ["3x3", "stride", "dilation", "groups", "reflect", "no bias", "norm", "flatten"])
def test_the_weights_are_those_of_a_direct_solution_on_all_rows(consumer, ridge):
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), CONSUMERS[consumer]())).double()
    data = batches((3, 8, 8), sizes=(40, 41))
    context = context_of(model, data, removed=(0, 2))
    candidate = pruned(context)
    least_squares(candidate, context, ridge=ridge)
    (path,) = context.statistics.grams
    name = path.removesuffix(".weight")
    layer, repaired = model.get_submodule(name), candidate.get_submodule(name)
    read = model[1](model[0](images(data)))
    read = read.flatten(1) if consumer == "flatten" else read
    piece = next(p for p in context.space.groups[0].slices if p.path == path)
    kept = torch.from_numpy(np.sort(piece.positions[context.kept[0]].ravel()))
    weight, lost = solved(layer, read.detach(), kept, ridge, centred=consumer != "no bias")
    torch.testing.assert_close(repaired.weight.detach(), weight, rtol=1e-6, atol=1e-8)
    if layer.bias is not None:
        torch.testing.assert_close(repaired.bias.detach(), layer.bias.detach() + lost, rtol=1e-6, atol=1e-8)
    if consumer == "norm":
        torch.testing.assert_close(candidate[2][1].running_mean, model[2][1].running_mean - lost, rtol=1e-6, atol=1e-8)


def test_a_layer_that_loses_outputs_too_keeps_the_repaired_rows_of_the_others():
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1)))
    model = model.double()
    data = batches((3, 8, 8))
    context = context_of(model, data, removed=(1, 3))
    candidate = pruned(context)
    least_squares(candidate, context, ridge=1e-3)
    kept = torch.tensor([0, 2, 4, 5])
    weight, lost = solved(model[2], model[1](model[0](images(data))).detach(), kept, 1e-3, centred=True)
    torch.testing.assert_close(candidate[2].weight.detach(), weight[[0, 2, 4]], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(candidate[2].bias.detach(), (model[2].bias.detach() + lost)[[0, 2, 4]])


def test_every_reader_of_a_group_is_repaired():
    def forward(m, x):
        x = functional.relu(m.stem(x))
        return m.a(x) + m.b(x)

    model = lively(
        Function(forward, stem=nn.Conv2d(3, 6, 3), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 3, padding=1))
    ).double()
    data = batches((3, 8, 8))
    context = context_of(model, data)
    candidate = pruned(context)
    plain = pruned(context)
    least_squares(candidate, context)
    dense = answers(model, data)
    assert (answers(candidate, data) - dense).square().mean() < (answers(plain, data) - dense).square().mean()
    assert not torch.equal(candidate.a.weight, plain.a.weight)
    assert not torch.equal(candidate.b.weight, plain.b.weight)


def test_nothing_changes_where_nothing_is_cut():
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    data = batches((3, 8, 8), dtype=torch.float32)
    context = context_of(model, data, removed=())
    candidate = pruned(context)
    before = tensors(candidate)
    least_squares(candidate, context)
    assert all(torch.equal(before[name], tensor) for name, tensor in candidate.state_dict().items())


def test_a_layer_above_the_memory_limit_keeps_its_sliced_weights_with_a_notice():
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1)))
    context = context_of(model, batches((3, 8, 8), dtype=torch.float32), gram_limit=8 * 5**2)
    candidate = pruned(context)
    before = tensors(candidate)
    with pytest.warns(StatisticsNotice, match=r"2\.weight: a Gram matrix"):
        least_squares(candidate, context)
    changed = {name for name, tensor in candidate.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"4.weight", "4.bias"}


def test_a_dead_network_is_left_as_slicing_made_it():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    context = context_of(lively(model), batches((3, 8, 8), dtype=torch.float32))
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-1.0)  # every activation is zero, so is every variance
    candidate = pruned(context)
    before = tensors(candidate)
    least_squares(candidate, context)
    assert all(torch.equal(before[name], tensor) for name, tensor in candidate.state_dict().items())


def test_the_model_is_left_as_it_is_by_every_recovery():
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    context = context_of(model, batches((3, 8, 8), dtype=torch.float32))
    before = tensors(model)
    for name in recover.RECOVERIES.keys() - recover.FOR_WEIGHTS:
        find(name)(pruned(context), context)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# -- batch norm ------------------------------------------------------------------------------------


def normed() -> nn.Module:
    torch.manual_seed(0)
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=0.3), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten(), nn.Linear(4 * 16, 5),
        )
    )  # fmt: skip


def recalibrated(model: nn.Module, data, **options) -> nn.Module:
    candidate = copy.deepcopy(model)
    recalibrate_bn(candidate, Context(model, None, (), None, data), **options)
    return candidate


def test_the_statistics_of_the_first_batch_norm_are_those_of_all_images_together():
    model, data = normed(), batches((3, 8, 8), (5, 3, 9), torch.float32)
    reads = model[0](images(data)).detach()
    found = recalibrated(model, data)[1]
    torch.testing.assert_close(found.running_mean, reads.mean((0, 2, 3)))
    torch.testing.assert_close(found.running_var, reads.movedim(1, 0).flatten(1).var(1))


def test_how_the_images_are_cut_into_batches_makes_no_difference_to_the_first_batch_norm():
    model, x = normed(), images(batches((3, 8, 8), (16,), torch.float32))
    found = [recalibrated(model, [(part, None) for part in x.split(sizes)])[1] for sizes in (16, [3, 11, 2], 6)]
    for norm in found[1:]:
        torch.testing.assert_close(norm.running_mean, found[0].running_mean)
        torch.testing.assert_close(norm.running_var, found[0].running_var)


def test_later_batch_norms_see_what_batches_normalised_by_themselves_give():
    model, data = normed(), batches((3, 8, 8), (7,), torch.float32)
    reads = functional.relu(
        functional.batch_norm(model[0](images(data)), None, None, model[1].weight, model[1].bias, True)
    )
    reads = model[4](reads).detach()
    found = recalibrated(model, data)[5]
    torch.testing.assert_close(found.running_mean, reads.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.running_var, reads.movedim(1, 0).flatten(1).var(1), rtol=1e-4, atol=1e-5)


def test_earlier_running_statistics_are_forgotten():
    model, data = normed(), batches((3, 8, 8), (5, 4), torch.float32)
    expected = recalibrated(model, data).state_dict()
    for norm in (model[1], model[5]):
        norm.running_mean.fill_(float("nan"))
        norm.running_var.fill_(1e9)
        norm.num_batches_tracked.fill_(77)
    found = recalibrated(model, data).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_modes_and_momenta_are_as_before():
    model, data = normed(), batches((3, 8, 8), (5, 4), torch.float32)
    model[0].train()
    candidate = recalibrated(model, data)
    for (name, before), after in zip(model.state_dict().items(), candidate.state_dict().values(), strict=True):
        assert ("running" in name or "tracked" in name) != torch.equal(before, after)
    assert [m.training for m in candidate.modules()] == [m.training for m in model.modules()]
    assert (candidate[1].momentum, candidate[5].momentum) == (0.3, None)
    assert not any(m._forward_hooks for m in candidate.modules())


def test_modes_and_momenta_are_restored_when_the_network_fails():
    model = normed()
    model[7] = nn.Linear(3, 3).eval()
    with pytest.raises(RuntimeError):
        recalibrate_bn(model, Context(model, None, (), None, batches((3, 8, 8), dtype=torch.float32)))
    assert not any(m.training or m._forward_hooks for m in model.modules())
    assert (model[1].momentum, model[5].momentum) == (0.3, None)


def test_a_network_without_running_statistics_is_not_even_run():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    model.register_forward_hook(lambda *_: pytest.fail("it ran"))
    recalibrate_bn(model, Context(model, None, (), None, batches((3, 8, 8))))


@pytest.mark.parametrize(("limit", "used"), [(1, 4), (4, 4), (9, 4), (10, 10), (13, 12), (99, 12)])
def test_at_most_so_many_images_are_used_in_whole_batches(limit, used):
    model, data = normed(), batches((3, 8, 8), (4, 6, 2), torch.float32)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    recalibrate_bn(model, Context(model, None, (), None, data), images=limit)
    assert sum(seen) == used


def test_a_last_batch_of_one_sample_is_left_out():
    model = lively(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    data = batches((3,), (5, 5, 1), torch.float32)
    found = recalibrated(model, data)[1]
    torch.testing.assert_close(found.running_mean, model[0](images(data[:2])).mean(0).detach())


def test_batches_of_one_image_are_fine_where_images_have_pixels():
    model, data = normed(), batches((3, 8, 8), (1, 1, 1), torch.float32)
    torch.testing.assert_close(
        recalibrated(model, data)[1].running_mean, model[0](images(data)).mean((0, 2, 3)).detach()
    )


# -- recoveries by name ----------------------------------------------------------------------------


def test_recoveries_run_in_the_order_they_are_joined_in():
    order = []
    both = compose([lambda candidate, context: order.append("a"), lambda candidate, context: order.append("b")])
    both(None, None)
    assert order == ["a", "b"]


@pytest.mark.parametrize("name", ["least_squares+recalibrate_bn", "least_squares + recalibrate_bn"])
def test_names_are_joined_by_a_plus(name):
    model = normed()
    context = context_of(model, batches((3, 8, 8), dtype=torch.float32))
    named, by_hand = pruned(context), pruned(context)
    find(name)(named, context)
    least_squares(by_hand, context)
    recalibrate_bn(by_hand, context)
    assert all(
        torch.equal(a, b) for a, b in zip(named.state_dict().values(), by_hand.state_dict().values(), strict=True)
    )


def test_none_leaves_the_candidate_as_it_is():
    context = context_of(normed(), batches((3, 8, 8), dtype=torch.float32))
    candidate = pruned(context)
    before = tensors(candidate)
    find("none")(candidate, context)
    assert all(torch.equal(before[name], tensor) for name, tensor in candidate.state_dict().items())


def test_a_function_is_taken_as_it_is_and_found_by_reference():
    assert find(least_squares) is least_squares
    ran = find("autoprune.recover:none+autoprune.recover:recalibrate_bn")
    model = normed()
    ran(model, Context(model, None, (), None, batches((3, 8, 8), dtype=torch.float32)))
    assert model[1].num_batches_tracked == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "least_square",
            "recovery 'least_square' is unknown: use none, recalibrate_bn, least_squares.*close: least_squares",
        ),
        ("none+bn", "recovery 'bn' is unknown"),
        ("autoprune.recover:RIDGE", "is a float, not a function"),
        ("autoprune.recover:nothing", "no 'nothing' there"),
        (3, "recovery 3 is neither a name nor a function"),
    ],
)
def test_an_unknown_recovery_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        find(name)
