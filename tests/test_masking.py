"""Sparse candidates: exactly the masks of :mod:`autoprune.masks`, and repairs that leave zeros zero."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import toy
from autoprune import criteria, masking, masks, recover
from autoprune.criteria import entries
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import Fidelity
from autoprune.recover import Context
from autoprune.scheme import Scheme
from autoprune.search_spaces import weights
from autoprune.space import SearchSpace
from autoprune.statistics import Statistics
from autoprune.tuning import Tuning

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [(torch.randn(16, 4, 6, 6, generator=GENERATOR), torch.arange(16) % 5) for _ in range(3)]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip


def space_of(net: nn.Module, pattern: str | None = None) -> SearchSpace:
    return weights.define(net, BATCHES[0][0], levels=20, pattern=pattern)


def evaluator(net: nn.Module, pattern: str | None = None, **options: object) -> Evaluator:
    return Evaluator(net, space_of(net, pattern), BATCHES[:2], BATCHES[2:], **options)


def random_scores(space: SearchSpace, ties: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 4, g.width).astype(float) if ties else rng.random(g.width) for g in space.groups]


# --- masks ---


@pytest.mark.parametrize("ties", [True, False])
def test_a_comparison_of_ranks_keeps_the_highest_scores(ties: bool) -> None:
    space = toy.sparse()
    scores = random_scores(space, ties)
    ranks = masking.order(space, scores)
    for scheme in (space.smallest, space.floor([0.3, 0.5, 0.9]), space.dense):
        for group, score, mask, count in zip(
            space.groups, scores, masking.best(space, scheme, ranks), scheme.kept, strict=True
        ):
            shape = space.shapes[str(group.tensor)]
            assert mask.shape == shape
            expected = masks.highest(torch.from_numpy(score).reshape(shape), count)
            assert np.array_equal(mask, expected.numpy())


@pytest.mark.parametrize("ties", [True, False])
def test_under_n_of_m_the_highest_of_every_block_stay(ties: bool) -> None:
    space = toy.sparse(m=4)
    scores = random_scores(space, ties)
    for rate in (0.25, 0.5, 0.75, 1.0):
        scheme = space.floor([rate] * len(space))
        found = masking.choose(space, scheme, scores)
        for group, score, mask, count in zip(space.groups, scores, found, scheme.kept, strict=True):
            dense = torch.from_numpy(score).reshape(space.shapes[str(group.tensor)])
            assert np.array_equal(mask, masks.highest_of(dense, count // group.unit, 4).numpy())


def test_unit_scores_of_blocks_rank_best_second_and_so_on() -> None:
    space = toy.sparse(m=4)
    scores = random_scores(space, ties=False)
    for group, score, units in zip(space.groups, scores, masking.unit_scores(space, scores), strict=True):
        shape = space.shapes[str(group.tensor)]
        blocks = torch.from_numpy(score).reshape(shape).movedim(1, -1).reshape(-1, 4)
        assert units == pytest.approx(blocks.sort(1, descending=True).values.sum(0).numpy())
    assert masking.unit_scores(toy.sparse(), scores[:3]) == scores[:3]


# --- networks ---


@pytest.mark.parametrize("pattern", [None, "any:4"])
def test_a_candidate_has_the_dense_weights_and_zeros(net: nn.Module, pattern: str | None) -> None:
    space = space_of(net, pattern)
    before = copy.deepcopy(net.state_dict())
    scheme = space.floor([0.5] * len(space))
    kept = masking.choose(space, scheme, random_scores(space, ties=False))
    pruned = masking.prune(net, space, kept)
    for name, tensor in pruned.state_dict().items():
        mask = masking.by_name(space, kept).get(name)
        assert torch.equal(tensor, before[name] if mask is None else before[name] * mask)
        assert torch.equal(net.state_dict()[name], before[name])
    masking.check_removed(pruned, space, scheme)
    assert masking.non_zero(pruned.state_dict(), space) == scheme
    assert not {id(p) for p in pruned.parameters()} & {id(p) for p in net.parameters()}


def test_weights_that_came_back_are_refused(net: nn.Module) -> None:
    space = space_of(net)
    with pytest.raises(UserError, match=r"0\.weight has 288 weights that are not zero where the scheme keeps 14"):
        masking.check_removed(net, space, space.smallest)
    blocks = space_of(net, "2:4")
    half = Scheme(tuple(group.counts[0] for group in blocks.groups), "n:m")
    sparse = masking.prune(net, blocks, masking.choose(blocks, half, random_scores(blocks, ties=False)))
    with torch.no_grad():
        weight = sparse.get_parameter("5.weight")
        first = weight[0, :4] != 0
        weight[1, :4], weight[0, :4] = 0, 1.0  # as many weights, but all of one block
        assert int(first.sum()) == 2
    with pytest.raises(UserError, match="4 weights that are not zero in a block of 4, where the scheme keeps 2"):
        masking.check_removed(sparse, blocks, half)


@pytest.mark.parametrize("pattern", [None, "any:4"])
@pytest.mark.parametrize(
    "recovery", ["none", "recalibrate_bn", "fine_tune,steps=5", "fine_tune,steps=3+recalibrate_bn", "obc"]
)
def test_repairs_leave_zeros_zero(net: nn.Module, pattern: str | None, recovery: str) -> None:
    judge = evaluator(net, pattern, recovery=recovery)
    scheme = judge.space.floor([0.5] * len(judge.space))
    candidate = judge.candidate(scheme)
    wanted = masking.by_name(judge.space, judge.kept(scheme))
    found = masks.present(candidate, list(wanted))
    assert all(bool((~found[name] | mask).all()) for name, mask in wanted.items())
    assert sum(int(mask.sum()) for mask in found.values()) >= 0.95 * sum(scheme.kept)
    assert not judge(scheme).failed


def test_tuned_candidates_stay_sparse_and_start_from_those_before(net: nn.Module) -> None:
    judge = evaluator(net, tuning=Tuning(BATCHES[:1], steps=3))
    half, fewer = (judge.space.floor([rate] * len(judge.space)) for rate in (0.5, 0.2))
    for fidelity in (Fidelity(), Fidelity(after=(half,))):
        candidate = judge.candidate(fewer, fidelity)
        masking.check_removed(candidate, judge.space, fewer)
    alone, after = (judge(fewer, fidelity=fidelity) for fidelity in (Fidelity(), Fidelity(after=(half,))))
    assert alone.loss != after.loss
    with pytest.raises(UserError, match="a lineage only ever removes"):
        judge.candidate(half, Fidelity(after=(fewer,)))


def test_a_repair_that_brings_weights_back_fails_the_candidate(net: nn.Module) -> None:
    def careless(candidate: nn.Module, context: Context) -> None:
        with torch.no_grad():
            candidate.get_parameter("5.weight").add_(1.0)

    judge = evaluator(net, recovery=careless)
    assert "5.weight has 40 weights that are not zero" in (judge(judge.space.smallest).error or "")


def test_the_same_scheme_is_measured_alike_and_an_uncut_one_is_the_dense_network(net: nn.Module) -> None:
    judge = evaluator(net)
    scheme = judge.space.floor([0.4] * len(judge.space))
    assert judge(scheme).loss == judge(scheme).loss == evaluator(net)(scheme).loss
    assert judge(judge.space.dense, fidelity=Fidelity(recovery="none")).loss == pytest.approx(judge.dense.loss)
    assert judge.criterion == "magnitude"
    assert judge.recovery == "recalibrate_bn"
    assert judge.dense.costs["weights"] == judge.space.widths.sum()


def test_gram_matrices_are_those_of_every_tensor(net: nn.Module) -> None:
    for pattern in (None, "2:4"):
        space = space_of(net, pattern)
        grams = Statistics(net, space, BATCHES).grams
        assert list(grams) == [group.tensor for group in space.groups]
        sizes = {path: net.get_parameter(path)[0].numel() for path in grams}
        assert all(gram.covariance.shape[1:] == (sizes[path], sizes[path]) for path, gram in grams.items())


# --- criteria ---


def test_criteria_of_weights_by_their_formulas(net: nn.Module) -> None:
    space = space_of(net)
    statistics = Statistics(net, space, BATCHES)

    def scored(name: str) -> list[np.ndarray]:
        return criteria.scores(criteria.find(name, "weight"), net, statistics)

    for at, group in enumerate(space.groups):
        weight = net.get_parameter(str(group.tensor)).detach().double().flatten()
        assert np.array_equal(scored("magnitude")[at], weight.abs().numpy())
        assert scored("layer_normalised")[at] == pytest.approx((weight.abs() / weight.norm()).numpy())
        squares = weight.square()
        expected = [float(w / squares[squares >= w].sum()) for w in squares]
        assert scored("lamp")[at] == pytest.approx(np.array(expected))
        assert scored("random")[at].shape == (group.width,)
        assert np.array_equal(scored("random,seed=3")[at], scored("random,seed=3")[at])
        assert not np.array_equal(scored("random,seed=3")[at], scored("random")[at])


def test_taylor_predicts_what_zeroing_a_weight_does_to_the_loss(net: nn.Module) -> None:
    double = copy.deepcopy(net).double()
    batches = [(inputs.double(), labels) for inputs, labels in BATCHES]
    space = weights.define(double, batches[0][0])
    found = criteria.scores(criteria.find("taylor", "weight"), double, Statistics(double, space, batches))[-1]
    weight = double.get_parameter("5.weight")
    step = 1e-4
    for position in (0, 17, 39):
        effects = []
        for inputs, labels in batches:
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight.view(-1)[position] *= 1 + sign * step
                    losses.append(float(nn.functional.cross_entropy(double(inputs), labels)))
                    weight.view(-1)[position] /= 1 + sign * step
            effects.append(abs(losses[0] - losses[1]) / (2 * step))
        assert found[position] == pytest.approx(np.mean(effects), rel=1e-4)


def test_frozen_weights_have_effects_too_and_stay_frozen(net: nn.Module) -> None:
    frozen = copy.deepcopy(net).requires_grad_(False)
    space = space_of(net)
    expected = Statistics(net, space, BATCHES).weight_effects()
    found = Statistics(frozen, space, BATCHES).weight_effects()
    assert all(torch.equal(found[path], expected[path]) for path in expected)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize(
    ("criterion", "granularity", "message"),
    [
        ("l1", "weight", "criterion l1 scores channels, and this search space removes weights: use magnitude"),
        ("obs,ridge=0.1", "n:m", "criterion obs scores channels"),
        (criteria.l2, "weight", "criterion l2 scores channels"),
        (partial(criteria.taylor, target="answers"), "weight", "criterion taylor scores channels"),
        ("magnitude", "channel", "criterion magnitude scores weights, and this search space removes channels"),
        (entries.lamp, "channel", "criterion lamp scores weights"),
    ],
)
def test_criteria_of_the_other_kind_are_refused(criterion: object, granularity: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        criteria.find(criterion, granularity)


@pytest.mark.parametrize("name", ["least_squares", "sequential,images=64", "none+least_squares"])
def test_repairs_of_channels_are_refused_and_say_what_to_use(net: nn.Module, name: str) -> None:
    with pytest.raises(UserError, match=r"does not repair networks that lost weights: use none, .*obc"):
        evaluator(net, recovery=name)
    with pytest.raises(UserError, match=r"obc does not repair networks that lost channels"):
        recover.find("obc")


def test_a_criterion_of_ones_own_gives_a_score_per_weight(net: nn.Module) -> None:
    with pytest.raises(UserError, match=r"gave shape \(2,\) for 0\.weight: one score per weight, \(8, 4, 3, 3\)"):
        evaluator(net, criterion=lambda group, model, statistics: torch.ones(2)).scores  # noqa: B018
    upside_down = evaluator(net, criterion=lambda group, model, _: -model.get_parameter(group.tensor).abs())
    usual = evaluator(net)
    scheme = usual.space.floor([0.5] * len(usual.space))
    for low, high in zip(upside_down.kept(scheme), usual.kept(scheme), strict=True):
        assert not (low & high).any() or int((low & high).sum()) <= 1
