"""Rewards: what a measurement is worth, high = better.

A reward is any function of a measurement. It is cheap and is applied again whenever a measurement is
read back, so a run may continue under another reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from autoprune.errors import UserError
from autoprune.references import function
from autoprune.trial import Measurement

Reward = Callable[[Measurement], float]

DEFAULT = "neg_loss"


def accuracy(m: Measurement) -> float:
    """Fraction of correct answers. Coarse: at strong compression candidates tie at chance."""
    return m.accuracy


def neg_loss(m: Measurement) -> float:
    """Minus the validation loss: still ranks candidates whose accuracies tie."""
    return -m.loss


def neg_kl(m: Measurement) -> float:
    """Minus KL(dense || candidate): how faithful the candidate is to the dense model; needs no labels."""
    return -m.kl


def amc_err(m: Measurement) -> float:
    """Minus the error, -(1 - accuracy): ranks as ``accuracy`` does, with 0 for a perfect candidate."""
    return -(1 - m.accuracy)


def amc_flops(m: Measurement) -> float:
    """-(1 - accuracy) ln(MACs), ``acc_flops_reward`` of AMC's published code; MACs are absolute.

    Trades accuracy against work without a budget: MACs count logarithmically, errors linearly.
    """
    return -(1 - m.accuracy) * math.log(m.costs["macs"])


def amc_param(m: Measurement) -> float:
    """-(1 - accuracy) ln(parameters): :func:`amc_flops` for size instead of work."""
    return -(1 - m.accuracy) * math.log(m.costs["params"])


REWARDS: Mapping[str, Reward] = {
    function.__name__: function for function in (neg_loss, accuracy, neg_kl, amc_err, amc_flops, amc_param)
}


def find(reward: str | Reward) -> Reward:
    """A reward by its name, by ``package.module:function``, or itself."""
    found: Reward = function(reward, "reward", REWARDS)
    return found


def score(reward: Reward, measurement: Measurement) -> float:
    """The reward of a measurement as a finite number; -inf, without asking the reward, if the candidate failed."""
    if measurement.failed:
        return -math.inf
    try:
        value = float(reward(measurement))
    except KeyError as error:
        reason = f"reward {_name(reward)} needs {error}, which the measurement does not have"
        raise UserError(f"{reason}; {_remedy(measurement)}") from error
    except Exception as error:
        raise UserError(f"reward {_name(reward)} raised {type(error).__name__}: {error}") from error
    if math.isfinite(value):
        return value
    missing = [name for name in ("loss", "accuracy", "kl") if math.isnan(getattr(measurement, name))]
    if math.isnan(value) and missing:
        reason = f"reward {_name(reward)} is nan: the measurement has no {', no '.join(missing)}"
        raise UserError(f"{reason}; {_remedy(measurement)}")
    raise UserError(f"reward {_name(reward)} is {value}: a reward must be a finite number")


def _name(reward: Reward) -> str:
    function = getattr(reward, "func", reward)  # functools.partial
    return getattr(function, "__name__", None) or repr(function)


def _remedy(m: Measurement) -> str:
    """Which built-in rewards this measurement has the numbers for."""
    possible = [name for name, reward in REWARDS.items() if _is_finite(reward, m)]
    return f"choose {' or '.join(possible)}" if possible else "pass a function of your own"


def _is_finite(reward: Reward, m: Measurement) -> bool:
    try:
        return math.isfinite(reward(m))
    except (KeyError, ValueError):
        return False
