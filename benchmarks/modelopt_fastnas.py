"""FastNAS as NVIDIA ships it, on the network and the images of the other benchmarks.

    pip install nvidia-modelopt torchprofile==0.0.4    # ModelOpt 0.47 does not know torchprofile 0.1
    AUTOPRUNE_DATA=... python benchmarks/modelopt_fastnas.py [--network resnet56] [--budgets macs=50% macs=30%]
        [--images 1024] [--divisor 4] [--root FOLDER]

Its rule: accuracy on ``--images`` validation images of the network with one width cut, for every choice of every width
(``--divisor`` channels apart: its default of 32 leaves a choice to widths of 64 alone), batch norms estimated anew on
calibration images; then the lowest damage at which the budget is met, the same for all widths. Prints the widths, and
test accuracy of the network that comes out, as it is and with batch norms estimated anew. What the widths are worth
repaired and trained says ``after_training.py --ways modelopt``, which calls this. With ``--root`` the table of damages
is kept, and serves every budget.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from autoprune import api, data, models
from autoprune.budget import Budget
from autoprune.cost import account
from autoprune.exporters import sizes
from autoprune.finetune import Batches, judge
from autoprune.hints import Hints
from autoprune.recover import first, reestimate
from autoprune.searchers import Proposals, Searcher
from autoprune.space import SearchSpace

IMAGES, DIVISOR = 1024, 4
BATCHES, SIZE = 50, 10  # with fewer batches than these 50 ModelOpt leaves batch norms as they are


def main() -> None:
    """Search with ModelOpt and print what comes out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet56", choices=["resnet20", "resnet56"])
    parser.add_argument("--budgets", nargs="*", default=["macs=50%", "macs=30%"])
    parser.add_argument("--images", type=int, default=IMAGES, help="validation images that judge a width")
    parser.add_argument("--divisor", type=int, default=DIVISOR, help="of channels kept")
    parser.add_argument("--root", type=Path, default=None)
    given = parser.parse_args()
    if "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives")
    folder, root = Path(os.environ["AUTOPRUNE_DATA"]), given.root or Path(tempfile.mkdtemp())
    root.mkdir(parents=True, exist_ok=True)
    splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
    assert splits.test is not None
    test = list(splits.test())
    dense = models.load(f"autoprune:{given.network}", folder / f"{given.network}-cifar10-jpeg.pt").eval()
    space = api.trace(dense, torch.zeros(1, 3, 32, 32))
    lines = []
    for text in given.budgets:
        budget = Budget.parse(text, space)
        place = root / f"{given.network}-modelopt.pt"
        made = prune(dense, budget, splits.calibration, splits.validation, place, given.images, given.divisor)
        kept = sizes.of_network(made, space)
        cells = [text, f"{account(kept, space, budget.costs)[1]['macs']:.2%}", f"{judge(made, test)[1]:.2%}"]
        reestimate(made, splits.calibration)
        lines.append([*cells, f"{judge(made, test)[1]:.2%}", " ".join(map(str, kept.kept))])
    print("\n| budget | MACs | test, as it comes out | batch norms estimated anew | channels kept |")
    print("|---|---|---|---|---|")
    for line in lines:
        print("|", " | ".join(line), "|")


def searcher(model: nn.Module, calibration: Batches, validation: Batches, table: Path) -> Searcher:
    """One proposal: the widths that :func:`prune` finds."""

    def modelopt(space: SearchSpace, budget: Budget, *, seed: int, hints: Hints, batch: int = 8) -> Proposals:
        yield [sizes.of_network(prune(model, budget, calibration, validation, table), space)]

    return modelopt


def prune(
    model: nn.Module, budget: Budget, calibration: Batches, validation: Batches, table: Path,
    images: int = IMAGES, divisor: int = DIVISOR,
) -> nn.Module:  # fmt: skip
    """The network that ModelOpt makes of a copy of ``model``; ``table`` is where its damages are kept."""
    if find_spec("modelopt") is None:
        raise SystemExit("ModelOpt is not installed: pip install nvidia-modelopt torchprofile==0.0.4")
    from modelopt.torch.prune import prune as search
    from modelopt.torch.prune.fastnas import FastNASConfig

    rules = FastNASConfig().model_dump()
    for kind in rules.values():
        for rule in filter(None, kind.values()):
            rule.update({name: divisor for name in rule if name.endswith("_divisor")})
    judges = list(first(validation, images))
    choices = {
        "data_loader": small(calibration),
        "score_func": lambda candidate: judge(candidate, judges)[1],
        "checkpoint": str(table),
        "verbose": False,
    }
    made: nn.Module = search(
        copy.deepcopy(model), mode=[("fastnas", rules)], constraints={"flops": 2 * budget.caps["macs"]},
        dummy_input=torch.zeros(1, 3, 32, 32), config=choices,
    )[0]  # fmt: skip
    return made.eval()


def small(batches: Batches) -> list[tuple[torch.Tensor, None]]:
    """The leading images in as many batches as ModelOpt wants."""
    images = torch.cat([inputs for inputs, _ in batches])[: BATCHES * SIZE]
    return [(part, None) for part in images.split(SIZE)]


if __name__ == "__main__":
    main()
