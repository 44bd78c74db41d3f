"""The loop by hand: two searchers share one ledger, so nothing is measured twice."""

from pathlib import Path

import torch

import autoprune
from autoprune import Budget, Evaluator, Ledger, Loop, Stop, data, demo, searchers
from autoprune.reward import neg_loss

model = demo.digits(Path("runs"))
splits = data.load("digits", calibration=256, validation=256)
space = autoprune.trace(model, torch.zeros(1, 1, 8, 8))
budget = Budget.parse("macs=40%", space)
evaluator = Evaluator(model, space, splits.calibration, splits.validation)
ledger = Ledger(None, evaluator.fingerprint, space.groups)  # in memory; a path keeps it

for name in ("random", "swap"):
    proposals = searchers.find(name)(space, budget, seed=0, hints=evaluator.hints(), batch=4)
    loop = Loop(proposals, budget, neg_loss, ledger, Stop(trials=12))
    while schemes := loop.ask():
        loop.tell((scheme, evaluator(scheme)) for scheme in schemes)
    assert loop.best is not None
    print(f"{name:8} loss {loop.best.measurement.loss:.4f} with {loop.best.scheme.kept}")
print(len(ledger), "measurements")
