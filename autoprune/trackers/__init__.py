"""Trackers: listeners that send a search to an experiment tracker.

    autoprune.search(model, example, calibration, validation, budget="macs=50%", listener=trackers.find("mlflow"))

One more is a function of its options that returns a listener ``(event, facts)``: name it ``package.module:function``,
or announce it under the entry point group ``autoprune.tracker``.
"""

from __future__ import annotations

from collections.abc import Mapping

from autoprune import settings
from autoprune.errors import UserError
from autoprune.listeners import Listener

TRACKERS: Mapping[str, str] = {
    "mlflow": "autoprune.trackers.mlflow:MLflow",
    "wandb": "autoprune.trackers.wandb:WandB",
}
"""Built-in names, and where their class is."""
KIND = settings.Kind("tracker", positions=0)


def find(text: str) -> Listener:
    """A tracker by its name, with options as in ``"mlflow,uri=sqlite:///mlflow.db,experiment=pruning"``."""
    made: Listener = settings.named(text, KIND, TRACKERS)()
    if not callable(made):
        raise UserError(f"tracker {text!r} is a {type(made).__name__}, not a function (event, facts)")
    return made
