"""A search in MLflow, on a local SQLite store: no server, no account.

Look at it with `mlflow ui --backend-store-uri sqlite:///mlflow.db`.
"""

from pathlib import Path

import torch

import autoprune
from autoprune import data, demo, trackers

STORE = "sqlite:///mlflow.db"

try:
    from mlflow import MlflowClient
except ImportError:
    print("skipped: mlflow is not installed (pip install 'autoprune[mlflow]')")
    raise SystemExit from None

model = demo.digits(Path("runs"))
splits = data.load("digits", calibration=128, validation=128)
run = autoprune.search(
    model,
    torch.zeros(1, 1, 8, 8),
    splits.calibration,
    splits.validation,
    budget="macs=50%",
    trials=8,
    run="example-mlflow",
    listener=trackers.find(f"mlflow,uri={STORE},experiment=pruning"),
)

client = MlflowClient(STORE)
experiment = client.get_experiment_by_name("pruning")
seen = client.search_runs([experiment.experiment_id])[0]
history = client.get_metric_history(seen.info.run_id, "reward/best")
print(f"{seen.info.run_name}: {seen.info.status}, best reward after each trial:")
print(*(f"{metric.step}: {metric.value:.4f}" for metric in history))
print("files:", *(file.path for file in client.list_artifacts(seen.info.run_id)))
