"""Evolution of schemes, after UniPTS (Xie et al., CVPR 2024) and MetaPruning (Liu et al., ICCV 2019)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.ranking import starts
from autoprune.space import SearchSpace
from autoprune.streams import Stream

Mode = Literal["reducing_regrowing", "categorical"]
Genome = list[Any]
"""One gene per group: a float that says how strongly it regrows, or the number of its level."""

SCALES = tuple(percent / 100 for percent in range(10, 101, 3))
DEEPEST = 0.9  # of the budget: pruned further, a group that the genome starves would be all but gone
GENTLEST = 0.01  # of the range of rates: the regrowth that stands for none at all
TRIES = 10


@dataclass(frozen=True)
class Settings:
    """What the presets differ in; :func:`evolution` says what each means."""

    mode: Mode
    population: int
    parents: int
    mutation: float
    elitist: bool = True
    generations: int = 0
    sigma: float = 1.0
    margin: float = DEEPEST
    fill: bool = False
    tournament: int = 1
    hinted: bool = False
    restless: bool = False
    unipts: bool = False


PRESETS: Mapping[str, Settings] = {
    "default": Settings(
        mode="reducing_regrowing", population=16, parents=8, mutation=0.1, sigma=0.3, fill=True, tournament=3,
        hinted=True, restless=True,
    ),
    "unipts_release": Settings(
        mode="reducing_regrowing", population=25, parents=10, mutation=0.1, elitist=False, generations=25,
        margin=0.05, unipts=True,
    ),
    "metapruning": Settings(mode="categorical", population=50, parents=10, mutation=0.1, generations=19),
}  # fmt: skip


@dataclass(eq=False)
class Individual:
    """A genome, the scheme it stands for, and what that was worth."""

    genome: Genome
    scheme: Scheme
    fitness: float = -math.inf


def evolution(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    preset: Literal["default", "unipts_release", "metapruning"] = "default",
    mode: Literal["reducing_regrowing", "categorical"] | None = None,
    population: int | None = None,
    parents: int | None = None,
    elitist: bool | None = None,
    generations: int | None = None,
    mutation: float | None = None,
    sigma: float | None = None,
    margin: float | None = None,
    fill: bool | None = None,
) -> Proposals:
    """Breeds populations whose every member is within the budget; the operators are DEAP's.

    The ``preset`` decides the rest, and every option that is given replaces its part of it:

    - ``mode``: what a genome is. "reducing_regrowing" is UniPTS's: all groups are pruned alike, below the budget, and
      a softmax of the genome shares out what may grow back. "categorical" is MetaPruning's: a gene picks one of 31
      fractions of the group's width, from 0.10 to 1.
    - ``population``: members of the first population. Each later one has half of that many children by crossover
      (every gene from either parent) and as many by mutation, rounded down.
    - ``parents``: how many of the best have children.
    - ``elitist``: they are the best of all so far, and not of the last population alone.
    - ``generations``: populations after the first; 0 goes on until nothing new is found.
    - ``mutation``: the chance of a gene to mutate.
    - ``sigma``: deviation of the normal noise that mutates a regrowing gene.
    - ``margin``: what is pruned below the budget, as a share of the budget ("unipts_release": of the dense cost). It
      never exceeds 0.9 of the budget.
    - ``fill``: every scheme uses the budget up: regrowth goes on until the cost is the budget's, with the groups that
      are whole taking no more, and picked widths are scaled to it.

    "default" begins with equal rates, the rankings of the unit scores, the start schemes, and random genomes. The
    regrowth is shared such that equal genes give equal rates, parents are chosen by tournaments of three, and all
    children are mutated, those that turn out to be known with twice the chance at every further attempt.

    "unipts_release" is the published search with its quirks: equal genes give every group the same *cost* back,
    so that small groups end up whole, and what they cannot take is lost, not spent. Genes are drawn from U(0, 1) and
    mutate by a factor of 1 + N(0, ``sigma``). The first child of every generation is the constant genome once more,
    a random newcomer that should join each generation never does (25 members, then 24), no parent survives, and the
    same scheme may be asked for again. There the answer is the best of the last population, measured anew; here it is
    the best trial. UniPTS prunes single weights, whose costs add up; where they do not, regrowth stops at the budget.

    "metapruning" scales widths over the budget down, where the published search draws again; those under the budget
    stay as they are, unless ``fill``. Its parents are the best 10 of all. A gene mutates by jumping to another level,
    all of them equally likely. A group with few counts has fewer levels, and the smallest legal counts are added where
    the budget is out of reach without them. There is no network that generates weights: what a scheme is worth is up
    to the evaluator. Neither this preset nor "unipts_release" looks at hints.

    Except in "unipts_release", no scheme is asked for twice: a child that is known is drawn again, ten times at most,
    and then a random genome takes its place.
    """
    given = {"mode": mode, "population": population, "parents": parents, "elitist": elitist, "mutation": mutation}
    given |= {"generations": generations, "sigma": sigma, "margin": margin, "fill": fill}
    chosen = _settings(preset, given)
    budget.check()
    from deap import tools

    rng, stream = np.random.default_rng(seed), Stream(seed)
    coding: Coding = Levels(space, budget, chosen) if chosen.mode == "categorical" else Regrowth(space, budget, chosen)
    known: set[Scheme] = set()
    members = _first(space, budget, hints, coding, chosen, known, rng)
    elders: list[Individual] = []
    born = 0
    while members:
        for at in range(0, len(members), batch):
            asked = members[at : at + batch]
            trials = yield [member.scheme for member in asked]
            for member, trial in zip(asked, trials, strict=True):
                member.fitness = trial.reward if math.isfinite(trial.reward) else -math.inf
        alive = [member for member in members if member.fitness > -math.inf]
        elders = tools.selBest([*elders, *alive] if chosen.elitist else alive, chosen.parents)
        if 0 < chosen.generations == born:
            return
        born += 1
        with stream:
            members = _next(elders, coding, chosen, known, rng)


def _settings(preset: str, given: Mapping[str, Any]) -> Settings:
    """The preset with what was given; values without meaning are refused."""
    if preset not in PRESETS:
        raise UserError(f"evolution: preset={preset!r} is unknown, use one of {', '.join(PRESETS)}")
    chosen = replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    rules = (
        ("mode", chosen.mode in {"reducing_regrowing", "categorical"}, "reducing_regrowing or categorical"),
        ("population", chosen.population >= 2, "at least 2"),
        ("parents", chosen.parents >= 1, "at least 1"),
        ("generations", chosen.generations >= 0, "not negative"),
        ("mutation", 0 < chosen.mutation <= 1, "in (0, 1]"),
        ("sigma", 0 < chosen.sigma < math.inf, "positive"),
        ("margin", 0 < chosen.margin <= 1, "in (0, 1]"),
    )
    for name, holds, rule in rules:
        if not holds:
            raise UserError(f"evolution: {name}={getattr(chosen, name)} must be {rule}")
    return chosen


# --- populations ---


def _first(
    space: SearchSpace,
    budget: Budget,
    hints: Hints,
    coding: Coding,
    chosen: Settings,
    known: set[Scheme],
    rng: np.random.Generator,
) -> list[Individual]:
    """What is believed in, or UniPTS's constant genome, and random genomes."""
    members = []
    if chosen.unipts:
        members = [coding.individual(coding.constant())]
    elif chosen.hinted:
        believed = dict.fromkeys(starts(space, budget, hints))
        members = [Individual(coding.genome(scheme), scheme) for scheme in believed]
    known.update(member.scheme for member in members)
    return members + _random(chosen.population - len(members), coding, chosen, known, rng)


def _next(
    elders: Sequence[Individual], coding: Coding, chosen: Settings, known: set[Scheme], rng: np.random.Generator
) -> list[Individual]:
    """Half by crossover, half by mutation; random genomes where nothing new is born, or nobody is left to bear it."""
    half = chosen.population // 2
    members: list[Individual] = []
    if elders:
        for place in range(2 * half):
            if place == 0 and chosen.unipts:
                members.append(coding.individual(coding.constant()))
                continue
            children = (_child(elders, place < half, attempt, coding, chosen) for attempt in range(TRIES))
            members += _new(children, coding, chosen, known)
    return members + _random(2 * half - len(members), coding, chosen, known, rng)


def _child(elders: Sequence[Individual], crossed: bool, attempt: int, coding: Coding, chosen: Settings) -> Genome:
    """A child of two different parents, or the mutant of one."""
    from deap import tools

    (parent,) = tools.selTournament(elders, 1, chosen.tournament)
    child = list(parent.genome)
    if crossed:
        others = [elder for elder in elders if elder is not parent] or elders
        (mate,) = tools.selTournament(others, 1, chosen.tournament)
        tools.cxUniform(child, list(mate.genome), 0.5)
    if chosen.restless:
        coding.mutate(child, min(2**attempt * chosen.mutation, 1.0))
    elif not crossed:
        coding.mutate(child, chosen.mutation)
    return child


def _random(
    places: int, coding: Coding, chosen: Settings, known: set[Scheme], rng: np.random.Generator
) -> list[Individual]:
    members: list[Individual] = []
    for _ in range(places):
        members += _new((coding.random(rng) for _ in range(TRIES)), coding, chosen, known)
    return members


def _new(genomes: Iterator[Genome], coding: Coding, chosen: Settings, known: set[Scheme]) -> list[Individual]:
    """The first whose scheme is not known, if there is one."""
    for genome in genomes:
        member = coding.individual(genome)
        if chosen.unipts or member.scheme not in known:
            known.add(member.scheme)
            return [member]
    return []


# --- what a genome means ---


class Coding(Protocol):
    """Genomes and the affordable schemes they stand for."""

    def individual(self, genome: Genome) -> Individual:
        """The scheme of a genome, with the genome as it is inherited."""

    def genome(self, scheme: Scheme) -> Genome:
        """The genome that comes closest to a scheme."""

    def constant(self) -> Genome:
        """The genome that treats all groups alike."""

    def random(self, rng: np.random.Generator) -> Genome:
        """A genome for the first population."""

    def mutate(self, genome: Genome, chance: float) -> None:
        """Change some genes in place, drawing from the global stream as DEAP does."""


class Regrowth:
    """UniPTS's coding: reduce all groups to one rate, let them grow by the softmax of the genome."""

    def __init__(self, space: SearchSpace, budget: Budget, chosen: Settings) -> None:
        self._space, self._budget, self._chosen = space, budget, chosen
        unit = budget.load(space.dense) if chosen.unipts else 1.0
        self._pool = min(chosen.margin * unit, DEEPEST)
        low = _highest(lambda rate: budget.load(space.floor(np.full(len(space), rate))) <= 1 - self._pool, 1.0)
        self._low = low
        self._prices = np.array([self._price(g) for g in range(len(space))])

    def _price(self, group: int) -> float:
        """What one rate of the group costs next to the reduced others, in loads."""
        reduced = self._space.floor(np.full(len(self._space), self._low))
        few, many = self._space.groups[group].counts[0], self._space.groups[group].counts[-1]
        smaller, larger = (self._budget.load(reduced.replace(group, count)) for count in (few, many))
        return max((larger - smaller) * self._space.groups[group].width / max(many - few, 1), 1e-12)

    def individual(self, genome: Genome) -> Individual:
        """Regrow until the pool is used up or, with ``fill``, the budget."""
        weights = np.exp(np.asarray(genome) - max(genome))
        shares = weights if self._chosen.unipts else weights * self._prices
        growth = np.maximum(self._pool * shares / shares.sum() / self._prices, 1e-12)

        def rates(pools: float) -> NDArray[np.float64]:
            wanted: NDArray[np.float64] = np.minimum(self._low + pools * growth, 1.0)
            return wanted

        space, budget, fill = self._space, self._budget, self._chosen.fill
        whole = float(((1 - self._low) / growth).max())
        pools = _highest(lambda pools: budget.allows(space.floor(rates(pools))), whole if fill else 1.0)
        scheme = space.floor(rates(pools))
        return Individual(genome, budget.spend(scheme, rates(pools)) if fill else scheme)

    def genome(self, scheme: Scheme) -> Genome:
        """Centred, so that its genes can be mixed with those of random genomes."""
        grown = np.maximum(self._space.rates(scheme) - self._low, GENTLEST * (1 - self._low + 1e-9))
        logarithms = np.log(grown)
        return [float(gene) for gene in logarithms - logarithms.mean()]

    def constant(self) -> Genome:
        """The softmax does not see which constant it is."""
        return [1.0] * len(self._space)

    def random(self, rng: np.random.Generator) -> Genome:
        """Uniform in UniPTS; normal otherwise, which lets a group grow several times as much as another."""
        draw = rng.uniform if self._chosen.unipts else rng.normal
        return [float(gene) for gene in draw(0, 1, len(self._space))]

    def mutate(self, genome: Genome, chance: float) -> None:
        """Normal noise, in UniPTS in proportion to the gene."""
        from deap import tools

        scale = [abs(gene) for gene in genome] if self._chosen.unipts else [1.0] * len(genome)
        tools.mutGaussian(genome, 0.0, [self._chosen.sigma * size for size in scale], chance)


class Levels:
    """MetaPruning's coding: a gene is the number of one of the group's levels, counts at fixed fractions."""

    def __init__(self, space: SearchSpace, budget: Budget, chosen: Settings) -> None:
        self._chosen = chosen
        levels = [sorted({group.floor(scale * group.width) for scale in SCALES}) for group in space.groups]
        if not budget.allows(Scheme(tuple(counts[0] for counts in levels), space.granularity)):
            levels = [sorted({group.counts[0], *counts}) for group, counts in zip(space.groups, levels, strict=True)]
        groups = (replace(group, counts=tuple(counts)) for group, counts in zip(space.groups, levels, strict=True))
        self._space = replace(space, groups=tuple(groups))
        self._budget = replace(budget, space=self._space)

    def individual(self, genome: Genome) -> Individual:
        """A scheme over the budget is scaled to it, and the genome with it."""
        counts = tuple(group.counts[gene] for group, gene in zip(self._space.groups, genome, strict=True))
        scheme = Scheme(counts, self._space.granularity)
        if self._chosen.fill or not self._budget.allows(scheme):
            scheme = self._budget.fit(self._space.rates(scheme))
        return Individual(self.genome(scheme), scheme)

    def genome(self, scheme: Scheme) -> Genome:
        """The levels that the counts reach."""
        return [
            max(bisect_right(group.counts, count) - 1, 0)
            for group, count in zip(self._space.groups, scheme.kept, strict=True)
        ]

    def constant(self) -> Genome:
        """Everything kept, before it is scaled to the budget."""
        return [len(group.counts) - 1 for group in self._space.groups]

    def random(self, rng: np.random.Generator) -> Genome:
        """Every level equally likely."""
        return [int(rng.integers(len(group.counts))) for group in self._space.groups]

    def mutate(self, genome: Genome, chance: float) -> None:
        """Genes jump by an offset that is not zero, modulo the number of levels."""
        from deap import tools

        sizes = [len(group.counts) for group in self._space.groups]
        offsets = [0] * len(genome)
        lowest, highest = [min(1, size - 1) for size in sizes], [size - 1 for size in sizes]
        tools.mutUniformInt(offsets, lowest, highest, chance)
        genome[:] = [(gene + offset) % size for gene, offset, size in zip(genome, offsets, sizes, strict=True)]


def _highest(fits: Callable[[float], bool], high: float) -> float:
    """The largest number up to ``high`` that fits, to about four digits; fitting is monotone, and zero does."""
    if fits(high):
        return high
    low = 0.0
    while high - low > max(1e-4 * high, 1e-9):
        middle = (low + high) / 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
