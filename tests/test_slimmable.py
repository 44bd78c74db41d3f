"""Narrow passes are the narrow networks, gradients stay in their slices, and training makes widths usable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune import api, data, models
from autoprune.architectures import cifar_resnet
from autoprune.errors import UserError
from autoprune.finetune import Recipe, judge
from autoprune.forward import logits
from autoprune.recipes.narrow import Narrow, draw, first, uniform
from autoprune.recipes.slimmable import Slimmable, batch_norms, slimmable, universal
from autoprune.slicing import named_tensors, prune, selections
from autoprune.space import SearchSpace
from networks import chunked_and_joined, depthwise, flattened, grouped, residual

MADE = [residual, depthwise, grouped, flattened, chunked_and_joined]


def digits() -> tuple[nn.Module, SearchSpace]:
    torch.manual_seed(0)
    model = models.load("autoprune:digits")
    return model, api.trace(model, torch.randn(1, 1, 8, 8))


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return data.load("digits", 256, 256)


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("training", [False, True])
def test_a_narrow_pass_is_the_pruned_network(made, training: bool) -> None:
    model, example, *_ = made()
    model = model.double()
    space = api.trace(model, example)
    narrow = Narrow(model, space)
    torch.manual_seed(1)
    for scheme in (space.dense, space.smallest, draw(space, 0.3, True)):
        alone = prune(model, space, first(space, scheme)).train(training)
        model.train(training)
        with torch.no_grad():
            assert torch.allclose(logits(narrow(example, scheme)), logits(alone(example)), atol=1e-6)


@pytest.mark.parametrize("made", MADE)
def test_the_whole_width_is_the_plain_network_bit_for_bit(made) -> None:
    model, example, *_ = made()
    model = model.double()
    space = api.trace(model, example)
    with torch.no_grad():
        assert torch.equal(logits(Narrow(model, space)(example, space.dense)), logits(model(example)))


def test_the_gradient_is_zero_outside_the_slice_and_passes_add_up() -> None:
    model, space = digits()
    model.eval()
    narrow, images = Narrow(model, space), torch.randn(8, 1, 8, 8)
    schemes = [uniform(space, width) for width in (1.0, 0.5, 0.25)]

    def gradients(*passes) -> list[Tensor]:
        model.zero_grad()
        for scheme in passes:
            logits(narrow(images, scheme)).square().mean().backward()
        return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]

    separate = [gradients(scheme) for scheme in schemes]
    for summed, *each in zip(gradients(*schemes), *separate, strict=True):
        assert torch.allclose(summed, sum(each), atol=1e-6)
    shapes = {name: tensor.shape for name, tensor in named_tensors(model)}
    stays = selections(space, first(space, schemes[2]), shapes)
    assert stays
    for (name, _), gradient in zip(model.named_parameters(), separate[2], strict=True):
        inside = torch.ones_like(gradient, dtype=torch.bool)
        for axis, kept in stays.get(name, {}).items():
            outside = torch.ones(gradient.shape[axis], dtype=torch.bool)
            outside[kept] = False
            inside.index_fill_(axis, outside.nonzero().flatten(), False)
        assert not gradient[~inside].any()
        assert gradient[inside].any()


def test_only_the_whole_network_moves_its_running_statistics() -> None:
    model, space = digits()
    model.train()
    narrow = Narrow(model, space)
    before = [norm.running_mean.clone() for _, norm in batch_norms(model)]
    narrow(torch.randn(8, 1, 8, 8), uniform(space, 0.5))
    assert all(torch.equal(a, n.running_mean) for a, (_, n) in zip(before, batch_norms(model), strict=True))
    narrow(torch.randn(8, 1, 8, 8), space.dense)
    assert not any(torch.equal(a, n.running_mean) for a, (_, n) in zip(before, batch_norms(model), strict=True))


def test_every_width_has_batch_norms_of_its_own(splits: data.Splits, tmp_path: Path) -> None:
    model, space = digits()
    trained = slimmable(model, space, list(splits.train()), splits.validation, tmp_path, recipe=Recipe(3, lr=0.05))
    own, shared = [], []
    for width in (0.75, 0.5, 0.25):
        scheme = uniform(space, width)
        network = trained.network(scheme)
        with torch.no_grad(), torch.inference_mode():
            images = splits.validation[0][0]
            assert torch.allclose(network(images), trained.eval()(images, scheme), atol=1e-5)
        own.append(judge(network, splits.validation)[1])
        shared.append(judge(prune(model, space, first(space, scheme)).eval(), splits.validation)[1])
    assert min(own) > 0.6, own
    assert own[2] - shared[2] > 0.2, (own, shared)


def test_training_goes_on_to_the_same_weights(splits: data.Splits, tmp_path: Path) -> None:
    train, recipe = list(splits.train())[:2], Recipe(2, lr=0.05)

    def stop(facts) -> None:
        raise KeyboardInterrupt

    whole, part = (digits() for _ in range(2))
    one = universal(*whole, train, splits.validation, tmp_path / "a", recipe=recipe, layerwise=True)
    with pytest.raises(KeyboardInterrupt):
        universal(*part, train, splits.validation, tmp_path / "b", recipe=recipe, layerwise=True, tell=stop)
    other = universal(*digits(), train, splits.validation, tmp_path / "b", recipe=recipe, layerwise=True)
    for (_, a), (_, b) in zip(named_tensors(one), named_tensors(other), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UserError, match="distill: True -> False"):
        universal(*digits(), train, splits.validation, tmp_path / "b", recipe=recipe, layerwise=True, distill=False)


def test_distillation_does_not_reach_the_widest_pass(splits: data.Splits, tmp_path: Path) -> None:
    """One step with the sandwich rule, recomputed by hand: the narrow pass learns from a constant."""
    images, labels = splits.train()[0] if not callable(splits.train) else next(iter(splits.train()))
    recipe = Recipe(1, lr=0.1, batch=len(images), warmup=0, momentum=0, weight_decay=0)
    model, space = digits()
    universal(model, space, [(images, labels)], splits.validation, tmp_path, recipe=recipe, drawn=0)
    other, _ = digits()
    other.train()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    narrow = Narrow(other, space)
    answer = narrow(images[order], space.dense)
    loss = functional.cross_entropy(answer, labels[order])
    target = answer.detach().softmax(1)
    loss = loss + functional.cross_entropy(narrow(images[order], uniform(space, 0.25)), target)
    loss.backward()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter -= recipe.rate(0, 1) * parameter.grad
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_random_schemes_hold_both_ends_in_and_differ_by_group() -> None:
    _, space = digits()
    torch.manual_seed(0)
    drawn = [draw(space, 0.25, layerwise=True) for _ in range(200)]
    least, most = uniform(space, 0.25), space.dense
    assert all(a <= k <= b for s in drawn for a, k, b in zip(least.kept, s.kept, most.kept, strict=True))
    assert any(len({round(float(r), 1) for r in space.rates(s)}) > 1 for s in drawn)
    even = [draw(space, 0.25, layerwise=False) for _ in range(50)]
    assert all(max(space.rates(s)) - min(space.rates(s)) < 0.1 for s in even)


@pytest.mark.parametrize("width", [0.0, 1.2, -1.0])
def test_widths_out_of_range_are_refused(width: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        uniform(digits()[1], width)


def test_a_width_below_the_smallest_count_is_refused() -> None:
    with pytest.raises(UserError, match="choose wider ones"):
        uniform(digits()[1], 0.01)


def test_a_network_without_batch_norms_is_sent_to_the_other_recipe(splits: data.Splits, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    space = api.trace(model, torch.randn(1, 1, 8, 8))
    with pytest.raises(UserError, match="'universal'"):
        slimmable(model, space, splits.validation, splits.validation, tmp_path, recipe=Recipe())


def test_shortcuts_run_narrow() -> None:
    model = cifar_resnet(8).eval()
    space = api.trace(model, torch.randn(1, 3, 32, 32))
    assert Slimmable(model, space)(torch.randn(2, 3, 32, 32), uniform(space, 0.25)).shape == (2, 10)
