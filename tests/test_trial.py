"""Measurements and trials as values."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from autoprune.scheme import Scheme
from autoprune.trial import Measurement, Trial

FULL = Measurement(
    loss=0.5,
    accuracy=0.9,
    kl=0.1,
    costs={"macs": 1e6},
    fractions={"macs": 0.5},
    seconds={"total": 2.0},
    metrics={"top5": 0.99},
)


@pytest.mark.parametrize("measurement", [FULL, Measurement(), Measurement(error="out of memory"), Measurement(kl=0.2)])
def test_a_measurement_survives_strict_json(measurement: Measurement) -> None:
    text = json.dumps(measurement.to_dict(), allow_nan=False)
    again = Measurement.from_dict(json.loads(text))
    for field in dataclasses.fields(Measurement):
        before, after = getattr(measurement, field.name), getattr(again, field.name)
        assert before == after or (math.isnan(before) and math.isnan(after))


def test_what_was_not_measured_is_nan_and_not_a_failure() -> None:
    empty = Measurement()
    assert math.isnan(empty.loss)
    assert math.isnan(empty.accuracy)
    assert math.isnan(empty.kl)
    assert not empty.failed


def test_a_trial_failed_when_its_measurement_did() -> None:
    scheme = Scheme((1,))
    assert Trial(scheme, Measurement(error="no memory"), -math.inf).failed
    assert not Trial(scheme, FULL, 0.9).failed


def test_measurements_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.loss = 0.0  # type: ignore[misc]
