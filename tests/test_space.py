"""The search space: legal counts, the way between rates and counts, and what a space refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.space import Group, SearchSpace, Slice

SPACES = {"chain": toy.chain((4, 8, 6)), "steps": toy.chain((16, 10), step=4), "mixed": toy.mixed()}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_scheme_comes_back_from_its_rates(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scheme = Scheme(tuple(int(rng.choice(group.counts)) for group in space.groups))
        assert space.floor(space.rates(scheme)) == scheme


@given(rates=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_floor_keeps_at_most_the_rates_and_one_more_step_would_be_too_much(rates: list[float]) -> None:
    space = SPACES["mixed"]
    scheme = space.floor(rates)
    space.check(scheme)
    for group, kept, rate in zip(space.groups, scheme.kept, rates, strict=True):
        assert kept <= rate * group.width + 1e-6 or kept == group.counts[0]
        assert all(count <= kept or count > rate * group.width for count in group.counts)


def test_dense_and_smallest_are_the_ends_of_the_space() -> None:
    space = SPACES["steps"]
    assert space.dense.kept == (16, 10)
    assert space.smallest.kept == (4, 4)
    assert space.rates(space.dense).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Scheme((4, 6)), "has 2 groups, the search space 4"),
        (Scheme((3, 6, 5, 4)), "group stem: 3 kept channels is not a legal count .*by 2"),
        (Scheme((8, 6, 5, 9)), r"group join: 9 kept channels is not a legal count \(1..4\)"),
        (Scheme((2, 2, 1, 1), indices=((0, 1), (0,), (0,), (0,))), "group stem: the kept indices"),
        (Scheme((2, 2, 1, 1), indices=((4,), (0,), (0,), (0,))), "group stem: the kept indices"),
    ],
)
def test_an_illegal_scheme_is_refused_by_the_name_of_the_group(scheme: Scheme, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SPACES["mixed"].check(scheme)


def test_indices_count_units_not_channels() -> None:
    space = SPACES["mixed"]
    space.check(Scheme((4, 2, 1, 1), indices=((0, 3), (2,), (4,), (0,))))
    assert space.groups[0].channels([0, 3]) == [0, 3, 4, 7]


@pytest.mark.parametrize("counts", [(), (1, 2), (4, 2), (2, 2, 4), (1, 3, 4)])
def test_a_group_refuses_counts_that_do_not_ascend_in_units_to_its_width(counts: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="group g: counts"):
        Group("g", 4, (), counts, unit=2)


def test_a_group_refuses_a_slice_that_lists_other_units() -> None:
    with pytest.raises(UserError, match=r"group g: conv.weight does not list 2 units"):
        Group("g", 4, (Slice("conv", "weight", 0, "out", toy.units(4)),), (2, 4), unit=2)


def test_members_are_named_once_and_in_order() -> None:
    assert SPACES["chain"].groups[0].members == ("conv0", "bn0", "conv1")


def test_two_groups_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="same name"):
        SearchSpace((Group("g", 1, (), (1,)), Group("g", 2, (), (2,))), (), {})


def test_a_group_is_found_by_its_name() -> None:
    assert SPACES["chain"].index("conv2") == 2
    with pytest.raises(UserError, match="no group is called 'conv9'"):
        SPACES["chain"].index("conv9")


def test_the_fingerprint_is_stable_and_sees_every_change() -> None:
    space = SPACES["chain"]
    first, *others = space.groups
    changed = [
        dataclasses.replace(space, groups=(dataclasses.replace(first, name="other"), *others)),
        dataclasses.replace(space, groups=(dataclasses.replace(first, counts=first.counts[1:]), *others)),
        dataclasses.replace(space, groups=(dataclasses.replace(first, slices=first.slices[:-1]), *others)),
        dataclasses.replace(space, groups=(*others, first)),
        dataclasses.replace(space, layers=space.layers[:-1]),
        dataclasses.replace(space, shapes={**space.shapes, "more": (1,)}),
    ]
    assert toy.chain((4, 8, 6)).fingerprint == space.fingerprint
    assert len({space.fingerprint, *(other.fingerprint for other in changed)}) == 1 + len(changed)
