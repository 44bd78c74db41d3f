"""Merging gradients that disagree: projection, reweighting, and where nothing happens."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from autoprune.errors import UserError
from autoprune.recipes.conflict import SUM, Integration, projected, reliability

SHAPE = (4, 3, 3, 3)
EPSILON = 1e-8  # as published


def gradients(count: int = 5, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed(found: list[Tensor], projection: str, seed: int = 0) -> list[Tensor]:
    """The projected gradients themselves, every tensor as one piece."""
    flat = torch.stack([g.flatten() for g in found])
    return list(projected((flat @ flat.T)[None], projection, stream(seed))[0] @ flat)


def merged(found: list[Tensor], how: Integration, seed: int = 0) -> Tensor:
    return how.merge([[g] for g in found], stream(seed))[0]


def by_hand(found: list[Tensor], how: Integration, seed: int) -> Tensor:
    """The paper's formulas on the vectors, one filter after another."""
    count, drawn = len(found), stream(seed)
    orders = [[j for j in torch.randperm(count, generator=drawn).tolist() if j != i] for i in range(count)]
    bent = []
    for i, order in enumerate(orders):
        pieces = []
        for number in range(len(found[i])) if how.per == "filter" else [slice(None)]:
            own = original = found[i][number].flatten()
            for j in order:
                other = found[j][number].flatten()
                current = original if how.projection == "last" else own
                inner = current @ other
                if inner < 0:
                    own = current - inner / (other @ other + EPSILON) * other
            pieces.append(own)
        bent.append(torch.cat(pieces).reshape(SHAPE))
    cosines = [cosine_similarity(b.flatten(), g.flatten(), dim=0) for b, g in zip(bent, found, strict=True)]
    r = torch.stack([((c + 1) / 2) ** how.alpha for c in cosines])
    return count * sum(weight * b for weight, b in zip(r / r.sum(), bent, strict=True))


@pytest.mark.parametrize("projection", ["sequential", "last"])
@pytest.mark.parametrize("per", ["filter", "tensor"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_published_formula(projection, per, alpha, seed) -> None:
    found, how = gradients(seed=seed), Integration(projection, per, alpha)
    torch.testing.assert_close(merged(found, how, seed), by_hand(found, how, seed))


@pytest.mark.parametrize("projection", ["sequential", "last"])
def test_of_two_gradients_each_ends_orthogonal_to_the_other(projection) -> None:
    conflicts = 0
    for seed in range(20):
        found = gradients(2, seed)
        flat = [g.flatten() for g in found]
        own = mixed(found, projection)
        if flat[0] @ flat[1] < 0:
            conflicts += 1
            bound = 2 * EPSILON  # of the denominator: the inner product that is left is <g1, g2> ε / (|g|² + ε)
            assert abs(own[0] @ flat[1]) < bound
            assert abs(own[1] @ flat[0]) < bound
        else:
            assert torch.equal(torch.stack(own), torch.stack(flat))
    assert 0 < conflicts < 20


@pytest.mark.parametrize("projection", ["sequential", "last"])
def test_a_norm_never_grows(projection) -> None:
    for seed in range(20):
        found = gradients(5, seed, (2, 2))  # few entries, so that most of them conflict
        for before, after in zip(found, mixed(found, projection, seed), strict=True):
            assert after.norm() <= before.norm() * (1 + 1e-12)


def test_the_two_ways_to_project_differ_and_neither_ends_all_conflicts() -> None:
    found = [torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0.0], [-1.0, 0.2], [-1.0, -0.9])]
    flat = torch.stack(found)
    for seed in range(6):
        sequential, last = (torch.stack(mixed(found, way, seed)) for way in ("sequential", "last"))
        assert not torch.allclose(sequential, last)
        assert float((sequential @ flat.T).min()) < -1e-3
        assert float((last @ flat.T).min()) < -1e-3


def test_the_last_conflict_alone_counts_in_the_released_way() -> None:
    """Whatever the order: the result is one single projection of the original."""
    found = gradients(4, 3, (2, 2))
    flat = [g.flatten() for g in found]
    for own, result in zip(flat, mixed(found, "last"), strict=True):
        single = [own] + [own - (own @ g) / (g @ g + EPSILON) * g for g in flat if own @ g < 0]
        assert any(torch.allclose(result, one) for one in single)


@pytest.mark.parametrize("projection", ["sequential", "last", "none"])
@pytest.mark.parametrize("per", ["filter", "tensor"])
def test_gradients_that_agree_are_summed(projection, per) -> None:
    one = gradients(1)[0]
    how = Integration(projection, per, alpha=1.0)
    torch.testing.assert_close(merged([one] * 5, how), 5 * one)
    agreeing = [one.abs(), 2 * one.abs(), one.abs() ** 2]
    torch.testing.assert_close(merged(agreeing, how), torch.stack(agreeing).sum(0))


def test_the_naive_way_is_the_plain_sum() -> None:
    found = gradients()
    assert torch.equal(merged(found, SUM), torch.stack(found).sum(0))
    assert torch.equal(merged(found, Integration("none", alpha=2.0)), torch.stack(found).sum(0))


def test_alpha_zero_sums_what_was_projected_and_more_of_it_trusts_the_straight() -> None:
    found = gradients(seed=1)
    torch.testing.assert_close(merged(found, Integration(per="tensor", alpha=0.0)), sum(
        own.reshape(SHAPE) for own in mixed(found, "sequential")
    ))  # fmt: skip
    flat = torch.stack([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.1]), torch.tensor([0.5, 1.0])]).double()
    gram = (flat @ flat.T)[None]
    bent = projected(gram, "sequential", stream())
    spread = []
    for alpha in (0.0, 0.5, 1.0, 4.0):
        weights = reliability(gram, bent, alpha)
        assert float(weights.sum()) == pytest.approx(1)
        assert int(weights.argmax()) == 2 or alpha == 0  # the third conflicts least
        spread.append(float(weights.max() - weights.min()))
    assert spread[0] == pytest.approx(0)
    assert spread == sorted(spread)


@pytest.mark.parametrize("projection", ["sequential", "last"])
def test_zero_gradients_do_no_harm(projection) -> None:
    how = Integration(projection)
    one, zero = gradients(1)[0], torch.zeros(SHAPE, dtype=torch.float64)
    assert torch.equal(merged([zero] * 3, how), zero)
    assert bool(merged([one, zero, -one], how).isfinite().all())
    direction = merged([one, zero], how)
    assert cosine_similarity(direction.flatten(), one.flatten(), dim=0) == pytest.approx(1)


def test_opposite_gradients_cancel() -> None:
    one = gradients(1)[0]
    assert float(merged([one, -one], Integration()).abs().max()) < 1e-6 * float(one.abs().max())


def test_a_filter_is_projected_by_itself_and_other_tensors_as_a_whole() -> None:
    """The first filters agree and the second conflict; a matrix has no filters."""
    one, other = torch.ones(2, 1, 1, 2), torch.stack([torch.ones(1, 1, 2), -torch.ones(1, 1, 2)])
    apart = merged([one, other], Integration(per="filter", alpha=0.0))
    torch.testing.assert_close(
        apart, torch.tensor([2.0, 0.0])[:, None, None, None].expand(2, 1, 1, 2), atol=1e-6, rtol=0
    )
    whole = merged([one, other], Integration(per="tensor", alpha=0.0))
    torch.testing.assert_close(whole, one + other)
    for seed in range(5):
        matrices = gradients(3, seed, (4, 6))
        ways = [merged(matrices, Integration(per=per)) for per in ("filter", "tensor")]
        assert torch.equal(*ways)


def test_several_tensors_are_merged_as_each_would_be_alone() -> None:
    shapes = [(4, 3, 3, 3), (5, 7), (6, 2, 1, 1), (3, 2, 5)]
    networks = [[torch.randn(shape, generator=stream(10 * n + k)) for k, shape in enumerate(shapes)] for n in range(4)]
    before = copy.deepcopy(networks)
    together = Integration().merge(networks, stream(7))
    for number, found in enumerate(together):
        alone = merged([network[number] for network in networks], Integration(), 7)
        assert found.shape == alone.shape == shapes[number]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, alone)
    assert all(
        torch.equal(a, b) for one, other in zip(networks, before, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_the_order_is_drawn_from_the_stream() -> None:
    found = gradients(5, 2, (1, 1, 2, 2))
    results = {tuple(merged(found, Integration(), seed).flatten().tolist()) for seed in range(10)}
    again = {tuple(merged(found, Integration(), seed).flatten().tolist()) for seed in range(10)}
    assert results == again
    assert len(results) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"projection": "cagrad"}, "'cagrad' is unknown: use one of sequential, last, none"),
        ({"per": "row"}, "'row' is unknown: use one of filter, tensor"),
        ({"alpha": -1.0}, "alpha = -1.0"),
        ({"alpha": math.nan}, "alpha = nan"),
    ],
)
def test_unknown_ways_are_refused(given, message) -> None:
    with pytest.raises(UserError, match=message):
        Integration(**given)
