"""Searches under latency and memory caps, from Python and the command line, on the digits network."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import autoprune
from autoprune import data, demo
from autoprune.errors import UserError
from autoprune.finalists import FILE, FINALISTS
from autoprune.latency import build, calibrate
from autoprune.latency.conditions import Conditions
from autoprune.latency.meter import elsewhere
from autoprune.latency.table import Table
from autoprune.run import Run


def by_weights(network: torch.nn.Module) -> float:
    """Stands for a device elsewhere: milliseconds grow with the weights."""
    return 0.05 + 1e-6 * sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(autouse=True)
def coarse(monkeypatch) -> None:
    """Tables of few points: what they predict is another test's business."""
    monkeypatch.setattr(build, "NEIGHBOURS", 3)
    monkeypatch.setattr(build, "BENT", 1.0)
    monkeypatch.setattr(build, "REPEATS", 3)
    monkeypatch.setattr(calibrate, "REPEATS", 3)
    monkeypatch.setattr(calibrate, "SURE", math.inf)


@pytest.fixture(scope="module")
def digits(tmp_path_factory, with_digits) -> dict:
    """The network and its data, and a folder whose table all tests share."""
    folder = with_digits(tmp_path_factory.mktemp("digits"))
    splits = data.load("digits", 200, 200)
    return {"network": demo.digits(folder), "splits": splits, "folder": folder}


def search(digits, tmp_path, **given) -> Run:
    splits = digits["splits"]
    usual = {"trials": 6, "root": tmp_path, "run": "it", "tables": digits["folder"], "searcher": "swap"}
    return autoprune.search(
        digits["network"], splits.validation[0][0][:1], splits.calibration, splits.validation, **{**usual, **given}
    )


def test_a_function_for_a_remote_device_bounds_what_it_measures(digits, tmp_path) -> None:
    run = search(digits, tmp_path, budget="latency=80%", latency=by_weights)
    facts = run.summary["latency"]
    dense = by_weights(digits["network"])
    assert facts["met"]
    assert by_weights(run.model) <= 0.8 * dense * (1 + 1e-9)
    assert facts["measured"] == pytest.approx(by_weights(run.model))
    assert facts["limit"] == pytest.approx(0.8 * dense)
    assert run.summary["rows"]["found"]["latency"] == pytest.approx(facts["measured"] / 1e3)
    assert run.summary["rows"]["found"]["fractions"]["latency"] <= 0.8
    assert (run.folder / FILE).is_file()


def test_absolute_and_combined_caps_all_hold(digits, tmp_path) -> None:
    cap = 0.8 * by_weights(digits["network"])
    run = search(digits, tmp_path, budget=f"latency={1e3 * cap}us,macs=60%,params=80%,memory=90%", latency=by_weights)
    fractions = run.summary["rows"]["found"]["fractions"]
    assert run.summary["latency"]["limit"] == pytest.approx(cap)
    assert by_weights(run.model) <= cap * (1 + 1e-9)
    assert fractions["macs"] <= 0.6
    assert fractions["params"] <= 0.8
    assert fractions["memory"] <= 0.9


def test_a_continued_run_does_not_ask_the_device_again(digits, tmp_path) -> None:
    asked = []

    def counted(network: torch.nn.Module) -> float:
        asked.append(network)
        return by_weights(network)

    first = search(digits, tmp_path, budget="latency=80%", latency=counted)
    assert len(asked) > 8  # eight networks to correct the table, and the finalists
    before = len(asked)
    again = search(digits, tmp_path, budget="latency=80%", latency=counted)
    assert len(asked) == before
    assert again.summary["latency"] == first.summary["latency"]
    assert again.summary["kept"] == first.summary["kept"]


def test_of_several_finalists_only_those_are_polished_that_meet_the_cap(digits, tmp_path) -> None:
    run = search(
        digits, tmp_path, budget="latency=80%", latency=by_weights, trials=12, recovery="none", finalists=12,
        polish="least_squares+recalibrate_bn",
    )  # fmt: skip
    trials = run.trials()
    polished = trials[trials.fidelity != "full"]
    assert len(polished) <= FINALISTS + 1  # and the uniform scheme
    assert (polished["costs.latency"] <= 1.1 * run.summary["latency"]["limit"]).all()
    assert run.summary["latency"]["met"]
    assert run.summary["latency"]["measured"] == pytest.approx(by_weights(run.model))
    if len(polished):  # more than one met the cap
        assert run.summary["rows"]["polished"]["loss"] == pytest.approx(polished.loss.min())


def test_memory_is_a_cost_like_any_other(digits, tmp_path) -> None:
    run = search(digits, tmp_path, budget="memory=70%")
    assert run.summary["rows"]["found"]["fractions"]["memory"] <= 0.7
    assert "latency" not in run.summary["rows"]["found"]["costs"]


def test_costs_that_nobody_speaks_of_are_not_measured(digits, tmp_path) -> None:
    run = search(digits, tmp_path, budget="macs=60%", tables=tmp_path / "no tables")
    assert set(run.summary["rows"]["found"]["costs"]) == {"macs", "params"}
    assert not (tmp_path / "no tables").exists()


def test_a_reward_and_objectives_may_speak_of_latency(digits, tmp_path) -> None:
    run = search(digits, tmp_path, budget="macs=80%", reward="latency_penalised", latency=by_weights, run="reward")
    found = run.summary["rows"]["found"]
    assert run.summary["reward"] == pytest.approx(found["accuracy"] * found["fractions"]["latency"] ** -0.07)
    run = search(
        digits, tmp_path, budget="macs=80%", objectives="accuracy,latency", also=("latency",), latency=by_weights,
        run="objectives", searcher="random",
    )  # fmt: skip
    assert run.summary["front"]["objectives"] == {"accuracy": "maximize", "latency": "minimize"}


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["netadapt", "ddpg"])
def test_searchers_that_ask_the_budget_step_by_step_work_on_latency(digits, tmp_path, searcher) -> None:
    options = {"initial": 0.15, "decay": 1.0} if searcher == "netadapt" else {"warmup": 4}
    run = search(
        digits, tmp_path, budget="latency=70%", latency=by_weights, searcher=searcher, options=options, trials=30
    )
    assert run.summary["latency"]["met"]


def test_what_the_device_says_wrong_is_told(digits, tmp_path) -> None:
    def broken(network: torch.nn.Module) -> float:
        raise OSError("no route to board")

    for function, words in ((broken, "no route to board"), (lambda network: -1.0, "positive milliseconds")):
        with pytest.raises(UserError, match=words):
            search(digits, tmp_path, budget="latency=70%", latency=function)


def test_a_device_that_does_not_answer_is_given_up() -> None:
    import threading

    never = threading.Event()
    with pytest.raises(UserError, match=r"no answer within 0\.1 s"):
        elsewhere(lambda network: never.wait(), timeout=0.1).measure({"dense": torch.nn.Linear(2, 2)})
    never.set()


def test_several_measurements_of_a_device_become_median_and_quartiles() -> None:
    timing = elsewhere(lambda network: [3.0, 1.0, 2.0]).measure({"dense": torch.nn.Linear(2, 2)})["dense"]
    assert (timing.median, timing.low, timing.high, timing.repeats) == pytest.approx((2.0, 1.5, 2.5, 3))


def test_a_cap_out_of_reach_is_refused_with_the_range(digits, tmp_path) -> None:
    with pytest.raises(UserError, match=r"latency=0\.001 ms .*cannot be reached.* goes from .* ms;"):
        search(digits, tmp_path, budget="latency=1us", latency=by_weights)


def test_a_table_for_other_conditions_warns_or_is_refused(digits, tmp_path) -> None:
    search(digits, tmp_path, budget="latency=90%", latency=by_weights, trials=1)  # makes the table
    (path,) = digits["folder"].glob("latency-*.json")
    other = Conditions(batch=4)
    with pytest.raises(UserError, match="batch 1, not 4"):
        search(digits, tmp_path, budget="latency=95%", latency=path, conditions=other, strict=True, run="a")
    with pytest.warns(UserWarning, match="batch 1, not 4"):
        run = search(digits, tmp_path, budget="latency=99%", latency=path, conditions=other, run="b", trials=1)
    assert run.summary["timed"] == str(other)  # not what the table was made for
    table = Table.load(path)
    strange = Table(table.conditions, {**table.machine, "name": "a phone"}, table.entries, table.calibrations)
    with pytest.raises(UserError, match="a phone, not"):
        search(digits, tmp_path, budget="latency=95%", latency=strange, strict=True, run="c")


# --- the command line ---


def test_measure_build_check_and_search(digits, tmp_path, command_line, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = ["--weights", str(next(digits["folder"].glob("*.safetensors")))]
    status, out, _ = command_line("latency", "measure", *weights, "--repeats", "5", "--json")
    assert status == 0
    assert json.loads(out)["timings"]["dense"]["median"] > 0
    status, out, err = command_line("latency", "build", *weights, "--out", "here.json", "--json")
    assert status == 0, err
    built = json.loads(out)
    assert built["entries"] == len(Table.load("here.json").entries) > 5
    assert len(built["checked"]) == 12
    status, out, _ = command_line("latency", "check", "here.json", *weights, "--networks", "4", "--json")
    assert status == 0
    assert len(json.loads(out)["checked"]) == 4
    status, out, err = command_line("latency", "build", *weights, "--out", "here.json", "--threads", "2")
    assert status == 2
    assert "threads 1, not 2" in err
    words = ["--trials", "3", "--searcher", "swap", "--run", "it", "--calibration", "200", "--validation", "200"]
    status, out, err = command_line(
        "search", *weights, "--budget", "latency=95%", "--latency-table", "here.json", *words
    )
    assert status == 0, err
    assert "asked for" in out
    status, out, _ = command_line("show", "it")
    assert "asked for" in out
    status, out, _ = command_line("latency", "measure", "runs/it/scheme.json", *weights, "--repeats", "3")
    assert status == 0
    assert "speed-up" in out


def test_a_table_measured_elsewhere(digits, tmp_path, command_line, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = command_line("latency", "signatures")
    assert status == 0
    assert "conv2d(input=1x" in out
    status, out, _ = command_line("latency", "signatures", "--out", "phone.csv")
    assert status == 0
    rows = Path("phone.csv").read_text().splitlines()
    filled = [rows[0], *(f"{row}{number + 1}.5" for number, row in enumerate(rows[1:]))]
    Path("phone.csv").write_text("\n".join(filled[:-1]) + "\n")
    status, _, err = command_line("latency", "import", "phone.csv", "--out", "phone.json", "--machine", "my phone")
    assert status in (0, 2)  # the last point may be the only one of its signature, or leave a hole
    Path("phone.csv").write_text("\n".join(filled) + "\n")
    status, out, err = command_line(
        "latency", "import", "phone.csv", "--out", "phone.json", "--machine", "my phone", "--model", "autoprune:digits"
    )
    assert status == 0, err
    assert "missing" not in out
    assert Table.load("phone.json").machine == {"name": "my phone"}
    Path("phone.csv").write_text("\n".join([*filled[:3], filled[3].rpartition(",")[0] + ",-1"]) + "\n")
    status, _, err = command_line("latency", "import", "phone.csv", "--out", "other.json")
    assert status == 2
    assert "no positive time" in err or "missing" in err


def test_costs_and_devices_by_name(digits, tmp_path, command_line, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.py").write_text(
        "def joules(scheme):\n    return 1.0 + sum(scheme.kept)\n\n"
        "def board(network):\n    return 0.05 + 1e-6 * sum(p.numel() for p in network.parameters())\n"
    )
    Path("runs").mkdir()
    for table in digits["folder"].glob("latency-*.json"):  # or it is built once more
        shutil.copy(table, "runs")
    weights = ["--weights", str(next(digits["folder"].glob("*.safetensors")))]
    words = ["--trials", "3", "--searcher", "swap", "--calibration", "200", "--validation", "200", "--json"]
    status, out, err = command_line("search", *weights, "--cost", "energy=lab:joules", "--budget", "energy=60%", *words)
    assert status == 0, err
    assert json.loads(out)["rows"]["found"]["fractions"]["energy"] <= 0.6
    status, out, err = command_line(
        "search", *weights, "--latency-function", "lab:board", "--budget", "latency=70%", *words
    )
    assert status == 0, err
    assert json.loads(out)["latency"]["met"]
    status, _, err = command_line("search", "--latency-function", "lab:board", "--latency-table", "x.json")
    assert status == 2
    assert "give one of them" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("latency", "measure", "--repeats", "2"), "quartiles need at least 3"),
        (("latency", "measure", "--dtype", "int8"), "dtype 'int8' is unknown"),
        (("latency", "measure", "--batch-size", "0"), "batch = 0"),
        (("latency", "measure", "--device", "cuda"), "no CUDA device"),
        (("latency", "check", "none.json"), "there is no latency table none.json"),
        (
            ("search", "--budget", "memory=8miles"),
            "unit 'miles' is unknown, use one of %, B, kB, MB, GB, KiB, MiB, GiB or none",
        ),
        (
            ("search", "--budget", "latency=8sec"),
            "unit 'sec' is unknown, use one of %, ms, us, s or none (which is ms)",
        ),
        (("search", "--budget", "memory=1KiB"), "cannot be reached"),
    ],
)
def test_bad_input_is_one_line(command_line, with_digits, tmp_path, monkeypatch, words, message) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with_digits(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status, _, err = command_line(*words)
    assert status == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list((tmp_path / "runs").glob("latency-*"))  # nothing was measured before it was read


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda scheme: None, "cost 'energy' is None for"),
        (lambda scheme: float("nan"), "cost 'energy' is nan for"),
        (lambda scheme: 1 / 0, "cost 'energy' failed for .*: ZeroDivisionError"),
    ],
)
def test_a_cost_that_is_no_number_is_named(digits, tmp_path, cost, message) -> None:
    with pytest.raises(UserError, match=message):
        search(digits, tmp_path, budget="energy=60%", costs={"energy": cost})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda record, _: record["entries"][0]["points"][0].__setitem__(-1, -1.0),
            r"^\S*table.json: .*-1.0 ms is no pos",
        ),
        (lambda _, weights: weights.clear(), "has no weight of 'layers'"),
        (lambda _, weights: weights.update(calls="2"), "weighs calls by '2'"),
    ],
)
def test_a_damaged_table_is_told_in_one_line(digits, tmp_path, damage, message) -> None:
    search(digits, tmp_path, budget="latency=90%", latency=by_weights, trials=1)  # makes the table
    (path,) = digits["folder"].glob("latency-*.json")
    record = json.loads(path.read_text())
    (known,) = (record["calibrations"][space] for space in record["calibrations"] if ":" not in space)
    damage(record, known["weights"])
    (tmp_path / "table.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        search(digits, tmp_path, budget="latency=95%", latency=tmp_path / "table.json")


def test_a_start_scheme_between_the_stairs_is_lowered_to_the_next(digits, tmp_path) -> None:
    """Under a latency cap some widths are left out; a scheme from elsewhere may have them."""
    from autoprune.problem import _legal
    from autoprune.scheme import Scheme
    from toy import chain

    space = chain((8, 16), step=4)
    assert _legal(Scheme((7, 16)), space) == Scheme((4, 16))
    assert _legal(Scheme((8, 12)), space) == Scheme((8, 12))
    start = Scheme(tuple(max(1, round(0.6 * width)) for width in demo_widths(digits)))
    run = search(digits, tmp_path, budget="latency=80%", latency=by_weights, start=[start])
    assert run.summary["latency"]["met"]


def demo_widths(digits) -> list[int]:
    space = autoprune.api.trace(digits["network"], digits["splits"].validation[0][0][:1])
    return [group.width for group in space.groups]
