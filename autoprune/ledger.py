"""The ledger: every measurement once, kept as an Optuna study.

An Optuna study, whatever the searcher, so that optuna-dashboard and Optuna's plots work on every run. The
kept counts are the trial's parameters, the reward its value; the measurement lies in the user attributes.
A failed candidate is a FAIL trial, a measurement at less than full fidelity, or stopped in a race, a PRUNED one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autoprune.errors import UserError
from autoprune.fidelity import FULL, Fidelity
from autoprune.scheme import Scheme
from autoprune.storage import PATIENCE, faults, is_remote, open_storage, place, reason
from autoprune.trial import Measurement

if TYPE_CHECKING:
    import pandas as pd
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

PAUSE = 2.0  # seconds between two attempts to reach a server that is away

log = logging.getLogger(__name__)


class Counted(Protocol):
    """What the ledger needs to know of a group: its name and the legal counts, ascending."""

    @property
    def name(self) -> str:
        """Unique within the space."""
        ...

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of channels that may be kept."""
        ...


class Ledger:
    """Append-only record of measurements, one per (scheme, protocol, fidelity).

    ``storage`` is a journal file (created or repaired when opened), the URL of a database or of Optuna's gRPC proxy
    (:func:`autoprune.storage.open_storage`), or None for memory alone. ``protocol`` is the fingerprint of everything
    that changes a measurement; each protocol is a study of its own, so several share a storage without being mixed
    up. ``groups`` are the groups of the search space, or only their names where the legal counts are not known.

    What another process adds is seen when the ledger is opened and at each append. Where both measured the same
    scheme meanwhile, the first record counts for both, and a second is not told of.
    """

    def __init__(self, storage: Path | str | None, protocol: str, groups: Sequence[Counted | str]) -> None:
        self.protocol = protocol
        self._distributions: dict[str, BaseDistribution] = dict(_parameter(group) for group in groups)
        if len(self._distributions) != len(groups):
            raise UserError("two groups of a ledger have the same name")
        self._storage = storage
        self._measurements: dict[tuple[Scheme, str], Measurement] = {}
        self._seen = 0  # records of the study that are read
        opened = open_storage(storage)
        with _quiet(), self._told("read"):
            self.study = _study(opened, f"autoprune-{protocol}")
            self._read()

    @contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        """What a file or a server that fails raises, as a :class:`UserError`."""
        try:
            yield
        except KeyError as error:
            raise UserError(
                f"the study of this search, autoprune-{self.protocol}, was deleted from the ledger{self._where} while "
                "it was in use: the same command begins a new one"
            ) from error
        except faults() as error:
            raise UserError(
                f"the ledger{self._where} cannot be {verb} ({reason(error, self._storage)}): make room or restore "
                "access; everything recorded before is safe, and the same command continues"
            ) from error

    @property
    def _where(self) -> str:
        return f" {place(self._storage)}" if self._storage is not None and is_remote(self._storage) else ""

    def _read(self) -> None:
        """Take in what the study has and we do not. The first record counts: two writers may measure one scheme."""
        records = self.study.get_trials(deepcopy=False)
        for record in records[self._seen :]:
            if self._is_ours(record):
                self._measurements.setdefault(_key(record), _unpack(record.user_attrs["measurement"]))
        self._seen = len(records)

    def __len__(self) -> int:
        return len(self._measurements)

    def find(self, scheme: Scheme, fidelity: Fidelity = FULL) -> Measurement | None:
        """The measurement of a scheme, or None if it has not been measured."""
        return self._measurements.get((scheme, fidelity.name))

    def append(self, scheme: Scheme, measurement: Measurement, reward: float | None, fidelity: Fidelity = FULL) -> bool:
        """Record a measurement; it is on disk when this returns. False if there already was one.

        ``reward`` None says that the measurement could not be scored: it is kept, as a trial without a value.
        """
        trial = self._trial(scheme, measurement, reward, fidelity)
        until = time.monotonic() + (PATIENCE if is_remote(self._storage) else 0.0)
        with self._told("written"):
            while True:
                try:
                    return self._add(trial)
                except faults() as error:
                    if time.monotonic() >= until:
                        raise
                    log.warning("ledger%s: %s; tried again", self._where, reason(error, self._storage))
                    time.sleep(PAUSE)

    def _add(self, trial: FrozenTrial) -> bool:
        """Add a record unless there is one. After a fault it may be there: it was written, only nobody heard of it."""
        self._read()
        if _key(trial) in self._measurements:
            return False
        self.study.add_trial(trial)
        # As it was written: a replay must compute with the very same numbers, and another process may have been first.
        self._read()
        return True

    def _trial(self, scheme: Scheme, measurement: Measurement, reward: float | None, fidelity: Fidelity) -> FrozenTrial:
        import optuna
        from optuna.trial import TrialState

        if len(scheme) != len(self._distributions):
            raise UserError(f"the scheme has {len(scheme)} groups, the ledger {len(self._distributions)}")
        if measurement.failed or reward is None:
            state, value = TrialState.FAIL, None
        else:
            if not math.isfinite(reward):
                raise UserError(f"reward {reward} of a candidate that did not fail: the ledger takes finite rewards")
            state, value = (TrialState.COMPLETE if fidelity.full else TrialState.PRUNED), float(reward)
        trial = optuna.create_trial(
            state=state,
            value=value,
            params=dict(zip(self._distributions, scheme.kept, strict=True)),
            distributions=self._distributions,
            user_attrs={
                **scheme.to_dict(),
                "protocol": self.protocol,
                "fidelity": fidelity.name,
                "reward": None if reward is None else _pack_number(reward),
                "measurement": _pack(measurement),
            },
        )
        # Optuna's timeline then shows how long the candidate took.
        assert trial.datetime_complete is not None
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=_total(measurement))
        return trial

    def _records(self) -> Iterator[FrozenTrial]:
        """The study's trials that are records of ours (the dashboard can add trials of its own), each key once."""
        told = set()
        for record in filter(self._is_ours, self.study.get_trials(deepcopy=False)):
            key = _key(record)
            if key not in told:
                told.add(key)
                yield record

    def _is_ours(self, trial: FrozenTrial) -> bool:
        return trial.state.is_finished() and trial.user_attrs.get("protocol") == self.protocol

    def frame(self) -> pd.DataFrame:
        """One row per record, in the order of arrival.

        Columns: number, state, fidelity, the reward given when it was recorded, loss, accuracy, kl, seconds
        in total, ``costs.*``, ``fractions.*``, ``metrics.*``, ``kept.<group>`` and error.
        """
        import pandas as pd

        rows = []
        for record in self._records():
            m = _unpack(record.user_attrs["measurement"])
            reward = record.user_attrs["reward"]
            row: dict[str, Any] = {
                "number": record.number,
                "state": record.state.name,
                "fidelity": record.user_attrs["fidelity"],
                "reward": math.nan if reward is None else float(reward),
                "loss": m.loss,
                "accuracy": m.accuracy,
                "kl": m.kl,
                "seconds": _total(m),
            }
            for field in ("costs", "fractions", "metrics"):
                row |= {f"{field}.{name}": number for name, number in getattr(m, field).items()}
            row |= {f"kept.{name}": record.params[name] for name in self._distributions}
            rows.append(row | {"error": m.error})
        if rows:
            return pd.DataFrame(rows)
        columns = ["number", "state", "fidelity", "reward", "loss", "accuracy", "kl", "seconds"]
        return pd.DataFrame(columns=[*columns, *(f"kept.{name}" for name in self._distributions), "error"])


def _parameter(group: Counted | str) -> tuple[str, BaseDistribution]:
    from optuna.distributions import IntDistribution

    if isinstance(group, str):
        return group, IntDistribution(1, 2**31 - 1)
    return group.name, IntDistribution(group.counts[0], group.counts[-1])


def _study(storage: BaseStorage, name: str) -> Study:
    import optuna
    from optuna.exceptions import DuplicatedStudyError

    # Not create_study(load_if_exists=True), which adds a line to the journal every time it is opened.
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        pass
    try:
        return optuna.create_study(storage=storage, study_name=name, direction="maximize")
    except DuplicatedStudyError:  # another process was faster
        return optuna.load_study(study_name=name, storage=storage)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces every new study; only its warnings are of interest here."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _key(record: FrozenTrial) -> tuple[Scheme, str]:
    return Scheme.from_dict(record.user_attrs), record.user_attrs["fidelity"]


def _total(measurement: Measurement) -> float:
    total = float(measurement.seconds.get("total", 0.0))
    return total if math.isfinite(total) else 0.0


def _pack_number(number: float) -> float | str:
    """JSON has no NaN and no infinity: they are written as "nan", "inf" and "-inf"."""
    number = float(number)
    return number if math.isfinite(number) else str(number)


def _pack(measurement: Measurement) -> dict[str, Any]:
    record = measurement.to_dict()
    for field, value in record.items():
        if isinstance(value, Mapping):
            record[field] = {name: _pack_number(number) for name, number in value.items()}
        elif isinstance(value, float):
            record[field] = _pack_number(value)
    return record


def _unpack(record: Mapping[str, Any]) -> Measurement:
    values: dict[str, Any] = {}
    for field, value in record.items():
        if isinstance(value, Mapping):
            values[field] = {name: float(number) for name, number in value.items()}
        elif field == "losses":
            values[field] = value
        else:
            values[field] = value if field == "error" or value is None else float(value)
    return Measurement.from_dict(values)
