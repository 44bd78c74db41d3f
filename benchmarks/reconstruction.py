"""Repairs compared on ResNet-56, CIFAR-10 (JPEG): uniform widths, channels by ``obs``, no gradient step.

    AUTOPRUNE_DATA=... python benchmarks/reconstruction.py [--budgets 70 50 30] [--seeds 0 1]

A seed draws the calibration and validation images and the positions that are sampled. Every repair is fitted to
calibration images alone; settings were chosen by the validation loss, and test accuracy is only printed. Seconds are of
processor time, one thread, to slice and repair one candidate once everything that serves all candidates is known.
``plain`` is ``sequential,rounds=0``, which does not ask what reads a layer.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune import api, data, models
from autoprune.budget import Budget
from autoprune.evaluate import Evaluator
from autoprune.recover import Context, Recovery, compose, find, recalibrate_bn
from autoprune.scheme import Scheme
from autoprune.sequential import sequential
from autoprune.slicing import prune
from autoprune.statistics import StatisticsNotice

PLAIN = partial(sequential, rounds=0)  # least squares, whatever reads a layer
MANY = partial(PLAIN, images=2048)
REPAIRS: dict[str, Recovery] = {
    **{name: find(name) for name in ("none", "recalibrate_bn", "least_squares", "least_squares+recalibrate_bn")},
    "sequential": sequential,
    "sequential, 256 images": partial(sequential, images=256),
    "sequential, 2 sweeps": partial(sequential, sweeps=2),
    "plain": PLAIN,
    "plain+recalibrate_bn": compose([PLAIN, recalibrate_bn]),
    "plain, 256 images": partial(PLAIN, images=256),
    "plain, 2048 images": MANY,
    "plain, 2048 images+recalibrate_bn": compose([MANY, recalibrate_bn]),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, nargs="*", default=[70, 50, 30], help="per cent of the multiply-adds")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--repairs", nargs="*", default=list(REPAIRS), choices=list(REPAIRS))
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    folder = Path(os.environ["AUTOPRUNE_DATA"])
    network = models.load("autoprune:resnet56", folder / "resnet56-cifar10-jpeg.pt").eval()
    space = api.trace(network, torch.zeros(1, 3, 32, 32))
    torch.set_num_threads(1)
    evaluators: dict[int, Evaluator] = {}
    remembered: dict[int, dict[Any, Any]] = {seed: {} for seed in given.seeds}
    for seed in given.seeds:
        splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}", seed=seed)
        evaluators[seed] = Evaluator(network, space, splits.calibration, splits.validation, seed=seed)
        _ = evaluators[seed].scores
    assert splits.test is not None
    test = list(splits.test())

    each = ", ".join(f"seed {seed}" for seed in given.seeds)
    print(
        f"dense: {evaluators[given.seeds[0]].observe(network, test).accuracy:.2%} of the test images; columns: {each}"
    )
    print("| MACs | repair | seconds | validation loss | test accuracy |")
    print("|---|---|---|---|---|")
    for budget in given.budgets:
        scheme = Budget.parse(f"macs={budget}%", space).fit(np.ones(len(space)))
        for name in given.repairs:
            seconds, losses, accuracies = [], [], []
            for seed, evaluator in evaluators.items():
                if budget == given.budgets[0]:  # what serves all candidates is collected
                    repaired(evaluator, scheme, REPAIRS[name], remembered[seed])
                start = time.process_time()
                candidate = repaired(evaluator, scheme, REPAIRS[name], remembered[seed])
                seconds.append(time.process_time() - start)
                losses.append(f"{evaluator.observe(candidate).loss:.4f}")
                accuracies.append(f"{evaluator.observe(candidate, test).accuracy:.2%}")
            cells = [f"{budget} %", name, f"{median(seconds):.2f}", ", ".join(losses), ", ".join(accuracies)]
            print("|", " | ".join(cells), "|", flush=True)


def repaired(evaluator: Evaluator, scheme: Scheme, repair: Recovery, remembered: dict[Any, Any]) -> nn.Module:
    """The candidate of a scheme under a repair."""
    kept = evaluator.kept(scheme)
    candidate = prune(evaluator.model, evaluator.space, kept).eval()
    context = Context(
        evaluator.model, evaluator.space, kept, evaluator.statistics, evaluator.calibration, remembered=remembered
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StatisticsNotice)
        repair(candidate, context)
    return candidate


if __name__ == "__main__":
    main()
