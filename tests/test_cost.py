"""Costs against arrays that are really cut."""

from __future__ import annotations

import numpy as np
import pytest

import toy
from autoprune import cost
from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.space import Group, Layer, SearchSpace, Slice

SPACES = {
    "chain": toy.chain((4, 8, 6), pixels=(64, 16, 4)),
    "resnet": toy.resnet(blocks=2),
    "mixed": toy.mixed(),
}


def cut(space: SearchSpace, scheme: Scheme, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every tensor of the network after random units were deleted from it."""
    gone: dict[tuple[str, int], list[np.ndarray]] = {}
    for group, kept in zip(space.groups, scheme.kept, strict=True):
        removed = rng.permutation(group.units)[kept // group.unit :]
        for piece in group.slices:
            gone.setdefault((piece.path, piece.axis), []).append(piece.positions[removed].ravel())
    arrays = {path: np.empty(shape, dtype=np.int8) for path, shape in space.shapes.items()}
    for (path, axis), positions in gone.items():
        arrays[path] = np.delete(arrays[path], np.concatenate(positions), axis=axis)
    return arrays


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_costs_agree_with_arrays_that_were_cut(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    macs, params = cost.macs(space), cost.params(space)
    for _ in range(20):
        scheme = Scheme(tuple(int(rng.choice(group.counts)) for group in space.groups))
        arrays = cut(space, scheme, rng)
        assert params(scheme) == sum(array.size for array in arrays.values())
        assert macs(scheme) == sum(layer.positions * arrays[layer.weight].size for layer in space.layers)


def test_the_dense_cost_of_a_chain_is_the_sum_over_its_layers() -> None:
    space = toy.chain((4, 8), pixels=(64, 16), inputs=3, classes=10)
    assert cost.macs(space)(space.dense) == 64 * 4 * 3 * 9 + 16 * 8 * 4 * 9 + 10 * 8
    assert cost.params(space)(space.dense) == (4 * 3 * 9 + 2 * 4) + (8 * 4 * 9 + 2 * 8) + (10 * 8 + 10)


def test_a_layer_that_runs_twice_costs_twice_and_its_weights_once() -> None:
    once = toy.chain((4,))
    twice = SearchSpace(once.groups, (*once.layers, once.layers[0]), once.shapes)
    share = cost.layer_shares(once)["conv0"]
    assert cost.macs(twice)(twice.dense) == pytest.approx((1 + share) * cost.macs(once)(once.dense))
    assert cost.params(twice)(twice.dense) == cost.params(once)(once.dense)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_costs_at_whole_counts_are_the_costs_of_the_scheme(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    for function in (cost.macs(space), cost.params(space)):
        for _ in range(10):
            scheme = Scheme(tuple(int(rng.choice(group.counts)) for group in space.groups))
            assert function.at(np.array(scheme.kept, dtype=np.float64)) == pytest.approx(function(scheme))


def test_costs_between_whole_counts_are_products_of_fractional_lengths() -> None:
    space = toy.chain((4, 8), pixels=(64, 16), inputs=3, classes=10)
    a, b = 2.5, 3.25
    kept = np.array([a, b])
    assert cost.macs(space).at(kept) == pytest.approx(64 * a * 3 * 9 + 16 * b * a * 9 + 10 * b)
    assert cost.params(space).at(kept) == pytest.approx((a * 3 * 9 + 2 * a) + (b * a * 9 + 2 * b) + (10 * b + 10))
    sizes = cost.TensorSizes(space, ("conv1.weight", "head.bias"))
    assert sizes.at(kept) == pytest.approx([b * a * 9, 10])


def test_costs_never_fall_when_a_group_grows() -> None:
    for space in SPACES.values():
        for function in cost.costs(space).values():
            for g, group in enumerate(space.groups):
                values = [function(space.smallest.replace(g, count)) for count in group.counts]
                assert values == sorted(set(values))


def test_layer_shares_sum_to_one_and_follow_the_work() -> None:
    shares = cost.layer_shares(SPACES["chain"])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["conv0"] / shares["conv1"] == pytest.approx((64 * 4 * 3 * 9) / (16 * 8 * 4 * 9))


def test_an_unknown_cost_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="'flops' is unknown: use one of macs, params"):
        cost.costs(SPACES["mixed"], ("flops",))


def test_a_tensor_cut_along_three_axes_is_refused() -> None:
    slices = tuple(Slice("odd", "weight", axis, "through", toy.units(2)) for axis in range(3))
    space = SearchSpace(
        (Group("g", 2, slices, (1, 2)),), (Layer("odd", "conv", "odd.weight", 1),), {"odd.weight": (2, 2, 2)}
    )
    with pytest.raises(ValueError, match="odd.weight is cut along 3 axes"):
        cost.macs(space)
