from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune.search_spaces.traced import trace
from autoprune.space import Group, SearchSpace
from autoprune.statistics import Statistics, StatisticsNotice, class_labels
from networks import Function, lively


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 16, 4),
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 4))


def read_twice() -> nn.Module:
    def forward(m, x):
        x = functional.relu(m.stem(x))
        return m.head((m.a(x) + m.b(x)).mean((2, 3)))

    return Function(
        forward, stem=nn.Conv2d(1, 6, 3), a=nn.Conv2d(6, 3, 1), b=nn.Conv2d(6, 3, 3, padding=1), head=nn.Linear(3, 4)
    )


def run_twice() -> nn.Module:
    def forward(m, x):
        x = functional.relu(m.stem(x).mean((2, 3)))
        return m.head(functional.relu(m.again(functional.relu(m.again(x)))))

    return Function(forward, stem=nn.Conv2d(1, 6, 3), again=nn.Linear(6, 6), head=nn.Linear(6, 4))


NETWORKS = {f.__name__: f for f in (plain, grouped, read_twice, run_twice)}


def data(images: int, sizes: int | list[int], seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (images,), generator=generator)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def traced(make) -> tuple[nn.Module, SearchSpace]:
    torch.manual_seed(0)
    model = lively(make().double())
    return model, trace(model, data(2, 2)[0][0])


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return functional.cross_entropy(model(x), y, reduction="none")


# -- Taylor ----------------------------------------------------------------------------------------


@contextmanager
def scaled(model: nn.Module, group: Group, unit: int, factor: float) -> Iterator[None]:
    """One channel scaled, as its readers see it."""
    saved = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for piece in group.slices:
            if piece.role == "in":
                columns = model.get_parameter(piece.path).movedim(piece.axis, 0)
                columns[torch.from_numpy(piece.positions[unit])] *= factor
        yield
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[name])


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_taylor_is_the_first_order_change_of_each_images_loss(make):
    model, space = traced(make)
    batches = data(7, 4)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    eps = 1e-6
    for group, score in zip(space.groups, Statistics(model, space, batches).taylor, strict=True):
        for unit in range(group.units):
            with scaled(model, group, unit, 1 + eps):
                above = loss_of(model, x, y)
            with scaled(model, group, unit, 1 - eps):
                below = loss_of(model, x, y)
            expected = ((above - below) / (2 * eps)).abs().mean()
            assert score[unit] == pytest.approx(float(expected), rel=1e-4, abs=1e-8)


def test_taylor_of_a_dead_channel_is_zero():
    model, space = traced(plain)
    model[1].bias.data[2] = -100
    score = Statistics(model, space, data(4, 4)).taylor[0]
    assert score[2] == 0
    assert np.delete(score, 2).min() > 0


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_taylor_does_not_depend_on_how_the_images_are_cut_into_batches(make):
    model, space = traced(make)
    whole, *cuts = (Statistics(model, space, data(9, sizes)).taylor for sizes in (9, 4, [1, 6, 2]))
    for cut in cuts:
        for a, b in zip(cut, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def test_windows_of_an_image_count_as_one_image():
    def forward(m, x):
        windows = x.reshape(len(x), 4, 9).flatten(0, 1)  # (images x windows, 9)
        return m.out(functional.relu(m.first(windows))).reshape(len(x), 4, -1).mean(1)

    def together(m, x):
        return m.out(functional.relu(m.first(x.reshape(len(x), 4, 9)))).mean(1)

    layers = {"first": nn.Linear(9, 5).double(), "out": nn.Linear(5, 4).double()}
    found = []
    for form in (forward, together):
        model = Function(form, **layers)
        space = trace(model, data(2, 2)[0][0])
        found.append(Statistics(model, space, data(6, 3)).taylor[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)


def test_without_class_labels_the_networks_own_answers_are_the_target():
    model, space = traced(plain)
    batches = data(6, 3)
    with torch.no_grad():
        own = [(x, model(x).argmax(1)) for x, _ in batches]
    expected = Statistics(model, space, own).taylor[0]
    for labels in (None, torch.rand(3), torch.zeros(3, 2, dtype=torch.long)):
        found = Statistics(model, space, [(x, labels) for x, _ in batches]).taylor[0]
        np.testing.assert_array_equal(found, expected)


def test_frozen_parameters_have_slopes_too():
    model, space = traced(plain)
    expected = Statistics(model, space, data(4, 4)).taylor
    model.requires_grad_(requires_grad=False)
    for a, b in zip(Statistics(model, space, data(4, 4)).taylor, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_group_whose_consumers_do_not_run_as_modules_has_no_taylor_score():
    def forward(m, x):
        return functional.linear(functional.relu(m.a(x.flatten(1))), m.b.weight)

    model, space = traced(lambda: Function(forward, a=nn.Linear(36, 5), b=nn.Linear(5, 4)))
    assert len(space) == 1
    statistics = Statistics(model, space, data(4, 2))
    assert statistics.taylor == (None,)
    with pytest.warns(StatisticsNotice, match=r"b\.weight: the output is not weight times input"):
        assert statistics.grams == {}


# -- consumers and Gram matrices -------------------------------------------------------------------


def test_consumers_are_the_layers_that_read_a_group():
    model, space = traced(read_twice)
    assert Statistics(model, space, data(2, 2)).consumers.keys() == {"a.weight", "b.weight", "head.weight"}


def test_layers_with_shared_weights_are_no_consumers():
    def forward(m, x):
        x = functional.relu(m.first(x.flatten(1)))
        return m.a(x) + m.b(x**2) + m.c(x)

    def make():
        model = Function(forward, first=nn.Linear(36, 6), a=nn.Linear(6, 4), b=nn.Linear(6, 4), c=nn.Linear(6, 4))
        model.b.weight = model.a.weight
        return model

    model, space = traced(make)
    assert {piece.path for piece in space.groups[0].slices if piece.role == "in"} == {"a.weight", "c.weight"}
    assert Statistics(model, space, data(2, 2)).consumers.keys() == {"c.weight"}


def test_layers_with_too_large_a_matrix_are_left_out_with_a_notice():
    model, space = traced(plain)
    small = 8 * (6 * 9) ** 2  # the second convolution's; the head reads 80 numbers
    with pytest.warns(StatisticsNotice, match=r"6\.weight: a Gram matrix of 0 MiB is above the limit"):
        assert Statistics(model, space, data(2, 2), gram_limit=small).grams.keys() == {"3.weight"}
    assert Statistics(model, space, data(2, 2), gram_limit=8 * 80**2).grams.keys() == {"3.weight", "6.weight"}


def test_every_convolution_group_counts_toward_the_limit():
    model, space = traced(grouped)
    needed = 2 * 8 * (4 * 9) ** 2
    assert "2.weight" in Statistics(model, space, data(2, 2), gram_limit=needed).grams
    with pytest.warns(StatisticsNotice):
        assert "2.weight" not in Statistics(model, space, data(2, 2), gram_limit=needed - 1).grams


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_collecting_leaves_the_model_as_it_was(make):
    model, space = traced(make)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    statistics = Statistics(model, space, data(4, 2))
    _ = statistics.grams, statistics.taylor
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_class_labels_are_whole_numbers_one_per_image():
    assert torch.equal(class_labels(torch.tensor([1, 2], dtype=torch.int32)), torch.tensor([1, 2]))
    assert class_labels(torch.rand(2)) is None
    assert class_labels(torch.zeros(2, 2, dtype=torch.long)) is None
    assert class_labels(None) is None
