"""Half of the latency, or half of the multiply-adds: three networks, all schedules measured in one run.

    AUTOPRUNE_DATA=... python benchmarks/latency.py [--networks resnet56 mobilenet_v2 resnet18] [--trials 60]
                                                    [--device cpu] [--threads 1] [--budget 50%] [--folder FOLDER]

Per network: the schedule searched under ``latency=50%``, the one searched under ``macs=50%`` in as many trials, and
uniform widths at half of the multiply-adds, timed interleaved with the dense network. Accuracy is the test accuracy
where weights are real (ResNet-56 on CIFAR-10); the others have random weights, and are searched for the smallest
divergence from themselves on random images, which says nothing of accuracy but moves widths about.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoprune import api, data, models
from autoprune.budget import Budget
from autoprune.latency.calibrate import sliced
from autoprune.latency.conditions import Conditions, machine
from autoprune.scheme import Scheme

IMAGES, REPEATS = 64, 41


def main() -> None:
    """Search, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet56", "mobilenet_v2", "resnet18"])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    conditions = Conditions(given.device, given.batch, given.threads)
    folder = Path(given.folder or tempfile.mkdtemp())
    print(f"{machine(given.device)['name']}, torch {torch.__version__}, {conditions}\n")
    print("| network | schedule | MACs | predicted | measured | quartiles | of dense | budget | test accuracy |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.networks:
        compare(name, given.budget, given.trials, conditions, folder)


def compare(name: str, share: str, trials: int, conditions: Conditions, folder: Path) -> None:
    """The rows of one network."""
    network, example, known = problem(name)
    space = api.trace(network, example)
    runs = {
        budget: api.search(
            network,
            example,
            **known,
            budget=f"{budget}={share}",
            also=("latency",),
            space=space,
            trials=trials,
            conditions=conditions,
            root=folder,
            tables=folder,
            device=conditions.device,
            run=f"{name}-{budget}",
        )
        for budget in ("latency", "macs")
    }
    rows = {
        "dense": space.dense,
        "uniform": Budget.parse(f"macs={share}", space).fit(np.ones(len(space))),
        "searched, macs": runs["macs"].scheme,
        "searched, latency": runs["latency"].scheme,
    }
    networks = {label: sliced(network, space, Scheme(scheme.kept)) for label, scheme in rows.items()}
    timings = conditions.measure(networks, example, REPEATS)
    dense = timings["dense"]
    summaries = {
        "dense": runs["macs"].summary["rows"]["dense"],
        "uniform": runs["macs"].summary["rows"]["uniform"],
        "searched, macs": runs["macs"].summary["rows"]["found"],
        "searched, latency": runs["latency"].summary["rows"]["found"],
    }
    limit = float(share.rstrip("%")) / 100
    for label, timing in timings.items():
        row = summaries[label]
        ratio = timing.median / dense.median
        error = 2 * (timing.error + dense.error)
        met = "" if label == "dense" else ("met" if ratio <= limit * (1 + error) else "not met")
        test = f"{row['test_accuracy']:.2%}" if "test_accuracy" in row else "–"
        print(
            f"| {name} | {label} | {row['fractions']['macs']:.1%} | {row['costs']['latency']:.2f} ms "
            f"| {timing.median:.2f} ms | {timing.low:.2f}–{timing.high:.2f} | {ratio:.1%} | {met} | {test} |",
            flush=True,
        )


def problem(name: str) -> tuple[torch.nn.Module, torch.Tensor, dict[str, Any]]:
    """The network, an example, and what candidates are judged by."""
    if name == "resnet56":
        if "AUTOPRUNE_DATA" not in os.environ:
            raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives, or leave resnet56 out")
        archive = Path(os.environ["AUTOPRUNE_DATA"])
        splits = data.load(f"imagefolder:{archive / 'cifar10-jpeg.tar.xz'}")
        network = models.load("autoprune:resnet56", archive / "resnet56-cifar10-jpeg.pt").eval()
        known = {"calibration": splits.calibration, "validation": splits.validation, "test": splits.test}
        return network, torch.zeros(1, 3, 32, 32), known
    torch.manual_seed(0)
    network = models.load(f"torchvision:{name}").eval()
    images = torch.randn(IMAGES, 3, 224, 224)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(16)]
    known = {
        "calibration": batches[:2], "validation": batches[2:], "criterion": "l2", "recovery": "recalibrate_bn",
        "reward": "neg_kl",
    }  # fmt: skip
    return network, images[:1], known


if __name__ == "__main__":
    main()
