"""The samplers of Optuna (Akiba et al., KDD 2019) on the proportions of the kept rates."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import SLACK, Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.objective import Objective
from autoprune.references import close
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.ranking import starts
from autoprune.space import SearchSpace
from autoprune.streams import Stream
from autoprune.trial import Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial as Asked

Axes = Mapping[str, "FloatDistribution"]
"""What is asked of the sampler: one rate for every group that has a choice, named like the group."""
SCALE = "(scale)"
"""And this for all groups together; no module is called so."""

Name = Literal["tpe", "cmaes", "gp", "nsga2", "nsga3", "random", "qmc"]
NAMES: tuple[Name, ...] = get_args(Name)
CONSTRAINED = ("tpe", "gp", "nsga2", "nsga3")
POPULATION = 12
PACKAGES = {"cmaes": "cmaes", "gp": "torch"}
"""What a sampler needs beyond Optuna."""
PATIENCE = 8
"""Vectors asked per scheme of a batch before the search ends because none leads to anything new."""


def optuna_search(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    sampler: Name | object = "tpe",
    constraints: bool = False,
    low: float = 0.1,
    objectives: str | Sequence[Objective] = (),
) -> Proposals:
    """Asks an Optuna sampler for one rate per group, and tells it what the scheme they lead to was worth.

    ``sampler`` is one of these, as Optuna makes it unless said otherwise, or a sampler object from Python:

    - ``tpe``: the tree-structured Parzen estimator, over all groups jointly; what is under measurement counts as bad.
    - ``cmaes``: CMA-ES; needs the package cmaes.
    - ``gp``: a Gaussian process with expected improvement; needs torch. An answer takes tenths of a second.
    - ``nsga2``, ``nsga3``: genetic, with a population of 12 (Optuna's 50 would make a short search all but random).
    - ``random``, ``qmc``: independent rates, and a scrambled Sobol sequence.

    An object is copied before use and keeps its own seed: give it one, or the run cannot be resumed.

    The rates asked for lie in [``low``, 1] and are proportions only: ``budget.fit`` scales them, so that every
    candidate uses the budget up. Hence they are real numbers, and the counts are made by the projection. The value
    is told for the rates that were asked for. Telling it for the rates of the projected scheme, in addition or
    instead, made TPE, CMA-ES and the Gaussian process worse on every toy landscape or no better: where many vectors
    lead to one scheme the sampler had better learn that they do. Asking for counts as integers found as much, and took
    the Gaussian process tens of times longer.

    With ``constraints=True`` nothing is projected: the rates are those of the legal counts nearest to them, ``low``
    plays no part, and what a scheme exceeds each cap by is reported as an Optuna constraint. Few candidates are
    affordable then, at first perhaps only the starts, and at equal trials the projection found more. Of the named
    samplers tpe, gp, nsga2 and nsga3 heed constraints, the others are refused.

    With ``objectives``, which a search for several hands over, the study has as many directions and is told all their
    values. As a cheaper scheme may then be as good as one that uses the budget up, one number more is asked for: how
    wide the network is on the whole, also in [``low``, 1], whose square is the part of the budget that the scheme may
    use. Taking the rates as they are, without any projection, left all samplers with smaller hypervolumes and a worse
    best reward, because a wide network needs many high rates at once. Every sampler but cmaes knows several directions.

    The study begins with equal rates, the rankings of the unit scores and the start schemes. A vector that leads to a
    known scheme is answered at once and not measured again; after ``batch`` of them a batch is handed over as it is,
    and when eight times as many lead to nothing new, the search ends. Failed trials are told as failed, which
    samplers leave out of their statistics.
    """
    _check(sampler, constraints, low, objectives)
    assert not isinstance(objectives, str)
    budget.check()
    stream = Stream(seed)
    axes = _axes(space, None if constraints else low)
    if objectives and not constraints:
        axes = {**axes, SCALE: _scales(budget, low)}
    believed = list(dict.fromkeys(starts(space, budget, hints)))
    with _lent(stream):
        study = _study(sampler, seed, objectives)
        for number, start in enumerate(believed):
            study.enqueue_trial(_position(budget, axes, start, not constraints), user_attrs={"start": number})

    def scheme_of(asked: Mapping[str, float]) -> Scheme:
        rates = np.array([asked.get(group.name, 1.0) for group in space.groups])
        return _nearest(space, rates) if constraints else _part(budget, asked.get(SCALE, 1.0)).fit(rates)

    def tell(asked: Asked, answer: Trial) -> None:
        values = [objective(answer) for objective in objectives] or [answer.reward]
        _tell(study, asked, values, _excess(budget, answer.scheme) if constraints else {})

    known: dict[Scheme, Trial] = {}
    while True:
        asked: list[tuple[Asked, Scheme]] = []
        new: list[Scheme] = []
        with _lent(stream):
            for vectors in range(1, PATIENCE * batch + 1):
                trial = study.ask(dict[str, "BaseDistribution"](axes))
                at = trial.user_attrs.get("start")
                scheme = scheme_of(trial.params) if at is None else believed[at]
                if scheme in known:
                    tell(trial, known[scheme])
                else:
                    asked.append((trial, scheme))
                    if scheme not in new:
                        new.append(scheme)
                repeats = vectors - len(new)
                if len(new) == batch or (new and repeats >= batch):
                    break
        if not new:
            return
        answers = yield new
        known.update((answer.scheme, answer) for answer in answers)
        with _lent(stream):
            for trial, scheme in asked:
                tell(trial, known[scheme])


def _study(sampler: object, seed: int, objectives: Sequence[Objective]) -> Study:
    """A study in memory, of the reward where there are no objectives."""
    import optuna
    from optuna.samplers import BaseSampler

    made = copy.deepcopy(sampler) if isinstance(sampler, BaseSampler) else _named(str(sampler), seed % 2**32)
    directions = [objective.direction for objective in objectives] or ["maximize"]
    return optuna.create_study(directions=directions, sampler=made)


def _tell(study: Study, trial: Asked, values: Sequence[float], excess: Mapping[str, float]) -> None:
    """One answer."""
    from optuna.trial import TrialState

    for cap, value in excess.items():
        trial.set_constraint(cap, value)
    if all(math.isfinite(value) for value in values):
        study.tell(trial, values)
    else:
        study.tell(trial, state=TrialState.FAIL)


def _axes(space: SearchSpace, low: float | None) -> Axes:
    """From ``low`` to 1, or without it from the smallest to the largest legal count."""
    from optuna.distributions import FloatDistribution

    return {
        group.name: FloatDistribution(group.counts[0] / group.width, group.counts[-1] / group.width)
        if low is None
        else FloatDistribution(low, 1.0)
        for group in space.groups
        if len(group.counts) > 1
    }


def _scales(budget: Budget, low: float) -> FloatDistribution:
    """From ``low`` to 1, as far as the smallest scheme allows."""
    from optuna.distributions import FloatDistribution

    return FloatDistribution(min(1.0, max(low, math.sqrt(budget.load(budget.space.smallest)))), 1.0)


def _part(budget: Budget, scale: float) -> Budget:
    """The budget of networks that are ``scale`` times as wide: roughly, costs go with the square of the width."""
    return replace(budget, caps={name: cap * scale**2 for name, cap in budget.caps.items()})


def _position(budget: Budget, axes: Axes, scheme: Scheme, scaled: bool) -> dict[str, float]:
    """Where a scheme lies on the axes, or nearly so; ``scaled`` so that its highest rate is 1."""
    space = budget.space
    rates = space.rates(scheme)
    if scaled:
        rates = rates / rates.max()
    at = dict(zip((group.name for group in space.groups), rates, strict=True))
    at[SCALE] = math.sqrt(budget.load(scheme))
    return {name: float(np.clip(at[name], axis.low, axis.high)) for name, axis in axes.items()}


def _nearest(space: SearchSpace, rates: NDArray[np.float64]) -> Scheme:
    """The scheme of the legal counts nearest to the rates."""
    kept = [group.nearest(rate * group.width) for group, rate in zip(space.groups, rates, strict=True)]
    return Scheme(tuple(kept), space.granularity)


def _excess(budget: Budget, scheme: Scheme) -> dict[str, float]:
    """What exceeds each cap, as a fraction of it; negative or zero where the cap holds."""
    return {name: budget.costs[name](scheme) / cap - 1 - SLACK for name, cap in budget.caps.items()}


@contextmanager
def _lent(stream: Stream) -> Iterator[None]:
    """Optuna's turn: the global random streams are ``stream``, and what it has to say is not for the user.

    It announces studies and failed trials, and calls some of its samplers experimental.
    """
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.ERROR))
    try:
        with stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _check(sampler: object, constraints: bool, low: float, objectives: str | Sequence[Objective]) -> None:
    from optuna.samplers import BaseSampler, CmaEsSampler

    if isinstance(objectives, str):
        raise UserError(f"optuna: objectives={objectives!r} are for the whole search: --objectives {objectives}")
    if objectives and (sampler == "cmaes" or isinstance(sampler, CmaEsSampler)):
        others = ", ".join(name for name in NAMES if name != "cmaes")
        raise UserError(f"optuna: sampler=cmaes knows one objective: use one of {others}, or ask for no objectives")
    if not 0 < low < 1:
        raise UserError(f"optuna: low={low} must lie between 0 and 1; rates are asked from there to 1")
    if isinstance(sampler, BaseSampler):
        return
    if not isinstance(sampler, str) or sampler not in NAMES:
        raise UserError(
            f"optuna: sampler={sampler!r} is unknown: use one of {', '.join(NAMES)}, "
            f"or an object of optuna.samplers{close(str(sampler), NAMES)}"
        )
    if constraints and sampler not in CONSTRAINED:
        raise UserError(
            f"optuna: sampler={sampler} ignores constraints: use one of {', '.join(CONSTRAINED)}, or constraints=False"
        )
    package = PACKAGES.get(sampler)
    if package is not None and find_spec(package) is None:
        raise UserError(f"optuna: sampler={sampler} needs the package {package}: pip install {package}")


def _named(name: str, seed: int) -> BaseSampler:
    from optuna import samplers

    match name:
        case "tpe":
            return samplers.TPESampler(seed=seed)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "gp":
            return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        case "nsga3":
            return samplers.NSGAIIISampler(seed=seed, population_size=POPULATION)
        case "qmc":
            return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        case _:
            return samplers.RandomSampler(seed=seed)
