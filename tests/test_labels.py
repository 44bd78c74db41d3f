from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.cost import macs
from autoprune.search_spaces.traced import UnprovedWarning, trace
from autoprune.space import SearchSpace
from networks import NETWORKS, Function, agrees, conv, image, lively, members, pooled, rows, widths


def traced(model: nn.Module, example: Any) -> SearchSpace:
    """The space of a network in which everything that is found can be proved."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprovedWarning)
        return trace(lively(model).double(), example)


def reasons(space: SearchSpace) -> dict[str, str]:
    return {left.name: left.reason for left in space.left_out}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_groups_of_a_small_network_are_those_its_code_implies(name: str) -> None:
    model, example, expected = NETWORKS[name]()
    assert widths(traced(model, example)) == expected


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"attention", "einsum", "embedded", "encoder"}))
def test_slicing_a_small_network_computes_what_silencing_the_channels_does(name: str) -> None:
    model, example, _ = NETWORKS[name]()
    space = traced(model, example)
    assert all(agrees(model, example, space, seed) for seed in range(3))


def test_the_trunk_of_a_residual_network_is_one_group() -> None:
    model, example, _ = NETWORKS["residual"]()
    trunk, inner = traced(model, example).groups
    assert members(trunk, "out") == {"a.weight", "c.weight"}
    assert members(trunk, "in") == {"b.weight", "head.weight"}
    assert members(trunk, "through") == {"a.bias", "c.bias"}
    assert members(inner, "out") == {"b.weight"}
    assert members(inner, "in") == {"c.weight"}


def test_the_parts_of_a_concatenation_are_read_at_their_own_places() -> None:
    model, example, _ = NETWORKS["concatenation"]()
    space = traced(model, example)
    places = {
        group.name: [piece.positions.ravel().tolist() for piece in group.slices if piece.path == "join.weight"]
        for group in space.groups
    }
    assert places == {"a": [list(range(5))], "b": [list(range(5, 12))], "join": [list(range(6))]}


def test_a_flattened_channel_is_read_at_every_pixel() -> None:
    model, example, _ = NETWORKS["flattened"]()
    reader = next(piece for piece in traced(model, example).groups[0].slices if piece.role == "in")
    assert reader.path == "3.weight"
    assert [row.tolist() for row in reader.positions] == [list(range(9 * c, 9 * c + 9)) for c in range(5)]


def test_filters_of_a_channel_multiplier_leave_with_their_channel() -> None:
    model, example, _ = NETWORKS["multiplier"]()
    bank = next(piece for piece in traced(model, example).groups[0].slices if piece.path == "1.weight")
    assert bank.role == "through"
    assert [row.tolist() for row in bank.positions] == [[2 * c, 2 * c + 1] for c in range(5)]


def test_a_unit_of_a_grouped_convolution_is_one_channel_of_every_group() -> None:
    model, example, _ = NETWORKS["grouped"]()
    first, second = traced(model, example).groups
    assert first.channels([0]) == [0, 3]
    assert second.channels([0]) == [0, 5]


def test_parameters_that_two_modules_share_are_cut_once() -> None:
    model, example, _ = NETWORKS["tied"]()
    (group,) = traced(model, example).groups
    assert {piece.path for piece in group.slices if piece.module == "4"} == {"4.bias"}
    assert sorted(piece.axis for piece in group.slices if piece.path == "2.weight") == [0, 1]


def test_a_layer_used_twice_counts_twice() -> None:
    model, example, _ = NETWORKS["reused"]()
    space = traced(model, example)
    positions = {layer.name: layer.positions for layer in space.layers}
    assert positions == {"a": 36, "b": 2 * 36, "out": 36}


# -- what keeps channels whole ----------------------------------------------------------------


def left_out(forward: Any, layers: dict[str, Any], example: Any) -> str:
    """Why layer ``a`` stays whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprovedWarning)
        space = trace(lively(Function(forward, **layers)).double(), example)
    assert widths(space) == {}
    return reasons(space)["a"]


def pooled_over_channels(x: Tensor) -> Tensor:
    last = x.flatten(2).transpose(1, 2)
    return functional.avg_pool1d(last, 3, 1, 1).transpose(1, 2).unflatten(2, x.shape[2:])


def two() -> dict[str, nn.Module]:
    return {"a": conv(3, 6), "out": conv(6, 4)}


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda m, x: m.out((h := m.a(x)) * h.mean(1, keepdim=True)), "mean is taken over its channels"),
        (lambda m, x: m.out(functional.normalize(m.a(x))), "vector_norm is taken over its channels"),
        (lambda m, x: m.out(m.a(x).softmax(1)), "softmax works along it"),
        (lambda m, x: m.out(m.a(x).cumsum(1)), "cumsum works along it"),
        (lambda m, x: m.out(m.a(x).roll(1, 1)), "roll works along it"),
        (lambda m, x: m.out((h := m.a(x)) + h[:, :1].expand_as(h)), "its number changes on the way"),
        (lambda m, x: m.out((h := m.a(x)) + h[:, 0, None]), "one of its channels is picked by number"),
        (lambda m, x: m.out(torch.stack(m.a(x).unbind(1), 1)), "its channels are taken apart one by one"),
        (lambda m, x: m.out(m.a(x) + torch.ones(6, 1, 1)), "it meets a tensor of fixed width"),
        (lambda m, x: m.out(m.a(x)[:, torch.arange(5, -1, -1)]), "operator index may mix its channels"),
        (lambda m, x: m.out(torch.fft.fft2(m.a(x)).real), "a Fourier transform mixes it"),
        (lambda m, x: m.out(m.a(x).unfold(2, 2, 2).mean(-1)), "windows are taken along it"),
        (lambda m, x: m.out(pooled_over_channels(m.a(x))), "avg_pool2d slides over it"),
        (lambda m, x: (m.a(x), m.out(m.a(x))), "it is the network's output"),
        (lambda m, x: m.out(functional.pad(m.a(x)[:, :4], (0, 0, 0, 0, 1, 1))), "it is padded with constant channels"),
    ],
)
def test_what_mixes_channels_keeps_them_whole_and_says_why(forward: Any, words: str) -> None:
    assert words in left_out(forward, two(), image())


def test_a_bilinear_layer_keeps_its_inputs_whole() -> None:
    layers = {"a": nn.Linear(6, 5), "b": nn.Bilinear(5, 5, 4)}
    assert "_trilinear" in left_out(lambda m, x: m.b(m.a(x), m.a(x)), layers, rows(2, 6))


def test_unfolded_patches_keep_their_channels_whole() -> None:
    layers = {"a": conv(3, 5), "out": nn.Linear(45, 4)}
    reason = left_out(lambda m, x: m.out(functional.unfold(m.a(x), 3).transpose(1, 2)), layers, image())
    assert "unfolded" in reason


def test_attention_with_explicit_heads_keeps_them_whole() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = m.a(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        return m.out(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))

    layers = {"a": nn.Linear(8, 24), "out": nn.Linear(8, 4)}
    assert "it is reshaped from [2, 3, 24] to [2, 3, 3, 2, 4]" in left_out(forward, layers, rows(2, 3, 8))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_keeps_its_state_and_lets_its_input_shrink(kind: type[nn.RNNBase]) -> None:
    def forward(m, x):
        return m.out(m.r(m.a(x))[0])

    model = Function(forward, a=nn.Linear(5, 7), r=kind(7, 6, batch_first=True), out=nn.Linear(6, 4))
    space = traced(model, rows(2, 3, 5))
    assert widths(space) == {"a": (7, 1)}
    gates = model.r.weight_ih_l0.shape[0]
    assert macs(space)(space.dense) == 3 * (5 * 7 + gates * (7 + 6) + 6 * 4)


def test_cross_attention_counts_the_part_of_the_weight_that_each_input_uses() -> None:
    def forward(m, x, y):
        return m.attend(x, y, y, need_weights=False)[0]

    model = Function(forward, attend=nn.MultiheadAttention(8, 2, batch_first=True))
    space = trace(lively(model).double(), (rows(2, 3, 8), rows(2, 5, 8)))
    (joint,) = [layer for layer in space.layers if layer.weight == "attend.in_proj_weight"]
    assert joint.positions == round((3 + 5 + 5) / 3)


def test_a_computed_weight_still_costs_what_it_multiplies() -> None:
    first = nn.utils.parametrizations.spectral_norm(conv(3, 5, 3))
    space = trace(nn.Sequential(first, nn.ReLU(), conv(5, 4)).eval(), image().float())
    assert macs(space)(space.dense) == 36 * (3 * 5 * 9 + 5 * 4)
    assert "0.parametrizations.weight.original" in reasons(space)


def test_a_weight_kept_as_a_buffer_costs_nothing_and_is_cut_all_the_same() -> None:
    def forward(m, x):
        return m.out(functional.conv2d(m.a(x), m.fixed))

    model = Function(forward, a=conv(3, 5), fixed=torch.randn(6, 5, 1, 1), out=conv(6, 4))
    space = traced(model, image())
    assert widths(space) == {"a": (5, 1), "fixed": (6, 1)}
    assert {layer.name for layer in space.layers} == {"a", "out"}


def test_operators_that_arrive_whole_under_inference_mode_are_followed_too() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return m.head(pooled(functional.relu(m.bn(m.a(x)))))

    model = Function(forward, a=conv(3, 5, 3), bn=nn.BatchNorm2d(5), head=nn.Linear(5, 4))
    assert widths(traced(model, image())) == {"a": (5, 1)}


def test_a_call_that_no_rule_foresaw_costs_the_channel_and_not_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoprune.search_spaces import rules

    def broken(book: Any, call: Any) -> None:
        raise IndexError

    monkeypatch.setitem(rules.RULES, "relu", broken)
    model = nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 6), conv(6, 4))
    space = traced(model, image())
    assert widths(space) == {"2": (6, 1)}
    assert reasons(space)["0"] == "operator relu is used in an unforeseen way"


def test_the_labels_of_a_layout_in_channels_last_are_the_same() -> None:
    model, example, expected = NETWORKS["residual"]()
    model.to(memory_format=torch.channels_last)
    assert widths(traced(model, example.to(memory_format=torch.channels_last))) == expected
