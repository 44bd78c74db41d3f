"""A run of every kind on a network and data so small that all are there in seconds; for the tests of pages."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from autoprune import api, compare, data, finetune, proxy, sensitivity, sparsify

CLASSES = 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    ).eval()  # fmt: skip


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Bright spots, whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (64,), generator=generator)
    images = 0.3 * torch.randn(64, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1 + label
    return [(images, labels)]


def make(root: Path) -> dict[str, Path]:
    """The folders of the runs by their kind; the search has a fine-tuned network in its own."""
    model, (calibration, validation, test, train) = network(), (batches(seed) for seed in range(4))
    finetune.finetune(model, train, validation, root / "training", finetune.Recipe(epochs=3, lr=0.1, batch=16))
    problem = api.problem(
        model, validation[0][0][:1], calibration, validation, budget="macs=50%", test=test, name="spots"
    )
    found = problem.search("random", stop=api.Stop(6), objectives="accuracy,macs", run="search", root=root)
    splits = data.Splits("spots", calibration, validation, lambda: train, lambda: test, (), "")
    finetune.finish(model, found.folder, splits, found.folder / "finetuned", finetune.Recipe(epochs=2, batch=16))
    sensitivity.sensitivity(problem, points=3, run="sensitivity", root=root)
    compare.compare(problem, ["random", "uniform"], seeds=(0,), trials=3, run="comparison", root=root)
    sparsify.sparsify(
        model, calibration, sparsity=0.5, method="magnitude", validation=validation, test=test, run="sparsity",
        root=root, name="spots",
    )  # fmt: skip
    proxy.proxy_check(
        problem.evaluator, problem.budget, train, test, root / "proxy-check", recoveries=("none", "recalibrate_bn"),
        number=4, recipe=finetune.Recipe(epochs=1, batch=16),
    )  # fmt: skip
    return {name: root / name for name in ("search", "sensitivity", "comparison", "sparsity", "proxy-check")}
