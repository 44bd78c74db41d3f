from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import UserError
from autoprune.latency.calibrate import sliced
from autoprune.operations import Operations, record
from autoprune.search_spaces.traced import trace
from autoprune.space import Group, SearchSpace, Slice
from networks import NETWORKS, Function, conv, image, lively, pooled


def space_of(model: nn.Module, example: Any) -> SearchSpace:
    return trace(lively(model).double(), example)


def alone(network: nn.Module, example: Any, space: SearchSpace) -> Operations:
    """A network recorded by itself, with nothing to cut."""
    return record(network, example, replace(space, groups=()))


def disagreement(model: nn.Module, example: Any, space: SearchSpace, seed: int, batch: int = 1) -> str:
    """Where what is told of a random scheme differs from what its sliced network does; empty if nowhere."""
    found = record(model, example, space, batch)
    scheme = space.floor(np.random.default_rng(seed).uniform(0, 1, len(space)))
    network = sliced(model, space, scheme)
    own = record(network, example, replace(space, groups=()), batch)
    if [call.name for call in own.calls] != [call.name for call in found.calls]:
        return "other operations"
    told, real = found.sizes(scheme.kept), own.sizes(())
    return "" if np.array_equal(told, real) else f"{told[told != real]} told, {real[told != real]} found"


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_sizes_of_a_scheme_are_those_of_its_sliced_network(name: str) -> None:
    model, example, _ = NETWORKS[name]()
    assert disagreement(model, example, space_of(model, example), seed=1) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 224),
        ("mobilenet_v2", 224),
        ("shufflenet_v2_x1_0", 64),
        ("squeezenet1_1", 64),
        ("regnet_y_400mf", 64),
        ("mobilenet_v3_small", 64),
        ("resnext50_32x4d", 64),
        ("vit_b_16", 224),
        ("convnext_tiny", 64),
        ("swin_t", 64),
    ],
)
def test_the_sizes_of_a_scheme_are_those_of_its_sliced_network_in_torchvision(name: str, size: int) -> None:
    import torchvision

    model = getattr(torchvision.models, name)(weights=None).eval()
    example = torch.randn(1, 3, size, size)
    assert disagreement(model, example, trace(model, example), seed=0) == ""


def test_calls_stand_in_their_order_with_views_marked() -> None:
    model, example, _ = NETWORKS["flattened"]()
    found = record(model, example, space_of(model, example))
    assert [(call.name, call.view) for call in found.calls] == [
        ("conv2d", False),
        ("max_pool2d", False),
        ("flatten", True),
        ("linear", False),
        ("relu", False),
        ("linear", False),
    ]


def test_a_length_is_a_rest_and_a_slope_per_group() -> None:
    model, example, _ = NETWORKS["concatenation"]()
    space = space_of(model, example)
    found = record(model, example, space)
    join = next(call for call in found.calls if call.name == "cat")
    channels = join.made[0].place[1]
    assert found.slope[channels].tolist() == [1, 1, 0]
    assert found.rest[channels] == 0
    with_input, example, _ = NETWORKS["with_input"]()
    found = record(with_input, example, space_of(with_input, example))
    join = next(call for call in found.calls if call.name == "cat")
    assert (found.slope[join.made[0].place[1]].tolist(), found.rest[join.made[0].place[1]]) == ([1], 3)


@pytest.mark.parametrize(("own", "asked"), [(1, 1), (1, 5), (2, 1), (2, 3), (4, 4)])
def test_the_batch_is_the_one_that_is_asked_for_whatever_the_example_holds(own: int, asked: int) -> None:
    model, _, _ = NETWORKS["residual"]()
    example = image(batch=own)
    found = record(model, example, space_of(model, example), asked)
    first = found.calls[0].made[0]
    assert found.batch == asked
    assert found.rest[first.place[0]] == asked


def test_a_value_changed_in_place_is_another_value_in_the_same_storage() -> None:
    model = nn.Sequential(conv(3, 5), nn.ReLU(inplace=True), conv(5, 4))
    found = record(model, image(), space_of(model, image()))
    first, relu, last = found.calls
    assert relu.made[0].storage == first.made[0].storage
    assert relu.made[0].value != first.made[0].value
    assert not relu.view
    assert last.read[0].value == relu.made[0].value


def test_parameters_are_told_from_values_and_a_shared_weight_is_one() -> None:
    model, example, _ = NETWORKS["tied"]()
    found = record(model, example, space_of(model, example))
    layers = [call for call in found.calls if call.name == "conv2d"]
    assert [[operand.parameter for operand in call.read] for call in layers] == [[False, True, True]] * 4
    assert layers[1].read[1].value == layers[2].read[1].value
    assert layers[1].read[1].value != layers[3].read[1].value


def test_inputs_may_be_a_dictionary_or_a_tuple() -> None:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return m.out(m.a(x) + m.b(y))

    model = Function(forward, a=conv(3, 5), b=conv(4, 5), out=conv(5, 4))
    x, y = image(3), image(4)
    told = [
        record(model, example, space_of(model, example)).sizes([3]) for example in ((x, y), {"x": x, "y": y}, [x, y])
    ]
    assert np.array_equal(told[0], told[1]) and np.array_equal(told[0], told[2])
    assert disagreement(model, (x, y), space_of(model, (x, y)), 0) == ""


def test_a_shuffle_may_be_cut_to_one_channel_a_part() -> None:
    model, example, _ = NETWORKS["channel_shuffle"]()
    space = space_of(model, example)
    assert space.groups[0].counts[0] == 2
    found = record(model, example, space)
    assert found.sizes([2])[list(found.calls[0].made[0].place)].tolist() == [1, 2, 6, 6]


def hand_made(model: nn.Module) -> SearchSpace:
    """The width of ``a``, read by ``out``: a space that nobody proved."""
    width = model.a.out_channels
    at = np.arange(width)[:, None]
    slices = [Slice("a", "weight", 0, "out", at), Slice("a", "bias", 0, "through", at)]
    if hasattr(model, "out"):
        slices.append(Slice("out", "weight", 1, "in", at))
    group = Group("a", width, tuple(slices), tuple(range(1, width + 1)))
    return SearchSpace((group,), (), {name: tuple(p.shape) for name, p in model.named_parameters()})


def test_code_that_looks_at_a_width_is_refused_with_the_width() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.out(functional.relu(x) if x.shape[1] < 4 else x)

    model = Function(forward, a=conv(3, 8), out=conv(8, 4)).double()
    with pytest.raises(UserError, match="other operations when a keeps 1 channels"):
        record(model, image(), hand_made(model))


def test_lengths_that_are_no_sum_are_refused_with_the_operation() -> None:
    def squares(m: Any, x: Tensor) -> Tensor:
        rows = m.a(x).flatten(2)
        return (rows @ rows.transpose(1, 2)).flatten(1).mean(1)

    model = Function(squares, a=conv(3, 8)).double()
    with pytest.raises(UserError, match="sizes of flatten are no sum over the groups"):
        record(model, image(), hand_made(model))

    def halves(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return pooled(torch.relu(x[:, : x.shape[1] // 2]))

    model = Function(halves, a=conv(3, 9)).double()
    with pytest.raises(UserError, match="sizes of slice are no sum"):
        record(model, image(), hand_made(model))


class Peeking(nn.Module):
    """Looks at a value, which the meta device has not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = conv(3, 8), conv(8, 4)
        self.peeks = True

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a(x))
        if self.peeks and float(x.abs().sum()) < 0:
            x = x * 2
        return self.out(x)


def test_a_network_that_does_not_run_without_values_is_run_with_them() -> None:
    model = Peeking().double()
    space = hand_made(model)
    really = record(model, image(), space)
    model.peeks = False
    lightly = record(model, image(), space)
    last_of = [found.calls[-1].made[0].place for found in (really, lightly)]
    assert [call.name for call in really.calls][:2] == [call.name for call in lightly.calls][:2]
    assert len(really.calls) > len(lightly.calls)  # it did peek
    for kept in (1, 5, 8):
        sizes = [f.sizes([kept])[list(place)].tolist() for f, place in zip((really, lightly), last_of, strict=True)]
        weights = [found.sizes([kept])[list(found.calls[0].read[1].place)].tolist() for found in (really, lightly)]
        assert sizes[0] == sizes[1] == [1, 4, 6, 6]
        assert weights[0] == weights[1] == [kept, 3, 1, 1]


def test_the_network_and_the_random_streams_are_left_as_they_were() -> None:
    model = Peeking().double()
    model.train()
    model.a.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    for peeks in (True, False):
        model.peeks = peeks
        record(model, image(), hand_made(model))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [m.training for m in (model, model.a, model.out)] == [True, False, True]
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
