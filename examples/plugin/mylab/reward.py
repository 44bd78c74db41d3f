"""What a measurement is worth."""

from __future__ import annotations

from autoprune.trial import Measurement


def good_enough(measurement: Measurement, accuracy: float = 0.9) -> float:
    """The accuracy up to a level that is good enough; beyond it, the share of the multiply-adds that is saved."""
    if measurement.accuracy < accuracy:
        return measurement.accuracy
    return accuracy + 1 - measurement.fractions["macs"]
