import json
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

import autoprune
from autoprune import api, compare, data, demo, reward
from autoprune.claim import claim
from autoprune.compare import Comparison
from autoprune.errors import UserError
from autoprune.fidelity import FULL
from autoprune.run import HISTORY, SUMMARY

EVOLUTION = "evolution,population=4"


@pytest.fixture(scope="module")
def problem(tmp_path_factory, with_digits):
    """The trained digits network with small splits."""
    network = demo.digits(with_digits(tmp_path_factory.mktemp("runs")))
    splits = data.load("digits", calibration=64, validation=64)
    example = torch.zeros(1, 1, 8, 8)
    return api.problem(
        network, example, splits.calibration, splits.validation, budget="macs=50%", test=splits.test, name="digits"
    )


@pytest.fixture
def side_by_side(problem, tmp_path):
    def go(*named, **choices):
        given = {"seeds": (0, 1), "trials": 8, "batch": 4, "run": "one", "root": tmp_path, **choices}
        return compare.compare(problem, named, **given)

    return go


@pytest.fixture
def measured(monkeypatch):
    """Every scheme that is measured in full, in order; the sanity check with nothing repaired is none."""
    schemes = []
    original = autoprune.Evaluator.__call__

    def counting(self, scheme, fidelity=FULL):
        if fidelity.full:
            schemes.append(scheme)
        return original(self, scheme, fidelity=fidelity)

    monkeypatch.setattr(autoprune.Evaluator, "__call__", counting)
    return schemes


def test_every_searcher_and_seed_gets_the_same_number_of_trials(side_by_side):
    found = side_by_side("swap", EVOLUTION, "uniform")
    frame = found.frame()
    assert list(frame["searcher"]) == [EVOLUTION] * 2 + ["swap"] * 2 + ["uniform"] * 2
    assert list(frame["seed"]) == [0, 1] * 3
    assert list(frame["trials"]) == [8.0] * 4 + [1.0] * 2  # uniform has one thing to say
    assert (frame["reward"] >= frame["uniform_reward"]).all()
    assert (frame["fractions.macs"] <= 0.5).all()
    assert frame["test_accuracy"].between(0.5, 1).all()


def test_no_scheme_is_measured_twice_whatever_searcher_or_seed_asks(side_by_side, measured):
    side_by_side("swap", "random", EVOLUTION, seeds=(0, 1, 2))
    assert len(measured) == len(set(measured)) > 30


def test_the_folder_holds_table_and_curves(side_by_side):
    found = side_by_side("swap", "random")
    table = pd.read_csv(found.folder / "comparison.csv")
    pd.testing.assert_frame_equal(table, found.frame(), check_dtype=False)
    for name in ("trials.svg", "seconds.svg"):
        text = (found.folder / name).read_text(encoding="utf-8")
        lines = ElementTree.fromstring(text).findall(".//{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == 2
        assert all(line.get("points") for line in lines)


def test_curves_begin_with_uniform_rise_and_end_with_the_answer(side_by_side):
    found = side_by_side("swap", "levels", "uniform")
    at, swap = found.curves("trials")["swap"]
    assert list(at) == list(range(9))
    assert swap.shape == (2, 9)
    assert (np.diff(swap) >= 0).all()
    for against in ("trials", "seconds"):
        for name, (_, rows) in found.curves(against).items():
            several = found.frame().set_index("searcher").loc[[name]]
            # Levels looks at most children on few images; what it saw there is no answer.
            assert rows[:, 0] == pytest.approx(several["uniform_reward"].to_numpy())
            assert rows[:, -1] == pytest.approx(several["reward"].to_numpy())


def test_a_comparison_that_was_stopped_goes_on_without_measuring_anything_twice(side_by_side, measured, monkeypatch):
    write = compare.Problem.search
    calls = []

    def dying(self, *args, **choices):
        calls.append(choices["run"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(self, *args, **choices)

    monkeypatch.setattr(compare.Problem, "search", dying)
    with pytest.raises(KeyboardInterrupt):
        side_by_side("swap", "random")
    whole = side_by_side("swap", "random").frame()
    assert len(measured) == len(set(measured))
    assert calls == ["swap-0", "random-0", "swap-1", "swap-1", "random-1"]  # what had finished is only read
    again = side_by_side("swap", "random", run="undisturbed").frame()
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), again.drop(columns="seconds"))


def test_searchers_seeds_and_trials_can_be_added(side_by_side, measured):
    side_by_side("swap", seeds=(0,), trials=4)
    first = list(measured)
    found = side_by_side("swap", "random", seeds=(0, 1), trials=8)
    assert measured[: len(first)] == first
    assert len(measured) == len(set(measured))
    assert list(found.runs) == ["random", "swap"]
    assert list(found.frame()["trials"]) == [8.0] * 4
    assert set(Comparison.open(found.folder).frame()["run"]) == {"random-0", "random-1", "swap-0", "swap-1"}


def test_an_extension_that_was_killed_is_taken_up_again(side_by_side, monkeypatch):
    side_by_side("random", seeds=(0,), trials=4)

    def killed(*_):
        raise RuntimeError("killed")  # the request of the extension is written down by now, its outcome is not

    with monkeypatch.context() as patch:
        patch.setattr("autoprune.outcome.write", killed)
        with pytest.raises(RuntimeError):
            side_by_side("random", seeds=(0,), trials=8)
    assert list(side_by_side("random", seeds=(0,), trials=8).frame()["trials"]) == [8.0]


def test_a_run_with_fewer_trials_is_left_out_of_the_table(side_by_side):
    side_by_side("random", "swap", seeds=(0,), trials=4)
    assert list(side_by_side("swap", seeds=(0,), trials=8).frame()["searcher"]) == ["swap"]
    assert list(side_by_side("random", seeds=(0,), trials=8).frame()["searcher"]) == ["random", "swap"]


def test_ctrl_c_ends_the_comparison_and_the_run_is_not_taken_for_finished(side_by_side, monkeypatch):
    original, calls = autoprune.Evaluator.__call__, []

    def pressed(self, scheme, fidelity=FULL):
        calls.append(scheme)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return original(self, scheme, fidelity=fidelity)

    with monkeypatch.context() as patch:
        patch.setattr(autoprune.Evaluator, "__call__", pressed)
        with pytest.raises(KeyboardInterrupt):
            side_by_side("random", "swap", seeds=(0,))
    assert list(side_by_side("swap", seeds=(0,)).frame()["searcher"]) == ["swap"]
    assert list(side_by_side("random", "swap", seeds=(0,)).frame()["trials"]) == [8.0, 8.0]


def test_a_comparison_in_progress_is_not_removed(side_by_side, tmp_path):
    side_by_side("uniform", seeds=(0,))
    with claim(tmp_path / "one" / "uniform-0"), pytest.raises(UserError, match="is in use"):
        autoprune.Run.open(tmp_path / "one").remove()


def test_another_problem_is_refused_in_the_same_folder(side_by_side, problem, tmp_path):
    side_by_side("uniform", seeds=(0,))
    other = compare.Problem(
        problem.evaluator, autoprune.Budget.parse("macs=60%", problem.budget.space), problem.reward, problem.example
    )
    with pytest.raises(UserError, match="another request .*budget"):
        compare.compare(other, ["uniform"], run="one", root=tmp_path)
    rewarded = compare.Problem(problem.evaluator, problem.budget, reward.accuracy, problem.example)
    with pytest.raises(UserError, match="another request .*reward"):
        compare.compare(rewarded, ["uniform"], run="one", root=tmp_path, batch=4)
    with pytest.raises(UserError, match="another request .*kind"):
        problem.search("uniform", stop=autoprune.Stop(1), run="one", root=tmp_path)


def test_a_run_that_somebody_else_drives_is_left_to_them_and_waited_for(side_by_side, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "POLL", 0.01)
    order = []
    driven = tmp_path / "one" / "swap-0"
    driven.mkdir(parents=True)
    release = threading.Event()
    held = threading.Event()

    def hold():
        with claim(driven):
            held.set()
            release.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)

    def tell(run):
        order.append(run.name)
        if run.name == "random-1":
            release.set()
            other.join()

    side_by_side("swap", "random", tell=tell)
    assert order == ["random-0", "swap-1", "random-1", "swap-0"]


def test_seconds_of_measuring_end_the_runs(side_by_side):
    frame = side_by_side("random", seeds=(0,), trials=None, seconds=1e-6).frame()
    assert list(frame["trials"]) == [1.0]


@pytest.mark.parametrize(
    ("named", "choices", "message"),
    [
        ([], {}, "name at least one"),
        (["swap", "swap"], {}, "each once"),
        (["swap,step=0.5", "swap,step=.5"], {}, "each once"),
        (["swapp"], {}, "'swapp' is unknown.*close: swap"),
        (["swap,stepp=1"], {}, "has no option 'stepp'.*close: step"),
        (["swap,step=much"], {}, "step='much': expected a number"),
        (["swap,step"], {}, "write its options like swap,option=value"),
        (["swap,step=2"], {}, "step=2"),
        (["evolution,population=9"], {}, "population=9 is larger than trials=8.*at most 8"),
        (["swap"], {"seeds": ()}, "give at least one"),
        (["swap"], {"seeds": (1, 1)}, "each once"),
        (["swap"], {"trials": None}, "give trials or seconds"),
        (["swap"], {"trials": 0}, "trials = 0"),
        (["swap"], {"run": "a/b"}, "run name 'a/b'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(side_by_side, tmp_path, named, choices, message):
    with pytest.raises(UserError, match=message):
        side_by_side("uniform", *named, **choices) if named else side_by_side(**choices)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_no_comparison(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        Comparison.open(tmp_path)


def test_the_history_of_a_run_adds_up(side_by_side):
    run = side_by_side("levels", seeds=(0,), trials=6).runs["levels"][0]
    history = run.history()
    assert list(history["trials"][:2]) == [0.0, 1.0]
    assert history["trials"].iloc[-1] == run.summary["effort"] == pytest.approx(6)
    assert history["seconds"].iloc[-1] == pytest.approx(run.summary["seconds"])
    assert history.loc[history["fidelity"] == "full", "reward"].max() == pytest.approx(run.summary["reward"])
    assert set(history["fidelity"]) == {"full", "share=0.25", "share=0.0625"}
    (run.folder / HISTORY).unlink()
    with pytest.raises(UserError, match=HISTORY):
        run.history()


def test_the_command_compares_and_continues(tmp_path, monkeypatch, with_digits, command_line):
    with_digits(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    words = ["--calibration", "64", "--validation", "64", "--run", "c", "--seed", "0", "--seed", "3", "--trials", "5"]

    def call(*more):
        return command_line("compare", *words, *more)

    status, out, _ = call("--searcher", "random", "--searcher", "swap,step=0.5")
    assert status == 0
    assert "swap,step=0.5, seed 3: reward" in out
    assert "runs/c/ has the table" in out
    _, out, _ = call("--searcher", "random", "--searcher", "swap,step=0.5", "--json")
    rows = json.loads(out)["runs"]
    assert [(row["searcher"], row["seed"]) for row in rows] == [
        ("random", 0), ("random", 3), ("swap,step=0.5", 0), ("swap,step=0.5", 3)
    ]  # fmt: skip
    assert Path("runs/c/random-3", SUMMARY).is_file()
    assert "swap,step=0.5" in command_line("show", "c")[1]
    assert "comparison" in command_line("runs")[1]
    status, _, err = call("--searcher", "nothing")
    assert status == 2
    assert "'nothing' is unknown" in err
