"""Searchers at equal cost on a CIFAR ResNet, without fine-tuning: ``autoprune compare`` with a table for the docs.

    AUTOPRUNE_DATA=... python benchmarks/searchers.py [--network resnet20] [--budget macs=50%] [--trials 60]
                       [--searchers swap random ...] [--seeds 0 1 2] [--root FOLDER] [--ledger FILE] [--out FOLDER]
                       [--precision bfloat16] [--recovery sequential,images=256]

All searchers get the same evaluator and the same number of trials, scored on 2,048 training images; the test images
are looked at once per answer. A searcher may carry options: ``ddpg,updates=0`` is the agent that does not learn. With
``--root`` the runs are kept, and a stopped benchmark goes on where it was, on several cores if it is started several
times; with ``--ledger`` other budgets use its tables of sensitivities. Prints one line per searcher, the best first,
and copies the curves to ``--out``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import torch

from autoprune import api, data, models
from autoprune.compare import PICTURES, Comparison, compare
from autoprune.evaluate import RECOVERY

# Without a table to measure first, they have an answer within 60 trials.
QUICK = [
    "auto", "swap", "evolution", "levels", "annealing", "ddpg", "random", "uniform", "knapsack", "global_threshold",
    "optuna", "optuna,sampler=cmaes", "optuna,sampler=gp", "optuna,sampler=nsga2", "spdy,prior=quadratic",
    "evolution,preset=metapruning", "evolution,preset=unipts_release", "td3", "sac",
]  # fmt: skip
# These have to measure a table or to descend from the dense network before anything fits the budget.
SLOW = ["fastnas", "sensitivity", "spdy", "autoslim", "netadapt"]


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet56"])
    parser.add_argument("--budget", default="macs=50%")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--searchers", nargs="*", default=[*QUICK, *SLOW])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--root", default=None, help="keep the runs here, and continue them")
    parser.add_argument("--ledger", default=None, help="journal file that several budgets share")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--recovery", default=RECOVERY)
    parser.add_argument("--out", default=None, help="folder for the curves as SVG")
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    folder = Path(os.environ["AUTOPRUNE_DATA"])
    splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
    network = models.load(f"autoprune:{given.network}", folder / f"{given.network}-cifar10-jpeg.pt").eval()
    problem = api.problem(
        network, torch.zeros(1, 3, 32, 32), splits.calibration, splits.validation,
        budget=given.budget, test=splits.test, precision=given.precision, recovery=given.recovery,
        name=f"{given.network}, {given.budget}",
    )  # fmt: skip
    name = f"{given.network}-{given.budget}".replace("=", "-").replace("%", "")
    found = compare(
        problem, given.searchers, seeds=given.seeds, trials=given.trials, run=name,
        root=given.root or tempfile.mkdtemp(), ledger=given.ledger, tell=lambda run: print(run.name, flush=True),
    )  # fmt: skip
    table(found)
    if given.out is not None:
        for against, picture in PICTURES.items():
            shutil.copy(found.folder / picture, Path(given.out) / f"{name}-{against}.svg")


def table(found: Comparison) -> None:
    """Medians over the seeds, and the range of what the search maximised; test accuracy of every seed."""
    frame = found.frame()
    first = next(iter(found.runs.values()))[0].summary["rows"]
    print("| searcher | trials | seconds | validation loss (range) | MACs | test, each seed | mean |")
    print("|---|---|---|---|---|---|---|")
    for widths in ("dense", "uniform"):
        row = first[widths]
        seen = f"{row['test_accuracy']:.2%}"
        print(f"| *{widths}* | | | {row['loss']:.4f} | {row['fractions']['macs']:.2%} | | {seen} |")
    for searcher in frame.groupby("searcher")["loss"].median().sort_values().index:
        print(line(str(searcher), frame[frame["searcher"] == searcher]), flush=True)


def line(searcher: str, runs: pd.DataFrame) -> str:
    """One line of the table."""
    loss, test = runs["loss"], runs["test_accuracy"]
    middle = runs.median(numeric_only=True)
    cells = [
        searcher,
        f"{middle['trials']:.4g}",
        f"{middle['seconds']:.0f}",
        f"{loss.median():.4f} ({loss.min():.4f}–{loss.max():.4f})",
        f"{middle['fractions.macs']:.2%}",
        ", ".join(f"{value:.2%}" for value in test),
        f"{test.mean():.2%}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
