"""The contract of searchers, for every one that is listed, and what each of them promises beyond it."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import toy
from autoprune import searchers, settings
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import SEARCHERS, Proposals, configure, find, options
from autoprune.searchers.ranking import per_load, ranking
from autoprune.space import Group, SearchSpace
from autoprune.trial import Trial
from toy import BUDGETS, SPACES, capped, is_full, kept_by

LEARNERS = ("ddpg", "td3", "sac")
QUICK = {name: {"warmup": 6} for name in LEARNERS}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "spdy quadratic": ("spdy", {"prior": "quadratic"}),
    "evolution categorical": ("evolution", {"mode": "categorical"}),
    "evolution unipts_release": ("evolution", {"preset": "unipts_release"}),
    "evolution metapruning": ("evolution", {"preset": "metapruning"}),
    "optuna cmaes": ("optuna", {"sampler": "cmaes"}),
    "optuna constrained": ("optuna", {"constraints": True}),
}
"""Other ways that a searcher may go, for the parts of the contract in which they differ."""
TRIALS = {**dict.fromkeys([*SEARCHERS, *VARIANTS], 60), **dict.fromkeys(LEARNERS, 16), "netadapt": 400}

# One file learns with three algorithms; two of them show in the slow tests that they keep the contract too.
EVERY = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LEARNERS[1:] else ())
        for name in SEARCHERS
        if name != "hand"  # it proposes what a file says, and has none here
    ],
)
VARIED = pytest.mark.parametrize("name", [*EVERY.args[1], *VARIANTS])
# All they propose is affordable; netadapt and autoslim descend to the budget.
SAMPLERS = ("uniform", "random", "swap", "ddpg", "global_threshold", "knapsack", "annealing")
RANKED = ("global_threshold", "knapsack", "annealing", "autoslim")
FILLING = (*RANKED, "sensitivity", "fastnas", "spdy", "levels")  # one of their proposals uses the budget up

EVERYWHERE = [pytest.param(space, text, id=f"{key}, {text}") for key, space in SPACES.items() for text in BUDGETS]


def start(
    name: str, space: SearchSpace, budget: Budget, seed: int = 0, batch: int = 8, hinted: bool = True
) -> Proposals:
    hints = toy.unit_scores(space) if hinted else Hints()
    searcher, options = VARIANTS.get(name, (name, QUICK.get(name, {})))
    return find(searcher)(space, budget, seed=seed, hints=hints, batch=batch, **options)


def reached(name: str, budget: Budget, told: Sequence[Trial], filling: Sequence[str] = FILLING) -> bool:
    """Whether one of the proposals is affordable, and uses the budget up where that is promised."""
    enough = partial(is_full, budget) if name in filling else budget.allows
    return any(enough(trial.scheme) for trial in told)


# --- the contract ---


@pytest.mark.parametrize("name", [*EVERY.args[1], "spdy quadratic"])
@pytest.mark.parametrize("hinted", [True, False])
def test_the_same_seed_gives_the_same_proposals(name: str, hinted: bool) -> None:
    space = SPACES["chain"]
    budget, reward = capped(space, "macs=60%"), toy.landscape(space, 1)
    runs = [toy.play(start(name, space, budget, 5, hinted=hinted), reward, TRIALS[name]) for _ in range(2)]
    assert kept_by(runs[0]) == kept_by(runs[1])


@EVERY
@pytest.mark.parametrize(("space", "text"), EVERYWHERE)
def test_proposals_are_legal_come_in_batches_and_one_of_them_is_affordable(
    name: str, space: SearchSpace, text: str
) -> None:
    budget, reward = capped(space, text), toy.landscape(space, 0)
    told: list[Trial] = []
    for answers in toy.batches(start(name, space, budget, batch=3), reward):
        assert 1 <= len(answers) <= 3
        for trial in answers:
            space.check(trial.scheme)
        told += answers
        if len(told) >= TRIALS[name] and reached(name, budget, told):
            break
    assert reached(name, budget, told)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("space", "text"), EVERYWHERE)
def test_samplers_propose_only_what_is_affordable(name: str, space: SearchSpace, text: str) -> None:
    budget = capped(space, text)
    told = toy.play(start(name, space, budget), toy.landscape(space, 0), TRIALS[name])
    assert all(budget.allows(trial.scheme) for trial in told)


@EVERY
@pytest.mark.parametrize("rule", ["all", "every other", "the first ten", "the dense one"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_failed_trials_do_not_stop_a_search_from_proposing_something_affordable(
    name: str, space: SearchSpace, rule: str
) -> None:
    budget = capped(space, "macs=60%")
    reward = toy.failing(rule, toy.landscape(space, 0), space.dense)

    told = toy.play(start(name, space, budget), reward, TRIALS[name])
    assert reached(name, budget, told, RANKED)


@EVERY
@pytest.mark.parametrize(
    "reward", [lambda _: 0.0, lambda _: 1e300, lambda scheme: -1e9 / scheme.kept[0]], ids=["flat", "huge", "steep"]
)
def test_odd_rewards_are_survived(name: str, reward: Callable[[Scheme], float]) -> None:
    space = SPACES["chain"]
    budget = capped(space, "macs=60%")
    told = toy.play(start(name, space, budget), reward, TRIALS[name])
    assert reached(name, budget, told)


@pytest.mark.parametrize("name", FILLING)
@pytest.mark.parametrize(
    "reward",
    [
        lambda scheme: 1.7e308 if scheme == SPACES["chain"].dense else -1.7e308,
        lambda scheme: 1.7e308 * (-1) ** scheme.kept[0],
        lambda scheme: 5e-324 * (scheme.kept[0] % 3),
    ],
    ids=["one far above all", "far apart", "hardly more than nothing"],
)
def test_rewards_at_the_ends_of_floating_point_are_survived(name: str, reward: Callable[[Scheme], float]) -> None:
    budget = capped(SPACES["chain"], "macs=60%")
    assert reached(name, budget, toy.play(start(name, SPACES["chain"], budget), reward, TRIALS[name]))


@EVERY
def test_a_searcher_can_be_closed_at_any_time(name: str) -> None:
    space = SPACES["chain"]
    proposals = start(name, space, capped(space, "macs=60%"))
    proposals.close()
    proposals = start(name, space, capped(space, "macs=60%"))
    next(proposals)
    proposals.close()
    with pytest.raises(StopIteration):
        next(proposals)


@VARIED
def test_an_unreachable_budget_is_refused_before_anything_is_proposed(name: str) -> None:
    space = SPACES["chain"]
    with pytest.raises(UserError, match="cannot be reached"):
        next(start(name, space, Budget.parse("macs=0.1%", space)))


@pytest.mark.parametrize("name", ["random", "swap", "ddpg", "annealing", "levels", "spdy", "spdy quadratic"])
def test_another_seed_gives_other_proposals(name: str) -> None:
    space = SPACES["chain"]
    budget, reward = capped(space, "macs=60%"), toy.landscape(space, 1)
    one, other = (toy.play(start(name, space, budget, seed), reward, TRIALS[name]) for seed in (0, 1))
    assert kept_by(one) != kept_by(other)


@pytest.mark.parametrize(
    "name",
    ["netadapt", "swap", "ddpg", "annealing", "autoslim", "sensitivity", "fastnas", "levels", "spdy", "spdy quadratic"],
)
def test_what_is_told_decides_what_is_asked_next(name: str) -> None:
    space = SPACES["chain"]
    budget = capped(space, "macs=60%")
    one, other = (toy.play(start(name, space, budget), toy.landscape(space, seed), TRIALS[name]) for seed in (1, 2))
    assert kept_by(one) != kept_by(other)


def test_no_searcher_needs_torch_and_deap_comes_with_no_import() -> None:
    modules = [place.partition(":")[0] for place in SEARCHERS.values()]
    code = f"import sys, {', '.join(modules)}; print({{'torch', 'deap'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# --- uniform and random ---


def test_uniform_is_one_scheme_of_equal_rates() -> None:
    space = toy.chain((100, 200, 100))
    told = toy.play(start("uniform", space, capped(space, "macs=30%")), toy.landscape(space, 0), 100)
    assert len(told) == 1
    rates = space.rates(told[0].scheme)
    assert rates == pytest.approx(np.full(3, rates.mean()), abs=0.011)


def test_random_rates_lie_within_the_stated_proportions() -> None:
    space = toy.chain((100,) * 6)
    searcher = partial(find("random"), low=0.5, high=0.6)
    told = toy.play(searcher(space, capped(space, "macs=30%"), seed=0, hints=Hints()), lambda _: 0.0, 40)
    for trial in told:
        rates = space.rates(trial.scheme)
        assert rates.max() / rates.min() <= 0.6 / 0.5 * 1.05
    assert len({trial.scheme for trial in told}) == len(told)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.9, 0.2), (0.2, 1.5), (math.nan, 1.0)])
def test_random_refuses_a_range_that_is_none(low: float, high: float) -> None:
    space = SPACES["chain"]
    with pytest.raises(UserError, match="0 < low <= high <= 1"):
        next(find("random")(space, capped(space, "macs=60%"), seed=0, hints=Hints(), low=low, high=high))


# --- netadapt ---


def test_netadapt_begins_with_every_groups_mildest_cut_of_the_first_step() -> None:
    space = toy.chain((30, 30, 30, 30))
    budget = capped(space, "macs=50%")
    told = toy.play(start("netadapt", space, budget, batch=4), toy.landscape(space, 0), 5)
    step = 0.025 * budget.load(space.dense)
    assert told[0].scheme == space.dense
    assert [trial.scheme for trial in told[1:]] == [budget.cut(space.dense, g, step) for g in range(4)]


def test_netadapt_adopts_the_least_loss_of_reward_per_load_removed() -> None:
    space = toy.chain((30, 4, 30), pixels=(16, 16, 16))
    budget = capped(space, "macs=50%")
    dense = budget.load(space.dense)

    def reward(scheme: Scheme) -> float:
        return -float((np.array([1.0, 0.8, 3.0]) * (1 - space.rates(scheme))).sum())

    def second_round(cost_aware: bool) -> tuple[Scheme, list[Trial]]:
        searcher = partial(find("netadapt"), cost_aware=cost_aware)
        told = toy.play(searcher(space, budget, seed=0, hints=Hints(), batch=3), reward, 7)
        adopted = [
            trial
            for trial in told[1:4]
            if all(
                sum(a != b for a, b in zip(trial.scheme.kept, child.scheme.kept, strict=True)) == 1
                for child in told[4:7]
            )
        ]
        return adopted[0].scheme, told[1:4]

    adopted, first = second_round(cost_aware=True)
    prices = [-trial.reward / (dense - budget.load(trial.scheme)) for trial in first]
    assert adopted == first[int(np.argmin(prices))].scheme
    by_reward, first = second_round(cost_aware=False)
    assert by_reward == max(first, key=lambda trial: trial.reward).scheme
    assert by_reward != adopted


@pytest.mark.parametrize("text", ["macs=70%", "macs=40%", "macs=10%", "macs=40%,params=30%"])
def test_netadapt_ends_with_schemes_that_use_the_budget_up(text: str) -> None:
    space = toy.chain((20, 30, 40, 20), pixels=(64, 16, 16, 4))
    budget = capped(space, text)
    told = toy.play(start("netadapt", space, budget), toy.landscape(space, 0), 10**6)
    last = told[-1].scheme
    assert budget.allows(last)
    for g, group in enumerate(space.groups):
        larger = [count for count in group.counts if count > last.kept[g]][:1]
        assert not any(budget.allows(last.replace(g, count)) for count in larger)


def test_netadapt_goes_beyond_what_its_geometric_series_can_remove_in_steps_that_count() -> None:
    initial, decay, floor, left = 0.01, 0.9, 0.005, 0.05
    assert initial / (1 - decay) < 1 - left
    space = toy.chain((400, 400, 400))
    budget = capped(space, f"macs={left:%}")
    searcher = partial(find("netadapt"), initial=initial, decay=decay, floor=floor)
    told = toy.play(searcher(space, budget, seed=0, hints=Hints()), toy.landscape(space, 0), 10**6)
    assert budget.allows(told[-1].scheme)
    assert len(told) <= 1 + len(space) * (1 - left) / floor


def test_the_last_step_of_netadapt_goes_to_the_budget_and_not_below() -> None:
    space = toy.chain((30, 30, 30))
    budget, reward = capped(space, "macs=50%"), toy.landscape(space, 0)
    searcher = partial(find("netadapt"), initial=0.3, cost_aware=False)
    told = toy.play(searcher(space, budget, seed=0, hints=Hints(), batch=3), reward, 100)
    parent = max(told[1:4], key=lambda trial: trial.reward).scheme
    over = budget.load(parent) - 1
    assert 0 < over < 0.3 * 0.96 * budget.load(space.dense)
    cuts = [budget.cut(parent, g, over) for g in range(3)]
    assert {trial.scheme for trial in told[4:]} == {budget.spend(cut) for cut in cuts if cut is not None}


def test_netadapt_projects_what_it_has_when_a_whole_round_fails() -> None:
    space = SPACES["chain"]
    budget = capped(space, "macs=60%")
    told = toy.play(start("netadapt", space, budget), lambda scheme: 0.0 if scheme == space.dense else -math.inf, 100)
    assert len(told) == 1 + len(space) + 1
    assert told[-1].scheme == budget.fit(np.ones(len(space)))


def test_netadapt_finishes_when_no_single_group_can_lower_the_load() -> None:
    space = SearchSpace(tuple(Group(name, 8, (), tuple(range(1, 9))) for name in "ab"), (), {})
    functions = {"first": lambda scheme: float(scheme.kept[0]), "second": lambda scheme: float(scheme.kept[1])}
    budget = Budget.parse("first=50%,second=50%", space, functions)
    told = toy.play(start("netadapt", space, budget, hinted=False), lambda _: 0.0, 100)
    assert [trial.scheme.kept for trial in told] == [(8, 8), (4, 4)]


@pytest.mark.parametrize("wrong", [{"initial": 0.0}, {"decay": 1.5}, {"floor": 0.5}, {"floor": 0.0}])
def test_netadapt_refuses_steps_that_lead_nowhere(wrong: dict[str, float]) -> None:
    space = SPACES["chain"]
    with pytest.raises(UserError, match="must satisfy"):
        next(find("netadapt")(space, capped(space, "macs=60%"), seed=0, hints=Hints(), **wrong))


# --- ranking and swap ---


def test_the_ranking_keeps_the_best_units_of_all_groups() -> None:
    space = toy.chain((10, 10), inputs=10, classes=10)
    budget = Budget(space, {"channels": 12}, {"channels": lambda scheme: float(sum(scheme.kept))})
    scores = (np.arange(10.0), np.arange(10.0) + 4)
    best = sorted(np.concatenate(scores))[-12:]
    expected = tuple(int((group >= best[0]).sum()) for group in scores)
    kept = ranking(space, budget, scores).kept
    assert sum(kept) == 12
    assert all(abs(count - wanted) <= 1 for count, wanted in zip(kept, expected, strict=True))  # 7 and 7 tie


@pytest.mark.parametrize(("space", "text"), EVERYWHERE)
def test_the_ranking_is_legal_and_affordable_everywhere(space: SearchSpace, text: str) -> None:
    budget = capped(space, text)
    for seed in range(5):
        scores = toy.unit_scores(space, seed).scores
        for scheme in (ranking(space, budget, scores), ranking(space, budget, per_load(space, budget, scores))):
            space.check(scheme)
            assert budget.allows(scheme)


def test_scores_per_load_favour_units_that_cost_little() -> None:
    space = toy.chain((10, 10, 10), pixels=(100, 10, 1))
    scores = tuple(np.ones(10) for _ in space.groups)
    first, second, third = per_load(space, capped(space, "macs=50%"), scores)
    assert first.max() < second.min() <= second.max() < third.min()


def test_swap_tries_everything_believed_in_before_it_moves() -> None:
    space = SPACES["chain"]
    budget, scores = capped(space, "macs=60%"), toy.unit_scores(space).scores
    believed = budget.fit([0.1, 0.9, 0.5])
    too_large = space.dense
    hints = Hints(scores, (believed, too_large))
    first = next(find("swap")(space, budget, seed=0, hints=hints, batch=8))
    assert first[0] == budget.fit(np.ones(3))
    assert {ranking(space, budget, scores), believed, budget.fit(np.ones(3))} <= set(first)
    assert all(budget.allows(scheme) for scheme in first)


def test_swap_refuses_a_start_of_another_space() -> None:
    space = SPACES["chain"]
    with pytest.raises(UserError, match="the search space 3"):
        next(find("swap")(space, capped(space, "macs=60%"), seed=0, hints=Hints(starts=(Scheme((1,)),))))


def test_swap_never_repeats_itself_and_ends_when_it_knows_its_surroundings() -> None:
    space = toy.chain((5, 5, 5))
    told = toy.play(start("swap", space, capped(space, "macs=60%")), toy.landscape(space, 0), 125)
    assert 8 < len({trial.scheme for trial in told}) == len(told) < 5**3


def test_every_child_of_swap_uses_the_budget_up() -> None:
    space = toy.resnet(blocks=3)
    budget = capped(space, "macs=50%")
    for trial in toy.play(start("swap", space, budget), toy.landscape(space, 0), 100):
        for g, group in enumerate(space.groups):
            larger = [count for count in group.counts if count > trial.scheme.kept[g]][:1]
            assert not any(budget.allows(trial.scheme.replace(g, count)) for count in larger)


@pytest.mark.parametrize("wrong", [{"step": 0.0}, {"step": 1.5}, {"swaps": 0}, {"screen": 0}])
def test_swap_refuses_options_without_meaning(wrong: dict[str, float]) -> None:
    space = SPACES["chain"]
    with pytest.raises(UserError, match="swap: "):
        next(find("swap")(space, capped(space, "macs=60%"), seed=0, hints=Hints(), **wrong))


@functools.cache
def best_of_200(name: str, seed: int, **settings: int) -> float:
    """The reward below the dense network's on the inner widths of a ResNet-56 at half of its MACs."""
    space = toy.resnet()
    reward = toy.landscape(space, seed)
    proposals = find(name)(space, Budget.parse("macs=50%", space), seed=seed, hints=Hints(), **settings)
    return reward(space.dense) - max(trial.reward for trial in toy.play(proposals, reward, 200))


@pytest.mark.parametrize("seed", range(2))
def test_swap_loses_a_quarter_less_than_random_rates_within_200_trials(seed: int) -> None:
    assert best_of_200("swap", seed) < 0.75 * best_of_200("random", seed)


@pytest.mark.parametrize("seed", range(2))
def test_screening_spares_swap_trials(seed: int) -> None:
    assert best_of_200("swap", seed) < best_of_200("swap", seed, screen=1)


# --- names and settings ---


def own(space: SearchSpace, budget: Budget, *, seed: int, hints: Hints, batch: int = 8, rounds: int = 3) -> Proposals:
    yield [space.dense]


def test_a_searcher_is_found_by_name_by_place_or_as_itself() -> None:
    for name, place in SEARCHERS.items():
        assert find(name) is find(place)
    assert find(own) is own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swapp", "'swapp' is unknown: use auto, uniform, random, .*, swap, .*; close: swap"),
        ("no.such.module:searcher", "no module"),
        ("autoprune.searchers.swap:nothing", "no 'nothing' there"),
        ("autoprune.searchers.swap:WIDEST", "is a float, not a function"),
        ("not a module:x", "write it like package.module:name"),
    ],
)
def test_a_searcher_that_cannot_be_found_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(name)


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_option_has_a_type_a_default_and_a_word_in_the_docstring(name: str) -> None:
    for option, parameter in options(find(name)).items():
        kinds = settings._kinds(parameter.annotation)
        assert kinds
        assert any(settings._fits(parameter.default, kind) for kind in kinds)
        assert f"``{option}" in (getattr(find(name), "func", find(name)).__doc__ or "")


def test_settings_of_a_searcher_are_its_own_arguments_not_those_of_the_loop() -> None:
    configured = configure(own, {"rounds": "7"})
    assert isinstance(configured, partial)
    assert configured.keywords == {"rounds": 7}
    for name in ("space", "seed", "batch"):
        with pytest.raises(UserError, match=f"searcher own has no option '{name}': its options are rounds$"):
            configure(own, {name: "1"})


def test_a_searcher_without_options_says_so() -> None:
    with pytest.raises(UserError, match="it has no options"):
        configure(find("uniform"), {"step": "1"})


def test_settings_reach_the_search_and_can_be_added_to() -> None:
    space = SPACES["chain"]
    configured = configure(configure(find("random"), {"low": "1.0"}), {"high": "1.0"})
    schemes = next(configured(space, capped(space, "macs=60%"), seed=0, hints=Hints(), batch=4))
    assert set(schemes) == {capped(space, "macs=60%").fit(np.ones(3))}


def test_the_searcher_in_the_concept_page_runs() -> None:
    page = searchers.__doc__ or ""
    code = page[page.index("    def climb(") : page.index("Run it with")]
    names = SimpleNamespace(np=np, SearchSpace=SearchSpace, Budget=Budget, Hints=Hints, Proposals=Proposals)
    exec("\n".join(line[4:] for line in code.splitlines()), vars(names))
    space = SPACES["chain"]
    budget, reward = capped(space, "macs=60%"), toy.landscape(space, 0)
    told = toy.play(names.climb(space, budget, seed=0, hints=Hints()), reward, 60)
    assert all(budget.allows(trial.scheme) for trial in told)
    assert max(trial.reward for trial in told) > told[0].reward


@VARIED
def test_groups_limited_from_above_stay_below_their_limit(name: str) -> None:
    space = toy.chain([8, 16, 16])
    groups = tuple(replace(group, counts=group.counts[: group.width // 2]) for group in space.groups)
    space = SearchSpace(groups, space.layers, space.shapes)
    budget = Budget.parse("macs=20%", space)
    trials = toy.play(start(name, space, budget, batch=4, hinted=False), toy.landscape(space, 0), min(40, TRIALS[name]))
    assert all(
        count <= group.counts[-1] for trial in trials for count, group in zip(trial.scheme.kept, groups, strict=True)
    )
    assert reached(name, budget, trials, RANKED)
