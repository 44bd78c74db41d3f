"""What a search shows while it runs, from the events of real loops over toy spaces."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

import toy
from autoprune import searchers
from autoprune.budget import Budget
from autoprune.fidelity import Batch, Fidelity
from autoprune.hints import Hints
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.problem import Noting, _told, drive
from autoprune.progress import Watch
from autoprune.scheme import Scheme
from autoprune.standing import Standing, sparkline
from autoprune.trial import Measurement, Trial

SPACE = toy.chain((16, 32, 24))
BUDGET = Budget.parse("macs=60%,params=70%", SPACE)
LANDSCAPE = toy.landscape(SPACE, seed=3)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Meter:
    """A pool that looks a scheme up, each taking so many seconds of the clock."""

    def __init__(self, clock: Clock, seconds: float = 2.0) -> None:
        self.clock, self.seconds = clock, seconds

    def measure(self, schemes: Iterable[Scheme], fidelity: Fidelity) -> Iterator[tuple[Scheme, Measurement]]:
        for scheme in schemes:
            self.clock.now += self.seconds
            loss = -LANDSCAPE(scheme)
            yield scheme, Measurement(loss=loss, accuracy=math.exp(-loss), seconds={"total": self.seconds})


def search(
    listener: Callable[[str, Mapping[str, Any]], Any],
    stop: Stop,
    ledger: Ledger | None = None,
    clock: Clock | None = None,
    searcher: Any = "random",
) -> Loop:
    """The part of a search that tells of trials, without a network."""
    pool = Noting(Meter(clock or Clock()))
    ledger = Ledger(None, "toy", SPACE.groups) if ledger is None else ledger
    uniform = SPACE.dense
    listener("uniform", {"trial": Trial(uniform, Measurement(loss=9.0), -9.0)})
    proposals = searchers.find(searcher)(SPACE, BUDGET, seed=0, hints=Hints(), batch=4)
    loop = Loop(proposals, BUDGET, lambda m: -m.loss, ledger, _told(stop, listener, pool))
    drive(loop, pool)
    listener("done", {})
    return loop


def on_paper(width: int = 200) -> tuple[Watch, Callable[[], list[str]]]:
    """A watch that writes to a file, and the lines in it."""
    file = io.StringIO()
    return Watch(Console(file=file, width=width)), lambda: file.getvalue().splitlines()


def on_screen(trials: int | None = None, **options: Any) -> tuple[Watch, io.StringIO]:
    """A watch on a terminal, and what it was sent."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=110, color_system=None)
    return Watch(console, trials, **options), file


def shown(watch: Watch, width: int = 110) -> list[str]:
    """The live view as it is now."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(watch.view())
    return captured.get().splitlines()


# -- the sparkline ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([-7, -3.5, 0], 9, "▁▅█"),  # half way is the upper of the two middle blocks
        ([5, 5], 9, "▁▁"),
        ([-math.inf, -math.inf, 1, 2], 9, "  ▁█"),
        ([-math.inf], 9, " "),
        ([], 9, ""),
        ([0, 0, 0, 0, 0, 7], 3, "▁▁█"),
        ([0, 7, 7, 7, 7, 7], 3, "███"),  # the first column ends with its second value
    ],
)
def test_a_sparkline_shows_the_last_of_what_falls_into_a_column(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


# -- the numbers -----------------------------------------------------------------------------------


def test_what_is_known_from_before_is_done_but_has_no_pace() -> None:
    ledger, clock = Ledger(None, "toy", SPACE.groups), Clock()
    search(lambda event, facts: None, Stop(10), ledger)
    standing = Standing(clock=clock)
    at: list[tuple[float | None, float | None]] = []

    def listener(event: str, facts: Mapping[str, Any]) -> None:
        if event == "trial":
            if not facts["measured"]:
                clock.now += 0.5  # a replay takes its time as well
            standing.hear(facts)
            at.append((standing.per_minute, standing.left))

    search(listener, Stop(18), ledger, clock)
    assert (standing.known, standing.measured, standing.effort) == (10, 8, 18)
    assert at[:10] == [(None, None)] * 10
    for number, (pace, left) in enumerate(at[10:], start=11):
        assert pace == pytest.approx(30)
        assert left == (pytest.approx(2 * (18 - number)) if number < 18 else None)
    clock.now += 100
    assert standing.per_minute == pytest.approx(30)  # what follows the last trial is no search


def test_a_trial_that_takes_long_is_seen_in_the_pace_and_the_time_left() -> None:
    clock = Clock()
    standing = Standing(clock=clock)

    def listener(event: str, facts: Mapping[str, Any]) -> bool:
        return event == "trial" and (standing.hear(facts), len(standing.history) == 4)[1]

    search(listener, Stop(8), clock=clock)
    before = standing.per_minute, standing.left, standing.elapsed
    clock.now += 8
    assert before == (pytest.approx(30), pytest.approx(8), pytest.approx(8))
    assert (standing.per_minute, standing.left, standing.elapsed) == (
        pytest.approx(15), pytest.approx(16), pytest.approx(16)
    )  # fmt: skip


def test_seconds_of_measuring_are_a_limit_as_well() -> None:
    clock = Clock()
    standing = Standing(clock=clock)
    lefts: list[float | None] = []

    def listener(event: str, facts: Mapping[str, Any]) -> None:
        if event == "trial":
            standing.hear(facts)
            lefts.append(standing.left)

    search(listener, Stop(timeout=12.0), clock=clock)
    assert lefts == [*(pytest.approx(12 - 2 * number) for number in range(1, 6)), None]
    assert standing.share == 1


def test_quick_looks_count_as_the_share_that_they_are_and_are_not_in_the_history() -> None:
    clock = Clock()
    standing = Standing(clock=clock)
    trials: list[Trial] = []

    def listener(event: str, facts: Mapping[str, Any]) -> None:
        if event == "trial":
            standing.hear(facts)
            trials.append(facts["trial"])

    def looks(space: Any, budget: Any, **_: Any) -> Any:
        few = [Scheme((kept, 4, 4)) for kept in range(1, 9)]
        yield Batch(few, Fidelity(share=0.25))
        yield few[:3]

    loop = search(listener, Stop(5), clock=clock, searcher=looks)
    full = [trial for trial in trials if trial.fidelity.full]
    assert (len(full), len(trials)) == (3, 11)
    assert standing.effort == loop.effort == 5
    assert standing.history == list(accumulate((trial.reward for trial in full), max))
    assert standing.measured == 11


def test_the_history_is_the_best_affordable_reward_after_every_trial() -> None:
    standing = Standing()
    rewards: list[float] = []

    def listener(event: str, facts: Mapping[str, Any]) -> None:
        if event == "trial":
            better = standing.hear(facts)
            trial = facts["trial"]
            rewards.append(trial.reward if BUDGET.allows(trial.scheme) else -math.inf)
            assert better == (rewards[-1] > max(rewards[:-1], default=-math.inf))

    loop = search(listener, Stop(30))
    assert standing.history == list(accumulate(rewards, max))
    assert loop.best is not None
    assert standing.best == loop.best
    assert standing.used == {name: BUDGET.costs[name](loop.best.scheme) / cap for name, cap in BUDGET.caps.items()}
    assert set(standing.used) == {"macs", "params"}
    assert all(share <= 1 for share in standing.used.values())


# -- lines -----------------------------------------------------------------------------------------


def test_into_a_file_goes_a_line_for_every_improvement_and_every_tenth_of_the_trials() -> None:
    watch, lines = on_paper()
    bests: list[float] = []

    def listener(event: str, facts: Mapping[str, Any]) -> None:
        watch(event, facts)
        if event == "trial":
            bests.append(facts["loop"].best.reward)

    loop = search(listener, Stop(80))
    said = [line for line in lines() if "/80 trials" in line]
    numbers = [int(line.split("/")[0]) for line in said]
    improved = [1, *(n for n, (before, after) in enumerate(pairwise(bests), start=2) if after > before)]
    assert set(improved) <= set(numbers)
    assert all(later - sooner <= 8 for sooner, later in pairwise([0, *numbers, 80]))
    assert len(said) <= len(improved) + 10 < 40
    for number, line in zip(numbers, said, strict=True):
        assert f"best reward {bests[number - 1]:.4f} (uniform -9.0000)" in line
    assert loop.best is not None
    used = BUDGET.costs["macs"](loop.best.scheme) / BUDGET.caps["macs"]
    assert f"loss {-loop.best.reward:.4f}, accuracy {loop.best.measurement.accuracy:.4f}, macs {used:.1%}" in said[-1]
    assert "\x1b" not in "".join(lines())


def test_a_replay_writes_no_lines() -> None:
    ledger = Ledger(None, "toy", SPACE.groups)
    search(lambda event, facts: None, Stop(30), ledger)
    watch, lines = on_paper()
    search(watch, Stop(30), ledger)
    assert not [line for line in lines() if "trials" in line]
    watch, lines = on_paper()
    search(watch, Stop(36), ledger)
    said = [line for line in lines() if "trials" in line]
    assert said
    assert all(int(line.split("/")[0]) > 30 and "30 from the ledger" in line for line in said)


def test_quiet_is_silent_and_without_lines_a_file_stays_empty() -> None:
    for options in ({"quiet": True}, {"lines": False}):
        file = io.StringIO()
        search(Watch(Console(file=file), **options), Stop(12))
        assert file.getvalue() == ""


def test_events_of_which_there_is_nothing_to_say_pass_by() -> None:
    watch, lines = on_paper()
    watch("points", {"points": 3})
    watch("an event of tomorrow", {})
    assert lines() == []


# -- the live view ---------------------------------------------------------------------------------


def test_the_live_view_shows_the_search_from_its_first_moment_to_its_end() -> None:
    watch, file = on_screen(30)
    views: list[list[str]] = []

    def listener(event: str, facts: Mapping[str, Any]) -> None:
        if event == "done":
            views.append(shown(watch))
        watch(event, facts)
        if event in ("uniform", "trial"):
            views.append(shown(watch))

    clock = Clock()
    loop = search(listener, Stop(30), clock=clock)
    assert "0/30 trials" in views[0][0]
    assert "none affordable yet (uniform -9.0000)" in views[0][1]
    assert "12/30 trials" in views[12][0]
    assert loop.best is not None
    last = views[-1]
    assert "30/30 trials" in last[0]
    assert f"best reward {loop.best.reward:.4f} (uniform -9.0000): loss {-loop.best.reward:.4f}" in last[1]
    assert "% of the caps" in last[1]
    assert "30 affordable" in last[2]
    history = list(accumulate((trial.reward for trial in loop.trials), max))
    assert last[3] == f"{sparkline(history, 40)} best reward {history[0]:.4f} → {history[-1]:.4f}"
    sent = file.getvalue()
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h") == 1  # the cursor was hidden, and is back
    assert watch.console._live_stack == []


def test_the_live_view_moves_while_a_batch_runs() -> None:
    watch, _ = on_screen(8)
    clock = Clock()
    watch._standing = Standing(8, clock)
    before = shown(watch)
    clock.now += 65
    assert shown(watch)[0].split()[-1] == "0:01:05"
    assert before[0].split()[-1] == "0:00:00"


@pytest.mark.parametrize("event", ["done", "failed", "finalists", "polish", "finish"])
def test_whatever_ends_the_trials_ends_the_live_view(event: str) -> None:
    watch, _ = on_screen(8)
    watch("uniform", {"trial": Trial(SPACE.dense, Measurement(error="no luck"), -math.inf)})
    assert watch.console._live_stack
    watch(event, {"function": "mylab:finish", "repair": "sequential", "finalists": 3})
    assert not watch.console._live_stack
    watch.close()


def test_a_round_under_a_tighter_latency_begins_anew() -> None:
    watch, _ = on_screen(30)
    search(watch, Stop(30))
    tight = Budget(SPACE, {"latency": 3.0}, {"latency": lambda scheme: float(sum(scheme.kept))})
    watch("tightened", {"budget": tight, "round": 1})
    assert "0/30 trials" in shown(watch)[0]
    watch.close()


def test_a_view_without_lines_is_gone_at_its_end_and_bears_the_name_of_its_run(tmp_path: Any) -> None:
    watch, file = on_screen(6, lines=False)
    watch("started", {"folder": tmp_path / "swap-0", "config": {}})
    search(watch, Stop(6))
    assert "swap-0" in file.getvalue()
    assert "uniform:" not in file.getvalue()
    assert re.search(r"(\x1b\[2K|\x1b\[1A)+$", file.getvalue())  # what was drawn is wiped out


@pytest.mark.parametrize("width", [24, 40, 60])
def test_the_view_fits_a_narrow_terminal(width: int) -> None:
    watch, _ = on_screen(30)
    watch.console.width = width
    search(watch, Stop(30))
    assert all(len(line) <= width for line in shown(watch, width))


def test_a_terminal_without_unicode_gets_no_blocks() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    watch = Watch(Console(file=file, force_terminal=True, force_interactive=True, width=100))
    search(watch, Stop(8))
    file.flush()
    assert b"8/8 trials" in file.buffer.getvalue()


# -- notebooks -------------------------------------------------------------------------------------


class Cell:
    """Stands in for a notebook's front end: what is displayed, and what an output widget holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, widgets: bool) -> None:
        self.displayed: list[str] = []
        self.cleared = 0
        display = ModuleType("IPython.display")
        display.display = lambda shown: self.displayed.append(getattr(shown, "text", ""))
        ipython = ModuleType("IPython")
        ipython.display = display
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        cell = self

        class Output:
            def __enter__(self) -> None: ...

            def __exit__(self, *_: object) -> None: ...

            def clear_output(self, wait: bool) -> None:
                cell.cleared += 1

        module = ModuleType("ipywidgets")
        module.Output = Output
        monkeypatch.setitem(sys.modules, "ipywidgets", module if widgets else None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: module if widgets else None)


@pytest.mark.parametrize("widgets", [True, False])
def test_in_a_notebook_the_view_lives_in_a_widget_and_without_widgets_there_are_lines(
    monkeypatch: pytest.MonkeyPatch, widgets: bool
) -> None:
    cell = Cell(monkeypatch, widgets)
    watch = Watch(Console(force_jupyter=True, width=150))
    search(watch, Stop(12))
    text = "\n".join(cell.displayed)
    assert (cell.cleared > 0) == widgets
    assert ("12/12 trials" in text) == widgets
    assert bool(re.search(r"^\d+/12 trials: best", text, re.MULTILINE)) != widgets
