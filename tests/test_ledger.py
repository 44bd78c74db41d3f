"""The ledger: found again as recorded, once, across processes and protocols."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autoprune.errors import UserError
from autoprune.fidelity import Fidelity
from autoprune.ledger import Ledger
from autoprune.scheme import Scheme
from autoprune.trial import Measurement


@dataclass(frozen=True)
class Counted:
    name: str
    counts: tuple[int, ...]


GROUPS = (Counted("stem", tuple(range(1, 17))), Counted("block.conv1", (8, 16, 24, 32)))


def seen(loss: float, **others: Any) -> Measurement:
    return Measurement(loss=loss, accuracy=1 - loss / 10, costs={"macs": 100 * loss}, seconds={"total": 2.0}, **others)


@pytest.fixture(params=["journal", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """A storage that outlives the ledger."""
    return tmp_path / "ledger.jsonl" if request.param == "journal" else f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(params=["memory", "journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str | None:
    """Any storage."""
    where: dict[str, Path | str | None] = {
        "memory": None,
        "journal": tmp_path / "ledger.jsonl",
        "sqlite": f"sqlite:///{tmp_path / 'ledger.db'}",
    }
    return where[request.param]


def test_a_measurement_is_found_by_its_scheme(storage: Path | str | None) -> None:
    ledger = Ledger(storage, "p", GROUPS)
    assert ledger.find(Scheme((4, 16))) is None
    assert ledger.append(Scheme((4, 16)), seen(1.5), -1.5)
    assert ledger.find(Scheme((4, 16))) == seen(1.5)
    assert ledger.find(Scheme((5, 16))) is None
    assert len(ledger) == 1


def test_a_measurement_is_recorded_once(storage: Path | str | None) -> None:
    ledger = Ledger(storage, "p", GROUPS)
    assert ledger.append(Scheme((4, 16)), seen(1.5), -1.5)
    assert not ledger.append(Scheme((4, 16)), seen(9.0), -9.0)
    assert ledger.find(Scheme((4, 16))) == seen(1.5)
    assert len(ledger) == len(ledger.study.trials) == len(ledger.frame()) == 1


def test_another_granularity_other_indices_and_another_fidelity_are_records_of_their_own(tmp_path: Path) -> None:
    schemes = [
        Scheme((2, 8)),
        Scheme((2, 8), "weight"),
        Scheme((2, 8), indices=((0, 1), tuple(range(8)))),
        Scheme((2, 8), indices=((0, 2), tuple(range(8)))),
    ]
    ledger = Ledger(tmp_path / "ledger.jsonl", "p", GROUPS)
    for number, scheme in enumerate(schemes):
        assert ledger.append(scheme, seen(number), -number)
        assert ledger.append(scheme, seen(number + 10), -number - 10, fidelity=Fidelity(share=0.25))
    again = Ledger(tmp_path / "ledger.jsonl", "p", GROUPS)
    assert len(again) == 2 * len(schemes)
    for number, scheme in enumerate(schemes):
        assert again.find(scheme) == seen(number)
        assert again.find(scheme, Fidelity(share=0.25)) == seen(number + 10)
        assert again.find(scheme, Fidelity(share=0.5)) is None


def test_reopening_finds_everything_and_numbers_that_json_lacks(place: Path | str) -> None:
    odd = Measurement(loss=math.inf, kl=math.nan, costs={"macs": 7.0}, metrics={"bleu": math.nan, "low": -math.inf})
    Ledger(place, "p", GROUPS).append(Scheme((1, 8)), odd, 0.5)
    found = Ledger(place, "p", GROUPS).find(Scheme((1, 8)))
    assert found is not None
    assert found.loss == math.inf
    assert math.isnan(found.accuracy)
    assert math.isnan(found.kl)
    assert found.costs == {"macs": 7.0}
    assert math.isnan(found.metrics["bleu"])
    assert found.metrics["low"] == -math.inf


def test_the_journal_is_json_that_every_reader_takes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, "p", GROUPS)
    ledger.append(Scheme((1, 8)), Measurement(loss=math.nan, metrics={"x": math.inf}), 0.5)
    ledger.append(Scheme((2, 8)), Measurement(error="diverged"), -math.inf)
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_numbers_of_numpy_are_recorded_as_numbers(tmp_path: Path) -> None:
    numbers: Any = Measurement(loss=np.float64(0.5), costs={"macs": np.float32(2.0)}, seconds={"total": np.float64(1)})
    ledger = Ledger(tmp_path / "l", "p", GROUPS)
    ledger.append(Scheme((1, 8)), numbers, np.float64(-0.5))
    for found in (ledger.find(Scheme((1, 8))), Ledger(tmp_path / "l", "p", GROUPS).find(Scheme((1, 8)))):
        assert found == Measurement(loss=0.5, costs={"macs": 2.0}, seconds={"total": 1.0})
        assert type(found.costs["macs"]) is type(found.loss) is float


def test_a_time_that_is_no_number_does_not_stop_the_recording() -> None:
    ledger = Ledger(None, "p", GROUPS)
    assert ledger.append(Scheme((1, 8)), Measurement(loss=1.0, seconds={"total": math.nan}), -1.0)
    assert ledger.study.trials[0].duration is not None


def test_protocols_share_a_file_without_seeing_each_other(place: Path | str) -> None:
    scheme = Scheme((4, 16))
    first, second = Ledger(place, "first", GROUPS), Ledger(place, "second", GROUPS)
    first.append(scheme, seen(1.0), -1.0)
    assert second.find(scheme) is None
    second.append(scheme, seen(2.0), -2.0)
    assert Ledger(place, "first", GROUPS).find(scheme) == seen(1.0)
    assert Ledger(place, "second", GROUPS).find(scheme) == seen(2.0)
    assert len(Ledger(place, "third", GROUPS)) == 0


def test_opening_a_ledger_again_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, "p", GROUPS).append(Scheme((4, 16)), seen(1.0), -1.0)
    before = path.read_bytes()
    assert len(Ledger(path, "p", GROUPS).frame()) == 1
    assert path.read_bytes() == before


def test_optuna_sees_counts_as_parameters_and_rewards_as_values(storage: Path | str | None) -> None:
    ledger = Ledger(storage, "p", GROUPS)
    ledger.append(Scheme((4, 16)), seen(1.5), -1.5)
    ledger.append(Scheme((4, 24)), seen(1.0), -1.0)
    ledger.append(Scheme((9, 24)), Measurement(error="out of memory"), -math.inf)
    ledger.append(Scheme((9, 24)), seen(0.1), -0.1, fidelity=Fidelity(share=0.25))
    states = [trial.state for trial in ledger.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]
    assert ledger.study.best_trial.params == {"stem": 4, "block.conv1": 24}
    assert ledger.study.best_value == -1.0
    attributes = ledger.study.trials[0].user_attrs
    assert attributes["kept"] == [4, 16]
    assert (attributes["protocol"], attributes["fidelity"], attributes["reward"]) == ("p", "full", -1.5)
    assert attributes["measurement"]["loss"] == 1.5
    duration = ledger.study.trials[0].duration
    assert duration is not None
    assert duration.total_seconds() == pytest.approx(2.0)


def test_a_failed_candidate_is_found_with_its_reason(storage: Path | str | None) -> None:
    ledger = Ledger(storage, "p", GROUPS)
    ledger.append(Scheme((9, 24)), Measurement(error="out of memory"), -math.inf)
    found = ledger.find(Scheme((9, 24)))
    assert found is not None
    assert found.error == "out of memory"


def test_the_frame_has_one_row_per_record(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "p", GROUPS)
    assert ledger.frame().empty
    assert {"reward", "kept.stem", "kept.block.conv1"} <= set(ledger.frame().columns)
    ledger.append(Scheme((4, 16)), seen(1.5, metrics={"f1": 0.5}), -1.5)
    ledger.append(Scheme((9, 24)), Measurement(error="out of memory"), -math.inf)
    frame = Ledger(tmp_path / "ledger.jsonl", "p", GROUPS).frame()
    assert frame["number"].tolist() == [0, 1]
    assert frame["state"].tolist() == ["COMPLETE", "FAIL"]
    assert frame["reward"].tolist() == [-1.5, -math.inf]
    assert frame.loc[0, ["loss", "accuracy", "costs.macs", "metrics.f1", "seconds"]].tolist() == [
        1.5,
        seen(1.5).accuracy,
        seen(1.5).costs["macs"],
        0.5,
        2.0,
    ]
    assert frame[["kept.stem", "kept.block.conv1"]].to_numpy().tolist() == [[4, 16], [9, 24]]
    assert frame.loc[1, "error"] == "out of memory"


def test_a_measurement_that_could_not_be_scored_is_kept_without_a_value(storage: Path | str | None) -> None:
    ledger = Ledger(storage, "p", GROUPS)
    ledger.append(Scheme((4, 16)), seen(1.5), None)
    assert ledger.find(Scheme((4, 16))) == seen(1.5)
    assert ledger.study.trials[0].value is None
    assert math.isnan(ledger.frame().loc[0, "reward"])


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused(reward: float) -> None:
    ledger = Ledger(None, "p", GROUPS)
    with pytest.raises(UserError, match=str(reward)):
        ledger.append(Scheme((4, 16)), seen(1.5), reward)
    assert len(ledger) == len(ledger.study.trials) == 0


def test_a_scheme_of_another_length_is_refused() -> None:
    with pytest.raises(UserError, match="1 groups, the ledger 2"):
        Ledger(None, "p", GROUPS).append(Scheme((4,)), seen(1.5), -1.5)


def test_two_groups_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="same name"):
        Ledger(None, "p", ("a", "a"))


def test_names_alone_do_where_the_counts_are_not_known() -> None:
    ledger = Ledger(None, "p", ("all weights",))
    ledger.append(Scheme((10_000_000,), "weight"), seen(1.0), -1.0)
    assert ledger.frame()["kept.all weights"].tolist() == [10_000_000]


def test_trials_that_somebody_else_added_to_the_study_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, "p", GROUPS)
    ledger.append(Scheme((4, 16)), seen(1.0), -1.0)
    ledger.study.enqueue_trial({"stem": 3, "block.conv1": 8})
    ledger.study.add_trial(optuna.create_trial(value=3.0, params={}, distributions={}))
    again = Ledger(path, "p", GROUPS)
    assert len(again) == len(again.frame()) == 1
    assert again.append(Scheme((5, 16)), seen(2.0), -2.0)
    assert len(Ledger(path, "p", GROUPS)) == 2
    assert len(again.study.trials) == 4


def test_of_two_that_record_one_scheme_at_the_same_moment_the_first_counts_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    first, second = Ledger(path, "p", GROUPS), Ledger(path, "p", GROUPS)
    add = second.study.add_trial

    def just_after(trial: optuna.trial.FrozenTrial) -> None:
        first.append(Scheme((4, 16)), seen(1.0), -1.0)
        add(trial)

    monkeypatch.setattr(second.study, "add_trial", just_after)
    second.append(Scheme((4, 16)), seen(2.0), -2.0)
    for ledger in (first, second, Ledger(path, "p", GROUPS)):
        assert ledger.find(Scheme((4, 16))) == seen(1.0)
        assert len(ledger) == len(ledger.frame()) == 1
        assert ledger.frame()["loss"].tolist() == [1.0]


def test_a_ledger_is_quiet_and_leaves_optunas_verbosity_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ledger = Ledger(tmp_path / "ledger.jsonl", "p", GROUPS)
            ledger.append(Scheme((4, 16)), seen(1.0), -1.0)
            ledger.frame()
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr().err == ""


def test_of_two_writers_to_one_file_the_first_record_counts_for_both(tmp_path: Path) -> None:
    first, second = (Ledger(tmp_path / "ledger.jsonl", "p", GROUPS) for _ in range(2))
    assert first.append(Scheme((4, 16)), seen(1.5), -1.5)
    assert not second.append(Scheme((4, 16)), seen(1.6), -1.6)
    assert second.append(Scheme((5, 16)), seen(1.0), -1.0)
    assert first.append(Scheme((6, 16)), seen(2.0), -2.0)
    for ledger in (first, second, Ledger(tmp_path / "ledger.jsonl", "p", GROUPS)):
        assert ledger.find(Scheme((4, 16))) == seen(1.5)
    assert first.find(Scheme((5, 16))) == seen(1.0)  # taken in before the last append
