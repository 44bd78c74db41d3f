"""What a search says while it runs: tables first, then one live line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autoprune import report


class Watch:
    """A listener for :func:`autoprune.search` that writes to a console.

    On a terminal the trials move a bar with the best reward so far, the affordable ones and the time left; elsewhere
    (a file, a pipe) only the tables appear. ``quiet`` silences both.
    """

    def __init__(self, console: Console, trials: int | None, quiet: bool = False) -> None:
        self.console = console
        self.trials = trials
        self.quiet = quiet
        self._bar: Progress | None = None

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Take one event of the search."""
        if not self.quiet:
            getattr(self, f"_{event}")(facts)

    def close(self) -> None:
        """End the live line; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _traced(self, facts: Mapping[str, Any]) -> None:
        space = facts["space"]
        whole = len(space.left_out)
        stay = f", {whole} {'layer stays' if whole == 1 else 'layers stay'} whole" if whole else ""
        what = "groups of channels that" if space.granularity == "channel" else "tensors whose weights"
        self.console.print(f"{what} can be pruned: {len(space)}{stay}")

    def _estimate(self, facts: Mapping[str, Any]) -> None:
        self.console.print(
            f"a latency table of this device is measured first: {facts['points']} points of {facts['signatures']} "
            f"signatures, about {facts['seconds']} s"
        )

    def _points(self, facts: Mapping[str, Any]) -> None:
        pass  # told in one line before and one line after

    def _calibrated(self, facts: Mapping[str, Any]) -> None:
        self.console.print(f"the latency table is ready: {report.agreement(facts)}")

    def _budget(self, facts: Mapping[str, Any]) -> None:
        self.console.print(report.preflight(facts["budget"], facts["uniform"]))

    def _dense(self, facts: Mapping[str, Any]) -> None:
        self.console.print(f"dense, and a candidate with nothing cut agrees: {_words(facts['measurement'])}")

    def _uniform(self, facts: Mapping[str, Any]) -> None:
        self.console.print(f"uniform: {_words(facts['trial'].measurement)}")

    def _trial(self, facts: Mapping[str, Any]) -> None:
        loop = facts["loop"]
        if self._bar is None:
            self._bar = Progress(
                TextColumn("searching"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                disable=not self.console.is_terminal,
            )
            self._bar.start()
            self._bar.add_task("", total=self.trials)
        best = "none affordable yet" if loop.best is None else f"best {loop.best.reward:.4f}"
        done = int(loop.effort)
        self._bar.update(self._bar.task_ids[0], completed=done, description=f"{best}, {loop.feasible} affordable")

    def _finalists(self, facts: Mapping[str, Any]) -> None:
        self.close()
        self.console.print("the best are timed for real")

    def _tightened(self, facts: Mapping[str, Any]) -> None:
        cap = facts["budget"].caps["latency"]
        self.console.print(f"none meets the latency as measured: searching on below {cap:.4g} ms as predicted")

    def _finish(self, facts: Mapping[str, Any]) -> None:
        self.close()
        self.console.print(f"the search is over and written down; now {facts['function']} trains its answer")

    def _done(self, facts: Mapping[str, Any]) -> None:
        self.close()


def _words(measurement: Any) -> str:
    """The numbers of a measurement that exist."""
    if measurement.failed:
        return f"failed ({measurement.error})"
    shown = {"loss": measurement.loss, "accuracy": measurement.accuracy, **measurement.metrics}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items() if value == value)  # noqa: PLR0124 - not NaN
