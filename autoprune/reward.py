"""Rewards: what a measurement is worth, high = better.

A reward is any function of a measurement. It is cheap and is applied again whenever a measurement is
read back, so a run may continue under another reward. Further arguments are its options; whoever wants others
than the defaults passes ``functools.partial(reward, target=0.3)``, or ``--reward-set target=0.3``.
"""

from __future__ import annotations

import contextlib
import functools
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, SupportsIndex

from autoprune import settings
from autoprune.errors import UserError
from autoprune.references import function
from autoprune.trial import NUMBERS, Measurement

Reward = Callable[[Measurement], float]

DEFAULT = "neg_loss"
KIND = settings.Kind("reward", positions=1)


def accuracy(m: Measurement) -> float:
    """Fraction of correct answers. Coarse: at strong compression candidates tie at chance."""
    return m.accuracy


def neg_loss(m: Measurement) -> float:
    """Minus the validation loss: still ranks candidates whose accuracies tie."""
    return -m.loss


def neg_kl(m: Measurement) -> float:
    """Minus KL(dense || candidate): how faithful the candidate is to the dense model; needs no labels."""
    return -m.kl


def neg_calibrated_kl(m: Measurement) -> float:
    """Minus KL(dense || candidate) at the candidate's best temperature: how sure it is does not count."""
    return -m.calibrated_kl


def amc_err(m: Measurement) -> float:
    """Minus the error, -(1 - accuracy): ranks as ``accuracy`` does, which AMC's published code uses in its place."""
    return -(1 - m.accuracy)


def amc_flops(m: Measurement) -> float:
    """-(1 - accuracy) ln(MACs), the form of AMC's published code (``acc_flops_reward``); MACs are absolute.

    Trades accuracy against work without a budget: MACs count logarithmically, errors linearly.
    """
    return -(1 - m.accuracy) * math.log(m.costs["macs"])


def amc_param(m: Measurement) -> float:
    """-(1 - accuracy) ln(parameters): :func:`amc_flops` for size instead of work.

    From the AMC paper alone (He et al., ECCV 2018): neither AMC's code nor NNI's or Distiller's version has it.
    """
    return -(1 - m.accuracy) * math.log(m.costs["params"])


def latency_penalised(m: Measurement, *, cost: str = "latency", target: float = 1.0, weight: float = -0.07) -> float:
    """Accuracy · (cost / target)^weight, MnasNet's soft constraint (Tan et al., CVPR 2019, eq. 2, α = β = weight).

    ``cost`` names what is bounded: "latency", where that is measured, "macs" or "params". It counts as a
    fraction of the dense network's cost, and so does ``target``, in (0, 1]: with 0.5 a candidate at half of the
    dense cost is worth its accuracy, a cheaper one more, a dearer one less. With α = β ``target`` scales all
    rewards alike and so does not change which candidate is better; ``weight`` does. At MnasNet's -0.07 twice the
    cost is worth 5 % more accuracy (relative); 0 ignores the cost.
    """
    _check_target("latency_penalised", target)
    if not (math.isfinite(weight) and weight <= 0):
        raise UserError(f"reward latency_penalised: weight = {weight}: a finite number <= 0, or dearer would be better")
    return m.accuracy * math.pow(m.fractions[cost] / target, weight)


def constraint_punish(m: Measurement, *, cost: str = "macs", target: float = 0.5) -> float:
    """The accuracy within the target, target - cost beyond it: Distiller's "punish-agent" protocol.

    ``cost`` and ``target``, in (0, 1], are as in :func:`latency_penalised`. Beyond the target the accuracy does
    not count, only by how much the target is missed, and every such reward is negative. For searches that may
    leave the budget, or for a target below it: what the budget allows never misses a target equal to it.
    """
    _check_target("constraint_punish", target)
    room = target - m.fractions[cost]
    # An accuracy that is missing (nan) stays so on both sides: half of a reward must not pass for one.
    return room if room < 0 <= m.accuracy else m.accuracy


def _check_target(reward: str, target: float) -> None:
    if not 0 < target <= 1:
        raise UserError(f"reward {reward}: target = {target}: a fraction of the dense network's cost, 0 < target <= 1")


REWARDS: Mapping[str, Reward] = {
    function.__name__: function
    for function in (
        neg_loss,
        accuracy,
        neg_kl,
        neg_calibrated_kl,
        amc_err,
        amc_flops,
        amc_param,
        latency_penalised,
        constraint_punish,
    )
}


def find(reward: str | Reward) -> Reward:
    """A reward by its name, by ``package.module:function``, or itself; options bound to it must be its own."""
    found: Reward = function(reward, "reward", REWARDS)
    settings.check(found, KIND, {})
    if isinstance(found, functools.partial) and found.func in REWARDS.values():
        # The built-in ones look at their options first, so wrong ones show before anything is measured.
        with contextlib.suppress(KeyError):
            found(Measurement())
    return found


def configure(reward: Reward, texts: Mapping[str, str]) -> Reward:
    """The reward with options given as text, each read as the type it is annotated with."""
    return functools.partial(reward, **settings.read(reward, KIND, texts))


def score(reward: Reward, measurement: Measurement) -> float:
    """The reward of a measurement as a finite number; -inf, without asking the reward, if the candidate failed."""
    if measurement.failed:
        return -math.inf
    try:
        returned: Any = reward(measurement)
        value = _number(returned)
    except UserError:
        raise
    except KeyError as error:
        reason = f"reward {_name(reward)} needs {error}, which the measurement does not have"
        known = f" (its costs: {', '.join(measurement.costs)})" if measurement.costs else ""
        raise UserError(f"{reason}{known}; {_remedy(measurement)}") from error
    except Exception as error:
        raise UserError(f"reward {_name(reward)} raised {type(error).__name__}: {error}") from error
    if value is None:
        shown = f"{' '.join(reprlib.repr(returned).split())} ({type(returned).__name__})"
        raise UserError(f"reward {_name(reward)} returned {shown}: a reward must be a finite number")
    if math.isfinite(value):
        return value
    missing = [name for name in NUMBERS if math.isnan(getattr(measurement, name))]
    if math.isnan(value) and missing:
        reason = f"reward {_name(reward)} is nan: the measurement has no {', no '.join(missing)}"
        raise UserError(f"{reason}; {_remedy(measurement)}")
    raise UserError(f"reward {_name(reward)} is {value}: a reward must be a finite number")


def _number(value: Any) -> float | None:
    """A number of any library as a float; None for all else: text is not parsed, however much it looks like one."""
    if isinstance(value, str) or not isinstance(value, SupportsFloat | SupportsIndex):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # an array or tensor of several numbers
        return None


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
    except (KeyError, ValueError, ArithmeticError):
        return False
