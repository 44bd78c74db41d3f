"""How well a table predicts networks that it was not corrected by."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from autoprune.errors import UserError
from autoprune.forward import Example
from autoprune.latency.calibrate import agreement, measured, random_schemes
from autoprune.latency.predict import TableLatency, liked
from autoprune.latency.table import Table
from autoprune.latency.units import units
from autoprune.operations import record
from autoprune.space import SearchSpace


def check(
    table: Table, model: nn.Module, example: Example, space: SearchSpace, networks: int, seed: int
) -> dict[str, Any]:
    """Predicted and measured milliseconds of random schemes (``checked``), their mean error and rank correlation.

    Their widths are those that the hardware likes, as in a search under a latency cap.

    A machine that is slower or faster by now (``drift``) is not held against the table: what is measured is told at the
    speed of the calibration, by the dense network.
    """
    if networks < 3:
        raise UserError(f"{networks} networks: a rank correlation needs at least 3")
    if space.fingerprint not in table.calibrations:
        raise UserError(
            "the table was not calibrated for this network and space: `autoprune latency build` with the same options "
            "extends it"
        )
    operations = record(model, example, space, table.conditions.batch)
    raw = TableLatency(operations, units(operations), table)
    predicted = raw.corrected(table.calibrations[space.fingerprint])
    schemes = random_schemes(liked(space, raw), networks, seed)
    dense = float(table.calibrations[space.fingerprint]["dense"]["median"])
    sample = measured(model, example, space, schemes, table.conditions, dense)
    guesses = np.array([predicted(scheme) for scheme in schemes])
    pairs = np.stack([guesses, sample.ms], 1).tolist()
    return {"checked": pairs, "drift": sample.drift, **agreement(guesses, sample.ms)}
