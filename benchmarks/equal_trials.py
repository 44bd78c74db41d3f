"""Searchers at equal numbers of trials: a CIFAR ResNet at half of its multiply-adds, without fine-tuning.

    AUTOPRUNE_DATA=... python benchmarks/equal_trials.py [--network resnet20] [--trials 200] [--seeds 0 1 2]
                       [--searchers random swap ddpg] [--root FOLDER] [--out FOLDER]

A searcher may carry options: ``ddpg,updates=0`` is the agent that does not learn. All get the same evaluator and the
same number of distinct candidates, scored on 2,048 training images; the uniform scheme is measured first. Prints the
best validation loss after so many trials (median and range over the seeds) and the test accuracy of each run's answer,
and draws the curves. With ``--root`` the runs are kept, and a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoprune import api, chart, data, models, searchers, settings
from autoprune.budget import Budget
from autoprune.run import Run

BUDGET = "macs=50%"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet56"])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--searchers", nargs="*", default=["random", "swap", "ddpg"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--root", default=None, help="keep the runs here, and continue them")
    parser.add_argument("--out", default=None, help="folder for the curves as SVG")
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    if given.out is not None:
        Path(given.out).mkdir(parents=True, exist_ok=True)
    root = given.root or tempfile.mkdtemp()
    found = {
        searcher: [search(given.network, searcher, seed, given.trials, root) for seed in given.seeds]
        for searcher in given.searchers
    }
    curves = {
        # A searcher that does not propose the uniform scheme has one row more.
        searcher: np.array([best_so_far(run)[: given.trials] for run in runs])
        for searcher, runs in found.items()
    }
    table(found, curves, given.trials)
    if given.out is not None:
        title = f"{given.network}, {BUDGET}: best validation loss so far"
        picture = chart.curves(curves, title, "trials", "median and range over the seeds")
        (Path(given.out) / f"{given.network}.svg").write_text(picture, encoding="utf-8")


def search(network: str, text: str, seed: int, trials: int, root: str) -> Run:
    """One run; a finished one is only read."""
    searcher, *given = text.split(",")
    name = "-".join([network, searcher, *(item.replace("=", "") for item in given), str(seed)])
    if (Path(root) / name / "summary.json").is_file():
        finished = Run.open(Path(root) / name)
        if finished.summary["trials"] == trials:
            return finished
    folder = Path(os.environ["AUTOPRUNE_DATA"])
    splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
    model = models.load(f"autoprune:{network}", folder / f"{network}-cifar10-jpeg.pt").eval()
    example = torch.zeros(1, 3, 32, 32)
    space = api.trace(model, example)
    return api.search(
        model, example, splits.calibration, splits.validation, test=splits.test, budget=Budget.parse(BUDGET, space),
        space=space, searcher=searcher, seed=seed, trials=trials, root=root, run=name,
        options=settings.read(searchers.find(searcher), searchers.KIND, dict(item.split("=", 1) for item in given)),
    )  # fmt: skip


def best_so_far(run: Run) -> NDArray[np.float64]:
    """The lowest validation loss of an affordable candidate after each trial; the uniform scheme is number 0."""
    cap = run.config["request"]["budget"]["macs"]
    trials = run.trials()
    loss = trials["loss"].where(trials["costs.macs"] <= cap)
    return loss.fillna(np.inf).cummin().to_numpy()


def table(found: dict[str, list[Run]], curves: dict[str, NDArray[np.float64]], trials: int) -> None:
    """Loss at a quarter, the half, … of the trials, and what the test images say."""
    marks = [max(1, trials * quarter // 4) for quarter in (1, 2, 3, 4)]
    print("| searcher |", " | ".join(f"loss after {mark}" for mark in marks), "| MACs | test, each seed | mean |")
    print("|---|" + "---|" * (len(marks) + 3))
    seeds = [run.summary["rows"] for run in next(iter(found.values()))]
    for name in ("dense", "uniform"):
        losses, tests = ([rows[name][key] for rows in seeds] for key in ("loss", "test_accuracy"))
        cells = [f"{np.median(losses):.4f} ({min(losses):.4f}–{max(losses):.4f})"] + [""] * 3
        each = ", ".join(f"{value:.2%}" for value in tests)
        share = seeds[0][name]["fractions"]["macs"]
        print(f"| {name} |", " | ".join(cells), f"| {share:.2%} | {each} | {np.mean(tests):.2%} |")
    for searcher, runs in found.items():
        at = [curves[searcher][:, min(mark, curves[searcher].shape[1] - 1)] for mark in marks]
        cells = [f"{np.median(losses):.4f} ({losses.min():.4f}–{losses.max():.4f})" for losses in at]
        seen = [run.summary["rows"]["found"]["test_accuracy"] for run in runs]
        share = np.mean([run.summary["rows"]["found"]["fractions"]["macs"] for run in runs])
        tests = ", ".join(f"{value:.2%}" for value in seen)
        print(f"| {searcher} |", " | ".join(cells), f"| {share:.2%} | {tests} | {np.mean(seen):.2%} |", flush=True)


if __name__ == "__main__":
    main()
