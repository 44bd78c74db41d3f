"""What was observed of a scheme, and what it was worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autoprune.fidelity import FULL, Fidelity
from autoprune.scheme import Scheme

NUMBERS = ("loss", "accuracy", "kl", "calibrated_kl")


@dataclass(frozen=True)
class Measurement:
    """What the evaluator saw. Expensive, so it is stored; rewards are recomputed from it.

    ``loss`` is the mean validation loss, ``kl`` the mean divergence KL(dense || candidate) of the class probabilities,
    ``calibrated_kl`` the same at the candidate's best temperature (:mod:`autoprune.calibrated`), ``accuracy`` a
    fraction in [0, 1]; each is NaN where the task has no such thing. ``costs`` are absolute, ``fractions`` relative to
    the dense model. ``seconds`` are per phase. ``metrics`` is what a user's own ``evaluate`` returned. A candidate that
    failed carries its reason in ``error`` and no numbers.

    In a race ``losses`` are the mean losses of the validation batches, in their order. A candidate that was stopped has
    ``seen`` only a share of the images: its ``loss`` is what it would have been on all of them, as far as the race
    tells; ``accuracy`` and ``kl`` are of the images seen.
    """

    loss: float = math.nan
    accuracy: float = math.nan
    kl: float = math.nan
    costs: Mapping[str, float] = field(default_factory=dict)
    fractions: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    losses: tuple[float, ...] = ()
    seen: float = 1.0
    calibrated_kl: float = math.nan

    @property
    def failed(self) -> bool:
        """Whether the candidate produced no usable numbers."""
        return self.error is not None

    @property
    def stopped(self) -> bool:
        """Whether it lost its race before the last image."""
        return self.seen < 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record (NaN becomes None); the inverse of :meth:`from_dict`."""
        record = asdict(self)
        for name in NUMBERS:
            if math.isnan(record[name]):
                record[name] = None
        if not self.losses:  # measured outside of any race
            del record["losses"], record["seen"]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Measurement:
        """Read a record of :meth:`to_dict`."""
        values = dict(record)
        for name in NUMBERS:
            if values.get(name) is None:
                values[name] = math.nan
        return cls(**values | {"losses": tuple(values.get("losses", ()))})


@dataclass(frozen=True)
class Trial:
    """A scheme with its measurement and its reward; the reward of a failed candidate is -inf."""

    scheme: Scheme
    measurement: Measurement
    reward: float
    fidelity: Fidelity = FULL

    @property
    def failed(self) -> bool:
        """Whether the candidate produced no usable numbers."""
        return self.measurement.failed

    @property
    def stopped(self) -> bool:
        """Whether it was given up as no winner: its reward is an estimate, below that of the best at the time."""
        return self.measurement.stopped
