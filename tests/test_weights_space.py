"""Search spaces of single weights: which tensors, how many may stay, what is left out, and what it all costs."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import toy
from autoprune import cost, masks
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.search_spaces import named, traced, weights
from autoprune.space import Group, SearchSpace

SIDE = 8


class Net(nn.Module):
    """A stem, a depthwise and a pointwise convolution, a head that is used twice, and what cannot be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.block = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.ConvTranspose2d(12, 8, 2, stride=2))
        self.head = nn.Linear(8, 8)
        self.classes = nn.Linear(8, 5)
        self.idle = nn.Linear(4, 4)
        self.tied = nn.Linear(8, 5)
        self.tied.weight = self.classes.weight

    def forward(self, x: torch.Tensor) -> Any:
        x = self.block(self.depthwise(self.norm(self.stem(x)))).mean((2, 3))
        x = self.head(self.head(x))
        return self.classes(x) + self.tied(x)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


EXAMPLE = torch.zeros(2, 3, SIDE, SIDE)


def test_every_weight_of_a_layer_is_a_group_in_forward_order(net: nn.Module) -> None:
    space = weights.define(net, EXAMPLE)
    assert [group.name for group in space.groups] == [
        "stem", "depthwise", "block.0", "block.2", "head", "classes",
    ]  # fmt: skip
    for group in space.groups:
        assert group.tensor == f"{group.name}.weight"
        assert group.width == net.get_parameter(group.tensor).numel() == group.counts[-1]
        assert group.members == (group.name,)
        assert group.tensors == (group.tensor,)
        assert group.itemsize == 4
    assert {left.name: left.reason for left in space.left_out} == {
        "idle": "the example does not use it, so it stays whole"
    }
    assert space.granularity == "weight"
    assert space.noun == "weights"


def test_layers_are_measured_as_in_the_traced_space(net: nn.Module) -> None:
    space, channels = weights.define(net, EXAMPLE), traced.trace(net, EXAMPLE)
    assert space.layers == channels.layers
    assert space.shapes == channels.shapes


@pytest.mark.parametrize("levels", [2, 10, 1000])
def test_counts_are_a_grid_of_whole_weights_that_never_exceeds_its_share(net: nn.Module, levels: int) -> None:
    for group in weights.define(net, EXAMPLE, levels=levels).groups:
        expected = {max(1, group.width * step // levels) for step in range(1, levels + 1)}
        assert group.counts == tuple(sorted(expected))
        for step in range(max(1, levels // 5), levels + 1):
            share = step / levels
            assert (
                share * group.width - 1 < max(group.floor(share * group.width), 1) <= max(share * group.width + 1e-9, 1)
            )


def test_patterns_choose_tensors_first_and_last_ones_too(net: nn.Module) -> None:
    space = weights.define(net, EXAMPLE, include=["block", "head.weight", "classes"], exclude=["block.2"])
    assert [group.name for group in space.groups] == ["block.0", "head", "classes"]
    reasons = {left.name: left.reason for left in space.left_out}
    assert reasons["stem"] == "not included by 'block', 'head.weight', 'classes'"
    assert reasons["block.2"] == "excluded by 'block.2'"
    rest = weights.define(net, EXAMPLE, exclude=["stem", "classes"])
    assert {"stem", "classes"}.isdisjoint(group.name for group in rest.groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["stem", "stem"]}, "'stem' is named twice"),
        ({"exclude": ["nothing"]}, "'nothing' names no weight of a convolution or linear layer: there are stem"),
        ({"levels": 1}, "levels = 1: at least 2"),
        ({"pattern": "2of4"}, "pattern '2of4': write n of m as 2:4"),
        ({"pattern": "5:4"}, "pattern '5:4'"),
        ({"pattern": "0:4"}, "pattern '0:4'"),
        ({"pattern": "2+2:4"}, "names 2 of 4 twice"),
    ],
)
def test_bad_options_are_refused(net: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        weights.define(net, EXAMPLE, **options)


def test_a_tensor_in_two_groups_is_refused() -> None:
    group = Group("a", 4, (), (2, 4), tensor="a.weight")
    other = Group("b", 4, (), (2, 4), tensor="a.weight")
    with pytest.raises(UserError, match=r"a\.weight is named twice"):
        SearchSpace((group, other), (), {"a.weight": (2, 2)}, granularity="weight")


@pytest.mark.parametrize(
    ("pattern", "few"), [("2:4", (2, 4)), ("1+2:4", (1, 2, 4)), ("any:4", (1, 2, 3, 4)), ("4:8", (4, 8))]
)
def test_n_of_m_leaves_out_what_m_does_not_divide(net: nn.Module, pattern: str, few: tuple[int, ...]) -> None:
    m = few[-1]
    space = weights.define(net, EXAMPLE, pattern=pattern)
    assert space.granularity == "n:m"
    inputs = {"block.0": 8, "head": 8, "classes": 8}
    assert [group.name for group in space.groups] == [name for name, size in inputs.items() if size % m == 0]
    for group in space.groups:
        assert group.units == m
        assert group.counts == tuple(group.width // m * n for n in few)
    reasons = {left.name: left.reason for left in space.left_out}
    assert reasons["stem"] == f"{m} does not divide the 3 inputs of its filters"
    assert reasons["depthwise"] == f"{m} does not divide the 1 inputs of its filters"
    assert "transposed" in reasons["block.2"]


def test_fingerprints_tell_granularities_tensors_and_blocks_apart(net: nn.Module) -> None:
    found = [
        traced.trace(net, EXAMPLE),
        weights.define(net, EXAMPLE),
        weights.define(net, EXAMPLE, levels=10),
        weights.define(net, EXAMPLE, exclude=["stem"]),
        weights.define(net, EXAMPLE, pattern="2:4"),
        weights.define(net, EXAMPLE, pattern="4:8"),
        weights.define(net.double(), EXAMPLE.double()),
    ]
    net.float()
    assert len({space.fingerprint for space in found}) == len(found)


def test_a_scheme_may_keep_any_number_of_weights_but_no_indices() -> None:
    space = toy.sparse()
    odd = tuple(count + 1 for count in space.smallest.kept)
    assert any(count not in group.counts for count, group in zip(odd, space.groups, strict=True))
    space.check(Scheme(odd, "weight"))
    with pytest.raises(UserError, match="217 kept weights is not a legal count"):
        space.check(Scheme((217, 1, 1), "weight"))
    with pytest.raises(UserError, match="55 kept weights is not a legal count"):
        toy.sparse(m=4).check(Scheme((55, 8, 20), "n:m"))  # 216 / 4 leave one of every four at a time
    with pytest.raises(UserError, match="no kept indices"):
        space.check(Scheme((1, 1, 1), "weight", ((0,), (0,), (0,))))


def test_a_space_of_weights_is_narrowed_by_name_but_neither_tied_nor_rounded() -> None:
    space = toy.sparse(levels=10)
    narrow = named.define(space, exclude=["head"], rates=["a=0:0.5"])
    assert [group.name for group in narrow.groups] == ["a", "b"]
    assert narrow.groups[0].counts[-1] == space.groups[0].width * 5 // 10
    assert narrow.granularity == "weight"
    with pytest.raises(UserError, match="not cut at the same positions"):
        named.define(space, ties=["a,b"])
    with pytest.raises(UserError, match="weights have levels"):
        named.define(space, round_to=["8"])


# --- costs ---


@pytest.mark.parametrize("m", [None, 4])
def test_costs_are_what_is_left_of_every_tensor(m: int | None) -> None:
    space = toy.sparse(m=m)
    sizes = {path: prod(shape) for path, shape in space.shapes.items()}
    rng = np.random.default_rng(0)
    for rates in rng.uniform(size=(20, len(space))):
        scheme = space.floor(rates)
        kept = dict(zip(("a.weight", "b.weight", "head.weight"), scheme.kept, strict=True))
        found = {name: function(scheme) for name, function in cost.costs(space).items()}
        assert found["weights"] == sum(kept.values())
        assert found["params"] == sum(kept.values()) + sizes["a.bias"]
        assert found["macs"] == sum(layer.positions * kept[layer.weight] for layer in space.layers)
        dense = {path: 4 * sizes[path] for path in kept}
        assert found["bitmask"] == sum(min(dense[p], 4 * k + -(-sizes[p] // 8)) for p, k in kept.items())
        rows = {path: space.shapes[path][0] + 1 for path in kept}
        assert found["csr"] == sum(min(dense[p], 8 * k + 4 * rows[p]) for p, k in kept.items())
        for function in cost.costs(space).values():
            assert function.at(np.array(scheme.kept, dtype=np.float64)) == function(scheme)


def test_costs_never_fall_when_more_is_kept_and_the_dense_network_is_stored_dense() -> None:
    space = toy.sparse()
    functions = cost.costs(space)
    for g, group in enumerate(space.groups):
        for function in functions.values():
            values = [function(space.dense.replace(g, count)) for count in group.counts]
            assert values == sorted(values)
    dense = 4.0 * float(space.widths.sum())
    assert functions["bitmask"](space.dense) == functions["csr"](space.dense) == dense


def test_layers_outside_the_space_cost_what_they_cost() -> None:
    whole = toy.sparse()
    space = SearchSpace(whole.groups[:1], whole.layers, whole.shapes, granularity="weight")
    rest = 64 * prod(space.shapes["b.weight"]) + prod(space.shapes["head.weight"])
    assert cost.costs(space)["macs"](Scheme((7,), "weight")) == 16 * 7 + rest
    assert cost.costs(space)["weights"](Scheme((7,), "weight")) == 7


def test_bytes_follow_the_type_of_the_weights(net: nn.Module) -> None:
    single, half = (weights.define(net.to(kind), EXAMPLE.to(kind)) for kind in (torch.float32, torch.bfloat16))
    net.float()
    entries = float(single.widths.sum())
    for space, size in ((single, 4), (half, 2)):
        assert cost.costs(space)["bitmask"](space.dense) == size * entries
        few = space.floor(np.full(len(space), 0.1))
        bits = sum(-(-group.width // 8) for group in space.groups)
        assert cost.costs(space)["bitmask"](few) == size * sum(few.kept) + bits


# --- budgets ---


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95])
def test_equal_rates_are_that_sparsity_in_every_tensor_and_in_total(net: nn.Module, share: float) -> None:
    space = weights.define(net, EXAMPLE)
    budget = Budget.parse(f"weights={100 * (1 - share):g}%", space)
    kept = budget.fit(np.ones(len(space))).kept
    total = int(space.widths.sum())
    steps = [max(1, -(-group.width // 1000)) for group in space.groups]
    for group, count, step in zip(space.groups, kept, steps, strict=True):
        assert abs(count - masks.kept(group.width, share)) <= step
    assert (1 - share) * total - min(steps) < sum(kept) <= (1 - share) * total + 1e-6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights=0.01%", "cannot be reached"),
        ("latency=5ms", "cost 'latency' is unknown for weights, use one of macs, params, weights, bitmask, csr"),
        ("bitmask=3flops", "unit 'flops' is unknown"),
    ],
)
def test_budgets_out_of_reach_or_out_of_place_are_refused(text: str, message: str) -> None:
    space = toy.sparse()
    with pytest.raises(UserError, match=message):
        Budget.parse(text, space).check()


def test_units_of_budgets() -> None:
    space = toy.sparse()
    assert Budget.parse("weights=0.2k", space).caps == {"weights": 200.0}
    assert Budget.parse("bitmask=1KiB,csr=2kb", space).caps == {"bitmask": 1024.0, "csr": 2000.0}
    with pytest.raises(UserError, match="cost 'weights' is unknown for channels"):
        Budget.parse("weights=50%", toy.SPACES["chain"])
