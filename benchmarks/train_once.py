"""Train once, prune anywhere: accuracy at four widths, and whether generated weights tell which scheme is good.

    python benchmarks/train_once.py [--epochs 12] [--seeds 3] [--folder FOLDER]
    AUTOPRUNE_DATA=... python benchmarks/train_once.py --cifar 16 [--images 4000] [--epochs 8] [--seeds 1]

First table: test accuracy at 25, 50, 75 and 100 % width of networks trained in so many epochs each: one per width; one
at full width, pruned afterwards (obs, least squares, batch norms estimated anew); a slimmable one; a universally
slimmable one, and the same without parts of it. Mean over seeds, and their range.

Second: rank correlation over random schemes of half of the multiply-adds between the accuracy that MetaPruning's
generated weights give (validation images) and that of networks trained from scratch, and what its search finds beside
uniform widths, both trained from scratch. By default the embedded network on the digits; ResNet-20 on CIFAR-10 with
``--cifar SIZE``, on a GPU with ``--device cuda``. Finished rows are kept in FOLDER: the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune import api, data, lines, models
from autoprune.budget import Budget
from autoprune.evaluate import Evaluator
from autoprune.finetune import Recipe, finetune, judge
from autoprune.recipes import source
from autoprune.recipes.narrow import first, uniform
from autoprune.recipes.slimmable import Slimmable
from autoprune.recover import first as first_images
from autoprune.scheme import Scheme
from autoprune.slicing import prune
from autoprune.space import SearchSpace

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SCHEMES, TRIALS = 10, 60
LR = 0.05


def main() -> None:
    """Train, prune, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=int, default=None, metavar="SIZE", help="CIFAR-10 at this many pixels")
    parser.add_argument("--images", type=int, default=None, help="training images; all of them without it")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    folder = Path(given.folder or tempfile.mkdtemp())
    bench = Bench(given.cifar, given.images, given.epochs, given.device, folder)
    print(f"{bench.name}, {given.epochs} epochs, seeds 0 to {given.seeds - 1}, torch {torch.__version__}\n")
    print(f"| test accuracy at width | {' | '.join(f'{width:.0%}' for width in WIDTHS)} |")
    print(f"|---|{'---|' * len(WIDTHS)}")
    for label, row in ROWS.items():
        found = np.array([bench.known(label, seed, row) for seed in range(given.seeds)])
        cells = [
            f"{100 * mean:.1f} ({100 * spread:.1f})"
            for mean, spread in zip(found.mean(0), np.ptp(found, 0), strict=True)
        ]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)
    print()
    for seed in range(given.seeds):
        told = bench.known("metapruning", seed, generated)
        print(
            f"MetaPruning, seed {seed}: Spearman {told['spearman']:.2f} over {SCHEMES} schemes; trained from scratch, "
            f"searched {told['searched']:.1%}, uniform {told['uniform']:.1%}",
            flush=True,
        )


class Bench:
    """One network, its data, and what has been found out about it."""

    def __init__(self, size: int | None, images: int | None, epochs: int, device: str, folder: Path) -> None:
        self.name = "digits" if size is None else f"ResNet-20 on CIFAR-10 at {size}²"
        self.model = "autoprune:digits" if size is None else "autoprune:resnet20"
        self.epochs, self.device, self.folder = epochs, device, folder
        if size is None:
            self.splits = data.load("digits", 256, 256)
        else:
            if "AUTOPRUNE_DATA" not in os.environ:
                raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
            archive = Path(os.environ["AUTOPRUNE_DATA"]) / "cifar10-jpeg.tar.xz"
            self.splits = data.load(f"imagefolder:{archive}", 2048, 2048, input_size=size)
        assert self.splits.train is not None and self.splits.test is not None
        self.train, self.test = list(self.splits.train()), list(self.splits.test())
        if images is not None:
            self.train = list(first_images(self.train, images))
            self.name += f", {sum(len(x) for x, _ in self.train)} training images"
        example: Any = self.splits.validation[0][0]
        self.example: torch.Tensor = example[:1]
        self._trained: dict[str, Any] = {}  # two rows judge one network
        folder.mkdir(parents=True, exist_ok=True)

    def fresh(self, seed: int) -> tuple[nn.Module, SearchSpace]:
        """Random weights."""
        torch.manual_seed(seed)
        model = models.load(self.model).to(self.device)
        return model, api.trace(model, self.example.to(self.device))

    def recipe(self, seed: int) -> Recipe:
        """The same for all."""
        return Recipe(self.epochs, lr=LR, seed=seed)

    def alone(self, model: nn.Module, seed: int) -> float:
        """Test accuracy of a network that is trained for itself."""
        with tempfile.TemporaryDirectory() as place:
            finetune(model, self.train, self.splits.validation, place, self.recipe(seed))
        return judge(model, self.test)[1]

    def once(self, name: str, seed: int, **options: Any) -> tuple[nn.Module, SearchSpace, source.Source]:
        """A recipe's network, as it was trained and as a search reads it."""
        asked = repr((name, seed, options))
        if asked not in self._trained:
            model, space = self.fresh(seed)
            with tempfile.TemporaryDirectory() as place:
                trained = source.train(
                    name, model, space, self.train, self.splits.validation, place, recipe=self.recipe(seed),
                    options=options,
                )  # fmt: skip
                self._trained[asked] = trained, space, source.read(place, self.fresh(seed)[0], space)
        found: tuple[nn.Module, SearchSpace, source.Source] = self._trained[asked]
        return found

    def read_off(self, found: source.Source, space: SearchSpace) -> Evaluator:
        """What a search would measure candidates with."""
        return Evaluator(
            found.model, space, self.splits.calibration, self.splits.validation, criterion=found.criterion,
            recovery=found.recovery, device=self.device,
        )  # fmt: skip

    def known(self, label: str, seed: int, row: Callable[[Bench, int], Any]) -> Any:
        """A row of this seed, from the folder if it was finished before."""
        path = self.folder / "rows.jsonl"
        key = [self.name, self.epochs, label, seed]
        for record in lines.read_records(path):
            if record["key"] == key:
                return record["found"]
        found = row(self, seed)
        lines.append_records(path, [{"key": key, "found": found}])
        return found


def separate(bench: Bench, seed: int) -> list[float]:
    """One training per width."""
    found = []
    for width in WIDTHS:
        model, space = bench.fresh(seed)
        found.append(bench.alone(prune(model, space, first(space, uniform(space, width))), seed))
    return found


def pruned(bench: Bench, seed: int) -> list[float]:
    """One training at full width, pruned afterwards."""
    model, space = bench.fresh(seed)
    bench.alone(model, seed)
    evaluator = Evaluator(model, space, bench.splits.calibration, bench.splits.validation, device=bench.device)
    return [judge(evaluator.candidate(uniform(space, width)), bench.test)[1] for width in WIDTHS]


def slimmable(bench: Bench, seed: int) -> list[float]:
    """Every width with its own batch norms."""
    trained, space, _ = bench.once("slimmable", seed)
    assert isinstance(trained, Slimmable)
    return [judge(trained.network(uniform(space, width)), bench.test)[1] for width in WIDTHS]


def universal(bench: Bench, seed: int, *, estimated: bool = True, **options: Any) -> list[float]:
    """Any width, batch norms ``estimated`` anew or those of the whole network."""
    trained, space, found = bench.once("universal", seed, **options)
    assert isinstance(trained, Slimmable)
    evaluator = bench.read_off(found, space)
    networks = [
        evaluator.candidate(s) if estimated else trained.network(s) for s in (uniform(space, w) for w in WIDTHS)
    ]
    return [judge(network, bench.test)[1] for network in networks]


def generated(bench: Bench, seed: int) -> dict[str, float]:
    """Do MetaPruning's generated weights rank schemes as training them does, and does its search pay?"""
    from scipy.stats import spearmanr

    _, space, found = bench.once("metapruning", seed)
    evaluator = bench.read_off(found, space)
    budget = Budget.parse("macs=50%", space)
    rng = np.random.default_rng(seed)
    schemes = [budget.fit(rng.uniform(0.1, 1.0, len(space))) for _ in range(SCHEMES)]
    scores = [evaluator(scheme).accuracy for scheme in schemes]
    truth = [scratch(bench, scheme, seed) for scheme in schemes]
    with tempfile.TemporaryDirectory() as root:
        run = api.search(
            found.model, bench.example, bench.splits.calibration, bench.splits.validation, budget="macs=50%",
            space=space, criterion=found.criterion, recovery=found.recovery, searcher="evolution",
            options={"preset": "metapruning", "population": 20}, trials=TRIALS, seed=seed, root=root,
            device=bench.device,
        )  # fmt: skip
        assert run.scheme is not None
        searched = Scheme(run.scheme.kept)
    return {
        "spearman": float(spearmanr(scores, truth)[0]),
        "searched": scratch(bench, searched, seed),
        "uniform": scratch(bench, budget.fit(np.ones(len(space))), seed),
    }


def scratch(bench: Bench, scheme: Scheme, seed: int) -> float:
    """Test accuracy of a scheme's network, trained from random weights."""
    model, space = bench.fresh(seed)
    return bench.alone(prune(model, space, first(space, scheme)), seed)


ROWS: Mapping[str, Callable[[Bench, int], list[float]]] = {
    "one network per width": separate,
    "one network, pruned afterwards": pruned,
    "slimmable": slimmable,
    "universally slimmable": universal,
    "… batch norms not estimated anew": lambda bench, seed: universal(bench, seed, estimated=False),
    "… without the sandwich rule": lambda bench, seed: universal(bench, seed, sandwich=False),
    "… without distillation": lambda bench, seed: universal(bench, seed, distill=False),
}


if __name__ == "__main__":
    main()
