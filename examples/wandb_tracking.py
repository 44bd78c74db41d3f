"""A search in Weights & Biases, offline: no account, no network. `wandb sync FOLDER` sends it later."""

import importlib.util
from pathlib import Path

import torch

import autoprune
from autoprune import data, demo, trackers

if importlib.util.find_spec("wandb") is None:
    print("skipped: wandb is not installed (pip install 'autoprune[wandb]')")
    raise SystemExit

model = demo.digits(Path("runs"))
splits = data.load("digits", calibration=128, validation=128)
run = autoprune.search(
    model,
    torch.zeros(1, 1, 8, 8),
    splits.calibration,
    splits.validation,
    budget="macs=50%",
    trials=8,
    run="example-wandb",
    listener=trackers.find("wandb,project=pruning,mode=offline"),
)
print(f"{run.name}: reward {run.summary['reward']:.4f}")
print("written to", *sorted(map(str, Path("wandb").glob("offline-run-*"))))
