from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.patches import answers, draw, has_rows, output_size, product, regular, rows

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw_from):
    """A convolution with any options and an input that it accepts, in double precision."""
    dims = draw_from(st.integers(1, 3))

    def per_axis(low, high):
        return tuple(draw_from(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    groups = draw_from(st.integers(1, 3))
    kernel, dilation = per_axis(1, 3), per_axis(1, 2)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [r + extra for r, extra in zip(reach, per_axis(0, 4), strict=True)]
    mode = draw_from(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw_from(st.sampled_from(["valid", "same", "numbers"]))
    stride = (1,) * dims if padding == "same" else per_axis(1, 3)
    if padding == "numbers":
        padding = tuple(min(p, s - 1) for p, s in zip(per_axis(0, 2), size, strict=True))
    elif padding == "same" and mode != "zeros":
        size = [max(s, r) for s, r in zip(size, reach, strict=True)]
    layer = CONVOLUTIONS[dims](
        groups * draw_from(st.integers(1, 3)),
        groups * draw_from(st.integers(1, 2)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw_from(st.booleans()),
        padding_mode=mode,
        dtype=torch.float64,
    )
    x = torch.randn(draw_from(st.integers(1, 3)), layer.in_channels, *size, dtype=torch.float64)
    return layer, x


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=150, deadline=None)
@given(convolutions(), st.integers(1, 20), st.integers(0, 5))
def test_a_convolution_is_the_product_of_its_rows_and_its_weight(case, count, seed):
    layer, x = case
    output = layer(x)
    assert output_size(layer, x) == tuple(output.shape[2:])
    assert regular(layer, x, output)
    chosen = draw(math.prod(output_size(layer, x)), count, torch.Generator().manual_seed(seed))
    found = rows(layer, x, chosen)
    assert found.shape == (layer.groups, len(x) * len(chosen), layer.weight[0].numel())
    torch.testing.assert_close(product(layer, found), answers(layer, output, chosen))


@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (3, 2, 4, 5)])
def test_a_linear_layer_is_the_product_of_its_tokens_and_its_weight(shape):
    layer, x = nn.Linear(5, 4).double(), torch.randn(shape, dtype=torch.float64)
    tokens = math.prod(shape[1:-1])
    assert output_size(layer, x) == (tokens,)
    chosen = draw(tokens, 3, torch.Generator().manual_seed(0))
    found = rows(layer, x, chosen)
    assert found.shape == (1, 3 * min(tokens, 3), 5)
    torch.testing.assert_close(product(layer, found), answers(layer, layer(x), chosen))


def test_all_positions_of_a_plain_convolution_are_the_patches_that_torch_unfolds():
    layer, x = nn.Conv2d(3, 2, 3, stride=2, padding=1), torch.randn(4, 3, 8, 8)
    unfolded = nn.functional.unfold(x, 3, stride=2, padding=1)  # (images, 3 x 9, positions)
    assert torch.equal(rows(layer, x, torch.arange(16))[0], unfolded.mT.reshape(4 * 16, 27))


def test_the_memory_layout_of_the_input_makes_no_difference():
    layer, x = nn.Conv2d(6, 4, 3, padding=1, groups=2), torch.randn(2, 6, 5, 5)
    chosen = torch.tensor([0, 7, 24])
    assert torch.equal(rows(layer, x.contiguous(memory_format=torch.channels_last), chosen), rows(layer, x, chosen))


def test_rows_stay_on_the_device_of_the_input():
    layer, x = nn.Conv2d(3, 2, 3, padding=1, device="meta"), torch.empty(2, 3, 6, 6, device="meta")
    found = rows(layer, x, torch.tensor([1, 5]))
    assert found.device.type == answers(layer, layer(x), torch.tensor([1, 5])).device.type == "meta"
    assert found.shape == (1, 4, 27)


def test_an_output_of_another_size_is_noticed():
    layer, x = nn.Conv2d(3, 2, 3, padding=1), torch.randn(1, 3, 6, 6)
    assert not regular(layer, x, layer(x)[:, :, 1:])


def test_positions_are_drawn_without_repetition_in_ascending_order():
    generator = torch.Generator().manual_seed(0)
    first, second = draw(100, 10, generator), draw(100, 10, generator)
    for drawn in (first, second):
        assert len(drawn) == 10
        assert (drawn.diff() > 0).all()
        assert drawn.min() >= 0
        assert drawn.max() < 100
    assert not torch.equal(first, second)
    assert torch.equal(draw(100, 10, torch.Generator().manual_seed(0)), first)


def test_all_positions_are_taken_when_there_are_no_more():
    assert draw(4, 4).tolist() == draw(4, 9).tolist() == [0, 1, 2, 3]


def test_transposed_convolutions_and_other_modules_have_no_rows():
    assert [has_rows(m) for m in (nn.Linear(1, 1), nn.Conv1d(1, 1, 1), nn.Conv3d(1, 1, 1))] == [True] * 3
    assert [has_rows(m) for m in (nn.ConvTranspose2d(1, 1, 1), nn.BatchNorm2d(1), nn.Embedding(1, 1))] == [False] * 3
