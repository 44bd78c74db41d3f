"""From a trained network to a pruned one: search, look, load again."""

from pathlib import Path

import torch

import autoprune
from autoprune import data, demo

model = demo.digits(Path("runs"))
splits = data.load("digits", calibration=256, validation=256)
example = torch.zeros(1, 1, 8, 8)

run = autoprune.search(
    model,
    example,
    splits.calibration,
    splits.validation,
    budget=["macs=50%", "params=60%"],
    test=splits.test,
    trials=20,
    run="example-search",
)

for name, row in run.summary["rows"].items():
    print(f"{name:8} test accuracy {row['test_accuracy']:.2%}, {row['fractions']['macs']:.1%} of the MACs")
for group, kept in zip(run.space.groups, run.scheme.kept, strict=True):
    print(f"{group.name:16} {kept:3} of {group.width}")

pruned = autoprune.load_pruned(lambda: demo.digits(Path("runs")), run.folder)
print("parameters:", sum(p.numel() for p in model.parameters()), "->", sum(p.numel() for p in pruned.parameters()))
