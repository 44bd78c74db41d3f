"""Repairs read off one factor are the repairs solved one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune import nested, recover
from autoprune.api import trace
from autoprune.recover import Context, least_squares
from autoprune.search_spaces.named import select
from autoprune.slicing import prune
from autoprune.statistics import Statistics
from networks import Function


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ).eval()  # fmt: skip


def images(count: int = 48) -> list[tuple[torch.Tensor, None]]:
    return [(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)), None)]


def context_of(model: nn.Module, kept: list[int], ranked: bool = True) -> Context:
    data = [(x.to(next(model.parameters()).dtype), label) for x, label in images()]
    space = trace(model, data[0][0][:2])
    rng = np.random.default_rng(2)
    order = [rng.permutation(group.units) for group in space.groups]
    stays = [np.sort(units[:count]) for units, count in zip(order, kept, strict=True)]
    return Context(model, space, stays, Statistics(model, space, data), data, ranked=order if ranked else ())


def repaired(context: Context) -> dict[str, torch.Tensor]:
    candidate = prune(context.model, context.space, context.kept)
    least_squares(candidate, context)
    return candidate.state_dict()


def agree(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], **tolerance)


@pytest.mark.parametrize("kept", [[8, 3], [1, 6], [5, 2], [3, 5]])
def test_what_is_read_off_is_the_solution(kept):
    context = context_of(network().double(), kept)
    agree(repaired(context), repaired(replace(context, ranked=())), rtol=1e-9, atol=1e-12)
    assert any(isinstance(known, nested.Nested) for known in context.remembered.values())


def test_single_precision_loses_next_to_nothing():
    context = context_of(network(), [5, 2])
    agree(repaired(context), repaired(replace(context, ranked=())), rtol=1e-4, atol=1e-6)


def test_one_factor_serves_every_candidate(monkeypatch):
    context = context_of(network(), [5, 2])
    repaired(context)
    monkeypatch.setattr(nested, "Nested", None)  # nothing is factored again
    monkeypatch.setattr(recover, "_solved", None)
    fewer = [np.sort(units[:2]) for units in context.ranked]
    assert repaired(replace(context, kept=fewer))["2.weight"].shape == (2, 2, 3, 3)


def test_channels_that_leave_in_another_order_are_solved_for():
    context = context_of(network().double(), [5, 3])
    other = [np.sort(units[-3:]) for units in context.ranked]  # the last of the order stay
    context = replace(context, kept=other)
    agree(repaired(context), repaired(replace(context, ranked=())), rtol=0, atol=0)


def test_another_model_than_the_one_of_the_statistics_is_solved_for():
    context = context_of(network().double(), [5, 3])
    tuned = network().double()
    tuned[2].weight.data.mul_(1.5)
    context = replace(context, model=tuned)
    agree(repaired(context), repaired(replace(context, ranked=())), rtol=0, atol=0)


def test_a_layer_that_reads_two_groups_has_no_order_and_one_with_channels_of_none_keeps_these():
    def forward(m, x):
        return m.read(torch.cat([functional.relu(m.a(x)), functional.relu(m.b(x)), x], 1))

    model = Function(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 5, 1), read=nn.Conv2d(12, 2, 1))
    space = trace(model, torch.zeros(1, 3, 4, 4))
    ranked = [np.arange(group.units)[::-1] for group in space.groups]
    shapes = {"read.weight": (2, 12)}
    assert len(space) == 2
    assert nested.orders(space, ranked, shapes) == {}
    one = select(space, exclude=["b"])
    (found,) = nested.orders(one, ranked[:1], shapes).values()
    assert found.tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 3, 2, 1, 0]


@pytest.mark.parametrize("size", [1, 7, nested.LEAF, nested.LEAF + 1, 3 * nested.LEAF])
def test_a_triangular_matrix_is_inverted_by_halves(size):
    generator = torch.Generator().manual_seed(size)
    noise = torch.randn(size, size, generator=generator, dtype=torch.double).tril(-1) / size
    lower = noise + torch.eye(size, dtype=torch.double)
    inverse = nested.inverted(lower)
    torch.testing.assert_close(inverse @ lower, torch.eye(size, dtype=torch.double), rtol=0, atol=1e-10)
    assert torch.equal(inverse, inverse.tril())
