"""The curves of a search, read back from the event files."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from autoprune import api, data, demo, searchers
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.reward import accuracy
from autoprune.scheme import Scheme
from autoprune.tensorboard import FOLDER, check_installed, drawn
from autoprune.trial import Measurement, Trial

Curves = dict[str, dict[int, float]]


def curves(folder: Path) -> Curves:
    """Every curve of a folder of event files: tag, step, value. A step that is there twice fails."""
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader", reason="tensorboard is not installed"
    )
    found: Curves = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in reading.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                curve = found.setdefault(value.tag, {})
                assert event.step not in curve, f"{value.tag} has step {event.step} twice"
                curve[event.step] = value.tensor.float_val[0]
    return found


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., list[Trial]]:
    """A search on a toy space that draws its trials, without a network."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    space = toy.chain((8, 16, 12))
    budget = Budget.parse("macs=60%", space)

    def go(measure: Callable[[Scheme], Measurement], trials: int, searcher: str = "random") -> list[Trial]:
        with drawn(tmp_path, lambda event, facts: None) as tell:
            stop = Stop(trials, callback=lambda trial, loop: bool(tell("trial", {"trial": trial, "loop": loop})))
            proposals = searchers.find(searcher)(space, budget, seed=0, hints=Hints(), batch=4)
            loop = Loop(proposals, budget, accuracy, Ledger(None, "toy", space.groups), stop)
            while schemes := loop.ask():
                loop.tell((scheme, measure(scheme)) for scheme in schemes)
        return loop.trials

    return go


def seen(scheme: Scheme) -> Measurement:
    kept = float(sum(scheme.kept))
    return Measurement(loss=kept, accuracy=1 / kept, fractions={"macs": kept / 36, "params": kept / 72})


def test_every_number_of_a_trial_is_a_point_of_its_curve(play: Callable[..., list[Trial]], tmp_path: Path) -> None:
    trials = play(seen, 6)
    drawn_curves = curves(tmp_path / FOLDER)
    steps = range(1, len(trials) + 1)
    expected: dict[str, list[float]] = {
        "reward/last": [trial.reward for trial in trials],
        "reward/best": list(accumulate((trial.reward for trial in trials), max)),
        "loss": [trial.measurement.loss for trial in trials],
        "accuracy": [trial.measurement.accuracy for trial in trials],
        "fraction/macs": [trial.measurement.fractions["macs"] for trial in trials],
        "fraction/params": [trial.measurement.fractions["params"] for trial in trials],
        **{f"kept/conv{g}": [t.scheme.kept[g] / width for t in trials] for g, width in enumerate((8, 16, 12))},
    }
    assert set(drawn_curves) == set(expected)  # no kl and no metrics: these measurements have none
    for tag, values in expected.items():
        assert drawn_curves[tag] == pytest.approx(dict(zip(steps, values, strict=True))), tag


@pytest.mark.parametrize("searcher", [name for name in searchers.SEARCHERS if name != "hand"])  # it needs a file
def test_the_trials_of_every_searcher_are_drawn(
    play: Callable[..., list[Trial]], tmp_path: Path, searcher: str
) -> None:
    trials = play(seen, 9, searcher)
    full = [number for number, trial in enumerate(trials, start=1) if trial.fidelity.full]
    assert set(curves(tmp_path / FOLDER)["reward/last"]) == set(full)


def test_numbers_that_a_trial_lacks_are_left_out_of_the_curves(
    play: Callable[..., list[Trial]], tmp_path: Path
) -> None:
    count = iter(range(100))

    def fragile(scheme: Scheme) -> Measurement:
        if next(count) % 2:
            return Measurement(error="out of luck")
        return Measurement(accuracy=0.5, metrics={"dice": 0.25, "broken": math.nan})

    play(fragile, 4)
    found = curves(tmp_path / FOLDER)
    assert set(found["reward/last"]) == set(found["accuracy"]) == set(found["metrics/dice"]) == {1, 3}
    assert set(found["reward/best"]) == set(found["kept/conv0"]) == {1, 2, 3, 4}
    assert not {"loss", "kl", "metrics/broken", "fraction/macs"} & set(found)


def test_a_replay_takes_the_place_of_the_curves_before_and_of_nothing_else(
    play: Callable[..., list[Trial]], tmp_path: Path
) -> None:
    play(seen, 3)
    (before,) = (tmp_path / FOLDER).iterdir()
    foreign = tmp_path / FOLDER / "events.out.tfevents.1.elsewhere"
    foreign.touch()
    play(seen, 5)
    assert foreign.exists()
    assert not before.exists()
    assert set(curves(tmp_path / FOLDER)["loss"]) == {1, 2, 3, 4, 5}


def test_a_session_that_measures_nothing_leaves_the_curves_as_they_are(
    play: Callable[..., list[Trial]], tmp_path: Path
) -> None:
    play(seen, 3)
    with drawn(tmp_path, lambda event, facts: None) as tell:
        tell("traced", {})
    assert set(curves(tmp_path / FOLDER)["loss"]) == {1, 2, 3}


def test_the_listener_still_hears_everything_and_may_end_the_search(tmp_path: Path) -> None:
    heard: list[Any] = []
    with drawn(tmp_path, lambda event, facts: heard.append((event, facts)) or event == "dense") as tell:
        assert tell("dense", {"measurement": 1}) is True
        assert tell("budget", {}) is False
    assert heard == [("dense", {"measurement": 1}), ("budget", {})]


def test_a_further_round_under_a_tighter_latency_goes_on_in_the_same_curves(
    play: Callable[..., list[Trial]], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    trials = play(seen, 4)

    class Round:
        def __init__(self, count: int) -> None:
            self.trials, self.best, self.budget = trials[:count], None, Budget.parse("macs=60%", toy.chain((8, 16, 12)))

    with drawn(tmp_path, lambda event, facts: None) as tell:
        for count in (1, 2):
            tell("trial", {"trial": trials[count - 1], "loop": Round(count)})
        tell("tightened", {})
        tell("trial", {"trial": trials[2], "loop": Round(1)})
    losses = [trial.measurement.loss for trial in trials]
    assert curves(tmp_path / FOLDER)["loss"] == pytest.approx(dict(zip((1, 2, 3), losses[:3], strict=True)))


@pytest.fixture
def search(tmp_path: Path, with_digits: Callable[[Path], Path]) -> Callable[..., Any]:
    network = demo.digits(with_digits(tmp_path))
    splits = data.load("digits", calibration=64, validation=64)

    def go(**choices: Any) -> Any:
        given = {"budget": "macs=50%", "searcher": "random", "trials": 3, "root": tmp_path, "run": "one", **choices}
        return api.search(network, torch.zeros(1, 1, 8, 8), splits.calibration, splits.validation, **given)

    return go


def test_a_continued_search_draws_all_its_trials_once(search: Callable[..., Any]) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    search(tensorboard=True)
    run = search(tensorboard=True, trials=5)
    found = curves(run.folder / FOLDER)
    assert set(found["reward/last"]) == {1, 2, 3, 4, 5}
    assert {f"kept/{group.name}" for group in run.space.groups} <= set(found)
    assert found["reward/best"][5] == pytest.approx(max(found["reward/last"].values()))


def test_without_being_asked_nothing_is_drawn(search: Callable[..., Any]) -> None:
    assert not (search().folder / FOLDER).exists()


def test_a_missing_package_is_refused_before_anything_is_evaluated(
    search: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"] + ["torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as Python marks what cannot be imported
    with pytest.raises(UserError, match=r"pip install 'autoprune\[tensorboard\]'"):
        check_installed()
    events: list[str] = []
    with pytest.raises(UserError, match="TensorBoard"):
        search(tensorboard=True, listener=lambda event, facts: events.append(event))
    assert events == []
    assert not (tmp_path / "one").exists()
