"""Schemes from rates, and as rates and tables."""

from __future__ import annotations

import pytest

from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace
from toy import chain, mixed


def test_rates_become_the_nearest_legal_counts():
    space = chain([8, 12, 16])
    assert Scheme.from_rates([0.5, 0.5, 0.25], space) == Scheme((4, 6, 4))
    assert Scheme.from_rates([0.5, 0.5, 0.25], space, "removed") == Scheme((4, 6, 12))
    assert Scheme.from_rates([1.0, 0.01, 0.99], space) == Scheme((8, 1, 16))
    coarse = chain([16, 16], step=8)
    assert Scheme.from_rates([0.6, 0.9], coarse) == Scheme((8, 16))
    assert Scheme.from_rates([0.5, 1.0, 1.0, 1.0], mixed()).kept[0] == 4


def test_rates_by_name_leave_the_rest_whole():
    space = chain([8, 12, 16])
    assert Scheme.from_rates({"conv1": 0.25}, space) == Scheme((8, 3, 16))
    assert Scheme.from_rates({"conv1": 0.25, "conv0": 0}, space, "removed") == Scheme((8, 9, 16))
    assert Scheme.from_rates({}, space) == space.dense


def test_rates_in_both_directions_give_the_scheme_back():
    space = chain([7, 12, 37])
    for scheme in (Scheme((3, 7, 30)), space.dense, space.smallest):
        for direction in ("kept", "removed"):
            rates = scheme.rates(space, direction)
            assert list(rates) == ["conv0", "conv1", "conv2"]
            assert Scheme.from_rates(rates, space, direction) == scheme
    assert Scheme((2, 3, 37)).rates(space) == {"conv0": 2 / 7, "conv1": 0.25, "conv2": 1.0}
    assert Scheme((2, 3, 37)).rates(space, direction="removed")["conv1"] == 0.75


def test_a_scheme_is_a_table_with_a_row_per_group():
    frame = Scheme((2, 12, 4)).to_frame(chain([8, 12, 16]))
    assert list(frame.columns) == ["original", "kept", "removed", "rate_kept", "rate_removed"]
    assert list(frame.index) == ["conv0", "conv1", "conv2"] and frame.index.name == "group"
    assert frame.loc["conv0"].tolist() == [8, 2, 6, 0.25, 0.75]
    assert frame["original"].dtype == "int64" and (frame["kept"] + frame["removed"] == frame["original"]).all()


def test_the_granularity_is_the_spaces():
    space = chain([8])
    assert Scheme.from_rates([0.5], SearchSpace(space.groups, (), space.shapes, granularity="weight")) == Scheme(
        (4,), "weight"
    )


@pytest.mark.parametrize(
    ("rates", "direction", "message"),
    [
        ([0.5], "kept", "1 rates are given, the search space has 2 groups"),
        ({"conv7": 0.5}, "kept", "no group is called 'conv7'"),
        ([0.5, 0.0], "kept", "group conv1: rate kept = 0.0 is not above 0 and at most 1"),
        ([0.5, 1.5], "kept", "rate kept = 1.5"),
        ([0.5, float("nan")], "kept", "rate kept = nan"),
        ([1.0, 0.5], "removed", "group conv0: rate removed = 1.0 is not at least 0 and below 1"),
        ([-0.1, 0.5], "removed", "rate removed = -0.1"),
        ([0.5, 0.5], "pruned", "direction 'pruned' is unknown: rates are of channels 'kept' or 'removed'"),
    ],
)
def test_rates_that_mean_nothing_are_refused(rates, direction, message):
    with pytest.raises(UserError, match=message):
        Scheme.from_rates(rates, chain([8, 12]), direction)


def test_a_scheme_of_another_space_has_no_rates():
    with pytest.raises(UserError, match="the scheme has 1 groups, the search space 2"):
        Scheme((3,)).rates(chain([8, 12]))
    with pytest.raises(UserError, match="the scheme has 1 groups"):
        Scheme((3,)).to_frame(chain([8, 12]))
