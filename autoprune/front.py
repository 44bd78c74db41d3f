"""The Pareto front of a run: the trials that no other beats in one objective without losing in another.

``front.json`` holds it, points numbered from 0, with the kept indices of each: any of them can be exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoprune import chart
from autoprune import reward as rewards
from autoprune.errors import UserError
from autoprune.objective import REWARD, Direction, Objective, numbers
from autoprune.references import close, stable_name
from autoprune.reward import Reward
from autoprune.run import FRONT, write_json
from autoprune.scheme import Scheme
from autoprune.trial import Measurement, Trial

SCATTER = "front.svg"
MINIMIZE: Direction = "minimize"
BETTER: Mapping[str, Direction] = {
    REWARD: "maximize",
    "accuracy": "maximize",
    **dict.fromkeys(("loss", "kl", "calibrated_kl"), MINIMIZE),
}
WORST: Mapping[str, float] = {"accuracy": 0.0}
"""Where hypervolumes count from; the dense network's cost for costs, and for all else the worst that was seen."""


@dataclass(frozen=True, eq=False)
class Front:
    """``trials`` that do not dominate each other, by rising value of the last objective.

    ``values`` are theirs, (trials, objectives), as measured; ``others`` those of all other full trials. ``hypervolume``
    is what the front dominates up to ``reference``, in the product of the objectives' units.
    """

    objectives: tuple[Objective, ...]
    trials: tuple[Trial, ...]
    values: NDArray[np.float64]
    others: NDArray[np.float64]
    reference: tuple[float, ...]
    hypervolume: float

    @classmethod
    def of(cls, trials: Iterable[Trial], objectives: Sequence[Objective]) -> Front:
        """The front of the trials that were measured in full, did not fail and have every objective.

        Of several with the same values the first counts.
        """
        import moocore

        full = [trial for trial in trials if trial.fidelity.full and not trial.failed]
        rows = [[objective(trial) for objective in objectives] for trial in full]
        values = np.array(rows, dtype=np.float64).reshape(len(full), len(objectives))
        known = np.flatnonzero(np.isfinite(values).all(axis=1))
        full, values = [full[row] for row in known], values[known]
        reference = tuple(_reference(objective, values[:, i]) for i, objective in enumerate(objectives))
        best = np.asarray(moocore.is_nondominated(values, maximise=_maximised(objectives)), dtype=bool)
        order = np.flatnonzero(best)[np.argsort(values[best, -1], kind="stable")]
        return cls(
            tuple(objectives),
            tuple(full[row] for row in order),
            values[order],
            values[~best],
            reference,
            hypervolume(values[order], reference, objectives),
        )

    def facts(self) -> dict[str, Any]:
        """What is said of a front besides its points; a hypervolume means nothing without its reference."""
        return {
            "objectives": {objective.name: objective.direction for objective in self.objectives},
            "reference": self._named(self.reference),
            "hypervolume": self.hypervolume,
            "points": len(self.trials),
        }

    def write(self, folder: Path, kept: Callable[[Scheme], Sequence[NDArray[np.int64]]]) -> None:
        """``front.json``: the front, with every point the channels that ``kept`` says stay, and all other values."""
        points: list[dict[str, Any]] = []
        for number, (trial, values) in enumerate(zip(self.trials, self.values.tolist(), strict=True)):
            measured = trial.measurement.to_dict()
            points.append(
                {
                    "number": number,
                    "values": self._named(values),
                    "reward": trial.reward,
                    **{key: measured[key] for key in ("accuracy", "loss", "fractions")},
                    "granularity": trial.scheme.granularity,
                    "kept": " ".join(map(str, trial.scheme.kept)),
                }
            )
            if trial.scheme.granularity == "channel":
                points[-1]["indices"] = [" ".join(map(str, units)) for units in kept(trial.scheme)]
        others = [self._named(values) for values in self.others.tolist()]
        write_json(folder / FRONT, {**self.facts(), "points": points, "others": others})

    def draw(self, folder: Path, title: str) -> None:
        """``front.svg``: the first objective over the second, all trials in grey and the front in colour."""
        up, across = (f"{objective.name} ({objective.direction[:3]}.)" for objective in self.objectives[:2])
        note = f"{len(self.values) + len(self.others)} trials; the numbered ones are dominated by none"
        picture = chart.scatter(self.values[:, 1::-1], self.others[:, 1::-1], title, (across, up), note)
        (folder / SCATTER).write_text(picture, encoding="utf-8")

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return {objective.name: value for objective, value in zip(self.objectives, values, strict=True)}


def hypervolume(values: ArrayLike, reference: Sequence[float], objectives: Sequence[Objective]) -> float:
    """The volume between a reference and what some point of ``values`` (points, objectives) is at least as good as.

    Zitzler and Thiele's S-metric (PPSN 1998). A point that is not better than the reference in every objective adds
    nothing.
    """
    import moocore

    return float(moocore.hypervolume(values, ref=list(reference), maximise=_maximised(objectives)))


def _maximised(objectives: Sequence[Objective]) -> list[bool]:
    return [objective.direction == "maximize" for objective in objectives]


def _reference(objective: Objective, values: NDArray[np.float64]) -> float:
    if objective.reference is not None:
        return objective.reference
    worst = np.min if objective.direction == "maximize" else np.max
    return float(worst(values)) if len(values) else 0.0


def objectives(given: str | Sequence[str | Reward], dense: Measurement) -> tuple[Objective, ...]:
    """Objectives as a person names them, several in a list or with commas between, held against what is measured.

    A name is "reward", "accuracy" (higher is better), "loss", "kl", "calibrated_kl", a cost (lower is better), or,
    higher being better unless "-" stands before it, a metric of one's own ``evaluate``, a reward or a
    ``package.module:function`` of the measurement. ``dense`` is the dense network's measurement: what it does not
    have is refused.
    """
    items = given.split(",") if isinstance(given, str) else given
    chosen = tuple(_objective(item, dense) for item in items)
    names = [objective.name for objective in chosen]
    if len(names) < 2:
        raise UserError(f"objectives {', '.join(names) or '(none)'}: name at least two; one alone is a reward")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"objective {name!r} is named twice")
    return chosen


def usual(caps: Iterable[str], dense: Measurement) -> tuple[Objective, ...]:
    """The objectives of a search that was given none: its reward against the costs that its budget caps."""
    return tuple(_objective(name, dense) for name in (REWARD, *(cap for cap in caps if cap in dense.fractions)))


def _objective(item: str | Reward, dense: Measurement) -> Objective:
    if not isinstance(item, str):
        return _scored(f"{stable_name(item)}", "maximize", item, dense)
    text = item.strip()
    name = text.removeprefix("-").removeprefix("+")
    measured = numbers(dense)
    settled = {**BETTER, **dict.fromkeys(dense.fractions, MINIMIZE)}
    if name in settled and name in {REWARD, *measured}:
        if name != text:
            raise UserError(f"objective {text!r}: write {name}; which is better is known of it")
        return Objective(name, settled[name], 1.0 if name in dense.fractions else WORST.get(name))
    direction: Direction = "minimize" if text.startswith("-") else "maximize"
    if name in measured:
        return Objective(name, direction)
    try:
        found = rewards.find(name)
    except UserError:
        if ":" in name:
            raise
        known = [REWARD, *measured]
        raise UserError(
            f"objective {name!r} is not measured here: there are {', '.join(known)}; "
            f"a reward or a package.module:function serves as well{close(name, [*known, *rewards.REWARDS])}"
        ) from None
    return _scored(name, direction, found, dense)


def _scored(name: str, direction: Direction, reward: Reward, dense: Measurement) -> Objective:
    """A reward as an objective; tried on the dense network, so that one that lacks something is refused at once."""
    function = partial(rewards.score, rewards.find(reward))
    function(dense)
    return Objective(name, direction, None, function)
