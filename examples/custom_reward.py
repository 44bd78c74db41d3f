"""A reward of your own: any formula of what was measured, with options.

On the command line, from this file's folder:

    autoprune search --reward custom_reward:halvings --reward-set price=0.05 --budget macs=60%
"""

import math
from functools import partial
from pathlib import Path

import torch

import autoprune
from autoprune import Measurement, data, demo


def halvings(m: Measurement, *, cost: str = "params", price: float = 0.01) -> float:
    """Accuracy, and ``price`` more for every time that the network's cost was halved."""
    return m.accuracy - price * math.log2(m.fractions[cost])


def main() -> None:
    """What is found at three prices. What was measured is measured: only the first search computes anything."""
    model = demo.digits(Path("runs"))
    splits = data.load("digits", calibration=256, validation=512)
    for price in (0.0, 0.01, 0.05):
        run = autoprune.search(
            model, torch.zeros(1, 1, 8, 8), splits.calibration, splits.validation,
            budget="macs=60%", reward=partial(halvings, price=price), searcher="random", trials=24, run="own-reward",
        )  # fmt: skip
        found, measured = run.summary["rows"]["found"], len(run.trials())
        shares = f"accuracy {found['accuracy']:.1%} with {found['fractions']['params']:.1%} of the parameters"
        print(f"price {price:.2f}: {shares}, {measured} measurements")


if __name__ == "__main__":
    main()
