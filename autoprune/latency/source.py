"""From what a user has (a table, a function for a remote device, nothing) to a latency cost and a meter."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoprune.errors import UserError
from autoprune.forward import Example
from autoprune.latency import meter
from autoprune.latency.build import build
from autoprune.latency.calibrate import FEW, calibrated, correction_key, features_of, fit, fitting_schemes, sliced
from autoprune.latency.conditions import Conditions, machine
from autoprune.latency.meter import Meter, Remote
from autoprune.latency.predict import TableLatency, liked
from autoprune.latency.table import Table
from autoprune.latency.units import units
from autoprune.operations import Operations
from autoprune.references import stable_name
from autoprune.space import SearchSpace

Tell = Callable[[str, Mapping[str, Any]], None]
Source = str | Path | Table | Remote | None


def predictor(
    model: nn.Module,
    example: Example,
    space: SearchSpace,
    operations: Operations,
    *,
    source: Source = None,
    conditions: Conditions | None = None,
    strict: bool = False,
    folder: Path | str = "runs",
    tell: Tell = lambda event, facts: None,
) -> tuple[TableLatency, Meter | None]:
    """The predicted latency of every scheme of ``space``, in milliseconds, and how networks are timed for real.

    ``source`` is a table, the path of one, or ``function(network) -> ms`` for a device elsewhere. Without a table one
    is built in ``folder`` under ``conditions``, or found there; for a function it is corrected by what the function
    says of a few networks. A table made under other conditions or on another machine gives a warning, or with
    ``strict`` an error. For other ``conditions`` it is corrected anew, by networks that are timed under those; for a
    device that is not here networks are not timed (no meter).
    """
    remote = source if callable(source) else None
    path: Path | None = None
    if isinstance(source, Table):
        table = source
    elif isinstance(source, str | Path):
        table = Table.load(source)
        path = Path(source)
    else:
        conditions = conditions or Conditions()
        path = Path(folder) / default_name(conditions)
        known = Table.load(path) if path.is_file() else None
        table = build(model, example, space, conditions, path, known=known, operations=operations, tell=tell)
    foreign = _check(table, conditions, strict)
    found = units(operations)
    raw = TableLatency(operations, found, table)
    wanted = conditions or table.conditions
    key = correction_key(space, table, wanted) if remote is None else f"{space.fingerprint}:{stable_name(remote)}"
    timer = meter.here(wanted, example) if remote is None else meter.elsewhere(remote)
    if foreign and remote is None:
        correction = table.calibrations.get(space.fingerprint)
        return raw if correction is None else raw.corrected(correction), None
    if key not in table.calibrations:
        if remote is None:
            table = calibrated(table, model, example, space, operations, conditions=wanted, tell=tell)
        else:
            table = _taught(table, key, raw, timer, model, space)
        if path is not None:
            table.save(path)
    return raw.corrected(table.calibrations[key]), timer


def batch_of(source: Source, conditions: Conditions | None) -> int:
    """How many samples at a time :func:`predictor` will be about: a table decides for itself."""
    if isinstance(source, str | Path):
        source = Table.load(source)
    return (source.conditions if isinstance(source, Table) else conditions or Conditions()).batch


def default_name(conditions: Conditions) -> str:
    """The file of a machine's table under these conditions."""
    told = json.dumps([conditions.to_dict(), machine(conditions.device)], sort_keys=True)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{conditions.device} {conditions.backend}".lower())
    return f"latency-{slug}-{hashlib.sha256(told.encode()).hexdigest()[:8]}.json"


def _check(table: Table, conditions: Conditions | None, strict: bool) -> bool:
    """Whether the table is of another machine."""
    wanted = conditions or table.conditions
    try:
        here = machine(wanted.device)
    except (RuntimeError, AssertionError):  # no such device here
        here = {"name": "this machine, which has no such device"}
    reason = table.differs(wanted, here)
    foreign = table.differs(table.conditions, here) is not None
    if reason and strict:
        raise UserError(f"{reason}: build one here, or leave --strict out")
    if foreign:
        warnings.warn(
            f"{reason}: the answer is predicted to meet the budget, but not timed; --latency-function asks the device",
            stacklevel=2,
        )
    elif reason:
        warnings.warn(f"{reason}: its predictions are corrected by networks that are timed anew", stacklevel=2)
    return foreign


def _taught(table: Table, key: str, raw: TableLatency, timer: Meter, model: nn.Module, space: SearchSpace) -> Table:
    """The table with a correction fitted to what the remote device says of a few networks."""
    schemes = fitting_schemes(liked(space, raw), FEW)
    timings = timer.measure({str(n): sliced(model, space, scheme) for n, scheme in enumerate(schemes)})
    ms = np.array([timings[str(n)].median for n in range(len(schemes))])
    record = {"weights": fit(features_of(schemes, raw), ms), "dense": timings["0"].to_dict()}
    return Table(table.conditions, table.machine, table.entries, {**table.calibrations, key: record})
