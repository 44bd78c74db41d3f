"""Batch norms folded into the layers before them: which ones, that nothing else changes, and when it is left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune import architectures
from autoprune.evaluate import Evaluator
from autoprune.fidelity import Fidelity
from autoprune.folding import EXACT, fold, foldable
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from networks import Function, lively

IMAGES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
POINTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def drawn(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return lively(model)


def chain(*layers: nn.Module) -> nn.Module:
    return drawn(nn.Sequential(*layers))


def residual() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first_norm(m.first(x)).relu()
        return m.last((m.norm(m.conv(x)) + m.short_norm(m.short(x))).relu())

    return drawn(
        Function(
            forward,
            first=nn.Conv2d(3, 4, 3, bias=False), first_norm=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 5, 1, bias=False),
            norm=nn.BatchNorm2d(5), short=nn.Conv2d(4, 5, 1), short_norm=nn.BatchNorm2d(5), last=nn.Conv2d(5, 2, 1),
        )
    )  # fmt: skip


FOLDED = {
    "a convolution": (chain(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True)), IMAGES, 1),
    "with a bias": (chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), IMAGES, 1),
    "norm without scale": (chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False)), IMAGES, 1),
    "depthwise": (chain(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU6()), IMAGES, 1),
    "linear": (chain(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), POINTS, 1),
    "one dimension": (chain(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5)), IMAGES.flatten(2), 1),
    "three dimensions": (chain(nn.Conv3d(3, 5, 3), nn.BatchNorm3d(5)), IMAGES[..., None].expand(-1, -1, -1, -1, 3), 1),
    "residual": (residual(), IMAGES, 3),
    "double precision": (chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).double(), IMAGES.double(), 1),
}  # fmt: skip


@pytest.mark.parametrize(("model", "inputs", "count"), FOLDED.values(), ids=FOLDED)
def test_a_folded_network_answers_as_before(model: nn.Module, inputs: Tensor, count: int) -> None:
    pairs = foldable(model, inputs)
    assert len(pairs) == count
    folded = copy.deepcopy(model)
    fold(folded, pairs)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), model(inputs), rtol=1e-4, atol=1e-5)


def read_twice() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.conv(x)
        return m.last(m.norm(x) + x)

    return drawn(Function(forward, conv=nn.Conv2d(3, 5, 3), norm=nn.BatchNorm2d(5), last=nn.Conv2d(5, 2, 1)))


def run_twice() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.other(m.conv(m.norm(m.conv(x)).relu()))

    return drawn(Function(forward, conv=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3), other=nn.BatchNorm2d(3)))


def asks_the_norm() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x)) * m.norm.weight.abs().mean()

    return drawn(Function(forward, conv=nn.Conv2d(3, 5, 3), norm=nn.BatchNorm2d(5)))


def has_two_names() -> nn.Module:
    norm = nn.BatchNorm2d(5)
    return drawn(Function(lambda m, x: m.again(m.conv(x)), conv=nn.Conv2d(3, 5, 3), norm=norm, again=norm))


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(super().forward(x))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias)


def hooked() -> nn.Module:
    model = chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    model[1].register_forward_hook(lambda norm, inputs, output: 2 * output)
    return model


LEFT = {
    "the layer has another reader": (read_twice(), IMAGES),
    "the layer runs twice": (run_twice(), IMAGES),
    "the code asks the norm": (asks_the_norm(), IMAGES),
    "the norm goes under two names": (has_two_names(), IMAGES),
    "the norm activates": (chain(nn.Conv2d(3, 5, 3), Activated(5)), IMAGES),
    "the layer changes its weight": (chain(Standardised(3, 5, 3), nn.BatchNorm2d(5)), IMAGES),
    "somebody listens": (hooked(), IMAGES),
    "the norm comes first": (chain(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3)), IMAGES),
    "an activation is between": (chain(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5)), IMAGES),
    "the norm has no statistics": (chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False)), IMAGES),
    "half precision": (chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).bfloat16(), IMAGES.bfloat16()),
}


@pytest.mark.parametrize(("model", "inputs"), LEFT.values(), ids=LEFT)
def test_what_cannot_be_folded_is_left(model: nn.Module, inputs: Tensor) -> None:
    before = copy.deepcopy(model.state_dict())
    assert foldable(model, inputs) == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_pair_that_a_recovery_has_changed_is_left() -> None:
    model = chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4))
    pairs = foldable(model, IMAGES)
    assert len(pairs) == 2
    model[1] = nn.GroupNorm(1, 5)
    expected = model(IMAGES).detach()
    fold(model, pairs)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.GroupNorm, nn.Conv2d, nn.Identity]
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-4, atol=1e-5)


# -- in the evaluator ------------------------------------------------------------------------------


def evaluator() -> Evaluator:
    model = lively(architectures.digits())
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        for _ in range(4)
    ]
    return Evaluator(model, trace(model, batches[0][0][:1]), batches[:2], batches[2:])


def test_a_measurement_is_that_of_the_candidate_that_is_kept() -> None:
    made = evaluator()
    assert foldable(made.model, made.validation[0][0])
    for half in (made.space.floor([0.5] * len(made.space)), made.space.dense):
        measured, candidate = made(half), made.candidate(half)
        assert any(isinstance(module, nn.BatchNorm2d) for module in candidate.modules())
        seen = made.observe(candidate)
        assert (measured.loss, measured.kl) == pytest.approx((seen.loss, seen.kl), rel=EXACT, abs=EXACT)
        assert measured.accuracy == seen.accuracy


def test_a_candidate_with_nothing_cut_is_the_dense_network_to_the_last_bit() -> None:
    made = evaluator()
    whole = made(made.space.dense, fidelity=Fidelity(recovery="none"))
    assert (whole.loss, whole.kl) == (made.dense.loss, 0.0)
    assert any(isinstance(module, nn.BatchNorm2d) for module in made.model.modules())


def test_an_evaluation_of_ones_own_gets_the_network_as_it_is() -> None:
    kinds: list[set[type]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        kinds.append({type(module) for module in model.modules()})
        return {"loss": 1.0}

    given = evaluator()
    own = Evaluator(given.model, given.space, given.calibration, [], evaluate=evaluate)
    assert own(Scheme(given.space.smallest.kept)).error is None
    assert all(nn.BatchNorm2d in kind for kind in kinds)
