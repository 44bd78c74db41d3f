"""Accuracy against two costs at once: the schemes that no other beats in one without losing in another.

With "latency" among the objectives a table of this machine is measured first.
"""

from pathlib import Path

import torch

import autoprune
from autoprune import api, data, demo, exporters

model = demo.digits(Path("runs"))
splits = data.load("digits", calibration=256, validation=256)
run = autoprune.search(
    model, torch.zeros(1, 1, 8, 8), splits.calibration, splits.validation,
    budget="macs=80%", objectives=("accuracy", "macs", "params"), trials=24,
)  # fmt: skip

front = run.front()
print(front[["accuracy", "macs", "params"]].to_string(float_format="{:.3f}".format))
facts = run.summary["front"]
print(f"{len(run.trials())} schemes measured, hypervolume {facts['hypervolume']:.3f} up to {facts['reference']}")

chosen = front[front.accuracy >= front.accuracy.max() - 0.01].macs.idxmin()  # the cheapest within a point of the best
scheme = run.point(chosen)
path = exporters.write("csv", scheme, run.space, run.folder / f"point-{chosen}.csv")
pruned = api.apply(model, run.space, scheme, run.folder / f"point-{chosen}", calibration=splits.calibration)
print(f"point {chosen} is in {path.name}, and as a network in {pruned.folder.name}/: {pruned.summary['fractions']}")
