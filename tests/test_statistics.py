from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune.errors import UserError
from autoprune.layout import ChannelsLast
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


# -- first-order effects ----------------------------------------------------------------------------------------


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
def test_effects_are_the_first_order_change_of_each_images_loss(make):
    model, space = traced(make)
    batches = data(7, 4)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    eps = 1e-6
    for group, found in zip(space.groups, Statistics(model, space, batches).effects(), strict=True):
        for unit in range(group.units):
            with scaled(model, group, unit, 1 + eps):
                above = loss_of(model, x, y)
            with scaled(model, group, unit, 1 - eps):
                below = loss_of(model, x, y)
            slope = (above - below) / (2 * eps)
            assert found.absolute[unit] == pytest.approx(float(slope.abs().mean()), rel=1e-4, abs=1e-8)
            assert found.square[unit] == pytest.approx(float(slope.square().mean()), rel=1e-4, abs=1e-12)


def test_the_effect_of_zeroing_a_little_agrees_to_second_order():
    model, space = traced(plain)
    batches = data(5, 5)
    x, y = batches[0]
    exact = Statistics(model, space, batches).effects()[0].absolute
    errors = []
    for eps in (1e-4, 1e-5):
        with scaled(model, space.groups[0], 1, 1 - eps):
            change = loss_of(model, x, y)
        errors.append(abs(float((change - loss_of(model, x, y)).abs().mean()) - eps * exact[1]))
    assert errors[1] < errors[0] / 50  # a hundredth, if the remainder is quadratic


def test_a_consumer_alone_has_the_effect_of_scaling_what_it_reads():
    model, space = traced(read_twice)
    batches = data(7, 4)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    group, found = space.groups[0], Statistics(model, space, batches).effects()[0]
    readers = [piece for piece in group.slices if piece.role == "in"]
    assert {piece.path for piece in readers} == {"a.weight", "b.weight"}
    eps = 1e-6
    for reader, absolute, square in zip(readers, found.absolutes, found.squares, strict=True):
        alone = replace(group, slices=(reader,))
        for unit in range(group.units):
            with scaled(model, alone, unit, 1 + eps):
                above = loss_of(model, x, y)
            with scaled(model, alone, unit, 1 - eps):
                below = loss_of(model, x, y)
            slope = (above - below) / (2 * eps)
            assert absolute[unit] == pytest.approx(float(slope.abs().mean()), rel=1e-4, abs=1e-8)
            assert square[unit] == pytest.approx(float(slope.square().mean()), rel=1e-4, abs=1e-12)


def test_effects_of_a_dead_channel_are_zero():
    model, space = traced(plain)
    model[1].bias.data[2] = -100
    score = Statistics(model, space, data(4, 4)).effects()[0].absolute
    assert score[2] == 0
    assert np.delete(score, 2).min() > 0


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_effects_do_not_depend_on_how_the_images_are_cut_into_batches(make):
    model, space = traced(make)
    whole, *cuts = (Statistics(model, space, data(9, sizes)).effects() for sizes in (9, 4, [1, 6, 2]))
    for cut in cuts:
        for a, b in zip(cut, whole, strict=True):
            for name, values in vars(b).items():
                np.testing.assert_allclose(getattr(a, name), values, rtol=1e-10)


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
        found.append(Statistics(model, space, data(6, 3)).effects()[0].absolute)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)


def test_the_networks_own_answers_may_be_the_target():
    model, space = traced(plain)
    batches = data(6, 3)
    with torch.no_grad():
        own = [(x, model(x).argmax(1)) for x, _ in batches]
    expected = Statistics(model, space, own).effects()[0]
    for labels in (None, torch.rand(3), torch.zeros(3, dtype=torch.long)):
        found = Statistics(model, space, [(x, labels) for x, _ in batches]).effects("answers")[0]
        np.testing.assert_array_equal(found.absolute, expected.absolute)


@pytest.mark.parametrize("labels", [None, torch.rand(3), torch.zeros(3, 2, dtype=torch.long)])
def test_without_class_labels_there_is_no_loss(labels):
    model, space = traced(plain)
    first, second = data(6, 3)
    with pytest.raises(UserError, match=r"calibration batch 1 has no class labels.*target=answers.*use obs"):
        Statistics(model, space, [first, (second[0], labels)]).effects()


def test_labels_that_do_not_fit_the_answers_are_refused():
    model, space = traced(plain)
    ((x, y),) = data(3, 3)
    with pytest.raises(UserError, match=r"calibration batch 0 there is none between answers of shape \(3, 4\)"):
        Statistics(model, space, [(x, y + 4)]).effects()


def test_frozen_parameters_have_slopes_too():
    model, space = traced(plain)
    expected = Statistics(model, space, data(4, 4)).effects()
    model.requires_grad_(requires_grad=False)
    for a, b in zip(Statistics(model, space, data(4, 4)).effects(), expected, strict=True):
        np.testing.assert_array_equal(a.absolute, b.absolute)


def test_a_group_whose_consumers_do_not_run_as_modules_has_no_effects():
    def forward(m, x):
        return functional.linear(functional.relu(m.a(x.flatten(1))), m.b.weight)

    model, space = traced(lambda: Function(forward, a=nn.Linear(36, 5), b=nn.Linear(5, 4)))
    assert len(space) == 1
    statistics = Statistics(model, space, data(4, 2))
    assert statistics.effects() == (None,)
    with pytest.warns(StatisticsNotice, match=r"b\.weight: the output is not weight times input"):
        assert statistics.grams == {}


# -- feature maps ----------------------------------------------------------------------------------


def pooled(x: torch.Tensor, axis: int = 1) -> dict[str, np.ndarray]:
    """By definition, over all images and positions at once."""
    entries = x.detach().movedim(axis, -1).flatten(0, -2)
    return {
        "zeros": (entries == 0).double().mean(0).numpy(),
        "magnitude": entries.abs().mean(0).numpy(),
        "deviation": entries.std(0, correction=0).numpy(),
    }


def agree(found, x: torch.Tensor, axis: int = 1) -> None:
    for name, values in pooled(x, axis).items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-9, atol=1e-12)


def behind(model: nn.Module, x: torch.Tensor, *names: str) -> torch.Tensor:
    return nn.Sequential(*(model.get_submodule(name) for name in names))(x)


NORMED = {"conv": nn.Conv2d(1, 5, 3), "norm": nn.BatchNorm2d(5)}
ENDS = {
    "relu": (functional.relu, functional.relu),
    "in place": (partial(functional.relu, inplace=True), functional.relu),
    "torch.relu": (torch.relu, functional.relu),
    "method": (lambda x: x.relu_(), functional.relu),
    "clamp": (lambda x: x.clamp(0, 1), lambda x: x.clamp(0, 1)),
    "module": (nn.ReLU6(), functional.relu6),
    "gelu": (functional.gelu, functional.gelu),
    "dropout": (lambda x: functional.dropout(functional.relu(x), training=False), functional.relu),
    "pooled before": (lambda x: functional.max_pool2d(x, 2).relu(), lambda x: functional.max_pool2d(x, 2).relu()),
    "pooled behind": (lambda x: functional.max_pool2d(x.relu(), 2), functional.relu),
    "none": (lambda x: x, lambda x: x),
    "none, averaged": (lambda x: functional.avg_pool2d(x, 2), lambda x: x),
}  # fmt: skip


@pytest.mark.parametrize(("end", "expected"), ENDS.values(), ids=ENDS)
def test_a_map_is_taken_behind_the_activation_that_follows(end, expected):
    def forward(m, x):
        return m.last(end(m.norm(m.conv(x)))).mean((2, 3))

    layers = {name: layer.double() for name, layer in NORMED.items()}
    model, space = traced(lambda: Function(forward, **layers, last=nn.Conv2d(5, 4, 1)))
    statistics = Statistics(model, space, data(7, [3, 4]))
    assert statistics.activations.keys() == {"conv.weight"}
    agree(statistics.activations["conv.weight"], expected(behind(model, data(7, 7)[0][0], "conv", "norm")))


def residual(m, x):
    x = functional.relu(m.stem(x))
    x = functional.relu(m.first(x) + x)
    out = m.norm(m.second(x))
    out += m.short(x)
    return m.last(functional.relu(out)).mean((2, 3))


def test_a_residual_blocks_map_is_the_one_after_the_sum():
    layers = {"first": nn.Conv2d(5, 5, 1), "second": nn.Conv2d(5, 6, 1), "norm": nn.BatchNorm2d(6)}
    layers |= {"short": nn.Conv2d(5, 6, 1), "last": nn.Conv2d(6, 4, 1)}
    model, space = traced(lambda: Function(residual, stem=nn.Conv2d(1, 5, 3), **layers))
    found = Statistics(model, space, data(7, [3, 4])).activations
    a = functional.relu(model.stem(data(7, 7)[0][0]))
    b = functional.relu(model.first(a) + a)
    c = functional.relu(model.norm(model.second(b)) + model.short(b))
    # the two layers of the last sum have one map together
    assert found.keys() == {"stem.weight", "first.weight", "second.weight"}
    for name, x in (("stem", a), ("first", b), ("second", c)):
        agree(found[f"{name}.weight"], x)


def test_before_an_activation_that_comes_late_a_map_is_what_is_read():
    def forward(m, x):  # a linear bottleneck with a shortcut, and the normalisation of a pre-activation block
        x = m.stem(x)
        x = x + m.back(functional.relu(m.out(x)))
        return m.last(functional.relu(m.norm(x))).mean((2, 3))

    layers = {"out": nn.Conv2d(5, 6, 1), "back": nn.Conv2d(6, 5, 1), "norm": nn.BatchNorm2d(5)}
    model, space = traced(lambda: Function(forward, stem=nn.Conv2d(1, 5, 3), **layers, last=nn.Conv2d(5, 4, 1)))
    found = Statistics(model, space, data(7, [3, 4])).activations
    stem = model.stem(data(7, 7)[0][0])
    out = functional.relu(model.out(stem))
    agree(found["stem.weight"], stem)
    agree(found["out.weight"], out)
    agree(found["back.weight"], functional.relu(model.norm(stem + model.back(out))))


def test_all_calls_of_a_layer_are_pooled():
    model, space = traced(run_twice)
    x = functional.relu(model.stem(data(7, 7)[0][0]).mean((2, 3)))
    one = functional.relu(model.again(x))
    two = functional.relu(model.again(one))
    agree(Statistics(model, space, data(7, [3, 4])).activations["again.weight"], torch.cat([one, two]))


def test_the_channels_of_a_linear_layer_are_on_the_last_axis():
    def forward(m, x):
        return m.last(functional.gelu(m.first(x.reshape(len(x), 4, 9)))).mean(1)

    model, space = traced(lambda: Function(forward, first=nn.Linear(9, 5), last=nn.Linear(5, 4)))
    statistics = Statistics(model, space, data(7, [3, 4]))
    x = functional.gelu(model.first(data(7, 7)[0][0].reshape(7, 4, 9)))
    agree(statistics.activations["first.weight"], x, axis=-1)
    np.testing.assert_array_equal(statistics.ranks(7)["first.weight"].rank, np.ones(5))


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_maps_do_not_depend_on_the_batches_or_the_layout(make):
    model, space = traced(make)
    whole, *others = (
        Statistics(model, space, batches)
        for batches in (data(9, 9), data(9, 4), data(9, [1, 6, 2]), ChannelsLast(data(9, 4)))
    )
    for other in others:
        for a, b in ((other.activations, whole.activations), (other.ranks(5), whole.ranks(5))):
            assert a.keys() == b.keys()
            for path, found in b.items():
                for name, values in vars(found).items():
                    np.testing.assert_allclose(getattr(a[path], name), values, rtol=1e-10, atol=1e-12)


def test_ranks_are_means_over_the_first_images():
    model, space = traced(plain)
    statistics = Statistics(model, space, data(9, [4, 5]))
    x = functional.relu(behind(model, data(9, 9)[0][0][:6], "0", "1")).detach()
    expected = [np.mean([np.linalg.matrix_rank(image[c].numpy()) for image in x]) for c in range(6)]
    np.testing.assert_allclose(statistics.ranks(6)["0.weight"].rank, expected)
    assert statistics.ranks(6)["0.weight"].images == 6
    assert statistics.ranks(100)["0.weight"].images == 9


def test_a_layer_that_does_not_run_has_no_map():
    def forward(m, x):
        x = functional.relu(functional.conv2d(x, m.first.weight))
        return m.last(functional.relu(m.second(x))).mean((2, 3))

    layers = {"first": nn.Conv2d(1, 5, 3, bias=False), "second": nn.Conv2d(5, 6, 1), "last": nn.Conv2d(6, 4, 1)}
    model, space = traced(lambda: Function(forward, **layers))
    assert Statistics(model, space, data(4, 2)).activations.keys() == {"second.weight"}


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_name_layer_and_batch(wrong):
    model, space = traced(plain)
    batches = data(6, 3)
    batches[1][0][0, 0, 2, 2] = wrong
    statistics = Statistics(model, space, batches)
    with pytest.raises(UserError, match="^0: the feature map holds nan or inf on calibration batch 1: look for"):
        _ = statistics.activations
    with pytest.raises(UserError, match="^0: the feature map holds nan or inf"):
        statistics.ranks(6)
    with pytest.raises(UserError, match="^3: what the layer reads holds nan or inf on calibration batch 1"):
        statistics.effects()


class OneByOne(Sequence):
    """Batches that are made when they are asked for, and how many of them lived at the same time."""

    def __init__(self) -> None:
        self.alive = 0
        self.most = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number):
        if number >= len(self):
            raise IndexError
        ((x, y),) = data(3, 3, seed=number)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(x, self.gone)
        return x, y

    def gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize(
    "what", [lambda s: s.activations, lambda s: s.ranks(18), lambda s: s.effects(), lambda s: s.grams]
)
def test_no_more_than_two_batches_are_held_at_a_time(what):
    model, space = traced(plain)
    batches = OneByOne()
    what(Statistics(model, space, batches))
    assert batches.most <= 2


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
    _ = statistics.grams, statistics.effects(), statistics.activations, statistics.ranks(2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_class_labels_are_whole_numbers_one_per_image():
    assert torch.equal(class_labels(torch.tensor([1, 2], dtype=torch.int32)), torch.tensor([1, 2]))
    assert class_labels(torch.rand(2)) is None
    assert class_labels(torch.zeros(2, 2, dtype=torch.long)) is None
    assert class_labels(None) is None
