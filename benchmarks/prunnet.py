"""PrunNet beside its ablations, magnitude pruning and networks trained alone: CIFAR-10 (JPEG), accuracy and retrieval.

    AUTOPRUNE_DATA=... python benchmarks/prunnet.py [--size 16] [--depth 8] [--images 6000] [--epochs 4] [--batch 64]
        [--lr 0.1] [--seed 0] [--test-images 3000] [--queries 2000] [--rows PrunNet ...] [--device cpu] [--root FOLDER]

A small CIFAR ResNet learns six classes; the other four are held out from training. The first table has the test
accuracy on the six at several shares of the weights, of which PrunNet never trained 30 % and 50 %. The second ranks
test images of the four by features: queries of the subnetwork in its own gallery ("self") and in the dense network's
("cross"). Every network sees every image equally often, and the last epoch is kept: nothing is chosen by any result.
`--size 32 --depth 20 --images 30000 --epochs 30 --device cuda` is the same at full size. A finished cell is a line of
FOLDER/…/cells.jsonl and is not computed again; a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import data, masks, retrieval
from autoprune.architectures import cifar_resnet
from autoprune.finetune import Method, Recipe, finetune, judge
from autoprune.lines import append_records, read_records
from autoprune.recipes.data import Data
from autoprune.recipes.iterative import retrain
from autoprune.recipes.prunnet import CAPACITIES, prunnet
from autoprune.recipes.scores import Scored
from autoprune.recover import reestimate

LEARNT = ("airplane", "automobile", "bird", "cat", "deer", "dog")
SHOWN = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
RETRIEVED = ALONE = (0.2, 0.6)
JOINT: Mapping[str, Mapping[str, Any]] = {
    "PrunNet": {},
    "gradient sum": {"projection": "none"},
    "PrunNet, last projection": {"projection": "last"},
    "PrunNet, compatibility loss": {"compatibility": 1.0},
}
MAGNITUDE, RANDOM = "dense, magnitude pruned", "trained alone, random mask"
ROWS = ("PrunNet", "gradient sum", MAGNITUDE, RANDOM)
SETTINGS = ("size", "depth", "images", "epochs", "batch", "lr", "seed", "test_images", "queries")
CALIBRATION = 1000  # images for batch norms
BATCH = 250

Batches = list[tuple[Tensor, Tensor]]


def main() -> None:
    """Measure what is missing and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16, help="of the images, in pixels")
    parser.add_argument("--depth", type=int, default=8, help="of the CIFAR ResNet: 8, 14, 20, …")
    parser.add_argument("--images", type=int, default=6000, help="to train on, of the six classes' 30,000")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=3000, help="a random part of the six classes' 6,000")
    parser.add_argument("--queries", type=int, default=2000, help="a random part of the four classes' 4,000")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=[*JOINT, MAGNITUDE, RANDOM])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--root", type=Path, default=Path("runs/prunnet"))
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    torch.set_num_threads(1)
    study = Study(given)
    print(f"settings: {json.dumps(study.settings)}")
    accuracies(study, given.rows)
    retrievals(study, given.rows)
    print(f"{time.process_time():.0f} s of processor time")


def accuracies(study: Study, rows: list[str]) -> None:
    """The test accuracy of the classes that were learnt."""
    unseen = [capacity not in (*CAPACITIES, 1.0) for capacity in SHOWN]
    heads = [f"{c:.0%}{' (unseen)' if new else ''}" for c, new in zip(SHOWN, unseen, strict=True)]
    line("network", "batch norms", *heads)
    line(*["---"] * (2 + len(heads)))
    for row in rows:
        for norms in ("re-estimated", "dense network's") if row != RANDOM else ("its own",):
            cells = []
            for capacity in SHOWN:
                known = row != RANDOM or capacity in ALONE
                cells.append(f"{study.accuracy(row, capacity, norms):.1%}" if known else "–")
            line(row, norms, *cells)


def retrievals(study: Study, rows: list[str]) -> None:
    """What the features find among classes that no network has seen."""
    print()
    line("query network", "weights", "self mAP", "self recall@1", "cross mAP", "cross recall@1")
    line(*["---"] * 6)
    for row in rows:
        for capacity in (*RETRIEVED, 1.0) if row != RANDOM else ALONE:
            found = study.retrieval(row, capacity)
            values = [found[test][key] for test in ("self", "cross") for key in ("mAP", "recall@1")]
            line(row, f"{capacity:.0%}", *(f"{value:.1%}" for value in values))


def line(*cells: str) -> None:
    """One line of a table."""
    print("|", " | ".join(cells), "|", flush=True)


class Study:
    """The images, the networks as they are needed, and the cells that are measured already."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.settings = {name: getattr(given, name) for name in SETTINGS}
        self.root = given.root / "-".join(f"{name}={value}" for name, value in self.settings.items())
        self.root.mkdir(parents=True, exist_ok=True)
        archive = Path(os.environ["AUTOPRUNE_DATA"]) / "cifar10-jpeg.tar.xz"
        splits = data.load(f"imagefolder:{archive}", 1, 1, input_size=given.size)
        assert splits.train is not None and splits.test is not None
        learnt = [splits.classes.index(name) for name in LEARNT]
        others = [number for number in range(len(splits.classes)) if number not in learnt]
        test = list(splits.test())
        self.train = of(splits.train(), learnt, given.images)
        self.calibration = self.train[: CALIBRATION // BATCH]
        self.test = drawn(of(test, learnt), given.test_images)
        self.strange = drawn(of(test, others), given.queries)
        self.whole = functools.cache(self._whole)
        self.part = functools.cache(self._part)

    def accuracy(self, row: str, capacity: float, norms: str) -> float:
        """The share of test images that are told right."""
        request = {"what": "accuracy", "row": row, "capacity": capacity, "norms": norms}
        return self.measured(request, lambda: judge(self.part(row, capacity, norms), self.test)[1])

    def retrieval(self, row: str, capacity: float) -> dict[str, dict[str, float]]:
        """The two tests of a subnetwork beside the dense network that it has to agree with."""

        def compute() -> dict[str, dict[str, float]]:
            small = self.part(row, capacity, "its own" if row == RANDOM else "re-estimated")
            found = retrieval.asymmetric(small, self.dense(row), self.strange, recalls=(1,))
            return {test: {"mAP": one.mean_average_precision, "recall@1": one.recall[1]} for test, one in found.items()}

        return self.measured({"what": "retrieval", "row": row, "capacity": capacity}, compute)

    def measured(self, request: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What was found before, or now."""
        path = self.root / "cells.jsonl"
        for record in read_records(path):
            if record["request"] == request:
                return record["found"]
        found = compute()
        append_records(path, [{"request": request, "found": found}])
        return found

    # -- networks ------------------------------------------------------------------------------

    def dense(self, row: str) -> nn.Module:
        """The network of all weights that a row's subnetworks belong to; whoever was trained alone has the usual."""
        whole = self.whole(row if row in JOINT else MAGNITUDE)
        return whole.network if isinstance(whole, Scored) else whole

    def _whole(self, row: str) -> nn.Module:
        recipe, network, folder = self._start(row)
        if row in JOINT:
            seed = self.given.seed
            return prunnet(network, None, self.train, [], folder, recipe=recipe, seed=seed, **JOINT[row]).eval()
        finetune(network, self.train, [], folder, recipe, method=Method(keep="last"))
        return network

    def _part(self, row: str, capacity: float, norms: str) -> nn.Module:
        if capacity == 1.0:  # nothing is missing, so its batch norms are right
            return self.dense(row)
        whole = None if row == RANDOM else self.whole(row)
        if isinstance(whole, Scored):
            part = whole.subnetwork(capacity)
        elif whole is not None:
            part = copy.deepcopy(whole)
            sizes = {name: weight.detach().abs() for name, weight in masks.weights(part, exclude=["linear"]).items()}
            masks.impose(part, masks.uniform(sizes, 1 - capacity))
        else:
            recipe, part, folder = self._start(f"{row}, {capacity}", 1 + ALONE.index(capacity))
            stream = torch.Generator().manual_seed(self.given.seed)
            chance = {
                n: torch.rand(w.shape, generator=stream) for n, w in masks.weights(part, exclude=["linear"]).items()
            }
            found = {name: mask.to(self.given.device) for name, mask in masks.uniform(chance, 1 - capacity).items()}
            retrain(
                part, found, Data(self.calibration, self.train), folder, recipe, facts={"method": RANDOM},
                tell=lambda facts: None,
            )  # fmt: skip
        if norms == "re-estimated":
            reestimate(part, self.calibration)
        return part

    def _start(self, name: str, other: int = 0) -> tuple[Recipe, nn.Module, Path]:
        """How a network is trained, from which initial weights (``other`` ones for networks alone), and where."""
        given = self.given
        torch.manual_seed(1000 * other + given.seed)
        network = cifar_resnet(given.depth, len(LEARNT)).to(given.device)
        recipe = Recipe(given.epochs, given.lr, given.batch, augment="flip", seed=1000 * other + given.seed)
        return recipe, network, self.root / name.replace(" ", "_")


def of(batches: Iterable[tuple[Tensor, Tensor]], classes: list[int], images: int | None = None) -> Batches:
    """So many images of these classes, which are numbered anew; no more batches are read than that takes."""
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for some, numbers in batches:
        chosen = torch.isin(numbers, torch.tensor(classes))
        inputs.append(some[chosen])
        labels.append((numbers[chosen][:, None] == torch.tensor(classes)).int().argmax(1))
        count += int(chosen.sum())
        if images is not None and count >= images:
            break
    return list(zip(torch.cat(inputs)[:images].split(BATCH), torch.cat(labels)[:images].split(BATCH), strict=True))


def drawn(batches: Batches, images: int) -> Batches:
    """A random part, the same for everybody."""
    inputs, labels = (torch.cat(several) for several in zip(*batches, strict=True))
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:images]
    return list(zip(inputs[chosen].split(BATCH), labels[chosen].split(BATCH), strict=True))


if __name__ == "__main__":
    main()
