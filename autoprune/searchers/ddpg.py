"""AMC (He et al., ECCV 2018): an agent walks through the network and decides how much every group keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.paths import expand
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.ranking import starts
from autoprune.space import SearchSpace
from autoprune.trial import Trial

if TYPE_CHECKING:
    import gymnasium

    from autoprune.agent import Agent, Episode

ENVIRONMENT = "autoprune.envs:autoprune/Pruning-v0"
Policy = Callable[[NDArray[np.float32], int], float]
"""What to do, in [-1, 1], when a group is observed; the group's number comes along."""


@dataclass(frozen=True)
class Settings:
    """What the presets differ in: the options of :func:`ddpg`, and what only a preset decides.

    ``explore`` is how warm-up plays: "schemes" (known good and random ones), "actor" (constant noise around its
    answer) or "uniform" actions. ``stored`` is the action that is remembered, as "asked" or as "executed". ``least``
    is where the deviation stops to shrink, ``early`` learns in warm-up already, ``restless`` raises the noise when
    an episode repeats a known scheme; ``shaping`` and ``replay`` are the agent's.
    """

    state: str
    wall: str
    warmup: int
    explore: str
    decay: float
    gamma: float
    shaping: Literal["baseline", "rank"]
    replay: int
    stored: str
    sigma: float = 0.5
    least: float = 0.0
    follow: float = 0.0
    updates: int = 1
    early: bool = False
    restless: bool = False


PRESETS: Mapping[str, Settings] = {
    "default": Settings(
        state="paper", wall="fit", warmup=32, explore="schemes", sigma=0.3, decay=0.98, least=0.05, follow=0.8,
        gamma=0.0, shaping="rank", replay=2000, stored="executed", early=True, restless=True,
    ),
    "amc_paper": Settings(
        state="paper", wall="one-sided", warmup=100, explore="actor", decay=0.95,
        gamma=1.0, shaping="baseline", replay=100, stored="executed",
    ),
    "amc_release": Settings(
        state="release", wall="release", warmup=101, explore="uniform", decay=0.95,
        gamma=1.0, shaping="baseline", replay=100, stored="asked",
    ),
}  # fmt: skip


def ddpg(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    algorithm: Literal["ddpg", "td3", "sac"] = "ddpg",
    preset: Literal["default", "amc_paper", "amc_release"] = "default",
    state: Literal["paper", "release"] | None = None,
    wall: Literal["fit", "two-sided", "one-sided", "release", "none"] | None = None,
    warmup: int | None = None,
    sigma: float | None = None,
    decay: float | None = None,
    follow: float | None = None,
    gamma: float | None = None,
    updates: int | None = None,
    agent: str | None = None,
    recall: bool = False,
    save: str | None = None,
) -> Proposals:
    """Plays ``batch`` episodes, learns from what they were worth, and so on, for ever.

    Actor, critic and learning rates are AMC's (:class:`autoprune.agent.Agent`); ``algorithm`` may put TD3 or SAC in
    the place of DDPG. All transitions of an episode carry its final reward. The ``preset`` decides the rest, and
    every option that is given replaces its part of it:

    - ``state``: what the agent sees, "paper" (11 elements) or "release" (10).
    - ``wall``: what keeps an episode within the budget, a wall of the environment; or "fit": the agent asks for
      all rates first, ``Budget.fit`` scales them, and the walk is repeated with what came out. Warm-up is then by
      schemes that fit.
    - ``warmup``: episodes before the agent is asked; the presets of AMC do not learn before either.
    - ``sigma``, ``decay``: afterwards actions are drawn from a normal distribution around the actor's, truncated to
      the range of actions; its deviation, as a share of that range, starts at ``sigma`` and shrinks by ``decay`` an
      episode.
    - ``follow``: the chance of a group to do after warm-up as in the best episode so far, instead. One group at
      least is free.
    - ``gamma``: discount. With 1 the critic's answer sums the rewards to come, with 0 it predicts the episode's.
    - ``updates``: gradient steps per transition. 0 switches learning off, for comparison.

    "amc_release" is the published code: 101 episodes of uniform actions, noise decaying by 0.95, a moving-average
    baseline, its own wall (episodes may end slightly over the budget) and the action as asked for, unclipped, in the
    replay. It skips the first step of each episode when learning; here that one is learnt from. "amc_paper" has the
    paper's state and one-sided wall, warms up with constant noise around the actor and stores what was executed;
    replay size and lengths are the release's. "default" warms up on known good schemes and random ones that use the
    budget up (any, where it forbids nothing), learns from them at once, ranks the rewards, follows the best episode,
    and never stops exploring: an episode that repeats a known scheme raises the noise again.

    ``agent`` names a folder with an agent to start from, which skips the warm-up; it may have learnt on another
    network. ``recall`` takes over what it remembers too, which needs the same search space and reward. ``save`` is the
    folder to write the agent to when the search ends, if it was told anything: the trials of the last batch are not.
    Start schemes are played first, whatever the preset. A run that is continued must find the same ``agent``.
    """
    import gymnasium

    given = {"state": state, "wall": wall, "warmup": warmup, "sigma": sigma, "decay": decay}
    given |= {"follow": follow, "gamma": gamma, "updates": updates}
    chosen = _settings(preset, given)
    if agent is not None:
        chosen = replace(chosen, warmup=0)
    budget.check()
    clipped = "none" if chosen.wall == "fit" else chosen.wall
    env = gymnasium.make(ENVIRONMENT, space=space, budget=budget, state=chosen.state, wall=clipped)
    learner = _learner(env, space, algorithm, chosen, seed, agent, recall, save)
    rng = np.random.default_rng(seed)
    first = _warmup(space, budget, hints, chosen, learner, rng)
    best: Trial | None = None
    worst, late, cooled = math.inf, False, 0
    seen: set[Scheme] = set()
    try:
        while True:
            played = []
            for _ in range(batch):
                policy = next(first, None)
                if policy is None:
                    policy = _exploring(space, chosen, learner, cooled, best, rng)
                    late = True
                scheme, episode = _play(env, policy, chosen, budget if chosen.wall == "fit" and late else None)
                repeats = chosen.restless and scheme in seen
                cooled = max(cooled - 1, 0) if repeats else cooled + late
                seen.add(scheme)
                played.append((scheme, episode))
            trials = yield [scheme for scheme, _ in played]
            for (_, episode), trial in zip(played, trials, strict=True):
                if not trial.failed:
                    worst = min(worst, trial.reward)
                    if budget.allows(trial.scheme) and (best is None or trial.reward > best.reward):
                        best = trial
                if worst < math.inf:  # until then there is no scale on which a failure could be bad
                    learner.remember(episode, worst if trial.failed else trial.reward)
                if late or chosen.early:
                    learner.learn(chosen.updates * len(space))
    finally:
        if save is not None and worst < math.inf:
            learner.save(expand(save))


td3 = partial(ddpg, algorithm="td3")
sac = partial(ddpg, algorithm="sac")


def _settings(preset: str, given: Mapping[str, Any]) -> Settings:
    """The preset with what was given; numbers out of range are refused."""
    chosen = replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    rules = (
        ("warmup", chosen.warmup >= 0, "not negative"),
        ("updates", chosen.updates >= 0, "not negative"),
        ("sigma", chosen.sigma > 0, "positive"),
        ("decay", 0 < chosen.decay <= 1, "in (0, 1]"),
        ("follow", 0 <= chosen.follow <= 1, "in [0, 1]"),
        ("gamma", 0 <= chosen.gamma <= 1, "in [0, 1]"),
    )
    for name, holds, rule in rules:
        if not holds:
            raise UserError(f"ddpg: {name}={getattr(chosen, name)} must be {rule}")
    return chosen


def _learner(
    env: gymnasium.Env[Any, Any],
    space: SearchSpace,
    algorithm: Literal["ddpg", "td3", "sac"],
    chosen: Settings,
    seed: int,
    agent: str | None,
    recall: bool,
    save: str | None,
) -> Agent:
    """A new agent, or one that continues; where it is to be saved must be a place for it."""
    from autoprune.agent import Agent, check_writable

    if save is not None:
        if agent is not None and expand(agent).resolve() == expand(save).resolve():
            raise UserError(f"ddpg: agent and save are both {save}: the run could not be continued, save elsewhere")
        check_writable(expand(save))
    learner = Agent(
        env, len(space), algorithm, gamma=chosen.gamma, replay=chosen.replay, shaping=chosen.shaping,
        home=space.fingerprint, seed=seed,
    )  # fmt: skip
    if agent is not None:
        learner.load(expand(agent), recall)
    return learner


def _warmup(
    space: SearchSpace, budget: Budget, hints: Hints, chosen: Settings, learner: Agent, rng: np.random.Generator
) -> Iterator[Policy]:
    """One policy for every episode before the agent is trusted."""
    by_schemes = chosen.explore == "schemes" or chosen.wall == "fit"
    known = starts(space, budget, hints) if by_schemes and chosen.warmup else list(hints.starts)
    for scheme in known:
        space.check(scheme)
        yield _following(space, scheme)
    free = budget.allows(space.largest)  # all rates would be scaled to the largest scheme
    for _ in range(chosen.warmup - len(known)):
        if by_schemes:
            rates = rng.uniform(0.2, 1.0, len(space))
            yield _following(space, space.floor(rates) if free else budget.fit(rates))
        elif chosen.explore == "uniform":
            yield lambda observation, t: rng.uniform(-1, 1)
        else:
            yield lambda observation, t: learner.act(observation, 2 * chosen.sigma)


def _exploring(
    space: SearchSpace, chosen: Settings, learner: Agent, cooled: int, best: Trial | None, rng: np.random.Generator
) -> Policy:
    """The actor's advice with noise that has ``cooled`` so often; some groups do as the best episode did."""
    sigma = deviation(chosen, cooled)

    def explore(observation: NDArray[np.float32], t: int) -> float:
        return learner.act(observation, sigma)

    if best is None or not chosen.follow:
        return explore
    known, follows = _following(space, best.scheme), rng.random(len(space)) < chosen.follow
    follows[rng.integers(len(space))] = False
    return lambda observation, t: known(observation, t) if follows[t] else explore(observation, t)


def deviation(chosen: Settings, cooled: int) -> float:
    """Of the exploration, on the scale of actions, which is twice as wide as that of rates."""
    return 2 * max(chosen.sigma * chosen.decay ** (cooled + 1), chosen.least)


def _following(space: SearchSpace, scheme: Scheme) -> Policy:
    """The actions that lead to a scheme."""

    def act(observation: NDArray[np.float32], t: int) -> float:
        counts = space.groups[t].counts
        span = counts[-1] - counts[0]
        return 2 * (scheme.kept[t] - counts[0]) / span - 1 if span else 1.0

    return act


def _play(
    env: gymnasium.Env[Any, Any], policy: Policy, chosen: Settings, budget: Budget | None
) -> tuple[Scheme, Episode]:
    """One walk through the network: the scheme, fitted to a budget if there is one, and the episode to remember."""
    scheme, episode = _walk(env, policy, chosen)
    if budget is not None:
        fitted = budget.fit(budget.space.rates(scheme))
        scheme, episode = _walk(env, _following(budget.space, fitted), chosen)
    return scheme, episode


def _walk(env: gymnasium.Env[Any, Any], policy: Policy, chosen: Settings) -> tuple[Scheme, Episode]:
    from autoprune.agent import Episode

    observation, facts = env.reset()
    observations, done = [observation], False
    actions: list[float] = []
    while not done:
        asked = policy(observation, len(actions))
        observation, _, done, _, facts = env.step(np.array([asked], dtype=np.float32))
        observations.append(observation)
        actions.append(asked if chosen.stored == "asked" else facts["action"])
    return facts["scheme"], Episode(np.array(observations), np.array(actions, dtype=np.float32))
