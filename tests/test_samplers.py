"""The Optuna searcher: the contract of searchers with every sampler, and what the samplers are told."""

from __future__ import annotations

import copy
import functools
import math
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

import toy
from autoprune import settings
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.front import Front
from autoprune.hints import Hints
from autoprune.objective import Objective
from autoprune.scheme import Scheme
from autoprune.searchers import KIND, Proposals, configure
from autoprune.searchers.ranking import starts
from autoprune.searchers.samplers import NAMES, PATIENCE, SCALE, optuna_search
from autoprune.space import SearchSpace
from autoprune.trial import Trial
from toy import BUDGETS, kept_by

CONSTRAINED = ("tpe", "gp", "nsga2", "nsga3")


def with_every(*names: str, slow: tuple[str, ...] = ("gp",)) -> Any:
    """The samplers, all if none is named; those that take their time in the slow tests."""
    return pytest.mark.parametrize(
        "sampler", [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names or NAMES]
    )


# A Gaussian process is fitted from 10 trials on.
TRIALS = {**dict.fromkeys(NAMES, 32), "gp": 15}
WIDE = toy.chain((64, 96, 128), pixels=(64, 16, 4))

SPACES = {**toy.SPACES, "no choice": toy.chain((4, 8), step=8)}


def capped(space: SearchSpace, text: str) -> Budget:
    """A budget in words: a text of the command line, or one of the two extremes."""
    if text == "everything":
        return Budget.parse("macs=100%", space)
    smallest, dense = Budget.parse("macs=100%", space).reachable()["macs"]
    if text == "smallest" or smallest > 0.6 * dense:
        return Budget.parse(f"macs={smallest}", space)
    return Budget.parse(text, space)


def start(space: SearchSpace, budget: Budget, seed: int = 0, hints: Hints | None = None, **options: Any) -> Proposals:
    return optuna_search(space, budget, seed=seed, hints=toy.unit_scores(space) if hints is None else hints, **options)


class Overheard(optuna.samplers.RandomSampler):
    """Random answers, and a record of what was told."""

    told: list[FrozenTrial] = []  # noqa: RUF012 - of the class: the searcher works on a copy of the object

    def after_trial(self, study: Any, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        told = copy.deepcopy(trial)
        told.state, told.values = state, values
        type(self).told.append(told)
        super().after_trial(study, trial, state, values)


@pytest.fixture
def overheard() -> Overheard:
    Overheard.told = []
    return Overheard(seed=0)


# --- the contract ---


@pytest.mark.parametrize(
    ("sampler", "constraints"),
    [
        *((name, False) for name in NAMES),
        *(pytest.param(name, True, marks=pytest.mark.slow if name == "gp" else ()) for name in CONSTRAINED),
    ],
)
def test_the_same_seed_gives_the_same_proposals_whatever_the_global_streams_hold(
    sampler: str, constraints: bool
) -> None:
    budget, reward = capped(WIDE, "macs=30%"), toy.landscape(WIDE, 1)
    runs = []
    for outside in (1, 2):
        random.seed(outside)
        np.random.seed(outside)
        before = random.getstate(), np.random.get_state()[1].tolist()
        proposals = start(WIDE, budget, 5, sampler=sampler, constraints=constraints, batch=5)
        runs.append(kept_by(toy.play(proposals, reward, TRIALS[sampler])))
        assert before == (random.getstate(), np.random.get_state()[1].tolist())
    assert runs[0] == runs[1]


@with_every()
def test_another_seed_gives_other_proposals(sampler: str) -> None:
    budget, reward = capped(WIDE, "macs=30%"), toy.landscape(WIDE, 1)
    one, other = (toy.play(start(WIDE, budget, seed, sampler=sampler), reward, 16) for seed in (0, 2**40 + 1))
    assert kept_by(one) != kept_by(other)


@with_every("tpe", "cmaes", "gp", "nsga2", "nsga3")
def test_what_is_told_decides_what_is_asked_next(sampler: str) -> None:
    budget = capped(WIDE, "macs=30%")
    one, other = (
        toy.play(start(WIDE, budget, sampler=sampler, batch=5), toy.landscape(WIDE, seed), TRIALS[sampler])
        for seed in (1, 2)
    )
    assert kept_by(one)[:5] == kept_by(other)[:5]
    assert kept_by(one) != kept_by(other)


@pytest.mark.parametrize("constraints", [False, True])
@pytest.mark.parametrize("text", BUDGETS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_proposals_are_new_legal_come_in_batches_and_one_of_them_is_affordable(
    space: SearchSpace, text: str, constraints: bool
) -> None:
    budget, reward = capped(space, text), toy.landscape(space, 0)
    for sampler in CONSTRAINED[2:3] if constraints else ("cmaes", "qmc"):
        told: list[Trial] = []
        for answers in toy.batches(start(space, budget, batch=3, sampler=sampler, constraints=constraints), reward):
            assert 1 <= len(answers) <= 3
            for trial in answers:
                space.check(trial.scheme)
            told += answers
            if len(told) >= 24:
                break
        assert len(set(kept_by(told))) == len(told)
        allowed = [budget.allows(trial.scheme) for trial in told]
        assert allowed[0]
        assert constraints or all(allowed)


@with_every("tpe", "gp")
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_models_are_fitted_in_every_space(space: SearchSpace, sampler: str) -> None:
    budget = capped(space, "macs=60%")
    told = toy.play(start(space, budget, sampler=sampler), toy.landscape(space, 0), TRIALS[sampler])
    assert all(budget.allows(trial.scheme) for trial in told)
    assert len(set(kept_by(told))) == len(told)


@with_every()
@pytest.mark.parametrize("rule", ["all", "every other", "the first ten"])
def test_failed_trials_do_not_stop_a_search(sampler: str, rule: str) -> None:
    budget = capped(WIDE, "macs=30%")
    reward = toy.failing(rule, toy.landscape(WIDE, 0), WIDE.dense)

    told = toy.play(start(WIDE, budget, sampler=sampler), reward, 24)
    assert len(told) >= 24
    assert all(budget.allows(trial.scheme) for trial in told)


@with_every()
@pytest.mark.parametrize(
    "reward",
    [lambda _: 0.0, lambda s: 1e300 * s.kept[0], lambda s: -1e9 / s.kept[0], lambda _: math.nan],
    ids=["flat", "huge", "steep", "nan"],
)
def test_odd_rewards_are_survived(sampler: str, reward: Callable[[Scheme], float]) -> None:
    budget = capped(WIDE, "macs=30%")
    told = toy.play(start(WIDE, budget, sampler=sampler, batch=5), reward, TRIALS[sampler])
    assert len(told) >= TRIALS[sampler]
    assert any(budget.allows(trial.scheme) for trial in told)


# --- what is proposed and what is told ---


def test_what_is_believed_in_comes_first_as_it_is() -> None:
    space = SPACES["chain"]
    budget, scores = capped(space, "macs=60%"), toy.unit_scores(space).scores
    chosen = Scheme((2, 3, 3), indices=((0, 1), (1, 4, 9), (0, 5, 11)))  # far below the budget, and exact channels
    hints = Hints(scores, (chosen, space.dense))
    expected = list(dict.fromkeys(starts(space, budget, hints)))
    for constraints in (False, True):
        proposals = start(space, budget, hints=hints, batch=2, constraints=constraints)
        told = toy.play(proposals, toy.landscape(space, 0), len(expected))
        assert [trial.scheme for trial in told][: len(expected)] == expected
    assert chosen in expected


def test_a_start_of_another_space_is_refused() -> None:
    space = SPACES["chain"]
    with pytest.raises(UserError, match="the search space 3"):
        next(start(space, capped(space, "macs=60%"), hints=Hints(starts=(Scheme((1,)),))))


def test_a_dense_start_beyond_the_limit_of_a_group_is_proposed_where_it_is_affordable() -> None:
    space = toy.chain([8, 16])
    groups = tuple(toy.Group(g.name, g.width, g.slices, g.counts[:-2]) for g in space.groups)
    space = SearchSpace(groups, space.layers, space.shapes)
    for constraints in (False, True):
        hints = Hints(starts=(space.dense,))
        first = next(start(space, capped(space, "everything"), hints=hints, constraints=constraints))
        assert first[1] == space.dense


def test_the_value_of_the_projected_scheme_is_told_for_the_rates_that_were_asked(overheard: Overheard) -> None:
    space = toy.chain((32, 48, 64))
    budget, reward = capped(space, "macs=40%"), toy.landscape(space, 0)
    played = toy.play(start(space, budget, sampler=overheard, low=0.3), reward, 24)
    rewards = {trial.scheme: trial.reward for trial in played}
    asked = [trial for trial in Overheard.told if "start" not in trial.user_attrs]
    assert len(asked) >= 8
    for trial in asked:
        rates = [trial.params[group.name] for group in space.groups]
        assert 0.3 <= min(rates) <= max(rates) <= 1
        assert trial.values == [rewards[budget.fit(rates)]]
        assert trial.constraints == {}


def test_failures_are_told_as_failures(overheard: Overheard) -> None:
    space = toy.resnet(blocks=3)
    worth = toy.landscape(space, 0)

    def reward(scheme: Scheme) -> float:
        return -math.inf if scheme.kept[0] % 2 else worth(scheme)

    played = toy.play(start(space, capped(space, "macs=30%"), sampler=overheard, batch=4), reward, 24)
    assert len(set(kept_by(played))) == len(Overheard.told) + 4  # no repeats; the last batch is never told
    failed = [trial.failed for trial in played]
    assert 0 < sum(failed) < len(failed)
    assert [trial.state == TrialState.FAIL for trial in Overheard.told] == failed[: len(Overheard.told)]


def test_trials_are_told_in_the_order_they_were_asked(overheard: Overheard) -> None:
    space = toy.resnet(blocks=3)
    toy.play(start(space, capped(space, "macs=30%"), sampler=overheard), toy.landscape(space, 0), 32)
    assert [trial.number for trial in Overheard.told] == list(range(24))  # the last batch is never told


def test_what_is_known_is_answered_at_once_and_the_search_ends_when_nothing_is_new(overheard: Overheard) -> None:
    space = SPACES["two counts"]
    told = toy.play(start(space, capped(space, "everything"), sampler=overheard), toy.landscape(space, 0), 10**6)
    assert len(told) == 1  # the dense network is affordable and the only one that uses this budget up
    assert len(Overheard.told) == 1 + 8 + PATIENCE * 8
    assert {tuple(trial.values or ()) for trial in Overheard.told} == {(told[0].reward,)}


def test_constraints_are_what_exceeds_each_cap_of_the_nearest_legal_counts(overheard: Overheard) -> None:
    space = toy.chain((16, 24, 32), step=8)
    budget, reward = capped(space, "macs=60%,params=50%"), toy.landscape(space, 0)
    toy.play(start(space, budget, sampler=overheard, constraints=True), reward, 16)
    feasible = []
    for trial in Overheard.told:
        wanted = [trial.params[group.name] * group.width for group in space.groups]
        nearest = Scheme(
            tuple(
                min(group.counts, key=lambda count, w=w: abs(count - w))
                for group, w in zip(space.groups, wanted, strict=True)
            )
        )
        excess = {name: budget.costs[name](nearest) / cap - 1 for name, cap in budget.caps.items()}
        assert trial.constraints == pytest.approx(excess, abs=1e-9)
        assert trial.values == [reward(nearest)]
        feasible.append(all(value <= 0 for value in trial.constraints.values()))
        assert feasible[-1] == budget.allows(nearest)
    assert 0 < sum(feasible) < len(feasible)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_constraints_teach_a_sampler_to_stay_affordable(sampler: str) -> None:
    """The affordable share rose from 0.33 to 0.53 (tpe) and from 0.15 to 0.35 (nsga2) on average of six seeds."""
    space = toy.chain((32, 64, 48), pixels=(64, 16, 16))
    budget, reward = capped(space, "macs=5%"), toy.landscape(space, 0)
    first, last = [], []
    for seed in range(3):
        told = toy.play(start(space, budget, seed, Hints(), sampler=sampler, constraints=True), reward, 120)
        allowed = [budget.allows(trial.scheme) for trial in told]
        first += allowed[:40]
        last += allowed[-40:]
    assert np.mean(last) > 1.25 * np.mean(first)


# --- several objectives ---


SEVERAL = tuple(name for name in NAMES if name != "cmaes")
BOTH = (Objective("reward", "maximize"), Objective("macs", "minimize", 1.0))


def costed(trial: Trial, budget: Budget) -> Trial:
    """A trial of the toy driver, with the costs that an evaluator measures."""
    if trial.failed:
        return trial
    shares = {name: cost(trial.scheme) / cost(budget.space.dense) for name, cost in budget.costs.items()}
    return replace(trial, measurement=replace(trial.measurement, fractions=shares))


def explore(
    space: SearchSpace, budget: Budget, reward: toy.Reward, trials: int, seed: int = 0, **options: Any
) -> list[Trial]:
    """What a search that is told of costs has seen after so many trials."""

    def told() -> Proposals:
        proposals = start(space, budget, seed, Hints(), **options)
        batch = next(proposals)
        while True:
            answers = yield batch
            try:
                batch = proposals.send([costed(answer, budget) for answer in answers])
            except StopIteration:
                return

    return [costed(trial, budget) for trial in toy.play(told(), reward, trials)]


@with_every(*SEVERAL)
def test_cheaper_schemes_are_explored_too_and_all_of_them_are_affordable(sampler: str) -> None:
    budget = capped(WIDE, "macs=60%")
    told = explore(WIDE, budget, toy.landscape(WIDE, 1), TRIALS[sampler], sampler=sampler, objectives=BOTH)
    loads = [budget.load(trial.scheme) for trial in told]
    assert len(set(kept_by(told))) == len(told) >= TRIALS[sampler]
    assert max(loads) <= 1 + 1e-12
    assert min(loads) < 0.2
    assert np.std(loads) > 0.1


@with_every("tpe", "nsga2", "gp")
def test_several_objectives_are_searched_the_same_again_and_each_of_them_counts(sampler: str) -> None:
    budget, reward = capped(WIDE, "macs=60%"), toy.landscape(WIDE, 1)
    back = (BOTH[0], replace(BOTH[1], direction="maximize"))
    one, again, other = (
        kept_by(explore(WIDE, budget, reward, TRIALS[sampler], sampler=sampler, batch=5, objectives=objectives))
        for objectives in (BOTH, BOTH, back)
    )
    assert one == again
    assert one != other


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("constraints", [False, True])
def test_several_objectives_can_be_searched_in_every_space(space: SearchSpace, constraints: bool) -> None:
    for text in BUDGETS:
        budget = capped(space, text)
        told = explore(
            space, budget, toy.landscape(space, 0), 24, sampler="nsga2", constraints=constraints, objectives=BOTH
        )
        assert budget.allows(told[0].scheme)
        assert constraints or all(budget.allows(trial.scheme) for trial in told)


def test_all_values_are_told_for_the_numbers_that_were_asked_and_failures_as_failures(overheard: Overheard) -> None:
    space = toy.resnet(blocks=3)
    budget, worth = capped(space, "macs=50%"), toy.landscape(space, 0)

    def reward(scheme: Scheme) -> float:
        return -math.inf if scheme.kept[0] % 2 else worth(scheme)

    told = explore(space, budget, reward, 32, sampler=overheard, low=0.3, objectives=BOTH)
    assert [trial.state == TrialState.FAIL for trial in Overheard.told] == [
        t.failed for t in told[: len(Overheard.told)]
    ]
    asked = [trial for trial in Overheard.told if "start" not in trial.user_attrs]
    by_scheme = {trial.scheme: trial for trial in told}
    for trial in asked:
        rates = [trial.params[group.name] for group in space.groups]
        scale = trial.params[SCALE]
        assert 0.3 <= min(*rates, scale) <= max(*rates, scale) <= 1
        part = replace(budget, caps={"macs": budget.caps["macs"] * scale**2})
        answer = by_scheme[part.fit(rates)]
        assert trial.values == (None if answer.failed else [objective(answer) for objective in BOTH])


def test_an_objective_that_a_trial_lacks_makes_it_a_failed_one(overheard: Overheard) -> None:
    objectives = (BOTH[0], Objective("energy", "minimize"))
    explore(WIDE, capped(WIDE, "macs=60%"), toy.landscape(WIDE, 0), 16, sampler=overheard, objectives=objectives)
    assert {trial.state for trial in Overheard.told} == {TrialState.FAIL}


@pytest.mark.parametrize("sampler", ["cmaes", optuna.samplers.CmaEsSampler(seed=0)])
def test_a_sampler_of_one_objective_is_refused_with_those_that_know_several(sampler: object) -> None:
    with pytest.raises(UserError, match="sampler=cmaes knows one objective: use one of tpe, gp, nsga2"):
        next(start(WIDE, capped(WIDE, "macs=60%"), sampler=sampler, objectives=BOTH))


def test_objectives_in_words_are_sent_to_the_search() -> None:
    with pytest.raises(UserError, match="--objectives accuracy,macs"):
        next(
            configure(optuna_search, {"objectives": "accuracy,macs"})(
                WIDE, capped(WIDE, "macs=60%"), seed=0, hints=Hints()
            )
        )


# --- sampler objects ---


def test_a_sampler_object_is_used_as_it_is_and_left_as_it_was() -> None:
    budget, reward = capped(WIDE, "macs=30%"), toy.landscape(WIDE, 1)
    mine = optuna.samplers.TPESampler(seed=3, n_startup_trials=30)
    runs = [toy.play(start(WIDE, budget, seed, sampler=mine), reward, 40) for seed in (0, 1)]
    assert kept_by(runs[0]) == kept_by(runs[1])  # the object's own seed counts, and the first run took a copy
    named = toy.play(start(WIDE, budget, 3, sampler="tpe"), reward, 40)
    assert kept_by(runs[0])[:8] == kept_by(named)[:8]
    assert kept_by(runs[0]) != kept_by(named)


def test_settings_accept_names_and_objects_and_refuse_other_words() -> None:
    settings.check(optuna_search, KIND, {"sampler": optuna.samplers.RandomSampler(seed=0), "constraints": True})
    configured = configure(optuna_search, {"sampler": "cmaes", "low": "0.2", "constraints": "no"})
    assert isinstance(configured, partial)
    assert configured.keywords == {"sampler": "cmaes", "low": 0.2, "constraints": False}
    with pytest.raises(UserError, match="sampler='cmase': expected tpe or cmaes or .*; close: cmaes"):
        configure(optuna_search, {"sampler": "cmase"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "tpee"}, "sampler='tpee' is unknown: use one of tpe, .*; close: tpe"),
        ({"sampler": 3}, "sampler=3 is unknown"),
        ({"sampler": optuna.samplers.TPESampler}, "or an object of optuna.samplers"),
        ({"sampler": "cmaes", "constraints": True}, "sampler=cmaes ignores constraints: use one of tpe, gp"),
        ({"sampler": "qmc", "constraints": True}, "sampler=qmc ignores constraints"),
        ({"low": 0.0}, "low=0.0 must lie between 0 and 1"),
        ({"low": 1.0}, "low=1.0 must lie"),
        ({"low": math.nan}, "low=nan must lie"),
    ],
)
def test_options_without_meaning_are_refused_before_anything_is_proposed(wrong: dict[str, Any], message: str) -> None:
    space = SPACES["chain"]
    with pytest.raises(UserError, match=message):
        next(start(space, capped(space, "macs=60%"), **wrong))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.searchers.samplers.find_spec", lambda _: None)
    space = SPACES["chain"]
    with pytest.raises(UserError, match="sampler=cmaes needs the package cmaes: pip install cmaes"):
        next(start(space, capped(space, "macs=60%"), sampler="cmaes"))


@with_every("tpe", "qmc", "gp")
def test_optuna_is_silent_while_it_works_for_us_and_only_then(
    sampler: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        proposals = start(WIDE, capped(WIDE, "macs=30%"), sampler=sampler, batch=10)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            schemes = next(proposals)
            for reward in (lambda s: float(s.kept[0]), lambda _: -math.inf):
                assert optuna.logging.get_verbosity() == optuna.logging.INFO
                schemes = proposals.send([toy.answer(scheme, reward) for scheme in schemes])
        assert not heard
        assert capfd.readouterr().err == ""
        assert not caplog.records
        optuna.create_study()
        assert "A new study created" in caplog.text
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(verbosity)


# --- what it is worth ---
#
# Mean loss over seeds 0-5 within 60 trials, that of equal rates being 1:
#
#              random  swap  tpe   cmaes  nsga2  nsga3  qmc   (searcher "random", searcher "swap", samplers)
# separable     0.47   0.30  0.33   0.33   0.36   0.38  0.38
# interacting   0.49   0.32  0.35   0.39   0.37   0.37  0.40
# noisy         0.52   0.37  0.42   0.40   0.40   0.42  0.42
# plateau       0.52   0.47  0.38   0.43   0.41   0.45  0.43
#
# and of gp within 40 trials 0.31, 0.33, 0.36, 0.34. The largest mean over three seeds is 0.53.


WORLD = toy.chain((32, 64, 48, 64, 32, 48), pixels=(256, 64, 64, 16, 16, 4))


def landscapes(kind: str, seed: int) -> tuple[toy.Reward, toy.Reward]:
    """What is told, and what is true."""
    rng = np.random.default_rng(seed)
    if kind == "separable":
        sensitivity = rng.lognormal(0, 1, len(WORLD))
        separable = lambda scheme: -float((sensitivity * (1 - WORLD.rates(scheme)) ** 2).sum())  # noqa: E731
        return separable, separable
    true = toy.landscape(WORLD, seed)
    if kind == "noisy":
        return lambda scheme: true(scheme) + rng.normal(0, 0.05), true
    if kind == "plateau":
        return lambda scheme: round(true(scheme), 1), true
    return true, true


@pytest.mark.parametrize("kind", ["separable", "interacting", "noisy", "plateau"])
@with_every("tpe", "cmaes", "nsga2", "gp", slow=("cmaes", "nsga2", "gp"))
def test_a_sampler_that_learns_loses_a_third_less_than_equal_rates(sampler: str, kind: str) -> None:
    budget, losses = Budget.parse("macs=30%", WORLD), []
    for seed in range(3):
        reward, true = landscapes(kind, seed)
        uniform = true(WORLD.dense) - true(budget.fit(np.ones(len(WORLD))))
        told = toy.play(start(WORLD, budget, seed, Hints(), sampler=sampler), reward, 40 if sampler == "gp" else 60)
        best = max(told, key=lambda trial: trial.reward).scheme
        losses.append((true(WORLD.dense) - true(best)) / uniform)
    assert np.mean(losses) < 0.67


@functools.cache
def loss_of_120(sampler: str, seed: int) -> float:
    """The reward below the dense network's on the inner widths of a ResNet-56 at half of its MACs."""
    space = toy.resnet()
    reward = toy.landscape(space, seed)
    proposals = start(space, Budget.parse("macs=50%", space), seed, Hints(), sampler=sampler)
    return reward(space.dense) - max(trial.reward for trial in toy.play(proposals, reward, 120))


@with_every("tpe", "cmaes", "nsga2", slow=("tpe",))
def test_learning_is_worth_more_than_as_many_random_vectors(sampler: str) -> None:
    """Relative to sampler random on seeds 0-4: tpe 0.79 to 0.95, cmaes 0.82 to 0.91, nsga2 0.74 to 0.86."""
    learned, drawn = (sum(loss_of_120(name, seed) for seed in (0, 3)) for name in (sampler, "random"))
    assert learned < 0.95 * drawn


# Hypervolume of reward (from the smallest scheme's) and MACs (from dense), as a part of the largest there could be, at
# most 80 % of the MACs; mean over seeds 0-5 at 60 and 200 trials, and the highest reward less the dense network's:
#
#                                  tpe          nsga2        random       best reward at 60 (tpe, nsga2, random)
# as it is here                    0.942 0.955  0.924 0.948  0.928 0.940  -0.04 -0.04 -0.04
# rates taken as they are          0.887 0.912  0.887 0.910  0.888 0.904  -0.07 -0.07 -0.07
#
# tpe is above random by 0.009 to 0.021 at 60 trials, nsga2 by -0.003 to 0.016 at 240. A search for the reward alone
# reaches 0.21: all its schemes use the budget up.


@functools.cache
def volume_found(sampler: str, seed: int, trials: int, several: bool = True) -> tuple[float, float]:
    """The hypervolume from the smallest scheme's reward on, and how far apart the MACs of the trials lie."""
    budget, reward = Budget.parse("macs=80%", WORLD), toy.landscape(WORLD, seed)
    both = (replace(BOTH[0], reference=reward(WORLD.smallest)), BOTH[1])
    told = explore(WORLD, budget, reward, trials, seed, sampler=sampler, objectives=both if several else ())
    macs = [BOTH[1](trial) for trial in told]
    best = reward(WORLD.dense) - reward(WORLD.smallest)
    return Front.of(told, both).hypervolume / best, max(macs) - min(macs)


@with_every("tpe", "nsga2")
def test_a_search_for_several_objectives_covers_more_than_one_for_the_reward(sampler: str) -> None:
    (volume, spread), (alone, narrow) = (volume_found(sampler, 0, 40, several) for several in (True, False))
    assert spread > 0.7
    assert narrow < 0.1
    assert volume > 2 * alone


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 60), pytest.param("nsga2", 240, marks=pytest.mark.slow)])
def test_a_sampler_that_learns_finds_a_larger_front_than_random_numbers_do(sampler: str, trials: int) -> None:
    learned, drawn = (sum(volume_found(name, seed, trials)[0] for seed in range(3)) for name in (sampler, "random"))
    assert learned > drawn
