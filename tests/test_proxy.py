"""The check of the fast score: correlations by definition, schemes of equal cost, and the whole on digits."""

from __future__ import annotations

import json

import numpy as np
import pytest

import toy
from autoprune import api, data, demo, proxy
from autoprune.errors import UserError
from autoprune.finetune import Recipe
from autoprune.lines import read_records
from autoprune.proxy import agreement, proxy_check, schemes


@pytest.fixture(autouse=True)
def coarse(monkeypatch) -> None:
    """Fewer bootstraps: the ends of an interval are known less exactly, and nothing here looks at them so closely."""
    monkeypatch.setattr(proxy, "BOOTSTRAPS", 200)


def test_correlations_are_those_of_ranks() -> None:
    scores = np.arange(10.0)
    same = agreement(scores, np.exp(scores))
    assert (same.spearman, same.kendall, same.high) == pytest.approx((1.0, 1.0, 1.0))
    assert agreement(scores, -scores).spearman == pytest.approx(-1.0)
    swapped = scores.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    found = agreement(scores, swapped)
    assert found.spearman == pytest.approx(1 - 6 * 2 / (10 * 99))
    assert found.kendall == pytest.approx(1 - 2 / 45)
    assert found.low <= found.spearman <= found.high
    assert np.isnan(agreement(scores, np.ones(10)).spearman)
    with pytest.raises(UserError, match="at least 3 pairs"):
        agreement([1.0, 2.0], [1.0, 2.0])


def test_intervals_of_noise_hold_zero_and_narrow_with_more_schemes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        wide = agreement(rng.normal(size=8), rng.normal(size=8))
        assert wide.low < wide.spearman < wide.high
    few, many = (agreement(x, x + rng.normal(size=len(x))) for x in (rng.normal(size=10), rng.normal(size=200)))
    assert many.high - many.low < few.high - few.low


def test_schemes_are_distinct_and_use_the_budget_up() -> None:
    space = toy.resnet(3)
    budget = toy.capped(space, "macs=50%")
    found = schemes(budget, 12, seed=0)
    assert len(set(found)) == 12
    assert found[0] == budget.fit(np.ones(len(space)))
    assert all(toy.is_full(budget, scheme) for scheme in found)
    assert found == schemes(budget, 12, seed=0)
    with pytest.raises(UserError, match="ask for fewer"):
        schemes(toy.capped(toy.one_count(), "macs=100%"), 12, seed=0)


@pytest.fixture(scope="module")
def problem(tmp_path_factory, with_digits):
    splits = data.load("digits", 128, 128)
    network = demo.digits(with_digits(tmp_path_factory.mktemp("digits")))
    made = api.problem(network, splits.validation[0][0][:1], splits.calibration, splits.validation, budget="macs=15%")
    train = list(splits.tuning())
    return made, train[:2], train[2:4]


def test_a_check_scores_trains_and_goes_on_where_it_was_stopped(problem, tmp_path, monkeypatch) -> None:
    made, train, held_out = problem
    given = {"number": 4, "recoveries": ("none", "recalibrate_bn"), "recipe": Recipe(epochs=1, lr=0.05)}
    whole = proxy_check(made.evaluator, made.budget, train, held_out, tmp_path / "whole", **given)

    def kill(row) -> None:
        if len((tmp_path / "stopped" / proxy.ROWS).read_text().splitlines()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proxy_check(made.evaluator, made.budget, train, held_out, tmp_path / "stopped", tell=kill, **given)
    with (tmp_path / "stopped" / proxy.ROWS).open("a") as file:
        file.write('{"request": {"fing')  # the next line, cut
    trained = []
    monkeypatch.setattr(proxy, "finetune", lambda *args, **given: trained.append(1) or original(*args, **given))
    again = proxy_check(made.evaluator, made.budget, train, held_out, tmp_path / "stopped", **given)
    assert len(trained) == 2
    assert again == whole
    assert len(read_records(tmp_path / "stopped" / proxy.ROWS)) == 4
    assert json.loads((tmp_path / "stopped" / proxy.RECORD).read_text())["schemes"] == whole["schemes"]
    for row in whole["schemes"]:
        assert 0 <= row["tuned_accuracy"] <= 1
        assert set(row["scores"]) == {"none", "recalibrate_bn"}
    untuned = -np.mean([row["scores"]["none"] for row in whole["schemes"]])
    assert np.mean([row["tuned_loss"] for row in whole["schemes"]]) < untuned
    assert set(whole["agreement"]["none"]) == {"accuracy", "loss"}


original = proxy.finetune


def test_the_command(tmp_path, command_line, with_digits, monkeypatch) -> None:
    with_digits(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    words = [
        "--schemes",
        "3",
        "--repairs",
        "none",
        "--budget",
        "macs=20%",
        "--calibration",
        "128",
        "--validation",
        "128",
    ]
    status, out, err = command_line("proxy-check", "--run", "check", *words, "--train-images", "300")
    assert status == 0, err
    assert "Spearman" in out
    assert out.count("after training") == 3
    status, out, err = command_line("proxy-check", "--run", "check", *words, "--train-images", "300", "--json")
    assert status == 0, err
    assert len(json.loads(out)["schemes"]) == 3
    status, out, err = command_line("show", "check")
    assert status == 0, err
    assert "Spearman" in out
    status, out, _ = command_line("runs", "--json")
    assert [run["name"] for run in json.loads(out)] == ["check"]
    status, _, err = command_line("proxy-check", "--run", "check", *words, "--train-images", "300", "--seed", "1")
    assert status == 2
    assert "was started with another request (seed: 0 -> 1)" in err
