"""Walls: an episode ends within the budget whatever the agent asks for, and what each wall promises beyond that."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from autoprune import models
from autoprune.budget import SLACK, Budget
from autoprune.envs.walls import WALLS, Wall, none, one_sided, release, two_sided
from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.search_spaces.named import limit, round_to
from autoprune.search_spaces.traced import trace
from autoprune.space import Group, SearchSpace

SAFE = (one_sided, two_sided)
EXTREMES = (0.0, 0.5, 1.0)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Chains with fine or coarse counts, some of them limited from above, a small ResNet, and the odd one."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return toy.mixed()
    if kind == 1:
        return toy.resnet(blocks=1)
    widths = draw(st.lists(st.integers(2, 24), min_size=1, max_size=6))
    space = toy.chain(
        widths, pixels=[draw(st.sampled_from((1, 16, 256))) for _ in widths], step=draw(st.integers(1, 5))
    )
    last = space.groups[-1]
    return limit(space, {last.name: (0, 0.7)}) if kind == 2 and last.counts[0] <= 0.7 * last.width else space


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    """One cap or two, from the smallest scheme that there is to beyond the dense one."""
    space = draw(spaces())
    names = draw(st.sampled_from((("macs",), ("params",), ("macs", "params"))))
    dense = Budget.parse([f"{name}=100%" for name in names], space)
    share = st.sampled_from((0.0, 0.5, 1.0)) | st.floats(0, 1.1)
    return Budget(
        space, {name: low + draw(share) * (high - low) for name, (low, high) in dense.reachable().items()}, dense.costs
    )


def wishes(length: int) -> st.SearchStrategy[list[float]]:
    """Rates as an agent may ask for them: anything, only extremes, or always the same."""
    anything = st.lists(st.floats(0, 1), min_size=length, max_size=length)
    extreme = st.lists(st.sampled_from(EXTREMES), min_size=length, max_size=length)
    return anything | extreme | st.sampled_from(EXTREMES).map(lambda rate: [rate] * length)


def play(wall: Wall, budget: Budget, rates: Sequence[float]) -> Scheme:
    clip = wall(budget)
    kept: tuple[int, ...] = ()
    for rate in rates:
        kept = (*kept, clip(kept, rate))
    return Scheme(kept)


def grown(space: SearchSpace, scheme: Scheme, group: int) -> Scheme:
    counts = space.groups[group].counts
    return scheme.replace(group, counts[bisect_right(counts, scheme.kept[group])])


def below_largest(space: SearchSpace, scheme: Scheme) -> list[int]:
    return [g for g, (kept, most) in enumerate(zip(scheme.kept, space.largest.kept, strict=True)) if kept < most]


# -- within the budget ---------------------------------------------------------------------------


@pytest.mark.parametrize("wall", SAFE)
@given(budget=budgets(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_episode_ends_legal_and_within_the_budget(wall: Wall, budget: Budget, data: st.DataObject) -> None:
    scheme = play(wall, budget, data.draw(wishes(len(budget.space))))
    assert all(count in group.counts for group, count in zip(budget.space.groups, scheme.kept, strict=True))
    assert all(budget.costs[name](scheme) <= cap * (1 + 1e-9) for name, cap in budget.caps.items())


@pytest.mark.parametrize("wall", SAFE)
@given(budget=budgets(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_scheme_that_needs_no_clipping_is_kept_as_asked(wall: Wall, budget: Budget, data: st.DataObject) -> None:
    """Both walls leave alone what fits and leaves no room: any result of theirs, and one-sided all that fits."""
    space = budget.space
    fitting = play(wall, budget, data.draw(wishes(len(space))))
    assert play(wall, budget, list(space.rates(fitting))) == fitting


@given(space=spaces(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_without_a_wall_every_group_takes_the_nearest_legal_count(space: SearchSpace, data: st.DataObject) -> None:
    rates = data.draw(wishes(len(space)))
    kept = play(none, Budget.parse("macs=100%", space), rates).kept
    for group, rate, count in zip(space.groups, rates, kept, strict=True):
        assert abs(count - rate * group.width) == min(abs(legal - rate * group.width) for legal in group.counts)


# -- and using it up -----------------------------------------------------------------------------


@given(budget=budgets(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_after_two_sided_clipping_the_last_group_with_room_could_not_take_one_step_more(
    budget: Budget, data: st.DataObject
) -> None:
    """Exactly what ``two_sided`` guarantees, unless the budget is full or all groups are at their largest.

    While the groups to come could fill the budget, ``least`` keeps it so; if that holds to the end, a cap is full.
    It first fails at a group where ``ceiling`` is below ``least``: the next count does not even fit with all later
    groups at their smallest, and with this one they fit at their largest, which is what both bounds then say.
    """
    space = budget.space
    scheme = play(two_sided, budget, data.draw(wishes(len(space))))
    room = below_largest(space, scheme)
    if not room or budget.load(scheme) >= 1:
        return
    last = room[-1]
    assert not budget.allows(grown(space, scheme, last))
    cheapest = Scheme((*grown(space, scheme, last).kept[: last + 1], *space.smallest.kept[last + 1 :]))
    assert not budget.allows(cheapest)


@given(budget=budgets(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_two_sided_clipping_leaves_less_than_one_step_of_one_group_unused(budget: Budget, data: st.DataObject) -> None:
    space = budget.space
    scheme = play(two_sided, budget, data.draw(wishes(len(space))))
    steps = [budget.load(grown(space, scheme, g)) - budget.load(scheme) for g in below_largest(space, scheme)]
    assert scheme == space.largest or 1 - budget.load(scheme) <= max(steps) + SLACK


def test_one_group_of_coarse_counts_is_as_near_below_the_budget_as_it_gets() -> None:
    space = toy.chain((12,), step=5)  # 5, 10, 12
    budget = Budget.parse("macs=75%", space)  # of 9 channels
    assert {play(two_sided, budget, [rate]).kept for rate in EXTREMES} == {(5,)}


def test_an_agent_that_asks_for_little_is_given_the_budget_all_the_same() -> None:
    space = toy.chain((10, 10, 10))
    budget = Budget.parse("macs=50%", space)
    assert play(one_sided, budget, [0, 0, 0]) == space.smallest
    little = play(two_sided, budget, [0, 0, 0])
    assert budget.allows(little)
    assert not budget.allows(grown(space, little, 2))
    assert little.kept[0] < little.kept[1]  # it got its way at first, and the others had to make up for it


def test_a_budget_of_everything_keeps_everything() -> None:
    space = toy.mixed()
    for text in ("macs=100%", "macs=130%", "macs=100%,params=100%"):
        assert play(two_sided, Budget.parse(text, space), [0, 0, 0, 0]) == space.dense


def test_the_smallest_reachable_budget_leaves_no_choice() -> None:
    space = toy.mixed()
    budget = Budget.parse(f"macs={Budget.parse('macs=100%', space).reachable()['macs'][0]}", space)
    for wall in SAFE:
        assert play(wall, budget, [1, 1, 1, 1]) == space.smallest


RESNET, CHAIN = toy.resnet(), toy.chain((32, 64, 64, 32))


@cache
def random_costs(wall: Wall, space: SearchSpace, cap: float, episodes: int = 30) -> list[float]:
    """Fractions of the dense multiply-adds after uniformly random wishes."""
    budget, rng = Budget.parse(f"macs={cap:%}", space), np.random.default_rng(0)
    macs = budget.costs["macs"]
    schemes = [play(wall, budget, list(rng.uniform(size=len(space)))) for _ in range(episodes)]
    return [macs(scheme) / macs(space.dense) for scheme in schemes]


@pytest.mark.parametrize(
    ("space", "cap"),
    [(RESNET, 0.5), (RESNET, 0.7), (CHAIN, 0.5)],
    ids=["resnet 50 %", "resnet 70 %", "chain 50 %"],
)
def test_random_episodes_of_the_two_sided_wall_lie_at_the_budget(space: SearchSpace, cap: float) -> None:
    everything = Budget.parse("macs=100%", space)
    step = max(
        everything.load(space.dense) - everything.load(space.dense.replace(g, group.counts[-2]))
        for g, group in enumerate(space.groups)
    )
    two = random_costs(two_sided, space, cap)
    assert cap - step < min(two) <= np.mean(two) <= max(two) <= cap + 1e-9


def test_random_episodes_of_the_one_sided_wall_leave_much_of_the_budget_unused() -> None:
    """Groups of toy.resnet are independent, so random rates average a half; in a chain they multiply."""
    assert np.mean(random_costs(one_sided, RESNET, 0.7)) < 0.55
    assert np.mean(random_costs(one_sided, CHAIN, 0.5)) < 0.35
    for space, cap in ((RESNET, 0.5), (RESNET, 0.7), (CHAIN, 0.5)):
        one, two = (random_costs(wall, space, cap) for wall in SAFE)
        assert max(one) <= cap + 1e-9
        assert np.std(two) < 0.2 * np.std(one)


# -- the release's -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mobilenet() -> SearchSpace:
    """MobileNet v1 at the resolution of ImageNet, in multiples of eight: 14 groups."""
    return trace(models.load("autoprune:mobilenet_v1"), torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize(("preserved", "reached"), [(0.5, 0.5011), (0.7, 0.7009), (0.3, 0.3033)])
def test_the_release_wall_ends_where_the_published_code_does(
    mobilenet: SearchSpace, preserved: float, reached: float
) -> None:
    """An agent that always asks for everything; figures of the published code, which rounds up unchecked."""
    space = round_to(mobilenet, 8)
    budget = Budget.parse(f"macs={preserved:%}", space)
    scheme = play(release, budget, [1.0] * len(space))
    assert round(budget.costs["macs"](scheme) / budget.costs["macs"](space.dense), 4) == reached
    assert not budget.allows(scheme)


def test_the_published_widths_of_mobilenet_count_as_the_published_code_counts_them(mobilenet: SearchSpace) -> None:
    inputs = [3, 24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752]  # of the 15 layers
    macs = Budget.parse("macs=100%", mobilenet).costs["macs"]
    assert round(macs(Scheme(tuple(inputs[1:]))) / 1e6, 1) == 293.9
    assert round(macs(mobilenet.dense) / 1e6, 1) == 568.7


def test_the_release_wall_keeps_a_fifth_at_least_and_rounds_up() -> None:
    space = round_to(toy.chain((32, 64, 96)), 8)
    budget = Budget.parse("macs=100%", space)
    assert play(release, budget, [0, 0, 0]).kept == (8, 16, 24)  # of 6, 13 and 19
    assert release(budget, lbound=0.5)((), 0.0) == 16


def test_the_release_wall_cuts_a_rate_to_what_fits_with_the_rest_at_its_lower_bound() -> None:
    widths, bound = (50, 40), 0.2
    space = toy.chain(widths, pixels=64, inputs=3, classes=10)
    budget = Budget.parse("macs=10%", space)
    first, second, head = 64 * 9 * 3 * 50, 64 * 9 * 50 * 40, 10 * 40
    rate = (0.1 * (first + second + head) - bound * head) / (first + bound * second)
    assert bound < rate < 1
    assert release(budget)((), 1.0) == round(rate * 50)
    assert release(budget)((), rate - 0.1) == round((rate - 0.1) * 50)


def test_the_release_wall_refuses_a_cost_without_fractional_channels() -> None:
    space = toy.mixed()
    budget = Budget.parse("channels=50%", space, {"channels": lambda scheme: float(sum(scheme.kept))})
    with pytest.raises(UserError, match="fractional channels.*'channels'"):
        release(budget)


# -- counts --------------------------------------------------------------------------------------


@given(counts=st.sets(st.integers(1, 60), min_size=1), rate=st.floats(0, 1), spare=st.integers(0, 5))
def test_nearest_is_what_looking_at_every_count_finds(counts: set[int], rate: float, spare: int) -> None:
    legal = tuple(sorted(counts))
    group = Group("g", legal[-1] + spare, (), legal)
    assert group.nearest(rate * group.width) == min(legal, key=lambda count: abs(count - rate * group.width))


def test_of_two_nearest_counts_the_smaller_is_taken() -> None:
    assert Group("g", 4, (), (1, 3, 4)).nearest(0.5 * 4) == 1


@pytest.mark.parametrize("wall", WALLS.values(), ids=WALLS)
def test_a_wall_is_made_for_a_budget_and_asked_group_by_group(wall: Callable[[Budget], Callable[..., int]]) -> None:
    space = toy.mixed()
    clip = wall(Budget.parse("macs=60%", space))
    kept: list[int] = []
    for group in space.groups:
        kept.append(clip(kept, 0.7))  # any sequence will do as a prefix
        assert kept[-1] in group.counts
