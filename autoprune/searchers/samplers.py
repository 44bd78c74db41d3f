"""The samplers of Optuna (Akiba et al., KDD 2019) on the proportions of the kept rates."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import SLACK, Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.references import close
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.ranking import starts
from autoprune.space import SearchSpace
from autoprune.streams import Stream

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial as Asked

Axes = Mapping[str, "FloatDistribution"]
"""What is asked of the sampler: one rate for every group that has a choice, named like the group."""

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

    The study begins with equal rates, the rankings of the unit scores and the start schemes. A vector that leads to a
    known scheme is answered at once and not measured again; after ``batch`` of them a batch is handed over as it is,
    and when eight times as many lead to nothing new, the search ends. Failed trials are told as failed, which
    samplers leave out of their statistics.
    """
    _check(sampler, constraints, low)
    budget.check()
    stream = Stream(seed)
    axes = _axes(space, None if constraints else low)
    believed = list(dict.fromkeys(starts(space, budget, hints)))
    with _lent(stream):
        study = _study(sampler, seed)
        for at, start in enumerate(believed):
            study.enqueue_trial(_position(space, axes, start, scaled=not constraints), user_attrs={"start": at})

    rewards: dict[Scheme, float] = {}
    while True:
        asked: list[tuple[Asked, Scheme]] = []
        new: list[Scheme] = []
        with _lent(stream):
            for vectors in range(1, PATIENCE * batch + 1):
                trial = study.ask(dict[str, "BaseDistribution"](axes))
                if "start" in trial.user_attrs:
                    scheme = believed[trial.user_attrs["start"]]
                else:
                    rates = np.array([trial.params.get(group.name, 1.0) for group in space.groups])
                    scheme = _nearest(space, rates) if constraints else budget.fit(rates)
                if scheme in rewards:
                    _tell(study, trial, rewards[scheme], _excess(budget, scheme) if constraints else {})
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
        rewards.update((answer.scheme, answer.reward) for answer in answers)
        with _lent(stream):
            for trial, scheme in asked:
                _tell(study, trial, rewards[scheme], _excess(budget, scheme) if constraints else {})


def _study(sampler: object, seed: int) -> Study:
    """A study in memory."""
    import optuna
    from optuna.samplers import BaseSampler

    made = copy.deepcopy(sampler) if isinstance(sampler, BaseSampler) else _named(str(sampler), seed % 2**32)
    return optuna.create_study(direction="maximize", sampler=made)


def _tell(study: Study, trial: Asked, reward: float, excess: Mapping[str, float]) -> None:
    """One answer."""
    from optuna.trial import TrialState

    for cap, value in excess.items():
        trial.set_constraint(cap, value)
    if math.isfinite(reward):
        study.tell(trial, reward)
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


def _position(space: SearchSpace, axes: Axes, scheme: Scheme, scaled: bool) -> dict[str, float]:
    """Where a scheme lies on the axes, or nearly so; ``scaled`` so that its highest rate is 1."""
    rates = space.rates(scheme)
    if scaled:
        rates = rates / rates.max()
    named = dict(zip((group.name for group in space.groups), rates, strict=True))
    return {name: float(np.clip(named[name], axis.low, axis.high)) for name, axis in axes.items()}


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


def _check(sampler: object, constraints: bool, low: float) -> None:
    from optuna.samplers import BaseSampler

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
