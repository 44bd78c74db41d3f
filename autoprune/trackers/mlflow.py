"""A search as a run of MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import UserError
from autoprune.trackers.tracker import End, Tracker, asked, session

SOME = 100  # entities that MLflow takes at a time
LENGTH = 6000  # of a value in words
STATUS: Mapping[End, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflow(Tracker):
    """Sends a search to MLflow: to the store ``uri``, such as ``sqlite:///mlflow.db``, or the one MLflow is set to.

    The request becomes parameters, what may change when a run is continued becomes tags.
    """

    def __init__(self, uri: str | None = None, experiment: str = "autoprune") -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise UserError(
                f"tracker mlflow needs a package that cannot be imported ({error}): pip install 'autoprune[mlflow]'"
            ) from error
        super().__init__(f"mlflow {uri or ''} {experiment}")
        self._uri = uri
        self._experiment = experiment
        self._new_client = MlflowClient
        self._client: Any = None

    def _open(self, known: str | None, folder: Path, config: Mapping[str, Any]) -> str:
        from mlflow.exceptions import MlflowException

        self._client = client = self._new_client(self._uri)
        run = known
        if known is not None:
            try:
                run = known if client.get_run(known).info.lifecycle_stage == "active" else None
            except MlflowException:
                run = None
        if run is None:
            run = str(client.create_run(self._experiment_id(), run_name=folder.name).info.run_id)
            for name, value in asked(config).items():
                client.log_param(run, _key(name), _value(value))
        else:
            client.update_run(run, status="RUNNING")
        for name, value in {"folder": str(folder.resolve()), **session(config)}.items():
            client.set_tag(run, _key(f"autoprune.{name}"), _value(value))
        return run

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        return str(self._client.create_experiment(self._experiment) if found is None else found.experiment_id)

    def _log(self, found: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_key(name), value, now, step) for name, value in found.items()]
        for start in range(0, len(metrics), SOME):
            self._client.log_batch(self._run, metrics=metrics[start : start + SOME])

    def _finish(self, rows: Mapping[str, float], files: list[Path]) -> None:
        self._log(rows, self._logged)
        for path in files:
            self._client.log_artifact(self._run, str(path))

    def _close(self, how: End) -> None:
        self._client.set_terminated(self._run, STATUS[how])


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _value(value: object) -> str:
    return str(value)[:LENGTH]
