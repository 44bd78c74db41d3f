"""What a candidate costs: the engine, the forward passes it cannot do without, and a naive evaluation.

    AUTOPRUNE_DATA=... python benchmarks/evaluation.py [--networks resnet56 resnet50 mobilenet_v2] [--candidates 3]
                                                       [--recovery least_squares+recalibrate_bn] [--schemes 0]

Per network, in one run and in turns, for candidates at half of the multiply-adds: the seconds of a measurement (choose,
slice, repair, recalibrate, score); the *floor*, bare forward passes of the ready candidate over the same images (the
repair's calibration images and the validation images); and a naive evaluation in EagleEye's manner: a deep copy of the
dense network with masked channels, batch norms re-estimated over 100 batches of 128 images, and 10,000 images scored,
extrapolated from a few batches. With ``--schemes N`` both rank N schemes of ResNet-56 (naive on the images there are),
and Spearman's correlation of the rankings is printed. ResNet-50 and MobileNetV2 have random weights and images.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autoprune import api, data, models
from autoprune.budget import Budget
from autoprune.evaluate import RECOVERY, Evaluator
from autoprune.forward import evaluating
from autoprune.proxy import agreement, schemes
from autoprune.recover import BN_IMAGES, _first
from autoprune.threads import fixed_threads

BATCH, RECALIBRATED, SCORED, FEW = 128, 100, 10_000, 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet56", "resnet50", "mobilenet_v2"])
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--recovery", default=RECOVERY)
    parser.add_argument("--schemes", type=int, default=0)
    given = parser.parse_args()
    print("| network | images | candidate, s | floor, s | ratio | naive, s | times as fast | statistics |")
    print("|---|---|---|---|---|---|---|---|")
    with fixed_threads(1):
        for name in given.networks:
            row(name, given.candidates, given.recovery)
        if given.schemes:
            ranks(given.schemes, given.recovery)


def row(name: str, candidates: int, recovery: str) -> None:
    """One network."""
    network, calibration, validation = problem(name)
    space = api.trace(network, calibration[0][0][:1])
    budget = Budget.parse("macs=50%", space)
    start = time.perf_counter()
    evaluator = Evaluator(network, space, calibration, validation, recovery=recovery)
    evaluator.prepare()
    built = time.perf_counter() - start
    memory = sum(g.covariance.nbytes + g.mean.nbytes for g in evaluator.statistics.grams.values()) / 2**20
    engine, floor, naive = [], [], []
    recalibrated = list(_first(evaluator.calibration, BN_IMAGES))
    for scheme in schemes(budget, candidates, seed=0):
        start = time.perf_counter()
        evaluator(scheme)
        engine.append(time.perf_counter() - start)
        ready = evaluator.candidate(scheme)
        floor.append(passes(ready, recalibrated) + passes(ready, list(evaluator.validation)))
        naive.append(naively(evaluator, scheme, calibration)[0])
    mine, bare, slow = (float(np.median(times)) for times in (engine, floor, naive))
    images = f"{sum(len(y) for _, y in recalibrated)} + {sum(len(y) for _, y in validation)}"
    print(
        f"| {name} | {images} | {mine:.2f} | {bare:.2f} | {mine / bare:.2f} | {slow:.0f} | {slow / mine:.1f} "
        f"| {memory:.0f} MiB in {built:.0f} s |",
        flush=True,
    )


def passes(network: nn.Module, batches: Sequence[Any]) -> float:
    """Seconds of bare forward passes."""
    start = time.perf_counter()
    with torch.inference_mode(), evaluating(network):
        for inputs, _ in batches:
            network(inputs)
    return time.perf_counter() - start


def masked(evaluator: Evaluator, scheme: Any) -> nn.Module:
    """A deep copy of the dense network whose removed channels give zeros."""
    network = copy.deepcopy(evaluator.model)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.no_grad():
        for group, units in zip(evaluator.space.groups, evaluator.kept(scheme), strict=True):
            gone = np.setdiff1d(np.arange(group.units), units)
            for piece in group.slices:
                if piece.role in ("out", "through") and "running_var" not in piece.path:
                    place = torch.from_numpy(piece.positions[gone].ravel())
                    tensors[piece.path].index_fill_(piece.axis, place, 0.0)
    return network


def naively(
    evaluator: Evaluator, scheme: Any, calibration: Sequence[Any], whole: Sequence[Any] = ()
) -> tuple[float, float]:
    """Seconds and loss of the naive evaluation; without ``whole`` images to score, seconds from a few batches."""
    start = time.perf_counter()
    network = masked(evaluator, scheme)
    copied = time.perf_counter() - start
    batches = [(x[:BATCH], y[:BATCH]) for x, y in calibration]
    looked = batches if len(whole) else batches[:FEW]
    start = time.perf_counter()
    network.train()
    with torch.no_grad():
        for inputs, _ in looked:
            network(inputs)
    each = (time.perf_counter() - start) / sum(len(y) for _, y in looked)
    network.eval()
    loss, scored = 0.0, list(whole) or looked
    start = time.perf_counter()
    with torch.inference_mode():
        for inputs, labels in scored:
            loss += float(functional.cross_entropy(network(inputs), labels, reduction="sum"))
    images = sum(len(y) for _, y in scored)
    look = (time.perf_counter() - start) / images
    return copied + RECALIBRATED * BATCH * each + SCORED * look, loss / images


def ranks(number: int, recovery: str) -> None:
    """Both rankings of schemes of ResNet-56."""
    network, calibration, validation = problem("resnet56")
    space = api.trace(network, calibration[0][0][:1])
    evaluator = Evaluator(network, space, calibration, validation, recovery=recovery)
    found = schemes(Budget.parse("macs=50%", space), number, seed=1)
    engine = [-evaluator(scheme).loss for scheme in found]
    naive = [-naively(evaluator, scheme, calibration, validation)[1] for scheme in found]
    both = agreement(engine, naive)
    print(f"\n{number} schemes of ResNet-56: Spearman {both.spearman:.3f} (90 %: {both.low:.3f} to {both.high:.3f})")


def problem(name: str) -> tuple[nn.Module, list[Any], list[Any]]:
    """Network, calibration and validation batches."""
    if name == "resnet56":
        if "AUTOPRUNE_DATA" not in os.environ:
            raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives, or leave resnet56 out")
        folder = Path(os.environ["AUTOPRUNE_DATA"])
        splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
        return (
            models.load("autoprune:resnet56", folder / "resnet56-cifar10-jpeg.pt").eval(),
            splits.calibration,
            splits.validation,
        )
    torch.manual_seed(0)
    batches = [(torch.randn(16, 3, 224, 224), torch.randint(1000, (16,))) for _ in range(4)]
    return models.load(f"torchvision:{name}").eval(), batches[:2], batches[2:]


if __name__ == "__main__":
    main()
