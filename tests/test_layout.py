from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.layout import ChannelsLast, runs_channels_last
from networks import Function


def pairs() -> list[tuple[object, int]]:
    return [
        (torch.randn(2, 3, 4, 4), 0),
        (torch.randn(2, 5), 1),
        ({"x": torch.randn(2, 3, 4, 4)}, 2),
        (torch.ones(2, 3, 4, 4).int(), 3),
    ]


def test_images_are_rearranged_and_nothing_else_is_touched():
    plain = pairs()
    arranged = ChannelsLast(plain)
    assert len(arranged) == 4
    assert [label for _, label in arranged] == [0, 1, 2, 3]
    assert torch.equal(arranged[0][0], plain[0][0])
    assert arranged[0][0].is_contiguous(memory_format=torch.channels_last)
    assert plain[0][0].is_contiguous()
    assert next(iter(arranged))[0].is_contiguous(memory_format=torch.channels_last)
    assert all(arranged[i][0] is plain[i][0] for i in (1, 2, 3))


def test_a_part_of_the_batches_is_rearranged_too():
    part = ChannelsLast(pairs())[:2]
    assert len(part) == 2
    assert part[0][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("model", "inputs", "answer"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)), torch.randn(2, 3, 4, 4), True),
        (Function(lambda m, x: m.f(x).view(len(x), -1), f=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 4, 4), False),
        (nn.Conv1d(3, 4, 3), torch.randn(2, 3, 4), False),
        (nn.Conv2d(3, 4, 3, device="meta"), torch.randn(2, 3, 4, 4), False),
        (Function(lambda m, x: m.f(x["image"]), f=nn.Conv2d(3, 4, 3)), {"image": torch.randn(2, 3, 4, 4)}, False),
    ],
    ids=["network", "view", "sequences", "elsewhere", "dict"],
)
def test_the_layout_is_for_images_on_a_processor_and_networks_that_take_it(model, inputs, answer):
    assert runs_channels_last(model, inputs) is answer


def test_trying_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = model[1].running_mean.clone()
    assert runs_channels_last(model, torch.randn(2, 3, 4, 4))
    assert model.training
    assert model[1].training
    assert torch.equal(model[1].running_mean, before)
