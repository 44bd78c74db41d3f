"""Greedy slimming, after AutoSlim (Yu and Huang, 2019): narrow the groups that suffer least, round by round."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Literal

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.allocate import fill
from autoprune.searchers.asking import in_batches
from autoprune.searchers.netadapt import price
from autoprune.space import SearchSpace


def autoslim(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    step: float = 0.25,
    share: float = 0.4,
    rule: Literal["accuracy", "per_cost"] = "per_cost",
    targets: str | None = None,
) -> Proposals:
    """Greedy descent from the largest scheme to the budget; deterministic, the seed plays no part.

    Every round measures each group narrowed alone by ``step`` of its width (at least one legal count), and adopts
    the best ``share`` of the groups together (at least one group). ``rule`` says which are best: "accuracy"
    the highest rewards, as in the official code, "per_cost" the least drop of reward per load removed. When what
    was adopted meets the budget, the last cut is made smaller until it just does, and that scheme ends the search.

    ``targets`` are fractions of the dense load on the way, such as "75%,60%": for each the descent's first
    affordable scheme is proposed too, its last cut made just as small. So one run measures a family of networks,
    the same that a run per target would end with.

    Differences to the original: it adopts one group a round (``share=0``), measures errors on one
    batch of a slimmable network, trained so that it can be narrowed without repair, and stops below its target
    instead of on it. Here candidates are what the evaluator makes of them, and coarse steps make it
    affordable: half of the load of a ResNet-56 takes 6 rounds of 28 trials, and 55 rounds with ``share=0``. Nothing
    is affordable before the last round. The searcher "netadapt" cuts equal loads instead of equal fractions.
    """
    if not (0 < step < 1 and 0 <= share <= 1):
        raise UserError(f"autoslim: step={step} must satisfy 0 < step < 1 and share={share} 0 <= share <= 1")
    if rule not in ("accuracy", "per_cost"):
        raise UserError(f"autoslim: rule={rule!r} must be accuracy or per_cost")
    budget.check()
    goals = [*_looser(space, budget, targets), budget]
    scheme, reward = space.largest, -math.inf
    asked = [scheme]
    while goals and goals[0].allows(scheme):
        goals.pop(0)
    while goals:
        children = {_narrowed(space, scheme, g, step): g for g in range(len(space))}
        children.pop(scheme, None)
        asked += children
        trials = yield from in_batches(asked, batch)
        known = {trial.scheme for trial in trials}
        trials = [trial for trial in trials if not trial.failed]
        reward = next((trial.reward for trial in trials if trial.scheme == scheme), reward)
        ranked = [trial for trial in trials if trial.scheme in children]
        ranked.sort(key=lambda trial: price(trial, reward, budget.load(scheme), budget, rule == "per_cost"))
        adopted = ranked[: max(1, int(share * len(space)))]
        if not adopted:
            asked = _new((goal.fit(space.rates(scheme)) for goal in goals), known)
            break
        asked = []
        for trial in adopted:
            g = children[trial.scheme]
            before, scheme = scheme, scheme.replace(g, trial.scheme.kept[g])
            while goals and goals[0].allows(scheme):
                asked.append(fill(goals.pop(0), scheme, before))
            if not goals:
                break
        reward = adopted[0].reward
        if len(adopted) > 1 and goals:
            asked.append(scheme)
            reward = -math.inf  # until it is measured; if that fails, the highest rewards are best
        asked = _new(asked, known)
    yield from in_batches(asked, batch)


def _looser(space: SearchSpace, budget: Budget, targets: str | None) -> list[Budget]:
    """The budget with all its caps raised alike, per target from the loosest on."""
    dense_load = budget.load(space.dense)
    fractions = []
    for text in () if targets is None else targets.split(","):
        try:
            fraction = float(text.strip().removesuffix("%")) / (100 if "%" in text else 1)
        except ValueError:
            fraction = math.nan
        if not 1 / dense_load < fraction < 1:
            raise UserError(
                f"autoslim: targets={targets}: {text.strip()!r} is not a fraction of the dense load between the budget "
                f"({1 / dense_load:.4g}) and 1; write them like 75%,60%"
            )
        fractions.append(fraction)
    return [
        replace(budget, caps={name: cap * fraction * dense_load for name, cap in budget.caps.items()})
        for fraction in sorted(set(fractions), reverse=True)
    ]


def _narrowed(space: SearchSpace, scheme: Scheme, g: int, step: float) -> Scheme:
    """One group narrowed by ``step`` of its width, and by at least one legal count; the scheme itself if it cannot."""
    group, kept = space.groups[g], scheme.kept[g]
    next_smaller = group.counts[max(group.counts.index(kept) - 1, 0)]
    return scheme.replace(g, min(next_smaller, group.floor(kept - step * group.width)))


def _new(schemes: Iterable[Scheme], known: Collection[Scheme]) -> list[Scheme]:
    """What is not known, once."""
    return [scheme for scheme in dict.fromkeys(schemes) if scheme not in known]
