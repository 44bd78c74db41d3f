"""The short fine-tuning that follows the dense network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune import distillation, recover
from autoprune.distillation import _groups, fine_tune
from autoprune.errors import UserError
from autoprune.recover import Context
from autoprune.search_spaces.traced import trace
from autoprune.slicing import prune
from autoprune.statistics import Statistics


def network() -> nn.Module:
    """With random weights large enough that cutting half of them shows."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(8 * 16, 5),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    with torch.no_grad():
        model[7].weight.mul_(2)
    return model.eval()


@pytest.fixture
def context() -> Context:
    model = network()
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 3, 8, 8, generator=generator), torch.zeros(16, dtype=torch.long)) for _ in range(4)]
    space = trace(model, batches[0][0][:1])
    kept = [np.arange(group.units // 2) for group in space.groups]
    return Context(model, space, kept, Statistics(model, space, batches), batches)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_is_of_softened_answers_times_the_square(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted, found = ((scores / temperature).softmax(1) for scores in (teacher, student))
    expected = temperature**2 * (wanted * (wanted / found).log()).sum(1).mean()
    assert float(distillation.divergence(student, teacher, temperature)) == pytest.approx(float(expected))


def divergence(candidate: nn.Module, context: Context) -> float:
    with torch.no_grad():
        pairs = [(candidate.eval()(x).log_softmax(1), context.model(x).log_softmax(1)) for x, _ in context.batches]
    return float(sum(functional.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in pairs))


def candidate(context: Context) -> nn.Module:
    return prune(context.model, context.space, context.kept).eval()


def test_it_comes_nearer_to_the_dense_network_without_labels(context) -> None:
    before = divergence(candidate(context), context)
    repaired = candidate(context)
    recover.find("fine_tune+recalibrate_bn")(repaired, context)
    assert divergence(repaired, context) < 0.5 * before  # 0.06 to 0.30 of it in six seeds


def test_same_weights_every_time_and_flags_as_they_were(context) -> None:
    one, other = candidate(context), candidate(context)
    one[0].weight.requires_grad_(False)
    torch.manual_seed(5)
    fine_tune(one, context, steps=3)
    torch.manual_seed(6)
    fine_tune(other, context, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not one[0].weight.requires_grad
    assert not one.training
    assert all(parameter.grad is None for parameter in one.parameters())


def test_the_dense_answers_are_computed_once(context) -> None:
    first, second = candidate(context), candidate(context)
    calls = []
    context.model.register_forward_hook(lambda *_: calls.append(1))
    fine_tune(first, context, steps=1)
    assert len(calls) == len(context.batches)
    fine_tune(second, context, steps=1)
    assert len(calls) == len(context.batches)


def test_a_share_of_the_images_is_a_share_of_the_steps(context) -> None:
    quick = Context(context.model, context.space, context.kept, context.statistics, context.batches, share=0.25)
    one, other = candidate(context), candidate(context)
    fine_tune(one, quick, steps=8)
    fine_tune(other, context, steps=2)
    assert torch.equal(one[0].weight, other[0].weight)


def test_layers_learn_at_rates_between_two_ends() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    assert [group["lr"] for group in _groups(parameters, 0.1, 0.01)] == pytest.approx([0.001, 0.01, 0.1])
    assert [group["lr"] for group in _groups(parameters[:1], 0.1, 0.01)] == pytest.approx([0.001])


@pytest.mark.parametrize("given", [{"steps": 0}, {"lr": -1.0}, {"temperature": 0.0}, {"late": 0.0}])
def test_wrong_numbers_are_refused(context, given) -> None:
    with pytest.raises(UserError, match="must be positive"):
        fine_tune(candidate(context), context, **given)
