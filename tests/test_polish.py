"""A more thorough repair for the answer of a search."""

from __future__ import annotations

import pytest

import autoprune
from autoprune import data, demo
from autoprune.errors import UserError
from autoprune.pruned import load_pruned


@pytest.fixture(scope="module")
def digits(tmp_path_factory, with_digits):
    return demo.digits(with_digits(tmp_path_factory.mktemp("digits"))), data.load("digits", 200, 200)


def search(digits, root, **given):
    network, splits = digits
    usual = {"budget": "macs=15%", "searcher": "uniform", "trials": 1, "run": "it", "root": root, "test": splits.test}
    return autoprune.search(
        network, splits.validation[0][0][:1], splits.calibration, splits.validation, **{**usual, **given}
    )


def test_a_better_repair_is_kept_and_told_beside_the_candidate(digits, tmp_path) -> None:
    run = search(digits, tmp_path, recovery="none", polish="least_squares+recalibrate_bn")
    rows = run.summary["rows"]
    assert rows["polished"]["loss"] < rows["found"]["loss"]
    assert rows["polished"]["costs"] == rows["found"]["costs"]
    assert rows["polished"]["test_accuracy"] > rows["found"]["test_accuracy"]
    saved = load_pruned(lambda: digits[0], run.folder)
    inputs = digits[1].validation[0][0]
    assert (saved(inputs) == run.model(inputs)).all()
    again = search(digits, tmp_path, recovery="none", polish="least_squares+recalibrate_bn")
    assert again.summary["rows"]["polished"]["test_accuracy"] == rows["polished"]["test_accuracy"]


def test_a_worse_repair_is_told_but_not_kept(digits, tmp_path) -> None:
    run = search(digits, tmp_path, polish="none")
    plain = search(digits, tmp_path, run="plain")
    assert run.summary["rows"]["polished"]["loss"] > run.summary["rows"]["found"]["loss"]
    inputs = digits[1].validation[0][0]
    assert (run.model(inputs) == plain.model(inputs)).all()
    assert "polished" not in plain.summary["rows"]


def test_a_repair_that_does_not_exist_is_refused_before_any_work(digits, tmp_path) -> None:
    with pytest.raises(UserError, match="recovery 'sequentail' is unknown"):
        search(digits, tmp_path, polish="sequentail", run="typo")
    assert not (tmp_path / "typo").exists()


def test_options_follow_the_name(digits, tmp_path) -> None:
    run = search(digits, tmp_path, polish="sequential,images=100", run="options")
    assert run.config["polish"] == "sequential,images=100"
    with pytest.raises(UserError, match="has no option 'image'"):
        search(digits, tmp_path, polish="sequential,image=100", run="wrong")
