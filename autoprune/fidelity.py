"""How thoroughly a scheme is measured, and from which weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from autoprune.errors import UserError
from autoprune.scheme import Scheme


@dataclass(frozen=True)
class Fidelity:
    """How thoroughly a scheme is measured.

    ``share`` is the part of the calibration and validation images that is used, in (0, 1]. ``recovery`` names a
    repair other than the run's own, such as "none", which costs less and tunes nothing. ``after`` are the schemes
    that were adopted on the way, in order: where the evaluator tunes what it measures, the candidate starts from
    the tuned weights of the last of them (NetAdapt). Only what is measured in full may win a run.
    """

    share: float = 1.0
    recovery: str | None = None
    after: tuple[Scheme, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.share) and 0 < self.share <= 1):
            raise UserError(f"share = {self.share}: the part of the images that is used lies in (0, 1]")

    @property
    def full(self) -> bool:
        """Whether nothing was spared."""
        return self.share == 1 and self.recovery is None

    @property
    def name(self) -> str:
        """What a ledger calls it: "full" where nothing is spared and nothing was adopted."""
        parts = [f"share={self.share:g}"] if self.share < 1 else []
        if self.recovery is not None:
            parts.append(f"recovery={self.recovery}")
        if self.after:
            way = json.dumps([scheme.to_dict() for scheme in self.after], sort_keys=True)
            parts.append(f"after={hashlib.sha256(way.encode()).hexdigest()[:16]}")
        return ",".join(parts) or "full"


FULL = Fidelity()


@dataclass(frozen=True)
class Batch:
    """What a searcher yields where a plain list of schemes, measured in full, is not meant."""

    schemes: Sequence[Scheme]
    fidelity: Fidelity = field(default=FULL)

    @classmethod
    def of(cls, proposed: Batch | Sequence[Scheme]) -> Batch:
        """A batch from what a searcher yielded."""
        return proposed if isinstance(proposed, Batch) else cls(list(proposed))
