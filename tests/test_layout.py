from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.layout import CACHE, FEWEST, PART, ChannelsLast, Parts, runs_channels_last, runs_in_parts
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


# -- parts -----------------------------------------------------------------------------------------

SMALL = PART // (4 * 3 * 8 * 8)  # images of 3 x 8 x 8 that fill a part


def batch(images: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(images, 3, size, size), torch.arange(images)


def test_a_large_batch_is_cut_into_even_parts_that_are_the_batch_together():
    inputs, labels = batch(3 * SMALL + 5)
    parts = Parts([batch(SMALL), (inputs, labels), (inputs[:SMALL], None)])
    assert [len(x) for x, _ in parts] == [SMALL, *[len(x) for x, _ in parts[1:5]], SMALL]
    sizes = [len(x) for x, _ in parts[1:5]]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([x for x, _ in parts[1:5]]), inputs)
    assert torch.equal(torch.cat([y for _, y in parts[1:5]]), labels)
    assert parts[5][1] is None
    assert all(x.untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr() for x, _ in parts[1:5])


def test_large_images_stay_a_few_together():
    size = 256
    assert 4 * 3 * size**2 * FEWEST > PART
    assert [len(x) for x, _ in Parts([batch(2 * FEWEST, size), batch(FEWEST - 1, size)])] == [
        FEWEST,
        FEWEST,
        FEWEST - 1,
    ]


def test_what_is_no_batch_of_images_stays_whole():
    tokens, images = {"x": torch.randn(4 * SMALL, 3, 8, 8)}, batch(4 * SMALL)[0]
    given = [(tokens, None), (images, {"boxes": 1}), (images, torch.zeros(3))]
    assert all(found[0] is made[0] and found[1] is made[1] for found, made in zip(Parts(given), given, strict=True))


def mixing() -> nn.Module:
    """Batch norm without statistics sees the other images of its batch."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())


def heavy() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    model.register_parameter("more", nn.Parameter(torch.empty(CACHE // 4)))
    return model


@pytest.mark.parametrize(
    ("model", "images", "answer"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), 2 * SMALL, True),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), SMALL, False),
        (mixing(), 2 * SMALL, False),
        (Function(lambda m, x: m.f(x.view(2 * SMALL, -1)), f=nn.Linear(3 * 8 * 8, 2)), 2 * SMALL, False),
        (heavy(), 2 * SMALL, False),
    ],
    ids=["network", "one part", "images see each other", "a fixed batch", "weights beyond the cache"],
)
def test_parts_are_for_networks_that_see_every_image_by_itself(model, images, answer):
    assert runs_in_parts(model, Parts([batch(images)])) is answer
