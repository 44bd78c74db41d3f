"""The pruning task as a Gymnasium environment."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from autoprune import references
from autoprune import reward as rewards
from autoprune.budget import Budget
from autoprune.cost import account
from autoprune.errors import UserError
from autoprune.reward import Reward
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace
from autoprune.trial import Measurement

from .state import STATES, State
from .walls import WALLS, Wall

Observation = NDArray[np.float32]
Facts = dict[str, Any]
Evaluate = Callable[[Scheme], Measurement]


class PruningEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One episode decides one scheme, one step one group, in forward order (AMC: He et al., ECCV 2018).

    ``action``, a single number in [-1, 1], asks for a kept fraction between the smallest and the largest that
    the group may have; the ``wall`` (see :mod:`autoprune.envs.walls`) turns it into a legal count. The observation
    is AMC's ``state``, "paper" or "release" (see :class:`autoprune.envs.state.State`).

    Without ``reward`` and ``evaluator`` every reward is 0 and nothing is measured: the environment is arithmetic.
    With both, ``evaluator(scheme) -> Measurement`` measures the finished scheme, and ``reward`` (a built-in name,
    ``package.module:function`` or a function) says what it was worth, at the last step. A candidate that failed is
    worth ``failure``, or else the worst reward of this environment so far.

    ``budget`` is a :class:`~autoprune.budget.Budget` or its text. Resource-constrained search: a budget, a wall and
    a reward for accuracy. Accuracy-guaranteed search: no budget, hence no wall, and a reward that weighs the cost
    (``amc_flops``).

    ``info`` holds "kept" (the counts decided so far), "rate" and "action" (what was executed, as a kept fraction and
    on the action's scale) and "costs" and "fractions" (with the undecided groups at their largest); after the last
    step also "scheme" and, if it was measured, "measurement".
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        space: SearchSpace,
        budget: Budget | str | Sequence[str] | None = None,
        reward: str | Reward | None = None,
        evaluator: Evaluate | None = None,
        *,
        state: str = "paper",
        wall: str | Wall | None = None,
        failure: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(space, SearchSpace):
            raise UserError(f"space is a {type(space).__name__}: a SearchSpace is needed, as trace() returns")
        if not len(space):
            raise UserError("this search space has no groups: there is nothing to decide")
        if (reward is None) != (evaluator is None):
            there, missing = ("an evaluator", "reward") if reward is None else ("a reward", "evaluator")
            raise UserError(f"the environment has {there} but no {missing}: give both, or neither")
        if state not in tuple(STATES):
            raise UserError(f"state {state!r} is unknown: use {' or '.join(STATES)}")
        if evaluator is not None and not callable(evaluator):
            raise UserError(f"evaluator {evaluator!r} is no function from a scheme to a measurement")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode {render_mode!r} is unknown: use 'ansi' or None")
        self.space = space
        self.budget = _budget(space, budget)
        self.render_mode = render_mode
        self.observation_space = Box(0.0, 1.0, (len(STATES[state]) + 3,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self._observe = State(space, self.budget, state)
        self._clip = _wall(wall, unbounded=budget is None)(self.budget)
        if failure is not None and not math.isfinite(failure):
            raise UserError(f"failure = {failure}: what a failed candidate is worth must be a finite number")
        self._reward = None if reward is None else rewards.find(reward)
        self._evaluate = evaluator
        self._worst = failure
        self._learns_worst = failure is None
        self._kept: tuple[int, ...] | None = None
        self._asked: tuple[float, ...] = ()

    def reset(self, *, seed: int | None = None, options: Facts | None = None) -> tuple[Observation, Facts]:
        """Begin a scheme with its first group. Nothing here is random; ``options`` are not used."""
        super().reset(seed=seed)
        self._kept, self._asked = (), ()
        return self._observe(()), self._facts(())

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Facts]:
        """Decide the next group; the last one ends the episode, which is never truncated."""
        if self._kept is None:
            raise UserError("step() was called before reset(): an episode begins with reset()")
        if len(self._kept) == len(self.space):
            raise UserError("step() was called after the last group: begin the next episode with reset()")
        rate = self._rate(action)
        kept = self._kept = (*self._kept, self._count(self._kept, rate))
        self._asked = (*self._asked, rate)
        done = len(kept) == len(self.space)
        facts = self._facts(kept)
        reward = 0.0
        if done:
            facts["scheme"] = scheme = Scheme(kept, self.space.granularity)
            if self._evaluate is not None and self._reward is not None:
                facts["measurement"] = measurement = self._evaluate(scheme)
                reward = self._worth(measurement, self._reward)
        return self._observe(kept), reward, done, False, facts

    def render(self) -> str | None:
        """The table of what was asked for and what is kept, as text."""
        if self.render_mode is None:
            return None
        kept = self._kept or ()
        length = max(len("group"), *(len(group.name) for group in self.space.groups))
        lines = [f"{'group':<{length}}   width   asked    kept"]
        for t, group in enumerate(self.space.groups):
            decided = f"{self._asked[t]:7.1%} {kept[t]:>7} {kept[t] / group.width:7.1%}" if t < len(kept) else "      …"
            lines.append(f"{group.name:<{length}} {group.width:>7} {decided}")
        fractions = self._facts(kept)["fractions"]
        return "\n".join([*lines, ", ".join(f"{name} {value:.1%}" for name, value in fractions.items())])

    def _rate(self, action: NDArray[np.float32]) -> float:
        """The kept fraction that an action asks for."""
        number = _number(action)
        if not abs(number) <= 1:
            shown = " ".join(reprlib.repr(action).split())
            raise UserError(f"action {shown}: one number in [-1, 1] is needed")
        low, high = self._range(len(self._kept or ()))
        return low + (number + 1) / 2 * (high - low)

    def _count(self, prefix: tuple[int, ...], rate: float) -> int:
        """The legal count that the wall makes of a rate."""
        group = self.space.groups[len(prefix)]
        count = self._clip(prefix, rate)
        if group.floor(count) != count:
            low, high = group.counts[0], group.counts[-1]
            raise UserError(f"the wall kept {count} of group {group.name}: not a legal count of it ({low}..{high})")
        return int(count)

    def _range(self, t: int) -> tuple[float, float]:
        """The smallest and the largest kept fraction of a group."""
        group = self.space.groups[t]
        return group.counts[0] / group.width, group.counts[-1] / group.width

    def _facts(self, kept: tuple[int, ...]) -> Facts:
        space = self.space
        scheme = Scheme((*kept, *space.largest.kept[len(kept) :]), space.granularity)
        absolute, fractions = account(scheme, space, self.budget.costs)
        facts: Facts = {"kept": kept, "costs": absolute, "fractions": fractions}
        if kept:
            low, high = self._range(len(kept) - 1)
            rate = kept[-1] / space.groups[len(kept) - 1].width
            facts["rate"] = rate
            facts["action"] = 2 * (rate - low) / (high - low) - 1 if high > low else 1.0
        return facts

    def _worth(self, measurement: Measurement, reward: Reward) -> float:
        """The reward, remembering the worst for candidates that fail."""
        if measurement.failed:
            if self._worst is None:
                raise UserError(
                    f"the first candidate failed ({measurement.error}), so there is no worst reward to give it: "
                    "repair the model or the data, or pass failure=…, what a failed candidate is worth"
                )
            return self._worst
        worth = rewards.score(reward, measurement)
        if self._learns_worst:
            self._worst = worth if self._worst is None else min(self._worst, worth)
        return worth


def _number(action: object) -> float:
    """The one number that an action is; NaN for anything else, text included."""
    try:
        numbers = np.asarray(action)
    except (TypeError, ValueError, RuntimeError):
        return math.nan
    return float(numbers.reshape(())) if numbers.size == 1 and numbers.dtype.kind in "fiu" else math.nan


def _budget(space: SearchSpace, budget: Budget | str | Sequence[str] | None) -> Budget:
    """A budget within reach that belongs to the space; everything is allowed where none is given."""
    if budget is None:
        return Budget.parse("macs=100%", space)
    if not isinstance(budget, Budget):
        budget = Budget.parse(budget, space)
    if budget.space is not space:
        raise UserError("the budget was made for another search space: use Budget.parse(text, space) with this one")
    budget.check()
    return budget


def _wall(wall: str | Wall | None, unbounded: bool) -> Wall:
    if wall is None:
        wall = "none" if unbounded else "two-sided"
    found: Wall = references.function(wall, "wall", WALLS)
    return found
