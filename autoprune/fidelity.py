"""How thoroughly a scheme is measured, and from which weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from autoprune.errors import UserError
from autoprune.race import Race
from autoprune.scheme import Scheme


@dataclass(frozen=True)
class Fidelity:
    """How thoroughly a scheme is measured.

    ``share`` is the part of the calibration and validation images that is used, in (0, 1]. ``recovery`` names a
    repair other than the run's own, such as "none", which costs less and tunes nothing. ``after`` are the schemes
    that were adopted on the way, in order: where the evaluator tunes what it measures, the candidate starts from
    the tuned weights of the last of them (NetAdapt). Only what is measured in full may win a run.

    ``race`` is what the candidate has to beat: it is stopped where it cannot any more (:mod:`autoprune.race`). One that
    is not stopped has been measured in full.
    """

    share: float = 1.0
    recovery: str | None = None
    after: tuple[Scheme, ...] = ()
    race: Race | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.share) and 0 < self.share <= 1):
            raise UserError(f"share = {self.share}: the part of the images that is used lies in (0, 1]")

    @property
    def full(self) -> bool:
        """Whether nothing was spared."""
        return self.share == 1 and self.recovery is None and self.race is None

    @property
    def finished(self) -> Fidelity:
        """That of a candidate that was not stopped."""
        return replace(self, race=None)

    @property
    def name(self) -> str:
        """What a ledger calls it: "full" where nothing is spared and nothing was adopted."""
        parts = [f"share={self.share:g}"] if self.share < 1 else []
        if self.recovery is not None:
            parts.append(f"recovery={self.recovery}")
        if self.after:
            way = json.dumps([scheme.to_dict() for scheme in self.after], sort_keys=True)
            parts.append(f"after={_digest(way)}")
        if self.race is not None:
            parts.append(f"race={self.race.error:g}:{_digest(json.dumps(self.race.losses))}")
        return ",".join(parts) or "full"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
