"""What the found widths are worth once the network is trained again, if only for a moment.

    AUTOPRUNE_DATA=... python benchmarks/after_training.py [--network resnet56] [--budgets macs=50% macs=30%]
        [--trials 150] [--repair sequential,images=512] [--validation 8192] [--reward neg_loss] [--finalists 4]
        [--search-seeds 0] [--epochs 2] [--lr 0.01] [--distill 1.0] [--seeds 0] [--images 50000] [--precision bfloat16]
        [--root FOLDER]

ResNets on CIFAR-10 (JPEG). Widths by equal rates, by one threshold on L1 norms or on Taylor scores over all layers, by
FastNAS's bisection (ours and, where ModelOpt is installed, NVIDIA's, see ``modelopt_fastnas.py``), and by the default
searcher. Searches see candidates as ``--repair`` leaves them and judge them by ``--reward`` on ``--validation`` images.
Each answer is repaired in the same way (``sequential``, 2,048 images, two sweeps), and so are all ``--finalists`` of a
search before one of them is its answer. It is then trained by the same recipe on the same training images, once per
seed, toward the dense network's answers alone unless ``--distill`` says otherwise; the same 2,048 images choose its
epoch. Prints test accuracy before and after, a row per search, and how far ``auto`` is ahead of the others in the mean
over searches and trainings; test images are looked at once per figure. With ``--root``, a folder for one choice of
everything that a search sees, a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import modelopt_fastnas
import torch
from torch import nn

from autoprune import api, data, models
from autoprune.finetune import Batches, Recipe, finetune
from autoprune.forward import evaluating
from autoprune.pruned import load_pruned
from autoprune.recover import first
from autoprune.searchers import Searcher

WAYS: Mapping[str, tuple[str, str]] = {  # searcher, criterion
    "equal rates": ("uniform", "obs"),
    "global L1": ("global_threshold", "l1"),
    "global Taylor": ("global_threshold", "taylor"),
    "fastnas": ("fastnas", "obs"),
    "modelopt": ("modelopt", "obs"),  # a searcher of its own, made for the network
    "auto": ("auto", "obs"),
}
POSSIBLE = [way for way in WAYS if way != "modelopt" or find_spec("modelopt")]
POLISH = "sequential,images=2048,sweeps=2"


def main() -> None:
    """Search, train and print what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet56", choices=["resnet20", "resnet56"])
    parser.add_argument("--budgets", nargs="*", default=["macs=50%", "macs=30%"])
    parser.add_argument("--ways", nargs="*", default=POSSIBLE, choices=list(WAYS))
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--repair", default="sequential,images=512", help="of candidates")
    parser.add_argument("--validation", type=int, default=8192, help="images that judge candidates")
    parser.add_argument("--reward", default="neg_loss", help="of candidates")
    parser.add_argument("--finalists", type=int, default=4, help="of a search, polished")
    parser.add_argument("--search-seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--distill", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of the training")
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--precision", default="bfloat16", help="of candidates and of the training")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--root", type=Path, default=None)
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    folder, root = Path(os.environ["AUTOPRUNE_DATA"]), given.root or Path(tempfile.mkdtemp())
    recipe = Recipe(given.epochs, given.lr, distill=given.distill, augment="crop", precision=given.precision)
    shared = Shared.read(given, folder, root, recipe)
    print(f"{given.network}, {given.trials} trials, {recipe}\n")
    print("| budget | widths by | seed | trials | MACs | repaired: loss | calibrated KL | test | trained | mean |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    answers = {
        (budget, way): torch.cat([row(shared, given, budget, way, seed) for seed in given.search_seeds])
        for budget in given.budgets
        for way in given.ways
    }
    compare(answers)


@dataclass(frozen=True)
class Shared:
    """What every row needs; images are read once."""

    build: Callable[[], nn.Module]
    seen: data.Splits  # by searches
    train: Batches
    chooses: Batches  # the epoch of a training
    test: Batches
    recipe: Recipe
    root: Path

    @classmethod
    def read(cls, given: Any, folder: Path, root: Path, recipe: Recipe) -> Shared:
        """The images in ``folder``."""
        images = f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}"
        splits, seen = data.load(images), data.load(images, validation=given.validation)
        assert splits.train is not None and splits.test is not None
        train = list(first(list(splits.train()), given.images))
        build = partial(network, given.network, folder)
        return cls(build, seen, train, splits.validation, list(splits.test()), recipe, root)


def network(name: str, folder: Path) -> nn.Module:
    """The trained dense network."""
    return models.load(f"autoprune:{name}", folder / f"{name}-cifar10-jpeg.pt").eval()


def row(shared: Shared, given: Any, budget: str, way: str, seed: int) -> torch.Tensor:
    """One line of the table; which test images each of its trained networks has right (trainings x images)."""
    build, seen, recipe = shared.build, shared.seen, shared.recipe
    searcher: str | Searcher
    searcher, criterion = WAYS[way]
    if way == "modelopt":
        table = shared.root / f"{given.network}-modelopt.pt"
        searcher = modelopt_fastnas.searcher(build(), seen.calibration, seen.validation, table)
    name = f"{given.network}-{budget}-{way}".replace("=", "-").replace("%", "").replace(" ", "-")
    place = shared.root / f"search-seed-{seed}"
    run = api.search(
        build(), torch.zeros(1, 3, 32, 32), seen.calibration, seen.validation, test=seen.test, budget=budget,
        searcher=searcher, criterion=criterion, recovery=given.repair, polish=POLISH, finalists=given.finalists,
        reward=given.reward, trials=given.trials, precision=given.precision, workers=given.workers, root=place,
        run=name, ledger=place / f"{criterion}.jsonl", seed=seed,
    )  # fmt: skip
    repaired = list(run.summary["rows"].values())[-1]
    trainings = []
    for number in given.seeds:
        trained = load_pruned(build, run.folder)
        kept = run.folder / f"lr-{recipe.lr}-distill-{recipe.distill}-seed-{number}"
        finetune(trained, shared.train, shared.chooses, kept, replace(recipe, seed=number), teacher=build())
        trainings.append(right(trained, shared.test))
    answers = torch.stack(trainings)
    cells = [budget, way, str(seed), str(run.summary["trials"]), f"{repaired['fractions']['macs']:.2%}"]
    cells += [f"{repaired['loss']:.4f}", f"{repaired['calibrated_kl']:.4f}", f"{repaired['test_accuracy']:.2%}"]
    cells += [", ".join(f"{share:.2%}" for share in answers.mean(1).tolist()), f"{answers.mean():.2%}"]
    print("|", " | ".join(cells), "|", flush=True)
    return answers


def right(model: nn.Module, batches: Batches) -> torch.Tensor:
    """1 for every image that the network has right, 0 for the others."""
    with torch.inference_mode(), evaluating(model):
        return torch.cat([(model(inputs).argmax(1) == labels).double() for inputs, labels in batches])


def compare(answers: Mapping[tuple[str, str], torch.Tensor]) -> None:
    """How far ``auto`` is ahead of every other way: searches and trainings averaged, then paired on the test images."""
    print("\n| budget | auto ahead of | by (points) | standard error | trainings |")
    print("|---|---|---|---|---|")
    for (budget, way), others in answers.items():
        ours = answers.get((budget, "auto"))
        if way == "auto" or ours is None:
            continue
        gap = 100 * (ours.mean(0) - others.mean(0))
        cells = [budget, way, f"{gap.mean():+.2f}", f"{gap.std() / len(gap) ** 0.5:.2f}", f"{len(ours)}, {len(others)}"]
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
