"""What a search says while it runs: tables first, then a live view, or a line now and then."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autoprune import report
from autoprune.standing import Standing, sparkline

LINES = 10  # at least so many of a long search, where there is no live view
APART = 5, 25  # trials between two of them: never fewer, and where nobody knows how many there will be
SPARK = 40  # columns


class Watch:
    """A listener for :func:`autoprune.search` that writes to a console.

    On a terminal, and in a notebook that has ipywidgets, a view moves while trials are measured: the best so far, its
    costs as shares of the caps, trials a minute, the time left. Elsewhere (a file, a pipe) there is a line for every
    improvement and for every tenth of the trials. ``trials`` is how many there will be, for the time before the search
    says so. ``quiet`` silences all, and without ``lines`` there is the live view alone, gone at its end.
    """

    def __init__(
        self, console: Console | None = None, trials: float | None = None, quiet: bool = False, *, lines: bool = True
    ) -> None:
        self.console = console or Console()
        self.trials = trials
        self.quiet = quiet
        self.lines = lines
        self._label = "searching"
        self._standing = Standing(trials)
        self._baseline: float | None = None  # reward of the uniform scheme
        self._said = 0.0  # effort at the last line
        self._view: Live | None = None

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Take one event of the search; those of which there is nothing to say pass by."""
        say = getattr(self, f"_{event}", None)
        if not self.quiet and say is not None:
            say(facts)

    def close(self) -> None:
        """End the live view; safe to call twice."""
        if self._view is not None:
            self._view.refresh()  # a notebook keeps what it was shown last
            self._view.stop()
            self._view = None

    def view(self) -> Group:
        """The live view as it is now."""
        standing, share = self._standing, self._standing.share
        bar = ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None)
        top = Table.grid(expand=True, padding=(0, 1))
        top.add_column(no_wrap=True)
        top.add_column(ratio=1, min_width=8)
        top.add_column(no_wrap=True)
        top.add_row("finishing" if share == 1 else self._label, bar, f"{_done(standing)}  {_clock(standing.elapsed)}")
        rows: list[RenderableType] = [top, Text(self._best()), Text(_pace(standing))]
        line = sparkline(standing.history, min(SPARK, self.console.width // 2))
        if line.strip() and not self.console.options.ascii_only:
            first = next(value for value in standing.history if math.isfinite(value))
            rows.append(Text(f"{line} best reward {first:.4f} → {standing.history[-1]:.4f}"))
        return Group(*rows)

    def _best(self) -> str:
        """The best so far in words, beside what uniform rates are worth, and what it uses of the budget."""
        standing = self._standing
        against = "" if self._baseline is None else f" (uniform {self._baseline:.4f})"
        if standing.best is None:
            return f"none affordable yet{against}"
        used = ", ".join(f"{name} {share:.1%}" for name, share in standing.used.items())
        used += " of its cap" if len(standing.used) == 1 else " of the caps"
        words = _words(standing.best.measurement)
        return f"best reward {standing.best.reward:.4f}{against}: {words}{', ' if words else ''}{used}"

    def _say(self, *what: Any) -> None:
        if self.lines:
            self.console.print(*what)

    def _traced(self, facts: Mapping[str, Any]) -> None:
        space = facts["space"]
        whole = len(space.left_out)
        stay = f", {whole} {'layer stays' if whole == 1 else 'layers stay'} whole" if whole else ""
        what = "groups of channels that" if space.granularity == "channel" else "tensors whose weights"
        self._say(f"{what} can be pruned: {len(space)}{stay}")

    def _estimate(self, facts: Mapping[str, Any]) -> None:
        if facts["points"]:
            self._say(
                f"a latency table of this device is measured first: {facts['points']} points of {facts['signatures']} "
                f"signatures, about {facts['seconds']} s"
            )

    def _calibrated(self, facts: Mapping[str, Any]) -> None:
        self._say(f"the latency table is ready: {report.agreement(facts)}")

    def _budget(self, facts: Mapping[str, Any]) -> None:
        self._say(report.preflight(facts["budget"], facts["uniform"]))

    def _started(self, facts: Mapping[str, Any]) -> None:
        if not self.lines:
            self._label = facts["folder"].name

    def _dense(self, facts: Mapping[str, Any]) -> None:
        self._say(f"dense, and a candidate with nothing cut agrees: {_words(facts['measurement'])}")

    def _uniform(self, facts: Mapping[str, Any]) -> None:
        trial = facts["trial"]
        self._baseline = None if trial.failed else trial.reward
        self._say(f"uniform: {_words(trial.measurement)}")
        self._begin()

    def _begin(self) -> None:
        """Show a search from its first moment: a trial may take minutes."""
        self.close()
        self._standing, self._said = Standing(self.trials), 0.0
        if _is_alive(self.console):
            self._view = Live(console=self.console, get_renderable=self.view, transient=not self.lines)
            self._view.start(refresh=True)

    def _trial(self, facts: Mapping[str, Any]) -> None:
        standing = self._standing
        better = standing.hear(facts)
        if self._view is None and self.lines and facts["measured"]:
            every = max(APART[0], standing.trials / LINES) if standing.trials else APART[1]
            if better or standing.effort - self._said >= every:
                self._said = standing.effort
                line = f"{_done(standing)}: {self._best()}; {_pace(standing)}"
                self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _finalists(self, facts: Mapping[str, Any]) -> None:
        self.close()
        self._say("the best are timed for real")

    def _polish(self, facts: Mapping[str, Any]) -> None:
        self.close()
        number = facts["finalists"]
        which = "the answer is" if number == 1 else f"the {number} best are"
        self._say(f"{which} repaired once more, by {facts['repair']}")

    def _tightened(self, facts: Mapping[str, Any]) -> None:
        cap = facts["budget"].caps["latency"]
        self._say(f"none meets the latency as measured: searching on below {cap:.4g} ms as predicted")
        self._begin()

    def _finish(self, facts: Mapping[str, Any]) -> None:
        self.close()
        self._say(f"the search is over and written down; now {facts['function']} trains its answer")

    def _done(self, facts: Mapping[str, Any]) -> None:
        self.close()

    def _failed(self, facts: Mapping[str, Any]) -> None:
        self.close()


def _is_alive(console: Console) -> bool:
    """Whether what was printed can be drawn over."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_interactive


def _done(standing: Standing) -> str:
    of = f"/{standing.trials:g}" if standing.trials else ""
    return f"{standing.effort:.5g}{of} trials"


def _pace(standing: Standing) -> str:
    """How the trials went and how fast they come."""
    parts = [f"{standing.affordable} affordable"]
    parts += [f"{standing.failed} failed"] if standing.failed else []
    parts += [f"{standing.known} from the ledger"] if standing.known else []
    parts += [f"{standing.per_minute:.3g} a minute"] if standing.per_minute is not None else []
    parts += [f"{_clock(standing.left)} left"] if standing.left is not None else []
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _words(measurement: Any) -> str:
    """The numbers of a measurement that exist."""
    if measurement.failed:
        return f"failed ({measurement.error})"
    shown = {"loss": measurement.loss, "accuracy": measurement.accuracy, **measurement.metrics}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items() if value == value)  # noqa: PLR0124 - not NaN
