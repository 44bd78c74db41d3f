from __future__ import annotations

import itertools

import pytest
import torch

from autoprune.obs import Reader, eliminate


def problem(units: int, size: int, outputs: int, extra: int = 0, seed: int = 0):
    """Rows that a layer reads and its weight; ``extra`` columns belong to nobody's unit."""
    generator = torch.Generator().manual_seed(seed)
    d = units * size + extra
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(40 * d, d, generator=generator, dtype=torch.float64) @ mix
    return x, torch.randn(d, outputs, generator=generator, dtype=torch.float64)


def reader(x: torch.Tensor, weight: torch.Tensor, columns: int) -> Reader:
    gram = x.T @ x / len(x)
    return Reader(
        torch.linalg.inv(gram)[:columns, :columns], weight[:columns], float((x @ weight).square().sum() / len(x))
    )


def refitted(x: torch.Tensor, weight: torch.Tensor, removed: list[int], size: int) -> float:
    """Squared error per row of the best weights on the columns that stay."""
    gone = {u * size + i for u in removed for i in range(size)}
    stays = [column for column in range(x.shape[1]) if column not in gone]
    target = x @ weight
    if not stays:
        return float(target.square().sum() / len(x))
    best = torch.linalg.lstsq(x[:, stays], target).solution
    return float((x[:, stays] @ best - target).square().sum() / len(x))


@pytest.mark.parametrize(
    ("units", "size", "outputs", "extra"), [(5, 1, 3, 0), (5, 1, 3, 4), (4, 3, 2, 0), (4, 2, 5, 3)]
)
def test_every_removal_is_the_cheapest_one_with_all_other_weights_refitted(units, size, outputs, extra):
    x, weight = problem(units, size, outputs, extra)
    one = reader(x, weight, units * size)
    scores = eliminate([one], units)
    removed: list[int] = []
    for unit in scores.argsort().tolist():
        costs = {u: refitted(x, weight, [*removed, u], size) for u in range(units) if u not in removed}
        assert unit == min(costs, key=lambda u: costs[u])
        removed.append(unit)
        # removals add up: the sum of the steps is the error of leaving out all of them at once
    first = int(scores.argmin())
    assert float(scores[first]) * one.energy == pytest.approx(refitted(x, weight, [first], size))


def test_the_running_errors_add_up_to_the_error_of_the_whole_set():
    x, weight = problem(5, 2, 3)
    one = reader(x, weight, 10)
    scores = eliminate([one], 5) * one.energy
    order = scores.argsort().tolist()
    steps = [refitted(x, weight, order[: n + 1], 2) - (refitted(x, weight, order[:n], 2) if n else 0) for n in range(5)]
    worst = list(itertools.accumulate(steps, max))
    assert [float(scores[unit]) for unit in order] == pytest.approx(worst)


def test_a_duplicated_unit_leaves_at_no_cost():
    x, weight = problem(5, 1, 3)
    x[:, 3] = x[:, 1]
    gram = x.T @ x / len(x) + 1e-9 * torch.eye(5)
    scores = eliminate([Reader(torch.linalg.inv(gram), weight, 1.0)], 5)
    assert min(scores[1], scores[3]) < 1e-6
    assert scores.sort().values[1] > 1e-3


def test_the_errors_of_several_readers_add_up():
    (x, weight), (y, other) = problem(4, 1, 3), problem(4, 3, 2, seed=1)
    readers = [reader(x, weight, 4), reader(y, other, 12)]
    scores = eliminate(readers, 4)
    costs = [refitted(x, weight, [u], 1) + refitted(y, other, [u], 3) for u in range(4)]
    first = int(scores.argmin())
    assert first == costs.index(min(costs))
    assert float(scores[first]) == pytest.approx(min(costs) / sum(r.energy for r in readers))


def test_scores_differ_so_that_ranking_by_them_repeats_the_order_of_removal():
    one = Reader(torch.eye(6, dtype=torch.float64), torch.ones(6, 2, dtype=torch.float64), 12.0)
    scores = eliminate([one], 6)
    assert len(scores.unique()) == 6
    assert scores.argsort(stable=True).tolist() == list(range(6))
    assert float(scores.max()) == pytest.approx(2 / 12)


def test_the_input_is_left_as_it_is():
    x, weight = problem(4, 2, 3)
    one = reader(x, weight, 8)
    inverse, kept = one.inverse.clone(), one.weight.clone()
    eliminate([one], 4)
    assert torch.equal(one.inverse, inverse)
    assert torch.equal(one.weight, kept)


def test_a_layer_that_never_answers_costs_nothing():
    one = Reader(torch.eye(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64), 0.0)
    assert eliminate([one], 3).tolist() == [0.0, 0.0, 0.0]
