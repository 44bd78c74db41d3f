"""What the found widths are worth once the network is trained again, if only for a moment.

    AUTOPRUNE_DATA=... python benchmarks/after_training.py [--network resnet56] [--budgets macs=50% macs=30%]
        [--trials 150] [--repair sequential,images=256] [--reward neg_loss] [--finalists 1] [--epochs 2] [--seeds 0]
        [--images 50000] [--precision bfloat16] [--root FOLDER]

ResNets on CIFAR-10 (JPEG). Widths by equal rates, by one threshold on L1 norms or on Taylor scores over all layers, by
FastNAS's bisection, and by the default searcher, which see candidates as ``--repair`` leaves them and as ``--reward``
judges them. Each answer is repaired in the same way (``sequential``, 2,048 images, two sweeps), and so are all
``--finalists`` of a search before one of them is its answer. It is then trained by the same recipe on the training
images, once per seed. Prints test accuracy before and after; test images are looked at once per figure. With
``--root``, a folder for one ``--repair`` and ``--reward``, a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoprune import api, data, models
from autoprune.finetune import Recipe, finish
from autoprune.recover import first

WAYS: Mapping[str, tuple[str, str]] = {  # searcher, criterion
    "equal rates": ("uniform", "obs"),
    "global L1": ("global_threshold", "l1"),
    "global Taylor": ("global_threshold", "taylor"),
    "fastnas": ("fastnas", "obs"),
    "auto": ("auto", "obs"),
}
POLISH = "sequential,images=2048,sweeps=2"


def main() -> None:
    """Search, train and print what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet56", choices=["resnet20", "resnet56"])
    parser.add_argument("--budgets", nargs="*", default=["macs=50%", "macs=30%"])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--repair", default="sequential,images=256", help="of candidates")
    parser.add_argument("--reward", default="neg_loss", help="of candidates")
    parser.add_argument("--finalists", type=int, default=1, help="of a search, polished")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of the training")
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--root", type=Path, default=None)
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    folder, root = Path(os.environ["AUTOPRUNE_DATA"]), given.root or Path(tempfile.mkdtemp())
    splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
    assert splits.train is not None
    every = splits.train
    splits = replace(splits, train=lambda: first(list(every()), given.images))
    recipe = Recipe(given.epochs, lr=0.02, augment="crop")
    print(f"{given.network}, {given.trials} trials, {recipe}\n")
    print("| budget | widths by | trials | MACs | validation loss | calibrated KL | test, repaired | test, trained |")
    print("|---|---|---|---|---|---|---|---|")
    for budget in given.budgets:
        for way in given.ways:
            dense = models.load(f"autoprune:{given.network}", folder / f"{given.network}-cifar10-jpeg.pt").eval()
            row(dense, splits, budget, way, given, root, recipe)


def row(
    dense: torch.nn.Module, splits: data.Splits, budget: str, way: str, given: Any, root: Path, recipe: Recipe
) -> None:
    """One line of the table."""
    searcher, criterion = WAYS[way]
    name = f"{given.network}-{budget}-{way}".replace("=", "-").replace("%", "").replace(" ", "-")
    run = api.search(
        dense, torch.zeros(1, 3, 32, 32), splits.calibration, splits.validation, test=splits.test, budget=budget,
        searcher=searcher, criterion=criterion, recovery=given.repair, polish=POLISH, finalists=given.finalists,
        reward=given.reward, trials=given.trials, precision=given.precision, workers=given.workers, root=root, run=name,
        ledger=root / f"{criterion}.jsonl",
    )  # fmt: skip
    rows = run.summary["rows"]
    better = min((rows["found"], rows["polished"]), key=lambda row: row["loss"])
    trained = []
    for seed in given.seeds:
        place = run.folder / f"epochs-{recipe.epochs}{f'-seed-{seed}' if seed else ''}"
        rows = finish(dense, run.folder, splits, place, replace(recipe, seed=seed))["rows"]
        trained.append(f"{rows['finetuned']['test_accuracy']:.2%}")
    cells = [budget, way, str(run.summary["trials"]), f"{better['fractions']['macs']:.2%}"]
    cells += [f"{better['loss']:.4f}", f"{better['calibrated_kl']:.4f}", f"{better['test_accuracy']:.2%}"]
    print("|", " | ".join([*cells, ", ".join(trained)]), "|", flush=True)


if __name__ == "__main__":
    main()
