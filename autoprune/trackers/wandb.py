"""A search as a run of Weights & Biases."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from autoprune.errors import UserError
from autoprune.trackers.tracker import End, Tracker, asked, session


class WandB(Tracker):
    """Sends a search to Weights & Biases, or with mode "offline" writes it below ``folder`` for ``wandb sync``.

    What is not said is as W&B is set (``WANDB_MODE``, ``WANDB_ENTITY``). The axis of the curves is ``trial``.
    """

    def __init__(
        self,
        project: str = "autoprune",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        folder: str | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"tracker wandb needs a package that cannot be imported ({error}): pip install 'autoprune[wandb]'"
            ) from error
        super().__init__(f"wandb {entity or ''} {project}")
        self._given: dict[str, Any] = {"project": project, "entity": entity, "mode": mode, "dir": folder}
        self._wandb = wandb
        self._open_run: Any = None

    def _open(self, known: str | None, folder: Path, config: Mapping[str, Any]) -> str:
        name = known or secrets.token_hex(4)
        self._open_run = run = self._wandb.init(
            **self._given,
            id=name,
            name=folder.name,
            resume="allow",
            config={"folder": str(folder.resolve()), **session(config), **asked(config)},
            allow_val_change=True,
            settings=self._wandb.Settings(console="off"),  # the live view has the terminal
        )
        run.define_metric("trial")
        run.define_metric("*", step_metric="trial")
        return name

    def _log(self, found: Mapping[str, float], step: int) -> None:
        self._open_run.log({**found, "trial": step})

    def _finish(self, rows: Mapping[str, float], files: list[Path]) -> None:
        self._open_run.summary.update(dict(rows))
        bundle = self._wandb.Artifact(re.sub(r"[^\w.-]", "-", str(self._open_run.name)), type="pruning")
        for path in files:
            bundle.add_file(str(path))
        self._open_run.log_artifact(bundle)

    def _close(self, how: End) -> None:
        self._open_run.finish(exit_code=0 if how == "finished" else 1)
