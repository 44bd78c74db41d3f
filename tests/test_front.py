"""Several objectives: what their names mean, the Pareto front and its hypervolume, and runs that have one."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import autoprune
from autoprune import chart, data, demo
from autoprune.errors import UserError
from autoprune.exporters import read
from autoprune.fidelity import FULL, Fidelity
from autoprune.front import Front, hypervolume, objectives, usual
from autoprune.objective import Objective
from autoprune.run import Run
from autoprune.scheme import Scheme
from autoprune.trial import Measurement, Trial

COUNTS = itertools.count(1)
DENSE = Measurement(0.1, 0.95, 0.0, {"macs": 8e6}, {"macs": 1.0, "params": 1.0})
BOTH = objectives("accuracy,macs", DENSE)


def trial(accuracy: float, macs: float, fidelity: Fidelity = FULL, **others) -> Trial:
    """A trial of a scheme that no other has."""
    measurement = Measurement(1 - accuracy, accuracy, fractions={"macs": macs}, **others)
    return Trial(Scheme((next(COUNTS),)), measurement, accuracy - 1, fidelity)


def dominates(one: np.ndarray, other: np.ndarray) -> bool:
    """By the definition, less being better."""
    return bool((one <= other).all() and (one < other).any())


# --- the front ---


def test_the_front_is_what_no_trial_beats_sorted_by_the_last_objective() -> None:
    wide, middle, narrow = trial(0.9, 0.5), trial(0.8, 0.3), trial(0.5, 0.1)
    beaten = [trial(0.7, 0.3), trial(0.9, 0.6), trial(0.4, 0.1)]
    front = Front.of([wide, *beaten, narrow, middle], BOTH)
    assert front.trials == (narrow, middle, wide)
    assert front.values.tolist() == [[0.5, 0.1], [0.8, 0.3], [0.9, 0.5]]
    assert len(front.others) == 3


@pytest.mark.parametrize("seed", range(5))
def test_fronts_of_three_objectives_agree_with_the_definition_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trials = [
        trial(accuracy, macs, metrics={"energy": energy})
        for accuracy, macs, energy in (rng.integers(1, 6, (40, 3)) / 10).tolist()  # few values: many are equal
    ]
    accuracy, macs, energy = three = objectives("accuracy,macs,-energy", replace(DENSE, metrics={"energy": 1.0}))
    losses = np.array([[-accuracy(t), macs(t), energy(t)] for t in trials])
    expected = {tuple(row) for row in losses.tolist() if not any(dominates(other, np.array(row)) for other in losses)}
    for order in (trials, trials[::-1]):
        front = Front.of(order, three)
        assert {tuple(row) for row in (front.values * [-1, 1, 1]).tolist()} == expected
        assert len(front.trials) == len(expected)


def test_of_several_trials_with_the_same_values_the_first_counts() -> None:
    first, second = trial(0.9, 0.5), trial(0.9, 0.5)
    assert Front.of([first, second], BOTH).trials == (first,)


def test_failed_trials_and_quick_looks_are_never_on_the_front() -> None:
    sound = trial(0.5, 0.5)
    failed = replace(
        trial(0.9, 0.1), measurement=Measurement(fractions={"macs": 0.1}, error="broken"), reward=-math.inf
    )
    looks = [trial(0.99, 0.1, Fidelity(share=0.5)), trial(0.99, 0.1, Fidelity(recovery="none"))]
    front = Front.of([failed, *looks, sound], BOTH)
    assert front.trials == (sound,)
    assert len(front.others) == 0
    tuned = trial(0.99, 0.1, Fidelity(after=(sound.scheme,)))  # spared nothing
    assert Front.of([sound, tuned], BOTH).trials == (tuned,)


def test_a_trial_that_lacks_an_objective_is_not_on_the_front() -> None:
    lacking = Trial(Scheme((1,)), Measurement(0.0, 1.0), 0.0)
    assert Front.of([lacking], BOTH).trials == ()
    assert Front.of([lacking], BOTH).hypervolume == 0


# --- the hypervolume ---


def test_the_hypervolume_is_the_area_up_to_no_accuracy_and_the_dense_cost() -> None:
    front = Front.of([trial(0.9, 0.5), trial(0.8, 0.3), trial(0.7, 0.4)], BOTH)
    assert front.reference == (0.0, 1.0)
    assert front.hypervolume == pytest.approx(0.9 * (1 - 0.5) + 0.8 * (0.5 - 0.3))


def test_a_volume_in_three_objectives_by_hand() -> None:
    three = [Objective("a", "maximize"), Objective("b", "minimize"), Objective("c", "minimize")]
    boxes = [[2.0, 1.0, 1.0], [1.0, 1.0, 0.0]]  # up to (0, 3, 3): 2 · 2 · 2, and 1 · 2 · 1 that sticks out below
    assert hypervolume(boxes, (0.0, 3.0, 3.0), three) == pytest.approx(10.0)


def test_what_is_no_better_than_the_reference_adds_nothing() -> None:
    front = Front.of([trial(0.9, 0.5), trial(0.99, 1.2)], BOTH)
    assert len(front.trials) == 2
    assert front.hypervolume == pytest.approx(0.45)


def test_other_objectives_count_from_the_worst_that_was_seen() -> None:
    against_reward = usual(["macs"], DENSE)
    assert [str(objective) for objective in against_reward] == ["maximize reward", "minimize macs"]
    worst, best = trial(0.2, 0.2), trial(0.9, 0.5)
    front = Front.of([worst, best], against_reward)
    assert front.reference == (worst.reward, 1.0)
    assert front.hypervolume == pytest.approx(0.7 * 0.5)
    assert front.facts()["reference"] == {"reward": worst.reward, "macs": 1.0}


def test_a_capped_cost_that_nobody_measures_is_left_out_of_the_usual_front() -> None:
    assert [objective.name for objective in usual(["macs", "energy"], DENSE)] == ["reward", "macs"]


# --- names ---


OWN = replace(DENSE, metrics={"iou": 0.7, "watts": 3.0})


def test_names_say_what_is_measured_and_which_way_is_better() -> None:
    named = objectives("accuracy, loss,kl ,reward,macs,iou,-watts,neg_loss", OWN)
    assert [str(objective) for objective in named] == [
        "maximize accuracy",
        "minimize loss",
        "minimize kl",
        "maximize reward",
        "minimize macs",
        "maximize iou",
        "minimize watts",
        "maximize neg_loss",
    ]
    seen = Trial(Scheme((1,)), replace(OWN, fractions={"macs": 0.5}), 7.0)
    assert [objective(seen) for objective in named] == [0.95, 0.1, 0.0, 7.0, 0.5, 0.7, 3.0, -0.1]
    assert all(math.isnan(objective(replace(seen, measurement=Measurement(error="broken")))) for objective in named)


def frugal(m: Measurement) -> float:
    return m.accuracy - m.fractions["macs"]


def test_functions_are_objectives_by_name_and_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mylab.py").write_text("def thrift(m):\n    return 2 * m.fractions['macs']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    by_name, as_it_is = objectives(["-mylab:thrift", frugal], DENSE)
    assert str(by_name) == "minimize mylab:thrift"
    assert str(as_it_is) == f"maximize {__name__}:frugal"
    assert by_name(trial(0.9, 0.3)) == pytest.approx(0.6)
    assert as_it_is(trial(0.9, 0.3)) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("accuracy,latency", "'latency' is not measured here: there are reward, accuracy, loss, kl, macs, params"),
        ("accuracy,mac", "'mac' is not measured here.*close: macs"),
        ("accuracy,", "objective '' is not measured"),
        ("accuracy", "objectives accuracy: name at least two"),
        ((), "objectives \\(none\\): name at least two"),
        ("macs,accuracy,macs", "'macs' is named twice"),
        ("-accuracy,macs", "'-accuracy': write accuracy"),
        ("accuracy,+macs", "'\\+macs': write macs"),
        ("accuracy,nowhere:made", "no module 'nowhere'"),
        ("accuracy,latency_penalised", "latency_penalised needs 'latency'"),
        ((lambda m: m.fractions["watts"], "macs"), "needs 'watts'"),
    ],
)
def test_objectives_that_mean_nothing_here_are_refused(given, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objectives(given, DENSE)


def test_what_a_task_without_labels_lacks_is_refused() -> None:
    unlabelled = replace(DENSE, accuracy=math.nan, loss=math.nan)
    with pytest.raises(UserError, match="'loss' is not measured here: there are reward, kl, macs, params"):
        objectives("loss,macs", unlabelled)
    with pytest.raises(UserError, match="no accuracy"):
        objectives("accuracy,macs", unlabelled)


# --- the picture ---


def test_the_picture_has_a_dot_a_trial_and_numbers_the_front_from_left_to_right(tmp_path: Path) -> None:
    front = Front.of([trial(0.9, 0.5), trial(0.8, 0.3), trial(0.7, 0.4)], BOTH)
    front.draw(tmp_path, "a < b")
    root = ElementTree.fromstring((tmp_path / "front.svg").read_text())
    dots = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    blue = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in dots if dot.get("fill") == chart.KEPT]
    assert len(dots) == 3
    assert len(blue) == 2
    assert blue[0][0] < blue[1][0]  # more MACs lie further right
    assert blue[0][1] > blue[1][1]  # higher accuracy lies higher up
    assert "a < b" in "".join(root.itertext())


def test_a_single_trial_can_be_drawn(tmp_path: Path) -> None:
    Front.of([trial(0.9, 0.5)], BOTH).draw(tmp_path, "one")
    assert "nan" not in (tmp_path / "front.svg").read_text()


# --- runs ---


EXAMPLE = torch.zeros(1, 1, 8, 8)
SPLITS = ("--calibration", "64", "--validation", "64")
SEVERAL = ("search", *SPLITS, "--run", "several", "--searcher", "optuna", "--objectives", "accuracy,macs")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, with_digits: Callable[[Path], Path]) -> Path:
    return with_digits(tmp_path_factory.mktemp("home") / "runs").parent


@pytest.fixture
def call(home, monkeypatch, command_line):
    monkeypatch.chdir(home)
    return command_line


@pytest.fixture
def several(call, home) -> Run:
    """A run of two objectives, continued if it is there."""
    status, _, err = call(*SEVERAL, "--trials", "12")
    assert status == 0, err
    return Run.open(home / "runs" / "several")


def test_the_front_of_a_run_is_that_of_its_trials(several: Run) -> None:
    history = several.trials().query("fidelity == 'full'")
    values = history[["accuracy", "fractions.macs"]].to_numpy() * [-1, 1]
    best = {tuple(row) for row in values.tolist() if not any(dominates(other, np.array(row)) for other in values)}
    front = several.front()
    assert {(-row.accuracy, row.macs) for row in front.itertuples()} == best
    assert front["macs"].is_monotonic_increasing
    facts = several.summary["front"]
    assert facts["points"] == len(front) > 1
    assert facts["reference"] == {"accuracy": 0.0, "macs": 1.0}
    steps = np.diff([*front["macs"], 1.0])
    assert facts["hypervolume"] == pytest.approx(float(front["accuracy"] @ steps))


def test_every_point_of_a_front_can_be_exported(several: Run, call) -> None:
    for number, kept in several.front()["kept"].items():
        status, out, err = call("export", "several", "--to", "json", "--point", str(number))
        assert status == 0, err
        groups = json.loads(out)["groups"]
        assert " ".join(str(group["kept_channels"]) for group in groups) == kept
        assert several.point(number).indices == tuple(tuple(group["kept_indices"]) for group in groups)


def test_points_that_are_not_there_are_refused_with_their_number(several: Run, call) -> None:
    count = len(several.front())
    for point in (count, -1):
        status, _, err = call("export", "several", "--to", "csv", "--point", str(point))
        assert status == 2
        assert f"point {point}: the front of run several has {count} points" in err
    scheme = str(several.folder / "scheme.json")
    status, _, err = call("export", scheme, "--model", "autoprune:digits", "--to", "csv", "--point", "0")
    assert status == 2
    assert "name the run" in err


def test_the_front_is_shown_with_its_hypervolume(several: Run, call) -> None:
    hypervolume = f"hypervolume {several.summary['front']['hypervolume']:.4g}"
    for words in (("show", "several"), (*SEVERAL, "--trials", "12")):
        _, out, _ = call(*words)
        shown = " ".join(out.split())
        assert "Pareto front" in shown
        assert hypervolume in shown
    assert (several.folder / "front.svg").is_file()


def test_a_run_that_is_continued_has_the_same_front_and_a_longer_one_no_smaller(several: Run, call) -> None:
    written = (several.folder / "front.json").read_text()
    (several.folder / "front.json").unlink()
    call(*SEVERAL, "--trials", "12")
    assert (several.folder / "front.json").read_text() == written
    call(*SEVERAL, "--trials", "16")
    assert Run.open(several.folder).summary["front"]["hypervolume"] >= several.summary["front"]["hypervolume"]


def test_a_run_is_not_continued_with_other_objectives(several: Run, call) -> None:
    for other in ((), ("--objectives", "accuracy,params")):
        status, _, err = call(*SEVERAL[:-2], *other, "--trials", "12")
        assert status == 2
        assert "another request (objectives: ['maximize accuracy', 'minimize macs'] ->" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--objectives", "accuracy,watts"), "'watts' is not measured"),
        (("--objectives", "accuracy"), "name at least two"),
        (("--objectives", "accuracy,macs", "--set", "sampler=cmaes"), "sampler=cmaes knows one objective"),
        (("--set", "objectives=accuracy,macs"), "--objectives accuracy,macs"),
    ],
)
def test_what_is_refused_leaves_no_folder(call, home: Path, words: tuple[str, ...], named: str) -> None:
    status, _, err = call("search", *SPLITS, "--searcher", "optuna", "--run", "wrong", "--trials", "1", *words)
    assert status == 2
    assert named in err
    assert not (home / "runs" / "wrong").exists()


def test_a_descent_leaves_a_family_of_networks_above_and_below_the_budget(call, home: Path) -> None:
    words = ("--searcher", "netadapt", "--set", "initial=0.2", "--budget", "macs=70%", "--run", "family")
    status, _, err = call("search", *SPLITS, *words, "--trials", "40")
    assert status == 0, err
    run = Run.open(home / "runs" / "family")
    front = run.front()
    assert run.summary["front"]["objectives"] == {"reward": "maximize", "macs": "minimize"}
    assert front["macs"].min() <= 0.7 < front["macs"].max()
    answer = read(run.folder / "scheme.json", autoprune.trace(demo.digits(home / "runs"), EXAMPLE))
    assert answer in [run.point(number) for number in front.index]  # with the very channels
    assert not (run.folder / "front.svg").exists()


def test_metrics_of_ones_own_are_objectives_from_python(home: Path, tmp_path: Path) -> None:
    network, splits = demo.digits(home / "runs"), data.load("digits", calibration=64, validation=64)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        sizes = [parameter.abs().sum().item() for parameter in model.parameters()]
        return {"loss": 1 / sum(sizes), "strength": sum(sizes), "largest": max(sizes)}

    run = autoprune.search(
        network, EXAMPLE, splits.calibration, splits.validation, budget="macs=60%", searcher="random", trials=5,
        evaluate=evaluate, objectives=("strength", "-largest", "macs"), root=tmp_path, run="own",
    )  # fmt: skip
    assert run.config["request"]["objectives"] == ["maximize strength", "minimize largest", "minimize macs"]
    front = run.front()
    assert list(front.columns[:3]) == ["strength", "largest", "macs"]
    assert front["accuracy"].isna().all()
    assert run.summary["front"]["hypervolume"] >= 0


def test_whoever_names_no_searcher_gets_one_that_searches_every_objective(tmp_path: Path, home: Path) -> None:
    network, splits = demo.digits(home / "runs"), data.load("digits", calibration=64, validation=64)
    given = {"budget": "macs=60%", "trials": 2, "root": tmp_path}
    runs = [
        autoprune.search(network, EXAMPLE, splits.calibration, splits.validation, objectives=objectives, **given)
        for objectives in ((), ("accuracy", "macs"))
    ]
    assert [run.config["request"]["searcher"] for run in runs] == ["auto", "optuna"]
