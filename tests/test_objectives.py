"""Objectives that are known only where a forward pass was followed."""

import torch

import autoprune
from autoprune import data
from autoprune.architectures import ARCHITECTURES


def test_an_objective_that_is_named_is_measured(tmp_path):
    splits = data.load("digits", calibration=64, validation=64)
    run = autoprune.search(
        ARCHITECTURES["digits"](), torch.zeros(1, 1, 8, 8), splits.calibration, splits.validation,
        budget="macs=80%", objectives=("accuracy", "memory"), trials=4, root=tmp_path,
    )  # fmt: skip
    assert run.front()["memory"].between(0, 1).all()
    assert set(run.summary["rows"]["dense"]["costs"]) >= {"macs", "params", "memory"}


def test_one_cost_may_be_named_alone(tmp_path):
    splits = data.load("digits", calibration=64, validation=64)
    run = autoprune.search(
        ARCHITECTURES["digits"](), torch.zeros(1, 1, 8, 8), splits.calibration, splits.validation,
        budget="macs=80%", also="memory", searcher="uniform", trials=1, root=tmp_path,
    )  # fmt: skip
    assert "memory" in run.summary["rows"]["found"]["costs"]
