"""What a candidate costs: the engine, the bare forward passes it needs, and a naive evaluation.

    AUTOPRUNE_DATA=... python benchmarks/evaluation.py [--networks resnet56 resnet50 mobilenet_v2] [--candidates 3]
                                                       [--schemes 50] [--sixteen 20] [--trials 48 --race 0.01]

Candidates keep half of the multiply-adds. Per network, in turns and in seconds of one core (median): a measurement of
ours (choose, slice, repair, recalibrate, score); the *floor*, bare forward passes of the ready network over the same
images as they come; and a naive evaluation in EagleEye's manner: a deep copy of the dense network with masked
channels, batch norms re-estimated over 100 batches of 128 images, 10,000 images scored, extrapolated from a few
batches. The last columns are what is done once: statistics, collected in one pass over the calibration images, and
ranking the channels, factoring the layers and the dense network's answers.

With ``--schemes N`` both rank N schemes of ResNet-56 on the same images, ours with the same repair as the naive one
and with the default, and Spearman's correlations are printed. With ``--sixteen N`` N schemes of it are measured in
float32 and bfloat16 in turns. With ``--trials N`` the default searcher races through N trials on it, and what was
stopped is measured in full. ResNet-50 and MobileNetV2 have random weights and images.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autoprune import api, data, models, recover
from autoprune.budget import Budget
from autoprune.evaluate import RECOVERY, Evaluator
from autoprune.fidelity import Fidelity
from autoprune.forward import evaluating
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.proxy import agreement, schemes
from autoprune.reward import REWARDS
from autoprune.scheme import Scheme
from autoprune.searchers.auto import auto
from autoprune.threads import fixed_threads

RECALIBRATED, SCORED, FEW = 12_800, 10_000, 256  # images of the naive evaluation, and those it is extrapolated from
LARGE = 32  # images of 224 x 224, for calibration and for validation

Batches = Sequence[tuple[Any, Any]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet56", "resnet50", "mobilenet_v2"])
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--schemes", type=int, default=0)
    parser.add_argument("--sixteen", type=int, default=0)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--race", type=float, default=0.01)
    given = parser.parse_args()
    with fixed_threads(1):
        if given.networks:
            print(
                "| network | images | candidate, s | floor, s | ratio | naive, s | times as fast | statistics "
                "| once, s |"
            )
            print("|---|---|---|---|---|---|---|---|---|")
        for name in given.networks:
            row(name, given.candidates)
        if given.schemes:
            ranks(given.schemes)
        if given.sixteen:
            sixteen(given.sixteen)
        if given.trials:
            races(given.trials, given.race)


def row(name: str, candidates: int) -> None:
    """One network."""
    evaluator, budget = problem(name)
    statistics = seconds(lambda: evaluator.statistics.grams)
    size = sum(gram.covariance.nbytes + gram.mean.nbytes for gram in evaluator.statistics.grams.values()) / 2**20
    once = seconds(evaluator.prepare)
    read = list(recover.first(evaluator.calibration, recover.BN_IMAGES))
    times = []
    for scheme in schemes(budget, candidates, seed=0):
        ready = evaluator.candidate(scheme)
        mine = seconds(lambda scheme=scheme: evaluator(scheme))
        floor = seconds(lambda ready=ready: passes(ready, read)) + seconds(
            lambda ready=ready: passes(ready, evaluator.validation)
        )
        times.append((mine, floor, naive_seconds(evaluator, scheme)))
    mine, floor, slow = np.median(times, axis=0)
    print(
        f"| {name} | {images(read)} + {images(evaluator.validation)} | {mine:.2f} | {floor:.2f} | {mine / floor:.2f} "
        f"| {slow:.0f} | {slow / mine:.1f} | {size:.0f} MiB in {statistics:.0f} s | {once:.0f} |",
        flush=True,
    )


def seconds(work: Callable[[], Any]) -> float:
    """What it takes of this process's core, whatever else the machine does."""
    start = time.process_time()
    work()
    return time.process_time() - start


def images(batches: Batches) -> int:
    """How many there are."""
    return sum(len(inputs) for inputs, _ in batches)


def passes(network: nn.Module, batches: Iterable[tuple[Any, Any]]) -> float:
    """Forward passes in evaluation mode, and the mean loss."""
    loss, count = 0.0, 0
    with torch.inference_mode(), evaluating(network):
        for inputs, labels in batches:
            loss += float(functional.cross_entropy(network(inputs), labels, reduction="sum"))
            count += len(labels)
    return loss / count


def masked(evaluator: Evaluator, scheme: Scheme) -> nn.Module:
    """A deep copy of the dense network whose removed channels give zeros."""
    network = copy.deepcopy(evaluator.model)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.no_grad():
        for group, units in zip(evaluator.space.groups, evaluator.kept(scheme), strict=True):
            gone = np.setdiff1d(np.arange(group.units), units)
            for piece in group.slices:
                if piece.role in ("out", "through") and piece.tensor != "running_var":
                    tensors[piece.path].index_fill_(piece.axis, torch.from_numpy(piece.positions[gone].ravel()), 0.0)
    return network


def recalibrate(network: nn.Module, batches: Iterable[tuple[Any, Any]]) -> None:
    """Averages over the batches: those of training would remember the dense network where there are few of them."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
    network.train()
    with torch.no_grad():
        for inputs, _ in batches:
            network(inputs)
    network.eval()


def naive_seconds(evaluator: Evaluator, scheme: Scheme) -> float:
    """The whole naive evaluation, from what a few batches take."""
    few = list(recover.first(plain(evaluator.calibration), FEW))
    network = masked(evaluator, scheme)
    copied = seconds(lambda: masked(evaluator, scheme))
    read, scored = seconds(lambda: recalibrate(network, few)), seconds(lambda: passes(network, few))
    return copied + (RECALIBRATED * read + SCORED * scored) / images(few)


def plain(batches: Any) -> Batches:
    """Batches as they were given, before the evaluator laid them out."""
    return getattr(batches, "batches", batches)


def ranks(number: int) -> None:
    """Both rankings of schemes of ResNet-56."""
    evaluator, budget = problem("resnet56")
    found = schemes(budget, number, seed=1)
    naive = []
    for scheme in found:
        network = masked(evaluator, scheme)
        recalibrate(network, plain(evaluator.calibration))
        naive.append(passes(network, plain(evaluator.validation)))
    for recovery in ("recalibrate_bn", RECOVERY):
        mine = [evaluator(scheme, fidelity=Fidelity(recovery=recovery)).loss for scheme in found]
        both = agreement(mine, naive)
        print(
            f"\n{number} schemes of ResNet-56, {recovery} and the naive evaluation: "
            f"Spearman {both.spearman:.3f} (90 %: {both.low:.3f} to {both.high:.3f})",
            flush=True,
        )


def sixteen(number: int) -> None:
    """The same schemes of ResNet-56 in single precision and in 16 bits."""
    exact, budget = problem("resnet56")
    short = Evaluator(exact.model, exact.space, exact.calibration, exact.validation, precision="bfloat16")
    for evaluator in (exact, short):
        evaluator.prepare()
    losses, times = [], []
    for scheme in schemes(budget, number, seed=2):
        both = exact(scheme), short(scheme)
        losses.append([measured.loss for measured in both])
        times.append([measured.seconds["total"] for measured in both])
    (one, two), (slow, quick) = np.transpose(losses), np.transpose(times)
    print(
        f"\n{number} schemes of ResNet-56, float32 and bfloat16: {np.median(slow):.2f} and {np.median(quick):.2f} s a "
        f"candidate, {np.median(slow / quick):.2f} times as fast; losses differ by {np.abs(one - two).mean():.4f} "
        f"(two schemes' by {np.sqrt(2) * one.std():.4f}); Spearman {agreement(two, one).spearman:.3f}",
        flush=True,
    )


def races(trials: int, error: float) -> None:
    """A search that stops what cannot win, and what it would have seen of that."""
    evaluator, budget = problem("resnet56")
    proposals = auto(evaluator.space, budget, seed=0, hints=evaluator.hints())
    ledger = Ledger(None, evaluator.fingerprint, evaluator.space.groups)
    loop = Loop(proposals, budget, REWARDS["neg_loss"], ledger, Stop(trials=trials), race=error)
    while asked := loop.ask():
        loop.tell((scheme, evaluator(scheme, fidelity=loop.fidelity)) for scheme in asked)
    stopped = [trial for trial in loop.trials if trial.stopped]
    full = [evaluator(trial.scheme).loss for trial in stopped]
    best = [np.mean(trial.fidelity.race.losses) for trial in stopped]
    off = [abs(trial.measurement.loss - loss) for trial, loss in zip(stopped, full, strict=True)]
    print(
        f"\n{trials} trials with --race {error:g}: {len(stopped)} stopped, "
        f"{sum(loss < rival for loss, rival in zip(full, best, strict=True))} of them better in the end; "
        f"{1 - np.mean([trial.measurement.seen for trial in loop.trials]):.0%} of the images spared; "
        f"losses of stopped candidates known to {np.mean(off):.4f}; they lie {np.mean(full) - np.mean(best):.4f} "
        "above the best"
    )


def problem(name: str) -> tuple[Evaluator, Budget]:
    """A network with its images, and half of its multiply-adds."""
    if name == "resnet56":
        if "AUTOPRUNE_DATA" not in os.environ:
            raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives, or leave resnet56 out")
        folder = Path(os.environ["AUTOPRUNE_DATA"])
        splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
        network = models.load("autoprune:resnet56", folder / "resnet56-cifar10-jpeg.pt").eval()
        calibration, validation, criterion = splits.calibration, splits.validation, "obs"
    else:
        torch.manual_seed(0)
        batches = [(torch.randn(16, 3, 224, 224), torch.randint(1000, (16,))) for _ in range(LARGE // 8)]
        network = models.load(f"torchvision:{name}").eval()
        calibration, validation = batches[: LARGE // 16], batches[LARGE // 16 :]
        criterion = "l1"  # which channels go makes no difference to the seconds
    space = api.trace(network, calibration[0][0][:1])
    evaluator = Evaluator(network, space, calibration, validation, criterion=criterion)
    return evaluator, Budget.parse("macs=50%", space)


if __name__ == "__main__":
    main()
