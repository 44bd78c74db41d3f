"""ResNet-56 on CIFAR-10 (JPEG) at half of its multiply-adds, without fine-tuning.

    AUTOPRUNE_DATA=... python benchmarks/resnet56_cifar10.py [--trials 200] [--searchers auto random] [--root FOLDER]
        [--budget macs=50%] [--recovery sequential,images=256] [--polish sequential,images=2048,sweeps=2]

Prints one table: the dense network, uniform widths under the proxies people use, and what each searcher finds in
the same number of trials. Candidates are scored on 2,048 training images; the 10,000 test images are looked at
once per row, after everything was chosen.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from autoprune import api, data, models
from autoprune.budget import Budget
from autoprune.evaluate import RECOVERY, Evaluator
from autoprune.trial import Measurement

PROXIES = [("l1", "recalibrate_bn"), ("l1", RECOVERY), ("obs", "recalibrate_bn"), ("obs", RECOVERY)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--searchers", nargs="*", default=["auto", "random"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--proxies", action=argparse.BooleanOptionalAction, default=True, help="uniform widths too")
    parser.add_argument("--budget", default="macs=50%")
    parser.add_argument("--recovery", default=RECOVERY, help="repair of every candidate")
    parser.add_argument("--polish", default=None, help="repair of the answer")
    parser.add_argument("--root", default=None, help="keep the runs here, and continue them")
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    folder = Path(os.environ["AUTOPRUNE_DATA"])
    splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
    network = models.load("autoprune:resnet56", folder / "resnet56-cifar10-jpeg.pt").eval()
    assert splits.test is not None
    test = list(splits.test())
    example = torch.zeros(1, 3, 32, 32)
    space = api.trace(network, example)
    budget = Budget.parse(given.budget, space)
    uniform = budget.fit(np.ones(len(space)))

    print("| widths | channels chosen by, repaired by | trials | MACs | validation loss | validation | test |")
    print("|---|---|---|---|---|---|---|")
    for number, (criterion, recovery) in enumerate(PROXIES if given.proxies else []):
        evaluator = Evaluator(
            network, space, splits.calibration, splits.validation, criterion=criterion, recovery=recovery
        )
        if number == 0:
            row("dense", "–", 0, evaluator.dense, evaluator.observe(network, test).accuracy)
        measured = evaluator(uniform)
        seen = evaluator.observe(evaluator.candidate(uniform), test)
        row("uniform", f"{criterion}, {recovery}", 1, measured, seen.accuracy)
    root = given.root or tempfile.mkdtemp()
    for searcher in given.searchers:
        for seed in given.seeds:
            run = api.search(
                network, example, splits.calibration, splits.validation, test=test,
                budget=budget, space=space, searcher=searcher, seed=seed, trials=given.trials,
                recovery=given.recovery, polish=given.polish, root=root,
                run=f"resnet56-{given.budget}-{searcher}-{seed}".replace("=", "-").replace("%", ""),
            )  # fmt: skip
            for label, repair in (("uniform", given.recovery), ("found", given.recovery), ("polished", given.polish)):
                if label in run.summary["rows"]:
                    seen = run.summary["rows"][label]
                    measured = Measurement(seen["loss"], seen["accuracy"], fractions=seen["fractions"])
                    name = f"{searcher}, seed {seed}: {label}"
                    row(name, f"obs, {repair}", run.summary["trials"], measured, seen["test_accuracy"])


def row(widths: str, proxy: str, trials: int, measured: Measurement, test: float) -> None:
    """One line of the table."""
    cells = [widths, proxy, str(trials), f"{measured.fractions['macs']:.2%}", f"{measured.loss:.4f}"]
    print("|", " | ".join([*cells, f"{measured.accuracy:.2%}", f"{test:.2%}"]), "|", flush=True)


if __name__ == "__main__":
    main()
