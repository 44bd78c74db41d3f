"""Evolution: what genomes mean, the published schedules, and that selection is worth its trials."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import toy
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import evolution as module
from autoprune.searchers.evolution import PRESETS, SCALES, Individual, Levels, Regrowth, Settings, evolution
from autoprune.searchers.random_rates import random_rates
from autoprune.searchers.ranking import starts
from autoprune.space import Group, SearchSpace
from autoprune.trial import Trial
from toy import BUDGETS, SPACES, capped, is_full, kept_by

CHAIN = toy.chain((8, 16, 12), pixels=(64, 16, 4))
LARGE = toy.chain((40, 64, 80, 100, 64, 48), pixels=(64, 64, 16, 16, 4, 4))
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "categorical": {"mode": "categorical"},
    "unipts_release": {"preset": "unipts_release"},
    "metapruning": {"preset": "metapruning"},
}
EVERY = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def weights(sizes: Sequence[int], removed: float) -> Budget:
    """Layers pruned weight by weight: what they cost adds up."""
    groups = (Group(f"layer{k}", n, (), tuple(range(1, n + 1))) for k, n in enumerate(sizes))
    space = SearchSpace(tuple(groups), (), {})
    return Budget(space, {"weights": (1 - removed) * sum(sizes)}, {"weights": lambda scheme: float(sum(scheme.kept))})


# --- the contract of searchers ---


@EVERY
@pytest.mark.parametrize("text", BUDGETS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_all_that_is_proposed_is_legal_affordable_and_in_batches(
    space: SearchSpace, text: str, options: dict[str, Any]
) -> None:
    budget, reward = capped(space, text), toy.landscape(space, 0)
    told: list[Trial] = []
    for answers in toy.batches(
        evolution(space, budget, seed=0, hints=toy.unit_scores(space), batch=3, population=6, **options), reward
    ):
        assert 1 <= len(answers) <= 3
        for trial in answers:
            space.check(trial.scheme)
            assert budget.allows(trial.scheme)
        told += answers
        if len(told) >= 20:
            break
    assert told


@EVERY
def test_proposals_follow_from_the_seed_and_leave_the_global_streams_alone(options: dict[str, Any]) -> None:
    budget, reward = capped(LARGE, "macs=50%"), toy.landscape(LARGE, 1)

    def run(seed: int) -> list[tuple[int, ...]]:
        def disturbed(scheme: Scheme) -> float:
            random.random()
            np.random.random()
            return reward(scheme)

        return kept_by(toy.play(evolution(LARGE, budget, seed=seed, hints=Hints(), **options), disturbed, 70))

    random.seed(1), np.random.seed(1)
    first = run(5)
    drawn = random.random(), np.random.random()
    random.seed(1), np.random.seed(1)
    for _ in first:
        random.random(), np.random.random()
    assert drawn == (random.random(), np.random.random())
    assert run(5) == first
    assert run(6) != first


@EVERY
def test_what_is_told_decides_what_is_asked_next(options: dict[str, Any]) -> None:
    budget = capped(LARGE, "macs=50%")
    one, other = (
        toy.play(evolution(LARGE, budget, seed=0, hints=Hints(), **options), toy.landscape(LARGE, seed), 80)
        for seed in (1, 2)
    )
    assert kept_by(one)[:16] == kept_by(other)[:16]
    assert kept_by(one) != kept_by(other)


@EVERY
@pytest.mark.parametrize("rule", ["all", "every other", "the first thirty"])
def test_failed_trials_do_not_end_a_search_and_have_no_children(rule: str, options: dict[str, Any]) -> None:
    budget, worth, count = capped(LARGE, "macs=50%"), toy.landscape(LARGE, 0), itertools.count()
    fails: Callable[[int], bool] = {
        "all": lambda at: True,
        "every other": lambda at: at % 2 == 0,
        "the first thirty": lambda at: at < 30,
    }[rule]
    told = toy.play(
        evolution(LARGE, budget, seed=0, hints=Hints(), **options),
        lambda scheme: -math.inf if fails(next(count)) else worth(scheme),
        120,
    )
    assert len(told) >= 120


@EVERY
@pytest.mark.parametrize(
    "reward",
    [lambda _: 0.0, lambda _: 1e300, lambda scheme: -1e9 / scheme.kept[0], lambda _: math.nan],
    ids=["flat", "huge", "steep", "no number"],
)
def test_odd_rewards_are_survived(reward: Callable[[Scheme], float], options: dict[str, Any]) -> None:
    told = toy.play(evolution(LARGE, capped(LARGE, "macs=50%"), seed=0, hints=Hints(), **options), reward, 60)
    assert len(told) >= 60


@pytest.mark.parametrize(
    "wrong",
    [
        {"population": 1},
        {"parents": 0},
        {"generations": -1},
        {"mutation": 0.0},
        {"mutation": 1.5},
        {"sigma": 0.0},
        {"sigma": math.nan},
        {"margin": 0.0},
        {"margin": 1.5},
        {"mode": "growing"},
        {"preset": "unipts"},
    ],
)
def test_options_without_meaning_are_refused_by_name(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"evolution: {name}='?{value}'? "):
        next(evolution(CHAIN, capped(CHAIN, "macs=60%"), seed=0, hints=Hints(), **wrong))


# --- reducing and regrowing ---


@pytest.mark.parametrize("removed", [0.5, 0.9])
def test_the_release_decodes_a_genome_as_unipts_states_it(removed: float) -> None:
    sizes = np.array([2000, 3000, 5000, 9000])
    budget = weights(sizes, removed)
    genome = [0.3, 0.9, 0.1, 0.6]
    softmax = np.exp(genome) / np.exp(genome).sum()
    expected = 1 - np.maximum(0, removed + 0.05 - 0.05 * sizes.sum() * softmax / sizes)
    coding = Regrowth(budget.space, budget, PRESETS["unipts_release"])
    assert budget.space.rates(coding.individual(genome).scheme) == pytest.approx(expected, abs=1.5e-3)
    shifted = [gene + 7 for gene in genome]
    assert coding.individual(shifted).scheme == coding.individual(genome).scheme


def test_the_release_loses_what_small_layers_cannot_take() -> None:
    # The layers of a CIFAR ResNet-20. Equal genes give each of the 20 as many weights back, too many for two.
    sizes = [432, *[2304] * 6, 4608, *[9216] * 5, 18432, *[36864] * 5, 640]
    share = 0.05 * sum(sizes) / len(sizes)
    lost = sum(max(0.0, share - 0.55 * size) for size in sizes)
    budget = weights(sizes, 0.5)
    coding = Regrowth(budget.space, budget, PRESETS["unipts_release"])
    scheme = coding.individual(coding.constant()).scheme
    assert sum(count == size for count, size in zip(scheme.kept, sizes, strict=True)) == 2
    assert sum(scheme.kept) == pytest.approx(0.5 * sum(sizes) - lost, abs=len(sizes))
    assert sum(scheme.kept) < 0.498 * sum(sizes)


@pytest.mark.parametrize("text", ["macs=50%", "macs=8%", "params=30%", "macs=40%,params=30%"])
@pytest.mark.parametrize("preset", ["default", "unipts_release"])
def test_regrowth_goes_on_until_the_budget_is_used_up_whatever_it_caps(preset: str, text: str) -> None:
    space = toy.resnet(blocks=2)
    budget = capped(space, text)
    settings = functools.partial(Settings, **vars(PRESETS[preset]) | {"fill": True})
    coding = Regrowth(space, budget, settings())
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.5, 2.0, 8.0):
        scheme = coding.individual([float(gene) for gene in rng.normal(0, spread, len(space))]).scheme
        assert is_full(budget, scheme)


def test_regrowth_meets_a_cost_that_adds_up_exactly_and_leaves_no_group_without_weights() -> None:
    sizes = [300, 700, 2000]
    budget = weights(sizes, 0.95)
    coding = Regrowth(budget.space, budget, PRESETS["default"])
    rng = np.random.default_rng(0)
    for _ in range(10):
        scheme = coding.individual([float(gene) for gene in rng.normal(0, 3, 3)]).scheme
        assert sum(scheme.kept) == 150
        assert all(count >= math.floor(0.1 * 0.05 * n) for count, n in zip(scheme.kept, sizes, strict=True))


def test_two_caps_that_share_no_group_are_both_used_up() -> None:
    space = SearchSpace(tuple(Group(name, 40, (), tuple(range(1, 41))) for name in "ab"), (), {})
    functions = {"first": lambda scheme: float(scheme.kept[0]), "second": lambda scheme: float(scheme.kept[1])}
    budget = Budget.parse("first=50%,second=25%", space, functions)
    coding = Regrowth(space, budget, PRESETS["default"])
    assert coding.individual([-1.0, 2.0]).scheme.kept == (20, 10)


def test_equal_genes_are_equal_rates_and_a_larger_gene_regrows_more() -> None:
    space = toy.chain((100, 200, 100))
    budget = capped(space, "macs=30%")
    coding = Regrowth(space, budget, PRESETS["default"])
    rates = space.rates(coding.individual(coding.constant()).scheme)
    assert rates == pytest.approx(np.full(3, rates.mean()), abs=0.011)
    first, second, third = space.rates(coding.individual([0.0, 0.7, -0.7]).scheme)
    assert third < first < second


def test_a_scheme_is_found_again_by_its_genome() -> None:
    budget = capped(LARGE, "macs=40%")
    coding = Regrowth(LARGE, budget, PRESETS["default"])
    rng = np.random.default_rng(0)
    for _ in range(10):
        scheme = budget.fit(rng.uniform(0.3, 1.0, len(LARGE)))
        again = coding.individual(coding.genome(scheme)).scheme
        assert LARGE.rates(again) == pytest.approx(LARGE.rates(scheme), abs=0.03)


def test_unipts_mutates_in_proportion_to_the_gene() -> None:
    budget = capped(LARGE, "macs=40%")
    genomes = {}
    for preset in ("default", "unipts_release"):
        coding = Regrowth(LARGE, budget, PRESETS[preset])
        random.seed(0)
        mutants = []
        for _ in range(2000):
            mutant = [0.0, 1.0, 2.0, 4.0]
            coding.mutate(mutant, 0.1)
            mutants.append(mutant)
        genomes[preset] = np.array(mutants) - np.array([0.0, 1.0, 2.0, 4.0])
    assert (genomes["unipts_release"][:, 0] == 0).all()
    changed = genomes["unipts_release"][:, 1:] != 0
    assert changed.mean() == pytest.approx(0.1, abs=0.02)
    deviations = [column[column != 0].std() for column in genomes["unipts_release"].T[1:]]
    assert deviations == pytest.approx([1, 2, 4], rel=0.25)
    deviations = [column[column != 0].std() for column in genomes["default"].T]
    assert deviations == pytest.approx([0.3] * 4, rel=0.25)


# --- levels ---


def test_a_level_is_one_of_31_fractions_of_the_width() -> None:
    assert len(SCALES) == 31
    assert SCALES[:2] == (0.10, 0.13)
    assert SCALES[-1] == 1.0
    space = toy.chain((100, 7, 100))
    budget = capped(space, "macs=50%")
    told = toy.play(evolution(space, budget, seed=0, hints=Hints(), preset="metapruning"), lambda _: 0.0, 100)
    fractions = {count for scheme in kept_by(told) for count in (scheme[0], scheme[2])}
    assert fractions <= {round(100 * scale) for scale in SCALES}
    assert {scheme[1] for scheme in kept_by(told)} <= {max(1, int(7 * scale + 1e-9)) for scale in SCALES}


@pytest.mark.parametrize("fill", [False, True])
def test_a_genome_over_the_budget_is_repaired_with_its_scheme(fill: bool) -> None:
    space = toy.chain((100, 100, 100))
    budget = capped(space, "macs=40%")
    settings = functools.partial(Settings, **vars(PRESETS["metapruning"]) | {"fill": fill})
    coding = Levels(space, budget, settings())
    over = coding.individual([30, 30, 30])
    assert budget.allows(over.scheme)
    assert over.genome != [30, 30, 30]
    assert coding.individual(over.genome).scheme == over.scheme
    under = coding.individual([5, 0, 2]).scheme
    assert (under.kept == (25, 10, 16)) == (not fill)
    for scheme in (over.scheme, under) if fill else (over.scheme,):
        larger = [(g, count + 3) for g, count in enumerate(scheme.kept) if count < 100]
        assert not any(budget.allows(scheme.replace(g, count)) for g, count in larger)


def test_a_budget_below_the_smallest_level_is_met_with_the_smallest_counts() -> None:
    space = toy.chain((100, 100, 100))
    for preset in ("metapruning", "default"):
        proposals = evolution(space, capped(space, "smallest"), seed=0, hints=Hints(), preset=preset)
        assert next(proposals) == [space.smallest]


def test_a_gene_that_mutates_jumps_to_any_other_level() -> None:
    space = toy.chain((100, 5, 1))
    coding = Levels(space, capped(space, "macs=50%"), PRESETS["metapruning"])
    random.seed(0)
    seen: list[set[int]] = [set(), set(), set()]
    for _ in range(500):
        genome = [3, 2, 0]
        coding.mutate(genome, 1.0)
        for genes, gene in zip(seen, genome, strict=True):
            genes.add(gene)
    assert seen == [set(range(31)) - {3}, {0, 1, 3, 4}, {0}]


# --- populations ---


@pytest.fixture
def bred(monkeypatch: pytest.MonkeyPatch) -> list[list[Individual]]:
    """The parents of every generation."""
    every: list[list[Individual]] = []
    inner = module._next

    def spy(elders: list[Individual], *rest: Any) -> list[Individual]:
        every.append(elders)
        return inner(elders, *rest)

    monkeypatch.setattr(module, "_next", spy)
    return every


def test_the_release_of_unipts_runs_as_published(bred: list[list[Individual]]) -> None:
    budget, reward = capped(LARGE, "macs=50%"), toy.landscape(LARGE, 0)
    told = toy.play(evolution(LARGE, budget, seed=0, hints=Hints(), preset="unipts_release"), reward, 10**6)
    assert len(told) == 25 + 25 * 24
    starting = [0, *range(25, 625, 24)]
    assert {told[at].scheme for at in starting} == {told[0].scheme}
    populations = [told[a:b] for a, b in itertools.pairwise(starting)]
    for elders, population in zip(bred, populations, strict=True):
        best = sorted((trial.reward for trial in population), reverse=True)[:10]
        assert [elder.fitness for elder in elders] == best  # of the last population, not of all
    assert any(a[0].fitness > b[0].fitness for a, b in itertools.pairwise(bred))


def test_metapruning_breeds_twenty_times_fifty_schemes_from_the_best_ten_of_all(bred: list[list[Individual]]) -> None:
    budget, reward = capped(LARGE, "macs=50%"), toy.landscape(LARGE, 0)
    told = toy.play(evolution(LARGE, budget, seed=0, hints=Hints(), preset="metapruning"), reward, 10**6)
    assert len(told) == len({trial.scheme for trial in told}) == 20 * 50
    for at, elders in enumerate(bred):
        best = sorted((trial.reward for trial in told[: 50 * (at + 1)]), reverse=True)[:10]
        assert [elder.fitness for elder in elders] == best


def test_the_default_never_loses_its_best_and_never_repeats_itself(bred: list[list[Individual]]) -> None:
    budget, reward = capped(LARGE, "macs=50%"), toy.landscape(LARGE, 0)
    told = toy.play(evolution(LARGE, budget, seed=0, hints=Hints()), reward, 200)
    assert len({trial.scheme for trial in told}) == len(told)
    for at, elders in enumerate(bred):
        assert elders[0].fitness == max(trial.reward for trial in told[: 16 * (at + 1)])
        assert len(elders) == 8


def test_all_that_is_believed_in_is_tried_first() -> None:
    scores = toy.unit_scores(LARGE).scores
    budget = capped(LARGE, "macs=50%")
    hints = Hints(scores, (budget.fit([0.1, 0.9, 0.5, 0.4, 1.0, 0.2]), LARGE.dense))
    believed = list(dict.fromkeys(starts(LARGE, budget, hints)))
    told = toy.play(evolution(LARGE, budget, seed=0, hints=hints, batch=4), lambda _: 0.0, 16)
    assert [trial.scheme for trial in told[: len(believed)]] == believed
    assert len(told) == 16


def test_a_search_ends_when_it_knows_its_space() -> None:
    space = toy.chain((4, 4, 4))
    told = toy.play(evolution(space, capped(space, "macs=60%"), seed=0, hints=Hints()), toy.landscape(space, 0), 10**6)
    assert 1 < len({trial.scheme for trial in told}) == len(told) < 4**3


@EVERY
def test_children_have_the_genes_of_their_parents_or_mutated_ones(options: dict[str, Any]) -> None:
    budget = capped(LARGE, "macs=50%")
    settings = functools.partial(Settings, **vars(PRESETS[options.get("preset", "default")]) | {"restless": False})
    coding: Any = (Levels if "mode" in options or options.get("preset") == "metapruning" else Regrowth)(
        LARGE, budget, settings()
    )
    rng = np.random.default_rng(0)
    parents = [coding.individual(coding.random(rng)) for _ in range(4)]
    for parent in parents:
        parent.fitness = 0.0
    mixed = 0
    for _ in range(50):
        child = module._child(parents, True, 0, coding, settings())
        pairs = [
            (one, other)
            for one, other in itertools.combinations(parents, 2)
            if all(gene in genes for gene, *genes in zip(child, one.genome, other.genome, strict=True))
        ]
        assert pairs
        mixed += all(child != parent.genome for parent in parents)
    assert mixed > 25
    before = [list(parent.genome) for parent in parents]
    for _ in range(50):
        module._child(parents, False, 0, coding, settings())
    assert [list(parent.genome) for parent in parents] == before


# --- what it is worth ---
# Losses after 200 trials, over seeds 0 to 3. Parts of what equal rates lose: separable 0.30-0.67, interacting
# 0.34-0.62, noisy 0.36-0.70, plateau 0.39-0.69; of what random rates lose: separable 0.55-0.74, interacting 0.57-0.68.
# "metapruning" loses 0.59-0.89 of what equal rates do on the interacting landscape.


def separable(space: SearchSpace, seed: int) -> toy.Reward:
    """Groups that do not know of each other, some ten times as sensitive as others."""
    sensitivity = np.random.default_rng(seed).lognormal(0.0, 1.0, len(space))
    return lambda scheme: -float((sensitivity * (1 - space.rates(scheme)) ** 2).mean())


def noisy(space: SearchSpace, seed: int) -> toy.Reward:
    """The reward with a deviation of a tenth of what uniform loses, the same for the same scheme."""
    worth = toy.landscape(space, seed)

    def reward(scheme: Scheme) -> float:
        return worth(scheme) + float(np.random.default_rng((seed, *scheme.kept)).normal(0, 0.1))

    return reward


def plateau(space: SearchSpace, seed: int) -> toy.Reward:
    """Only every tenth of a loss is seen."""
    worth = toy.landscape(space, seed)
    return lambda scheme: math.floor(10 * worth(scheme)) / 10


RESNET = toy.resnet()
HALF = Budget.parse("macs=50%", RESNET)


@functools.cache
def lost(searcher: Any, landscape: Any, seed: int, options: tuple[tuple[str, Any], ...] = ()) -> float:
    """What the best of 200 schemes truly loses to the dense ResNet-56, at half of its MACs."""
    reward = landscape(RESNET, seed)
    proposals = searcher(RESNET, HALF, seed=seed, hints=Hints(), **dict(options))
    best = max(toy.play(proposals, reward, 200), key=lambda trial: trial.reward).scheme
    assert HALF.load(best) <= 1 + 1e-9
    truth = toy.landscape(RESNET, seed) if landscape in {noisy, plateau} else reward
    return truth(RESNET.dense) - truth(best)


def uniformly(landscape: Any, seed: int) -> float:
    reward = toy.landscape(RESNET, seed) if landscape in {noisy, plateau} else landscape(RESNET, seed)
    return reward(RESNET.dense) - reward(HALF.fit(np.ones(len(RESNET))))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("landscape", [separable, toy.landscape, noisy, plateau])
def test_evolution_loses_far_less_than_equal_rates(landscape: Any, seed: int) -> None:
    assert lost(evolution, landscape, seed) < 0.8 * uniformly(landscape, seed)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("landscape", [separable, toy.landscape])
def test_evolution_loses_less_than_random_rates_after_as_many_trials(landscape: Any, seed: int) -> None:
    assert lost(evolution, landscape, seed) < 0.85 * lost(random_rates, landscape, seed)


@pytest.mark.parametrize("seed", range(2))
def test_metapruning_loses_less_than_equal_rates(seed: int) -> None:
    assert lost(evolution, toy.landscape, seed, (("preset", "metapruning"),)) < uniformly(toy.landscape, seed)


@pytest.mark.parametrize("preset", ["default", "unipts_release"])
def test_the_one_fragile_group_keeps_more_than_the_others(preset: str) -> None:
    budget = weights([400] * 6, 0.6)
    fragility = np.array([1.0, 1.0, 1.0, 30.0, 1.0, 1.0])
    space = budget.space
    proposals = evolution(space, budget, seed=0, hints=Hints(), preset=preset)
    told = toy.play(proposals, lambda scheme: -float((fragility * (1 - space.rates(scheme)) ** 2).sum()), 200)
    rates = space.rates(max(told, key=lambda trial: trial.reward).scheme)
    assert rates[3] > max(np.delete(rates, 3))
