"""Frank-Wolfe against SGD, both from scratch under one schedule, then pruned in one shot without retraining.

    python benchmarks/frank_wolfe.py [--tau 15 1 0.3] [--seeds 0 1 2] [--epochs 20] [--folder runs/frank-wolfe]
    AUTOPRUNE_DATA=... python benchmarks/frank_wolfe.py --network resnet20 --epochs 60 --batch 128 [--size 16]
        [--images 50000] [--device cuda]

Prints one table: a row per way to train, and per sparsity the test accuracy (mean and range over the seeds) after the
smallest of all convolution and linear weights became zero: as it is, and in a second row with the statistics of batch
norm estimated anew on the training images. "near zero" is the share of weights below a thousandth of their tensor's
largest. Test images are looked at once per cell, and nothing is
chosen by them: every row that was run is printed. Each training has its folder and goes on where it was stopped; a
finished one is a line of cells.jsonl there, and is not run again.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import data, masks, models
from autoprune.finetune import Method, Recipe, finetune, judge
from autoprune.lines import append_records, read_records
from autoprune.recipes.data import Data
from autoprune.recipes.frank_wolfe import frank_wolfe
from autoprune.recipes.initialisation import redraw
from autoprune.recover import reestimate

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
NORMS = ("as trained", "re-estimated")
NEAR = 1e-3  # of a tensor's largest magnitude


def main() -> None:
    """Train what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="digits", choices=["digits", "resnet20", "resnet32", "resnet56"])
    parser.add_argument("--size", type=int, default=32, help="pixels of a CIFAR image's side")
    parser.add_argument("--images", type=int, default=0, help="training images [all]")
    parser.add_argument("--tau", type=float, nargs="*", default=[15.0, 1.0, 0.3])
    parser.add_argument("--fraction", type=float, default=0.05, help="of a tensor's entries in a corner")
    parser.add_argument("--lr", type=float, default=1.0, help="of Frank-Wolfe")
    parser.add_argument("--sgd-lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="of SGD")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--augment", default=None, help="none, flip, crop [none for digits, crop for CIFAR]")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("runs/frank-wolfe"))
    given = parser.parse_args()
    given.augment = given.augment or ("none" if given.network == "digits" else "crop")
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    cells = given.folder / "cells.jsonl"
    splits, test = images(given)
    network = models.load(f"autoprune:{given.network}").to(given.device)
    names = list(masks.weights(network))
    entries = sum(network.get_parameter(name).numel() for name in names)
    assert splits.train is not None
    trained = sum(len(labels) for _, labels in splits.train)
    print(
        f"{given.network}: {entries} weights, {trained} training images, {given.epochs} epochs of batches of ", end=""
    )
    print(f"{given.batch}, augment {given.augment}, seeds {given.seeds}; ", end="")
    print(f"{sum(len(labels) for _, labels in test)} test images", flush=True)

    ways: list[dict[str, Any]] = [{"way": "sgd", "lr": given.sgd_lr, "weight_decay": given.weight_decay}]
    ways += [{"way": "frank_wolfe", "lr": given.lr, "tau": tau, "fraction": given.fraction} for tau in given.tau]
    shared = {k: getattr(given, k) for k in ("network", "size", "images", "epochs", "batch", "augment")}
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in range(len(ways))}
    for seed in given.seeds:
        for number, way in enumerate(ways):
            settings = {**shared, **way, "seed": seed}
            known = [cell for cell in read_records(cells) if cell["settings"] == settings]
            if not known:
                known = [{"settings": settings, **cell(network, names, splits, test, settings, given.folder)}]
                append_records(cells, known)
            found[number] += known[:1]

    columns = ["trained by", "near zero", "batch norm", *(f"{share:.0%} zero" for share in SPARSITIES)]
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    for number, way in enumerate(ways):
        row = found[number]
        words = ", ".join(f"{key} {value:g}" for key, value in way.items() if key != "way")
        head = f"{way['way']} ({words}) | {sum(cell['near'] for cell in row) / len(row):.1%}"
        for norm in NORMS:
            of = [spread([cell[norm][at] for cell in row]) for at in range(len(SPARSITIES))]
            print("|", " | ".join([head, norm, *of]), "|")


def images(given: argparse.Namespace) -> tuple[Data, list[tuple[Tensor, Tensor]]]:
    """Training and validation images, and the test images."""
    if given.network == "digits":
        splits = data.load("digits", 256, 256)
    else:
        if "AUTOPRUNE_DATA" not in os.environ:
            raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
        archive = Path(os.environ["AUTOPRUNE_DATA"]) / "cifar10-jpeg.tar.xz"
        splits = data.load(f"imagefolder:{archive}", input_size=None if given.size == 32 else given.size)
    assert splits.train is not None
    assert splits.test is not None
    train, count = [], 0
    for inputs, labels in splits.train():
        train.append((inputs, labels))
        count += len(labels)
        if given.images and count >= given.images:
            break
    return Data(splits.calibration, train, splits.validation), list(splits.test())


def cell(
    network: nn.Module, names: list[str], splits: Data, test: Any, settings: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """A training, and the accuracies of what it leaves at every sparsity."""
    words = "-".join(f"{key}={value}" for key, value in settings.items())
    options = {key: settings[key] for key in ("lr", "epochs", "batch", "augment", "seed")}
    if settings["way"] == "sgd":
        model = copy.deepcopy(network)
        redraw(model, settings["seed"])
        recipe = Recipe(**options, weight_decay=settings["weight_decay"])
        assert splits.train is not None
        finetune(model, splits.train, [], folder / words, recipe, method=Method(keep="last"))
    else:
        own = {key: settings[key] for key in ("tau", "fraction")}
        model = frank_wolfe(network, 0.0, splits, names=names, folder=folder / words, **options, **own)
    sizes = {name: model.get_parameter(name).detach().abs() for name in names}
    near = sum(int((size < NEAR * size.max()).sum()) for size in sizes.values())
    accuracies: dict[str, list[float]] = {norm: [] for norm in NORMS}
    for share in SPARSITIES:
        sparse = copy.deepcopy(model)
        masks.impose(sparse, masks.ranked(sizes, share))
        accuracies["as trained"].append(judge(sparse, test)[1])
        reestimate(sparse, splits.training("frank_wolfe"))
        accuracies["re-estimated"].append(judge(sparse, test)[1])
    return {**accuracies, "near": near / sum(size.numel() for size in sizes.values())}


def spread(values: list[float]) -> str:
    """Mean, and range where there are several."""
    mean = sum(values) / len(values)
    return f"{mean:.1%}" + (f" ({min(values):.1%}–{max(values):.1%})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
