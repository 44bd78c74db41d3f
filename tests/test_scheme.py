"""Schemes as values: what they refuse, and that JSON keeps them."""

from __future__ import annotations

import json

import pytest

from autoprune.errors import UserError
from autoprune.scheme import VERSION, Scheme


@pytest.mark.parametrize(
    "scheme",
    [Scheme((3, 1)), Scheme((2, 5), "weight"), Scheme((4,), "n:m"), Scheme((2, 1), indices=((0, 3), (2,))), Scheme(())],
)
def test_a_scheme_survives_json(scheme: Scheme) -> None:
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


def test_schemes_with_equal_counts_are_one_key() -> None:
    assert len({Scheme((3, 1)), Scheme([3, 1]), Scheme((3.0, 1.0)), Scheme((1, 3))}) == 2  # type: ignore[arg-type]


def test_supplied_indices_and_granularity_make_another_scheme() -> None:
    assert (
        len({Scheme((1,)), Scheme((1,), indices=((0,),)), Scheme((1,), indices=((1,),)), Scheme((1,), "weight")}) == 4
    )


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_a_count_that_is_no_positive_whole_number_is_refused_with_its_place(count: float) -> None:
    with pytest.raises(UserError, match=r"kept\[1\]"):
        Scheme((4, count))  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", [((0,),), ((0,), (1, 0)), ((0,), (1, 1)), ((-1,), (0, 1))])
def test_indices_that_do_not_ascend_or_miss_a_group_are_refused(indices: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(UserError, match="indices"):
        Scheme((1, 2), indices=indices)


def test_an_unknown_granularity_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="channel, weight, n:m"):
        Scheme((1,), "filter")  # type: ignore[arg-type]


def test_a_newer_record_is_refused() -> None:
    with pytest.raises(UserError, match="update autoprune"):
        Scheme.from_dict(Scheme((1,)).to_dict() | {"version": VERSION + 1})


def test_replace_changes_one_group_and_drops_the_indices_that_no_longer_hold() -> None:
    before = Scheme((3, 1), "weight", indices=((0, 1, 2), (5,)))
    assert before.replace(0, 2) == Scheme((2, 1), "weight")
    assert before.kept == (3, 1)
