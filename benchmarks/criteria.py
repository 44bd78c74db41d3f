"""Criteria side by side: ResNet-56 on CIFAR-10 (JPEG), uniform widths, no fine-tuning.

    AUTOPRUNE_DATA=... python benchmarks/criteria.py [--criteria obs l1 fpgm,normalise=mean] [--budgets 30 50 70]
        [--recoveries none recalibrate_bn sequential] [--test-images 10000] [--seed 0]

Prints one table: a row per criterion, and for every budget and recovery the test accuracy of the uniform scheme whose
channels the criterion chose. Criteria and recoveries see 2,048 training images; nothing is chosen by test
accuracy. Seconds are of processor time, one thread, to score all groups, with whatever that needs collected from
nothing. Fewer test images are a random part, the same for all cells.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoprune import api, criteria, data, models
from autoprune.budget import Budget
from autoprune.criteria import CRITERIA
from autoprune.evaluate import RECOVERY, Evaluator
from autoprune.scheme import Scheme
from autoprune.slicing import choose
from autoprune.statistics import Statistics

RECOVERIES = ("none", "recalibrate_bn", RECOVERY)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA))
    parser.add_argument("--recoveries", nargs="*", default=list(RECOVERIES))
    parser.add_argument("--budgets", type=int, nargs="*", default=[70, 50, 30], help="per cent of the multiply-adds")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the calibration images and sampled positions")
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    folder = Path(os.environ["AUTOPRUNE_DATA"])
    torch.set_num_threads(1)
    splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}", seed=given.seed)
    network = models.load("autoprune:resnet56", folder / "resnet56-cifar10-jpeg.pt").eval()
    space = api.trace(network, torch.zeros(1, 3, 32, 32))
    assert splits.test is not None
    test = part(list(splits.test()), given.test_images)
    schemes = [Budget.parse(f"macs={budget}%", space).fit(np.ones(len(space))) for budget in given.budgets]
    evaluators = [
        Evaluator(network, space, splits.calibration, splits.validation, recovery=recovery, seed=given.seed)
        for recovery in given.recoveries
    ]
    for evaluator in evaluators:
        evaluator.statistics = evaluators[0].statistics

    images = sum(len(labels) for _, labels in test)
    print(f"dense: {evaluators[0].observe(network, test).accuracy:.2%} of {images} test images")
    columns = [f"{budget} %, {recovery}" for budget in given.budgets for recovery in given.recoveries]
    print("|", " | ".join(["criterion", "seconds", *columns]), "|")
    print("|---" * (2 + len(columns)) + "|", flush=True)
    for name in given.criteria:
        fresh = Statistics(network, space, evaluators[0].calibration, seed=given.seed)
        start = time.process_time()
        scores = criteria.scores(criteria.find(name), network, fresh)
        cells = [f"{time.process_time() - start:.1f}"]
        for scheme in schemes:
            units = tuple(tuple(map(int, chosen)) for chosen in choose(space, scheme, scores))
            picked = Scheme(scheme.kept, scheme.granularity, indices=units)
            cells += [f"{e.observe(e.candidate(picked), test).accuracy:.2%}" for e in evaluators]
        print("|", " | ".join([name, *cells]), "|", flush=True)


def part(batches: list[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, Tensor]]:
    """So many of the images, drawn once and for all."""
    images, labels = (torch.cat(several) for several in zip(*batches, strict=True))
    if count >= len(images):
        return batches
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return list(zip(images[drawn].split(128), labels[drawn].split(128), strict=True))


if __name__ == "__main__":
    main()
