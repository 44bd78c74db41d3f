"""The budget: what it reads and refuses, and that what it calls affordable is so, and no smaller than it must be."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

CHAIN = toy.chain((8, 16, 12), pixels=(64, 16, 4))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Chains of one to five groups, with coarse or fine counts, and the one with units, sums and concatenations."""
    if draw(st.integers(0, 4)) == 0:
        return toy.mixed()
    widths = draw(st.lists(st.integers(2, 24), min_size=1, max_size=5))
    pixels = [draw(st.sampled_from((1, 16, 256))) for _ in widths]
    return toy.chain(widths, pixels=pixels, step=draw(st.integers(1, 4)))


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    """One or two caps, anywhere between the smallest scheme and beyond the dense one."""
    space = draw(spaces())
    names = draw(st.sampled_from((("macs",), ("params",), ("macs", "params"))))
    everything = Budget.parse([f"{name}=100%" for name in names], space)
    caps = {name: low + draw(st.floats(0, 1.1)) * (high - low) for name, (low, high) in everything.reachable().items()}
    return Budget(space, caps, everything.costs)


def draw_rates(data: st.DataObject, space: SearchSpace) -> list[float]:
    return data.draw(st.lists(st.floats(0, 1), min_size=len(space), max_size=len(space)))


def larger_by_one_step(space: SearchSpace, scheme: Scheme) -> list[Scheme]:
    found = []
    for g, (group, kept) in enumerate(zip(space.groups, scheme.kept, strict=True)):
        found += [scheme.replace(g, count) for count in group.counts[group.counts.index(kept) + 1 :][:1]]
    return found


# --- fit, spend ---


@given(budget=budgets(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_fit_is_legal_affordable_and_maximal(budget: Budget, data: st.DataObject) -> None:
    scheme = budget.fit(draw_rates(data, budget.space))
    budget.space.check(scheme)
    assert all(budget.costs[name](scheme) <= cap * (1 + 1e-9) for name, cap in budget.caps.items())
    assert not any(budget.allows(larger) for larger in larger_by_one_step(budget.space, scheme))


@given(budget=budgets(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_fitting_the_rates_of_a_fitted_scheme_changes_nothing(budget: Budget, data: st.DataObject) -> None:
    scheme = budget.fit(draw_rates(data, budget.space))
    assert budget.fit(budget.space.rates(scheme)) == scheme


@given(budget=budgets(), data=st.data(), factor=st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_spend_only_grows_and_leaves_room_for_nothing(budget: Budget, data: st.DataObject, factor: float) -> None:
    before = budget.fit(draw_rates(data, budget.space))
    smaller = budget.space.floor(budget.space.rates(before) * min(factor, 1))
    after = budget.spend(smaller)
    assert budget.allows(after)
    assert all(grown >= kept for grown, kept in zip(after.kept, smaller.kept, strict=True))
    assert not any(budget.allows(larger) for larger in larger_by_one_step(budget.space, after))


def test_fit_keeps_the_proportions_up_to_rounding() -> None:
    space = toy.chain((100, 100, 100))
    wanted = np.array([0.2, 0.4, 0.3])
    rates = space.rates(Budget.parse("macs=10%", space).fit(wanted))
    assert rates / rates.sum() == pytest.approx(wanted / wanted.sum(), abs=0.01)


def test_fit_leaves_a_saturated_group_full_and_gives_the_rest_to_the_others() -> None:
    space = toy.chain((10, 100))
    scheme = Budget.parse("macs=60%", space).fit([1.0, 0.01])
    assert scheme.kept[0] == 10
    assert scheme.kept[1] > 1


@pytest.mark.parametrize("favoured", range(3))
def test_spend_prefers_the_group_that_is_furthest_below_its_wanted_rate(favoured: int) -> None:
    space = toy.chain((10, 10, 10))
    start = Scheme((5, 5, 5))
    room_for_one = Budget(space, {"channels": 16}, {"channels": lambda scheme: float(sum(scheme.kept))})
    goal = space.rates(start)
    goal[favoured] = 1.0
    assert room_for_one.spend(start, goal) == start.replace(favoured, 6)


def test_a_budget_above_the_dense_model_allows_everything() -> None:
    assert Budget.parse("macs=130%", CHAIN).fit([0.1, 0.9, 0.5]) == CHAIN.dense


def test_a_budget_that_only_the_smallest_scheme_meets_gives_that_scheme() -> None:
    low = Budget.parse("macs=100%", CHAIN).reachable()["macs"][0]
    assert Budget.parse(f"macs={low}", CHAIN).fit([1, 1, 1]) == CHAIN.smallest


@pytest.mark.parametrize("rates", [[1, 1], [1, 1, math.nan], [1, -0.1, 1], [[1, 1, 1]], [1, 1, math.inf]])
def test_fit_refuses_rates_that_are_none(rates: list[float]) -> None:
    with pytest.raises(UserError, match="fit needs 3 finite rates"):
        Budget.parse("macs=50%", CHAIN).fit(rates)


def test_every_cap_of_several_holds_and_the_fullest_one_is_the_load() -> None:
    budget = Budget.parse("macs=50%,params=30%", CHAIN)
    scheme = budget.fit([1, 1, 1])
    loads = [budget.costs[name](scheme) / budget.caps[name] for name in ("macs", "params")]
    assert max(loads) <= 1
    assert budget.load(scheme) == max(loads)


# --- cut ---


@given(budget=budgets(), data=st.data(), step=st.floats(0.001, 0.5))
@settings(max_examples=100, deadline=None)
def test_cut_is_the_mildest_cut_of_one_group_that_lowers_the_load_enough(
    budget: Budget, data: st.DataObject, step: float
) -> None:
    space = budget.space
    scheme = space.floor(draw_rates(data, space))
    for g, group in enumerate(space.groups):
        enough = [
            count
            for count in group.counts
            if count < scheme.kept[g] and budget.load(scheme.replace(g, count)) <= budget.load(scheme) - step + 1e-12
        ]
        expected = scheme.replace(g, max(enough)) if enough else None
        assert budget.cut(scheme, g, step) == expected


def test_a_cut_that_is_asked_for_exactly_is_found() -> None:
    budget = Budget.parse("macs=100%", CHAIN)
    for g, group in enumerate(CHAIN.groups):
        for count in group.counts[:-1]:
            wanted = CHAIN.dense.replace(g, count)
            assert budget.cut(CHAIN.dense, g, 1 - budget.load(wanted)) == wanted


# --- ceiling ---


@given(budget=budgets(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_an_episode_that_stays_under_the_ceiling_ends_inside_the_budget(budget: Budget, data: st.DataObject) -> None:
    prefix: list[int] = []
    for group in budget.space.groups:
        wall = budget.ceiling(prefix)
        wanted = data.draw(st.sampled_from(group.counts))
        prefix.append(min(wanted, wall))
    scheme = Scheme(tuple(prefix))
    budget.space.check(scheme)
    assert budget.allows(scheme)


def test_the_ceiling_is_the_largest_count_that_leaves_the_others_their_smallest() -> None:
    budget = Budget.parse("macs=40%", CHAIN)
    for first in (1, 4, 8):
        fitting = [count for count in CHAIN.groups[1].counts if budget.allows(Scheme((first, count, 1)))]
        assert budget.ceiling([first]) == max(fitting, default=1)


def test_the_greediest_episode_leaves_no_step_to_the_last_group() -> None:
    budget = Budget.parse("macs=40%", CHAIN)
    prefix: list[int] = []
    for _ in CHAIN.groups:
        prefix.append(budget.ceiling(prefix))
    last = CHAIN.groups[-1]
    assert prefix[-1] == last.width or not budget.allows(Scheme((*prefix[:-1], prefix[-1] + 1)))


# --- least ---


@given(budget=budgets(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_least_is_the_first_count_from_which_a_cap_can_be_reached_and_never_above_the_ceiling(
    budget: Budget, data: st.DataObject
) -> None:
    space = budget.space
    prefix = tuple(data.draw(st.sampled_from(group.counts)) for group in space.groups)
    for g, group in enumerate(space.groups):
        largest = Scheme((*prefix[:g], *space.largest.kept[g:]))
        reaching = [count for count in group.counts if budget.load(largest.replace(g, count)) >= 1]
        expected = min(min(reaching, default=group.counts[-1]), budget.ceiling(prefix[:g]))
        assert budget.least(prefix[:g]) == expected


@given(budget=budgets(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_an_episode_between_least_and_ceiling_fills_the_budget_but_for_a_step(
    budget: Budget, data: st.DataObject
) -> None:
    prefix: list[int] = []
    for group in budget.space.groups:
        low, high = budget.least(prefix), budget.ceiling(prefix)
        assert low <= high
        prefix.append(data.draw(st.sampled_from([count for count in group.counts if low <= count <= high])))
    scheme = Scheme(tuple(prefix))
    assert budget.allows(scheme)
    larger = larger_by_one_step(budget.space, scheme)
    assert not larger or budget.load(scheme) >= 1 or any(not budget.allows(grown) for grown in larger)


def test_the_least_of_a_budget_that_is_out_of_reach_from_above_is_everything() -> None:
    budget = Budget.parse("macs=130%", CHAIN)
    prefix: list[int] = []
    for _ in CHAIN.groups:
        prefix.append(budget.least(prefix))
    assert Scheme(tuple(prefix)) == CHAIN.dense


def test_the_least_leaves_the_rest_just_enough() -> None:
    space = toy.chain((10, 10))
    budget = Budget(space, {"channels": 14}, {"channels": lambda scheme: float(sum(scheme.kept))})
    assert budget.least([]) == 4
    assert [budget.least([first]) for first in (4, 7, 10)] == [10, 7, 4]


# --- reading and refusing ---


@pytest.mark.parametrize(
    ("text", "caps"),
    [
        ("macs=63M", {"macs": 63e6}),
        ("macs=63m", {"macs": 63e6}),
        ("macs=0.3G", {"macs": 0.3e9}),
        ("macs = 12k , params=1.2M", {"macs": 12e3, "params": 1.2e6}),
        (["macs=1e6", "params=500"], {"macs": 1e6, "params": 500}),
    ],
)
def test_caps_are_read_with_units(text: str | list[str], caps: dict[str, float]) -> None:
    assert Budget.parse(text, CHAIN).caps == pytest.approx(caps)


@pytest.mark.parametrize("name", ["macs", "params"])
def test_a_percentage_is_of_the_dense_model(name: str) -> None:
    budget = Budget.parse(f"{name}=37.5%", CHAIN)
    assert budget.caps[name] == pytest.approx(0.375 * budget.costs[name](CHAIN.dense))


def test_a_cost_of_the_users_own_is_a_cap_like_any_other() -> None:
    functions = {"channels": lambda scheme: float(sum(scheme.kept))}
    budget = Budget.parse("channels=50%", CHAIN, functions)
    assert sum(budget.fit([1, 1, 1]).kept) == sum(CHAIN.dense.kept) // 2
    with pytest.raises(UserError, match="unit 'M' is unknown, use one of % or none"):
        Budget.parse("channels=1M", CHAIN, functions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("50%", "'50%' cannot be read: write it like macs=50%"),
        ("", "cannot be read"),
        ("macs=50%,", "cannot be read"),
        ("macs<50%", "cannot be read"),
        ("macs=half", "cannot be read"),
        ("macs=1.2.3", "'1.2.3' is not a number"),
        ("flops=50%", "cost 'flops' is unknown, use one of macs, params"),
        ("macs=5MB", "unit 'MB' is unknown, use one of %, K, M, G, T or none"),
        ("macs=0%", "positive"),
        ("macs=-5M", "positive"),
        ("macs=1e999", "positive"),
        ("macs=50%,macs=1M", "macs is capped twice"),
    ],
)
def test_a_budget_that_cannot_be_read_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Budget.parse(text, CHAIN)
    assert "\n" not in str(caught.value)


def test_a_budget_without_a_cap_is_refused() -> None:
    with pytest.raises(UserError, match="at least one cap"):
        Budget(CHAIN, {}, {})


def test_a_cap_without_its_cost_function_is_refused() -> None:
    with pytest.raises(UserError, match="no cost function"):
        Budget(CHAIN, {"latency": 1.0}, {})


@pytest.mark.parametrize("text", ["macs=0.1%", "macs=99%,params=0.1%"])
def test_an_unreachable_budget_is_refused_with_the_range(text: str) -> None:
    budget = Budget.parse(text, CHAIN)
    name = "params" if "params" in text else "macs"
    low, high = budget.reachable()[name]
    assert (low, high) == (budget.costs[name](CHAIN.smallest), budget.costs[name](CHAIN.dense))
    for refuse in (budget.check, lambda: budget.fit([1, 1, 1])):
        with pytest.raises(UserError, match=f"{name}.* cannot be reached") as caught:
            refuse()
        assert f"{low:.4g} ({low / high:.1%}) to {high:.4g}" in str(caught.value)


def test_a_budget_travels_to_workers() -> None:
    budget = Budget.parse("macs=50%,params=70%", CHAIN)
    again = pickle.loads(pickle.dumps(budget))
    assert again.fit([1, 1, 1]) == budget.fit([1, 1, 1])


def test_load_is_monotone_in_every_group() -> None:
    budget = Budget.parse("macs=50%,params=50%", CHAIN)
    for g, group in enumerate(CHAIN.groups):
        loads = [budget.load(CHAIN.smallest.replace(g, count)) for count in group.counts]
        assert all(low <= high for low, high in itertools.pairwise(loads))
