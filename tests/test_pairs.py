from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from autoprune import data, models, pairs, patches
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fused import Fused, Linear
from autoprune.pairs import Pair, Part
from autoprune.recover import Context
from autoprune.rectifiers import Clip
from autoprune.ridge import Moments, Rows
from autoprune.search_spaces.traced import trace
from autoprune.sequential import sequential
from autoprune.slicing import prune
from autoprune.statistics import Statistics
from autoprune.targets import Sampling
from networks import lively

RELU = Clip(0.0, math.inf)
SECONDS = {
    "3x3": partial(nn.Conv2d, 6, 4, 3, padding=1),
    "stride": partial(nn.Conv2d, 6, 4, 3, padding=1, stride=2),
    "1x1": partial(nn.Conv2d, 6, 4, 1),
    "dilated": partial(nn.Conv2d, 6, 4, 3, padding=2, dilation=2),
    "reflect": partial(nn.Conv2d, 6, 4, 3, padding=1, padding_mode="reflect"),
    "groups": partial(nn.Conv2d, 6, 4, 3, groups=2),
    "depthwise": partial(nn.Conv2d, 6, 6, 3, groups=6, padding=1),
    "no bias": partial(nn.Conv2d, 6, 4, 3, bias=False),
}


def as_layer(layer: nn.Module) -> Linear:
    with torch.no_grad():
        return Fused(layer, None).read()


def pair_of(first, second, images, target, clip=RELU, behind=None, positions=10**6) -> Pair:
    with torch.no_grad():
        hidden = first(images)
        places = patches.draw(math.prod(patches.output_size(second, hidden)), positions)
        spots, reads = patches.spots(second, patches.output_size(first, images), places)
        x = patches.rows(first, images, spots)
        part = Part(x, len(spots), reads, patches.answers(second, target, places))
        read = Moments(Rows(x, x.new_zeros(*x.shape[:2], 1)), centred=first.bias is not None)
    return Pair([part], read, clip, behind, (Fused(first, None), Fused(second, None)))


def drawn(second: str, first_groups: int = 1):
    torch.manual_seed(0)
    first = nn.Conv2d(4, 6, 3, padding=1, groups=first_groups).double()
    return first, SECONDS[second]().double(), torch.randn(20, 4, 7, 7, dtype=torch.double)


@pytest.mark.parametrize("first_groups", [1, 2])
@pytest.mark.parametrize("second", SECONDS)
def test_a_pair_gives_what_its_layers_give(second, first_groups):
    first, second, images = drawn(second, first_groups)
    with torch.no_grad():
        answers = second(first(images).relu())
    pair = pair_of(first, second, images, answers)
    assert pair.error(pair.hidden(as_layer(first)), as_layer(second)) < 1e-20 * float(answers.square().sum())


def test_tokens_have_one_tap():
    torch.manual_seed(0)
    first, second = nn.Linear(5, 6).double(), nn.Linear(6, 3).double()
    tokens = torch.randn(8, 4, 5, dtype=torch.double)
    with torch.no_grad():
        answers = second(first(tokens).relu())
    pair = pair_of(first, second, tokens, answers)
    assert pair.error(pair.hidden(as_layer(first)), as_layer(second)) < 1e-20


@pytest.mark.parametrize("second", SECONDS)
def test_writing_is_the_adjoint_of_reading(second):
    first, second, images = drawn(second)
    with torch.no_grad():
        pair = pair_of(first, second, images, second(first(images)))
    (part,) = pair.parts
    hidden = torch.randn_like(pair.hidden(as_layer(first))[0])
    read = part.read(hidden)
    rows = torch.randn_like(read)
    torch.testing.assert_close((read * rows).sum(), (hidden * part.written(rows)).sum())


def linear_pair(monkeypatch, second):
    """All hidden values are far above zero, so that the problem is linear; conjugate gradients run to the end."""
    monkeypatch.setattr(pairs, "ITERATIONS", 1000)
    monkeypatch.setattr(pairs, "DAMPING", 1e-9)
    first, second, images = drawn(second)
    images = images[:6]
    with torch.no_grad():
        first.bias += 50
        target = second(first(images).relu())
        target += torch.randn(target.shape[1:], dtype=torch.double)
    return first, second, pair_of(first, second, images, target)


@pytest.mark.parametrize("second", ["1x1", "groups", "depthwise", "3x3"])
def test_a_change_of_the_first_layer_is_that_of_a_direct_solution(monkeypatch, second):
    first, second, pair = linear_pair(monkeypatch, second)
    start = as_layer(first)
    change = pair.change(pair.hidden(start), as_layer(second))
    parameters = [start.weight, start.constant]

    def answers(weight, constant):
        (values,) = pair.hidden(Linear(weight, constant))
        return pair.parts[0].read(values) @ as_layer(second).weight

    jacobian = torch.autograd.functional.jacobian(answers, tuple(parameters))
    design = torch.cat([part.flatten(3).flatten(0, 2) for part in jacobian], 1)
    gap = pair._gaps(pair.hidden(start), as_layer(second))[0].flatten()
    best = torch.linalg.lstsq(design, gap[:, None], driver="gelsd").solution[:, 0]
    moved = torch.cat([change.weight.flatten(), change.constant.flatten()])
    torch.testing.assert_close((gap - design @ moved).norm(), (gap - design @ best).norm(), rtol=1e-4, atol=1e-8)


def test_what_one_channel_cannot_give_as_it_is_the_pair_gives(monkeypatch):
    """Five of six hidden channels are gone, but one output needs only one, if it may change."""
    monkeypatch.setattr(pairs, "ITERATIONS", 60)
    monkeypatch.setattr(pairs, "DAMPING", 1e-6)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1)).double()
    with torch.no_grad():
        model[0].bias.fill_(50.0)
    data = [(torch.randn(60, 3, 4, 4, dtype=torch.double), None)]
    errors = {sweeps: error(context_of(model, data, [0]), sweeps=sweeps) for sweeps in (0, 2)}
    assert errors[2] < 1e-6
    assert errors[0] > 0.01


def context_of(model: nn.Module, data, kept, group=0) -> Context:
    """One group alone is cut."""
    space = trace(model, data[0][0][:2])
    every = [np.array(kept) if number == group else np.arange(g.units) for number, g in enumerate(space.groups)]
    return Context(model.eval(), space, every, Statistics(model, space, data), data)


def error(context: Context, data=None, **options) -> float:
    candidate = prune(context.model, context.space, context.kept).eval()
    sequential(candidate, context, **options)
    images = torch.cat([x for x, _ in (data or context.batches)])
    with torch.no_grad():
        wanted = context.model(images)
        return float((candidate(images) - wanted).square().mean() / wanted.var())


def network(seed: int, act=nn.ReLU) -> nn.Module:
    torch.manual_seed(seed)
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act(),
            nn.Conv2d(8, 5, 3, padding=1),
        )
    ).double()  # fmt: skip


def drawn_images(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.double), None)]


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, partial(nn.ReLU, inplace=True)], ids=["relu", "relu6", "in place"])
def test_unseen_images_are_answered_better(act):
    ratios = []
    for seed in range(3):
        context = context_of(network(seed, act), drawn_images(100, seed), [1, 4, 6], group=1)
        unseen = drawn_images(100, 100 + seed)
        plain, better = (error(context, unseen, sweeps=sweeps) for sweeps in (0, 2))
        ratios.append(better / plain)
    assert max(ratios) < 1 and sum(ratios) < 0.9 * len(ratios), ratios


def test_the_batch_norm_of_the_first_layer_has_the_statistics_of_what_it_reads():
    context = context_of(network(0), drawn_images(150, 0), [1, 4, 6], group=1)
    candidate = prune(context.model, context.space, context.kept).eval()
    sequential(candidate, context, sweeps=1, sampling=Sampling(rows=10**6))
    with torch.no_grad():
        read = candidate[:4](context.batches[0][0]).transpose(0, 1).flatten(1)
    deviation = read.var(1).sqrt()
    assert ((candidate[4].running_mean - read.mean(1)).abs() < 0.2 * deviation).all()
    torch.testing.assert_close(candidate[4].running_var.sqrt(), deviation, rtol=0.2, atol=0)


def test_a_second_layer_that_is_clipped_may_miss_what_is_cut_off():
    first, second, images = drawn("3x3")
    with torch.no_grad():
        answers = second(first(images).relu())
    layers = as_layer(first), as_layer(second)
    target = torch.where(answers > 0, answers, -5.0)
    strict, clipped = (pair_of(first, second, images, target, behind=behind) for behind in (None, RELU))
    assert clipped.error(clipped.hidden(layers[0]), layers[1]) < 1e-20
    assert strict.error(strict.hidden(layers[0]), layers[1]) > 1


def test_sweeps_end_where_no_change_helps():
    first, second, images = drawn("3x3")
    with torch.no_grad():
        pair = pair_of(first, second, images, second(first(images).relu()))
    before = as_layer(first), as_layer(second)
    after = pair.solve(*before, ridge=1e-2, sweeps=3)
    for layer, same in zip(after, before, strict=True):
        torch.testing.assert_close(layer.weight, same.weight)


def test_memory_is_bounded_by_whole_chunks(monkeypatch):
    seen = []

    class Spied(Pair):
        def __init__(self, parts, *rest):
            seen.append(len(parts))
            super().__init__(parts, *rest)

    monkeypatch.setattr("autoprune.sequential.Pair", Spied)
    context = context_of(network(0), drawn_images(300, 0), [1, 4, 6], group=1)
    assert math.isfinite(error(context, sweeps=1, sampling=Sampling(rows=3000, memory=200_000)))
    assert set(seen) == {1}
    seen.clear()
    error(context, sweeps=1, sampling=Sampling(rows=3000))
    assert set(seen) == {3}


def test_a_number_of_sweeps_below_zero_is_refused():
    context = context_of(network(0), drawn_images(20, 0), [1, 4, 6], group=1)
    with pytest.raises(UserError, match="sweeps = -1: 0 .none. or more"):
        error(context, sweeps=-1)
    with pytest.raises(UserError, match="rounds = -2: 0 .none. or more"):
        error(context, rounds=-2)


# -- a trained network -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trained_resnet_keeps_more_with_every_refinement(data_folder):
    """Three seeds gave KL / KL of plain least squares: 0.98 with rounds, 0.75 with sweeps."""
    dense = models.load("autoprune:resnet20", data_folder / "resnet20-cifar10-jpeg.pt").eval()
    space = trace(dense, torch.zeros(1, 3, 32, 32))
    half = Budget.parse("macs=50%", space).fit(np.ones(len(space)))
    repairs = {"plain": {"rounds": 0}, "rounds": {}, "sweeps": {"sweeps": 2}}
    ratios = []
    for seed in range(2):
        splits = data.load(
            f"imagefolder:{data_folder / 'cifar10-jpeg.tar.xz'}", seed=seed, calibration=256, validation=1024
        )
        kl = {}
        for name, options in repairs.items():
            repair = partial(sequential, images=256, **options)
            kl[name] = Evaluator(dense, space, splits.calibration, splits.validation, seed=seed, recovery=repair)(
                half
            ).kl
        ratios.append([kl["rounds"] / kl["plain"], kl["sweeps"] / kl["plain"]])
    rounds, sweeps = np.mean(ratios, 0)
    assert rounds < 1
    assert sweeps < 0.88
