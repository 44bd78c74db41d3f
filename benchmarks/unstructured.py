"""Single weights removed from ResNets on CIFAR-10 (JPEG) by methods that need a few calibration images.

    AUTOPRUNE_DATA=... python benchmarks/unstructured.py [--networks resnet20] [--sparsities 50 70 80 90 95]
        [--cells magnitude magnitude+bn ...] [--epochs 100] [--images 1024] [--seeds 0] [--root FOLDER]

Every cell is one network: its accuracy on 2,048 validation images, which nobody looked at before, and on the 10,000
test images. A finished cell is a line of FOLDER/cells.jsonl and is not computed again; a training that was stopped goes
on. `ablations` are UniPTS without one of its parts, all at the same equal rates but for the searched one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoprune import data, masks, models, recipes
from autoprune.finetune import judge
from autoprune.recipes.data import Data

UNIFORM: Mapping[str, Any] = {"search": False}
CELLS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "magnitude": ("magnitude", {"recalibrate": False}),
    "magnitude+bn": ("magnitude", {}),
    "global+bn": ("global_magnitude", {}),
    "pot": ("pot", {}),
    "pot+bn": ("pot", {"recalibrate": True}),
    "obc": ("obc", {}),
    "searched, no training": ("unipts", {"epochs": 0}),
    "unipts, uniform": ("unipts", UNIFORM),
    "unipts, searched": ("unipts", {}),
}
ABLATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "plain KL": ("unipts", {**UNIFORM, "objective": "kl"}),
    "layer-wise MSE": ("unipts", {**UNIFORM, "objective": "mse"}),
    "masks every 100 steps": ("unipts", {**UNIFORM, "period": 100}),
    "masks fixed": ("unipts", {**UNIFORM, "period": 0}),
    "teacher in training mode": ("unipts", {**UNIFORM, "teacher_mode": "train"}),
}
SETTINGS = ("epochs", "population", "generations", "search_images")


def main() -> None:
    """Measure what is missing and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet20"])
    parser.add_argument("--sparsities", type=int, nargs="*", default=[50, 70, 80, 90, 95], help="percent")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), help=f"{', '.join({**CELLS, **ABLATIONS})}")
    parser.add_argument("--ablations", action="store_true", help="and the ablations, at 90 %%")
    parser.add_argument("--images", type=int, default=1024, help="for calibration")
    parser.add_argument("--search-images", type=int, default=512, help="of them, for the search of rates")
    parser.add_argument("--population", type=int, default=10)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=100, help="of UniPTS")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--root", type=Path, default=Path("runs/unstructured"))
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    given.root.mkdir(parents=True, exist_ok=True)
    archive = Path(os.environ["AUTOPRUNE_DATA"])
    splits = data.load(f"imagefolder:{archive / 'cifar10-jpeg.tar.xz'}", given.images, 2048)
    assert splits.test is not None
    test = list(splits.test())
    print(f"settings: {json.dumps({key: getattr(given, key) for key in ('images', 'seeds', *SETTINGS)})}")
    print("| network | sparsity | method | seed | zeros | validation | test | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.networks:
        network = models.load(f"autoprune:{name}", archive / f"{name}-cifar10-jpeg.pt")
        wanted = [("dense", 0, 0)]
        wanted += [(cell, share, seed) for share in given.sparsities for cell in given.cells for seed in given.seeds]
        if given.ablations:
            wanted += [(cell, 90, seed) for cell in ABLATIONS for seed in given.seeds]
        for cell, share, seed in wanted:
            row(measured(given, network, name, cell, share, seed, splits, test))


def measured(
    given: Any, network: nn.Module, name: str, cell: str, share: int, seed: int, splits: data.Splits, test: Any
) -> dict[str, Any]:
    """The record of a cell, from the file or computed now."""
    method, options = (None, {}) if cell == "dense" else {**CELLS, **ABLATIONS}[cell]
    usual = {key: getattr(given, key) for key in SETTINGS} if method == "unipts" else {}
    request = {
        "network": name, "cell": cell, "sparsity": share, "seed": seed, "images": given.images, **usual, **options,
    }  # fmt: skip
    path = given.root / "cells.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for record in known:
        if record["request"] == request:
            return record
    start = time.perf_counter()
    names = list(masks.weights(network))
    sparse = network
    if method is not None:
        folder = given.root / "-".join(str(value).replace(" ", "_") for value in request.values())
        sparse = recipes.find(method)(
            network, share / 100, Data(splits.calibration), names=names, folder=folder, seed=seed,
            tell=lambda facts: None, **{**usual, **options},
        )  # fmt: skip
    seconds = time.perf_counter() - start
    record = {
        "request": request, "zeros": masks.sparsity(sparse, names), "seconds": seconds,
        "validation": judge(sparse, splits.validation)[1], "test": judge(sparse, test)[1],
    }  # fmt: skip
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    return record


def row(record: Mapping[str, Any]) -> None:
    """One line of the table."""
    asked = record["request"]
    cells = [asked["network"], f"{asked['sparsity']} %", asked["cell"], str(asked["seed"]), f"{record['zeros']:.3%}"]
    cells += [f"{record['validation']:.2%}", f"{record['test']:.2%}", f"{record['seconds']:.0f}"]
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
