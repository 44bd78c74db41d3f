from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.latency.units import Replay, Unit, spans, units
from autoprune.operations import Operations, record
from autoprune.search_spaces.traced import trace
from autoprune.space import Group, SearchSpace, Slice
from networks import NETWORKS, Function, conv, image, lively, pooled

Followed = tuple[list[Unit], Operations, SearchSpace]


def follow(model: nn.Module, example: Any, batch: int = 1) -> Followed:
    space = trace(lively(model).double(), example)
    operations = record(model, example, space, batch)
    return units(operations), operations, space


def signatures(followed: Followed) -> list[str]:
    return [unit.signature for unit in followed[0]]


def layer(text: str, extra: str = "stride=1x1, padding=0x0, dilation=1x1, groups=1") -> str:
    return f"conv2d({text}, {extra})"


def test_a_signature_names_the_operator_its_sizes_and_what_follows() -> None:
    model = nn.Sequential(
        conv(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(True),
        conv(5, 7, stride=2),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(63, 4),
    )
    assert signatures(follow(model, image())) == [
        layer("input=1x3x6x6, weight=Ax3x3x3, bias=A", "stride=1x1, padding=1x1, dilation=1x1, groups=1")
        + " + batch_norm + relu_",
        layer("input=1xAx6x6, weight=BxAx1x1, bias=B", "stride=2x2, padding=0x0, dilation=1x1, groups=1")
        + " + hardtanh",
        "linear(input=1xA, weight=4xA, bias=4)",
    ]


def test_the_groups_of_a_depthwise_convolution_are_its_channels() -> None:
    model, example, _ = NETWORKS["depthwise"]()
    assert signatures(follow(model, example))[1] == (
        "conv2d(input=1xAx6x6, weight=Ax1x3x3, bias=A, stride=1x1, padding=1x1, dilation=1x1, groups=A) + batch_norm"
    )
    model, example, _ = NETWORKS["multiplier"]()
    assert (
        "weight=2Ax1x3x3, bias=2A, stride=1x1, padding=1x1, dilation=1x1, groups=A)"
        in signatures(follow(model, example))[1]
    )


def test_the_inputs_of_a_grouped_convolution_are_a_share_of_what_it_reads() -> None:
    model, example, _ = NETWORKS["grouped"]()
    found, operations, space = follow(model, example)
    assert "input=1xAx6x6, weight=Bx0.5Ax3x3, bias=B" in found[1].signature
    assert spans(found, operations, space)[found[1].signature] == ((2, 6, 2), (2, 10, 2))


def test_equal_layers_share_a_signature_and_their_span_covers_both() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 9), nn.ReLU(), conv(9, 6), nn.ReLU(), conv(6, 2))
    found, operations, space = follow(model, image())
    told = [unit.signature for unit in found]
    assert told[1] == told[2] and len(set(told)) == 3
    assert spans(found, operations, space)[told[1]] == ((1, 9, 1), (1, 9, 1))


def test_a_chain_ends_where_a_value_has_two_readers() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.out(functional.relu(x) + x)

    model = Function(forward, a=conv(3, 5), out=conv(5, 4))
    assert [[o.name for o in unit.operations] for unit in follow(model, image())[0]] == [
        ["conv2d"],
        ["relu"],
        ["add"],
        ["conv2d"],
    ]


def test_a_chain_ends_where_a_view_looks_at_what_is_changed_in_place() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        part = x[:, :, :1]
        return m.out(x.relu_() + part)

    model = Function(forward, a=conv(3, 5), out=conv(5, 4))
    assert [unit.operations[0].name for unit in follow(model, image())[0]] == ["conv2d", "relu_", "add", "conv2d"]


def test_a_norm_without_anything_before_it_is_a_piece_of_its_own() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), conv(3, 5), conv(5, 4))
    names = [[o.name for o in unit.operations] for unit in follow(model, image())[0]]
    assert names == [["batch_norm", "relu"], ["conv2d"], ["conv2d"]]


def test_whole_numbers_and_truth_values_are_left_out() -> None:
    model, example, _ = NETWORKS["embedded"]()
    assert all(unit.operations[0].name != "embedding" for unit in follow(model, example)[0])


def test_the_letters_of_a_scheme_stand_for_its_lengths() -> None:
    model, example, _ = NETWORKS["concatenation"]()
    found, operations, _ = follow(model, example)
    both = found[3]
    assert both.signature.startswith("conv2d(input=1xAx6x6, weight=BxAx1x1")
    assert both.lengths(operations.sizes([2, 4, 3])) == (6, 3)


def inputs(module: Replay) -> list[Sequence[int]]:
    return [tuple(tensor.shape) for tensor in module.example]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_piece_alone_makes_what_the_network_makes_there(name: str) -> None:
    """At any scheme: what a piece reads and returns, run alone at the letters' lengths, has the network's shapes."""
    model, example, _ = NETWORKS[name]()
    found, operations, space = follow(model, example)
    for seed in range(3):
        scheme = space.floor(np.random.default_rng(seed).uniform(0, 1, len(space)))
        real = operations.sizes(scheme.kept)
        for unit in found:
            sizes = unit.sizes(operations, unit.lengths(real), space)
            replay = Replay(unit, sizes)
            with torch.no_grad():
                result = replay(*replay.example)
            made = unit.operations[-1].made
            shapes = [tuple(t.shape) for t in (result if isinstance(result, tuple | list) else [result])]
            places = real if not unit.entries else sizes
            assert shapes == [tuple(places[list(operand.place)]) for operand in made], unit.signature
            if not unit.entries:
                varying = list(unit.ratios)
                assert np.array_equal(sizes[varying], real[varying])


def parts() -> Function:
    """A concatenation of three parts of their own widths, normed: more lengths than a table has axes for."""

    def forward(m: Any, x: Tensor) -> Tensor:
        joined = torch.cat([m.a(x), m.b(x), m.c(x)], 1)
        return m.head(pooled(functional.relu(m.bn(joined))))

    return Function(forward, a=conv(3, 8), b=conv(3, 21), c=conv(3, 13), bn=nn.BatchNorm2d(42), head=nn.Linear(42, 3))


def test_a_concatenation_of_three_parts_is_told_by_the_entries_it_reads() -> None:
    found, operations, space = follow(parts(), image())
    join = next(unit for unit in found if unit.operations[0].name == "cat")
    assert join.entries
    assert join.signature == "cat(tensors=1x*x6x6x1x*x6x6x1x*x6x6, dim=1) + batch_norm + relu"
    assert join.lengths(operations.sizes([2, 3, 4])) == (36 * 9,)
    assert spans(found, operations, space)[join.signature] == ((3 * 36, 42 * 36, 1),)


@pytest.mark.parametrize("channels", [3, 4, 5, 7, 16, 20, 29, 41, 42])
def test_the_parts_of_a_concatenation_fit_together_at_any_number_of_entries(channels: int) -> None:
    found, operations, space = follow(parts(), image())
    join = next(unit for unit in found if unit.operations[0].name == "cat")
    replay = Replay(join, join.sizes(operations, (36 * channels,), space))
    with torch.no_grad():
        assert abs(replay(*replay.example).shape[1] - channels) <= 1
    assert sum(tensor.numel() for tensor in replay.example) == pytest.approx(36 * channels, abs=36)


@pytest.mark.slow
def test_pieces_of_a_densely_connected_network_run_alone() -> None:
    import torchvision

    model = torchvision.models.densenet121(weights=None).eval()
    example = torch.randn(1, 3, 32, 32)
    space = trace(model, example)
    operations = record(model, example, space)
    found = units(operations)
    ranges = spans(found, operations, space)
    for unit in {unit.signature: unit for unit in found}.values():
        middle = tuple((low + high) // 2 for low, high, _ in ranges[unit.signature])
        replay = Replay(unit, unit.sizes(operations, middle, space))
        with torch.no_grad():
            replay(*replay.example)


def test_a_piece_alone_holds_its_weights_and_is_given_the_rest() -> None:
    model = nn.Sequential(conv(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 4))
    found, operations, space = follow(model, image())
    replay = Replay(found[0], found[0].sizes(operations, (4,), space))
    assert inputs(replay) == [(1, 3, 6, 6)]
    assert [tuple(t.shape) for t in replay.buffers()] == [(4, 3, 3, 3), (4,), (4,), (4,), (4,), (4,)]
    assert all((tensor > 0).all() for tensor in replay.buffers())  # a variance must be
    weight, bias, scale, shift, mean, variance = replay.buffers()
    with torch.no_grad():
        first = functional.conv2d(replay.example[0], weight, bias, padding=1)
        expected = functional.relu(functional.batch_norm(first, mean, variance, scale, shift))
        assert torch.allclose(replay(*replay.example), expected, atol=1e-5)


def test_the_device_is_no_part_of_a_signature_and_a_piece_runs_where_its_inputs_are() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.out(x + torch.zeros_like(x, device=x.device) + x.to(x.device, torch.float32).double())

    model = Function(forward, a=conv(3, 5), out=conv(5, 4))
    found, operations, space = follow(model, image())
    assert not any(word in unit.signature for unit in found for word in ("meta", "cpu", "device"))
    moved = next(unit for unit in found if unit.operations[0].name == "to")
    replay = Replay(moved, moved.sizes(operations, (3,), space))
    assert replay(*replay.example).device.type == "cpu"


def test_a_length_that_shrinks_while_others_grow_has_a_span_in_order() -> None:
    """Zeros fill up what a narrow layer lacks."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return functional.pad(x, (0, 0, 0, 0, 0, 8 - x.shape[1])).mean(1)

    at = np.arange(8)[:, None]
    model = Function(forward, a=conv(3, 8)).double()
    slices = (Slice("a", "weight", 0, "out", at), Slice("a", "bias", 0, "through", at))
    space = SearchSpace((Group("a", 8, slices, tuple(range(1, 9))),), (), {})
    operations = record(model, image(), space)
    found = units(operations)
    pad = next(unit for unit in found if unit.operations[0].name == "pad")
    assert spans(found, operations, space)[pad.signature] == ((1, 8, 1), (0, 7, 1))


def test_a_batch_is_part_of_every_signature() -> None:
    model, example, _ = NETWORKS["plain"]()
    assert signatures(follow(model, example, 4))[0].startswith("conv2d(input=4x3x6x6")
