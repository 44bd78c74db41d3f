"""Candidates that are trained for a moment, and the weights that travel from one to the next."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import networks
from autoprune import models
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import Fidelity
from autoprune.recover import Context, least_squares, recalibrate_bn
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.slicing import named_tensors, prune
from autoprune.threads import fixed_threads
from autoprune.training import train
from autoprune.tuning import Tuning, embed, tune


def images(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Four classes of noisy patterns, in batches of 16; the patterns are the same under every seed."""
    patterns = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    x = patterns[labels] + 1.5 * torch.randn(count, 3, 8, 8, generator=generator)
    return list(zip(x.split(16), labels.split(16), strict=True))


CALIBRATION, VALIDATION, TRAINING = images(64, 1), images(128, 2), images(128, 3)


def untrained() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(24, 4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def network() -> nn.Module:
    model = untrained()
    train(model, images(256, 4), 8, batch=16)
    return model


def make(network: nn.Module, steps: int | None = 6, lr: float = 0.02, **options: Any) -> Evaluator:
    tuning = None if steps is None else Tuning(TRAINING, steps, lr)
    space = trace(network, CALIBRATION[0][0])
    return Evaluator(network, space, CALIBRATION, VALIDATION, tuning=tuning, **options)


FIRST, SECOND, THIRD = Scheme((6, 6)), Scheme((6, 4)), Scheme((4, 4))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(named_tensors(one), named_tensors(other), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def cross_entropy(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    with torch.inference_mode():
        return float(np.mean([float(functional.cross_entropy(model.eval()(x), y)) for x, y in batches]))


# -- tuning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_tuning_lowers_the_loss_on_the_images_it_sees(network: nn.Module, seed: int) -> None:
    evaluator = make(network, None)
    candidate = evaluator.candidate(Scheme((3, 3)))
    before = cross_entropy(candidate, TRAINING)
    tune(candidate, Tuning(TRAINING, 30, 0.02), (seed,))
    assert cross_entropy(candidate, TRAINING) < 0.9 * before


def test_a_seed_decides_the_weights_and_the_global_stream_is_left_alone(network: nn.Module) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    digests = []
    for seed in ((0, 1), (0, 1), (0, 2)):
        candidate = copy.deepcopy(network)
        tune(candidate, Tuning(TRAINING, 3), seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        digests.append(models.digest(candidate))
    assert digests[0] == digests[1] != digests[2]


def test_modes_and_flags_come_back_and_frozen_parameters_are_trained_as_well(network: nn.Module) -> None:
    candidate = copy.deepcopy(network).eval()
    candidate[0].weight.requires_grad_(False)
    candidate[4].train()
    flags = [parameter.requires_grad for parameter in candidate.parameters()]
    modes = [module.training for module in candidate.modules()]
    with torch.no_grad():  # whatever the caller is in the middle of
        tune(candidate, Tuning(TRAINING, 2), (0,))
    assert [parameter.requires_grad for parameter in candidate.parameters()] == flags
    assert [module.training for module in candidate.modules()] == modes
    assert all(parameter.grad is None for parameter in candidate.parameters())
    assert not torch.equal(candidate[0].weight, network[0].weight)


def test_a_share_of_the_steps_is_rounded_up_and_every_batch_is_used_before_any_is_used_again() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tune(model, Tuning(TRAINING, 10), (0,), share=0.15)
    assert len(seen) == 2
    seen.clear()
    tune(model, Tuning(TRAINING, 2 * len(TRAINING)), (0,))
    numbers = [next(i for i, (x, _) in enumerate(TRAINING) if torch.equal(x, used)) for used in seen]
    rounds = numbers[: len(TRAINING)], numbers[len(TRAINING) :]
    assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(len(TRAINING)))
    assert rounds[0] != rounds[1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batches": []}, "no batch"),
        ({"steps": 0}, "steps = 0"),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"weight_decay": -1.0}, "weight decay = -1.0"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Tuning(**{"batches": TRAINING, **wrong})


# -- embedding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [networks.residual, networks.concatenation, networks.grouped, networks.flattened])
def test_pruning_an_embedded_network_gives_it_back_and_it_computes_the_same(made: Any) -> None:
    model, example, _ = made()
    model = networks.lively(model).double()
    space = trace(model, example)
    kept = networks.draw(space, np.random.default_rng(0))
    narrow = prune(model, space, kept)
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.mul_(1.5).add_(0.1)  # it has been trained
    wide = embed(model, space, kept, narrow)
    assert same(prune(wide, space, kept), narrow)
    assert [tensor.shape for _, tensor in named_tensors(wide)] == [tensor.shape for _, tensor in named_tensors(model)]
    with torch.no_grad():
        torch.testing.assert_close(wide(example), narrow(example))


def test_what_was_removed_is_zero_in_an_embedded_network(network: nn.Module) -> None:
    evaluator = make(network)
    kept = evaluator.kept(FIRST)
    wide = embed(network, evaluator.space, kept, evaluator.candidate(FIRST))
    gone = np.setdiff1d(np.arange(8), kept[0])
    assert not wide[0].weight[gone].any()
    assert not wide[3].weight[:, gone].any()
    assert wide[0].weight[kept[0]].abs().amin() > 0
    assert network[0].weight[gone].any()


# -- lineages --------------------------------------------------------------------------------------


def test_a_candidate_starts_from_the_tuned_weights_of_the_one_it_comes_after(network: nn.Module) -> None:
    evaluator = make(network)
    space, tuning = evaluator.space, evaluator.tuning
    assert tuning is not None

    def by_hand(origin: nn.Module, scheme: Scheme, number: int) -> nn.Module:
        kept = evaluator.kept(scheme)
        candidate = prune(origin, space, kept)
        context = Context(origin, space, kept, evaluator.statistics, evaluator.calibration, ranked=evaluator._ranked)
        with fixed_threads(evaluator.threads):  # another number of threads gives other last bits
            least_squares(candidate, context)
            recalibrate_bn(candidate, context)
            tune(candidate, tuning, (0, number))
            recalibrate_bn(candidate, context)
        return candidate

    first = by_hand(network, FIRST, 0)
    assert same(evaluator.candidate(FIRST), first)
    second = by_hand(embed(network, space, evaluator.kept(FIRST), first), SECOND, 1)
    assert same(evaluator.candidate(SECOND, Fidelity(after=(FIRST,))), second)
    third = by_hand(embed(network, space, evaluator.kept(SECOND), second), THIRD, 2)
    assert same(evaluator.candidate(THIRD, Fidelity(after=(FIRST, SECOND))), third)
    assert not same(evaluator.candidate(THIRD), third)


def test_a_lineage_that_nobody_remembers_is_trained_again_to_the_same_weights(network: nn.Module) -> None:
    way = Fidelity(after=(FIRST, SECOND))
    busy = make(network)
    remembered = busy.candidate(THIRD, way)
    for other in (Scheme((5, 6)), Scheme((6, 5)), Scheme((7, 6))):  # more lineages than are kept
        busy.candidate(THIRD, Fidelity(after=(other,)))
    assert same(busy.candidate(THIRD, way), remembered)
    assert same(make(network).candidate(THIRD, way), remembered)


def test_without_a_tuning_the_way_plays_no_part(network: nn.Module) -> None:
    evaluator = make(network, None)
    assert same(evaluator.candidate(SECOND, Fidelity(after=(FIRST,))), evaluator.candidate(SECOND))


def test_another_recovery_leaves_the_tuning_out(network: nn.Module) -> None:
    unrepaired = Fidelity(recovery="none")
    assert same(make(network).candidate(FIRST, unrepaired), make(network, None).candidate(FIRST, unrepaired))
    assert not same(make(network).candidate(FIRST), make(network, None).candidate(FIRST))


def test_a_scheme_that_grows_after_another_is_refused_where_it_grows(network: nn.Module) -> None:
    evaluator = make(network)
    with pytest.raises(UserError, match="group 3: 2 of the 6 units"):
        evaluator(FIRST, fidelity=Fidelity(after=(SECOND,)))
    best = evaluator.kept(FIRST)[0]
    others = Scheme((6, 4), indices=(tuple(range(6)), tuple(int(u) for u in evaluator.kept(SECOND)[1])))
    assert set(range(6)) != set(best)
    with pytest.raises(UserError, match="only ever removes"):
        evaluator(others, fidelity=Fidelity(after=(FIRST,)))


def test_only_a_tuning_changes_the_protocol(network: nn.Module) -> None:
    plain, tuned = make(network, None), make(network)
    assert "tuning" not in plain.protocol
    assert {key: value for key, value in tuned.protocol.items() if key != "tuning"} == plain.protocol
    assert tuned.protocol["tuning"]["data"] == {"batches": 8, "samples": 128}
    marks = {e.fingerprint for e in (plain, tuned, make(network, 7), make(network, 6, 0.03))}
    assert len(marks) == 4
    assert make(network).fingerprint == tuned.fingerprint
    assert (plain.hints().tuning, tuned.hints().tuning) == (False, True)


def test_the_dense_model_is_left_as_it_is(network: nn.Module) -> None:
    before = models.digest(network)
    make(network)(SECOND, fidelity=Fidelity(after=(FIRST,)))
    assert models.digest(network) == before
