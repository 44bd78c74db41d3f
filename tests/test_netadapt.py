"""NetAdapt whole: weights that travel, budgets of every kind, and the long training at the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import autoprune
import toy
from autoprune import arguments, data
from autoprune.errors import UserError
from autoprune.fidelity import Batch
from autoprune.hints import Hints
from autoprune.run import Run
from autoprune.scheme import Scheme
from autoprune.searchers.netadapt import netadapt
from autoprune.training import train

EXAMPLE = torch.zeros(1, 1, 8, 8)
CALIBRATION, VALIDATION = 256, 256


def untrained() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.BatchNorm2d(16),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return data.load("digits", CALIBRATION, VALIDATION, batch=64)


@pytest.fixture(scope="module")
def network(splits: data.Splits) -> nn.Module:
    model = untrained()
    assert splits.train is not None
    train(model, splits.train(), 6)
    return model


@pytest.fixture
def search(network: nn.Module, splits: data.Splits, tmp_path: Path) -> Any:
    assert splits.tuning is not None
    given = {
        "searcher": "netadapt",
        "options": {"initial": 0.2, "decay": 1.0},
        "budget": "macs=40%",
        "trials": None,
        "root": tmp_path,
        "run": "one",
        "tune": splits.tuning,
        "tune_steps": 8,
    }

    def go(**choices: Any) -> Run:
        return autoprune.search(network, EXAMPLE, splits.calibration, splits.validation, **{**given, **choices})

    return go


def played(hints: Hints, **options: Any) -> list[tuple[Batch, list[Any]]]:
    """All batches with their trials, on a toy."""
    space = toy.chain((20, 30, 40, 20), pixels=(64, 16, 16, 4))
    reward = toy.landscape(space, 0)
    proposals = netadapt(space, toy.capped(space, "macs=40%"), seed=0, hints=hints, batch=4, **options)
    found = []
    batch = Batch.of(next(proposals))
    while True:
        answers = [toy.answer(scheme, reward, batch.fidelity) for scheme in batch.schemes]
        found.append((batch, answers))
        try:
            batch = Batch.of(proposals.send(answers))
        except StopIteration:
            return found


# -- the way ---------------------------------------------------------------------------------------


def test_every_round_comes_after_the_schemes_adopted_before_and_those_are_trials() -> None:
    found = played(Hints(tuning=True))
    ways = list(dict.fromkeys(batch.fidelity.after for batch, _ in found))
    measured = {(scheme, batch.fidelity.after) for batch, _ in found for scheme in batch.schemes}
    assert ways[0] == ()
    assert len(ways) > 10
    for before, after in itertools.pairwise(ways):
        assert after[:-1] == before
        assert (after[-1], before) in measured


def test_a_candidate_never_has_more_of_a_group_than_the_scheme_it_comes_after() -> None:
    for batch, _ in played(Hints(tuning=True)):
        for scheme in batch.schemes:
            for parent in batch.fidelity.after[-1:]:
                assert all(a <= b for a, b in zip(scheme.kept, parent.kept, strict=True))


@pytest.mark.parametrize("hints", [Hints(), Hints(tuning=True)])
def test_untuned_every_candidate_starts_from_the_dense_weights(hints: Hints) -> None:
    assert all(batch.fidelity.name == "full" for batch, _ in played(hints, tuned=False))


def test_tuned_without_a_tuning_is_refused_before_anything_is_measured(search: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tune-steps"):
        played(Hints(), tuned=True)
    with pytest.raises(UserError, match="give it data to tune on"):
        search(tune=None, options={"tuned": True})
    assert not list(tmp_path.iterdir())


# -- a search --------------------------------------------------------------------------------------


def test_the_answer_is_the_network_that_was_tuned_on_the_way(search: Any, splits: data.Splits) -> None:
    run = search()
    history = run.history()
    best = history[history.affordable].sort_values("reward").iloc[-1]
    assert best.fidelity.startswith("after=")
    x, y = (torch.cat(parts) for parts in zip(*splits.validation, strict=True))
    with torch.inference_mode():
        loss = float(nn.functional.cross_entropy(run.model(x), y))
    assert loss == pytest.approx(run.summary["rows"]["found"]["loss"], rel=1e-4)
    assert -loss == pytest.approx(best.reward, rel=1e-4)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(search: Any, tmp_path: Path) -> None:
    whole = search(run="whole")
    search(trials=6)
    parts = search()
    shown = ["trials", "fidelity", "reward", "loss", "kept"]
    assert parts.history()[shown].equals(whole.history()[shown])
    tensors = [(tmp_path / name / "pruned.safetensors").read_bytes() for name in ("whole", "one")]
    assert tensors[0] == tensors[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_tuning_on_the_way_gives_a_better_network(network: nn.Module, tmp_path: Path, seed: int) -> None:
    splits = data.load("digits", CALIBRATION, VALIDATION, seed=seed, batch=64)
    assert splits.tuning is not None

    def loss(**tuned: Any) -> float:
        run = autoprune.search(
            network, EXAMPLE, splits.calibration, splits.validation, searcher="netadapt", budget="macs=10%",
            options={"initial": 0.1, "decay": 1.0}, trials=None, root=tmp_path, **tuned,
        )  # fmt: skip
        return float(run.summary["rows"]["found"]["loss"])

    assert loss(tune=splits.tuning, tune_steps=20) < 0.85 * loss()


def test_other_searchers_tune_every_candidate_from_the_dense_weights(search: Any) -> None:
    run = search(searcher="random", options={}, trials=3)
    assert set(run.history().fidelity) == {"full"}
    untuned = search(searcher="random", options={}, trials=3, tune=None, run="untuned")
    assert (run.history().loss < untuned.history().loss).all()


def test_to_tune_on_validation_images_is_refused(search: Any, splits: data.Splits) -> None:
    with pytest.raises(UserError, match="batch 1 of the tune data is a batch of the validation data"):
        search(tune=[splits.calibration[0], splits.validation[2]])


def test_the_images_to_tune_on_are_neither_calibration_nor_validation(splits: data.Splits) -> None:
    assert splits.tuning is not None
    parts = [splits.calibration, splits.validation, list(splits.tuning())]
    images = [{x.numpy().tobytes() for batch, _ in part for x in batch} for part in parts]
    assert sum(len(batch) for batch, _ in parts[2]) == 1437 - CALIBRATION - VALIDATION
    assert images[2].isdisjoint(images[0])
    assert images[2].isdisjoint(images[1])


def test_the_command_line_asks_for_images_that_there_are(splits: data.Splits) -> None:
    assert arguments.make_tuning(splits, None, None, 100) == {}
    made = arguments.make_tuning(splits, 5, 0.1, 100)
    assert (made["tune_steps"], made["tune_lr"]) == (5, 0.1)
    assert sum(len(y) for _, y in made["tune"]) == 128  # whole batches of 64
    with pytest.raises(UserError, match="--tune-lr 0.1"):
        arguments.make_tuning(splits, None, 0.1, 100)
    everything = data.load("digits", 900, 537)
    with pytest.raises(UserError, match="no training images left"):
        arguments.make_tuning(everything, 5, None, 100)


# -- budgets on costs of one's own -----------------------------------------------------------------


def staircase(space_widths: tuple[int, ...], step: int, scheme: Scheme) -> float:
    """Milliseconds of a machine that computes channels by the ``step``."""
    before, total = 1, 0.1
    for kept, pixels in zip(scheme.kept, (36, 4), strict=True):
        padded = step * math.ceil(kept / step)
        total += 1e-4 * pixels * before * padded
        before = padded
    return total


LATENCY = partial(staircase, (12, 16), 4)


def test_a_budget_may_be_a_latency_table_with_stairs(search: Any) -> None:
    run = search(budget="latency=75%", costs={"latency": LATENCY})
    row = run.summary["rows"]["found"]
    assert row["costs"]["latency"] == pytest.approx(LATENCY(run.scheme))
    assert row["fractions"]["latency"] <= 0.75
    assert set(row["costs"]) == {"macs", "params", "latency"}
    assert all(count % 4 == 0 for count in run.scheme.kept)  # what a stair costs is used up to its edge


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ({"macs": LATENCY}, "'macs' is built in"),
        ({"latency": lambda scheme: 0.0}, "a cost is a positive number"),
        ({"latency": lambda scheme: math.nan}, "a cost is a positive number"),
    ],
)
def test_costs_that_cannot_be_are_refused(search: Any, costs: Mapping[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        search(costs=costs)


def test_another_table_is_another_protocol(network: nn.Module, splits: data.Splits) -> None:
    def fingerprint(**choices: Any) -> str:
        made = autoprune.api.problem(
            network, EXAMPLE, splits.calibration, splits.validation, budget="macs=50%", **choices
        )
        return made.evaluator.fingerprint

    other = partial(staircase, (12, 16), 8)
    assert len({fingerprint(), fingerprint(costs={"latency": LATENCY}), fingerprint(costs={"latency": other})}) == 3
    assert fingerprint() == fingerprint(costs={}) == fingerprint(tune=None)


# -- the end ---------------------------------------------------------------------------------------


def brief(splits: data.Splits, model: nn.Module) -> None:
    assert splits.train is not None
    train(model, splits.train(), 3, peak=0.02)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return autoprune.load_pruned(untrained, folder).state_dict()


@pytest.mark.parametrize("way", ["in place", "returned"])
def test_the_finished_network_is_measured_and_saved(search: Any, splits: data.Splits, way: str) -> None:
    def finish(model: nn.Module) -> nn.Module | None:
        assert not model.training
        brief(splits, model)
        return model.train() if way == "returned" else None

    uniform = partial(search, searcher="uniform", options={}, tune=None, budget="macs=15%", test=splits.test)
    plain, run = uniform(run="plain"), uniform(finish=finish)
    rows = run.summary["rows"]
    assert list(rows) == ["dense", "uniform", "found", "finished"]
    assert rows["finished"]["loss"] < 0.8 * rows["found"]["loss"]
    assert rows["found"] == {**plain.summary["rows"]["found"], "latency": rows["found"]["latency"]}
    assert rows["finished"]["costs"] == rows["found"]["costs"]
    assert 0 < rows["finished"]["test_accuracy"] <= 1
    assert not run.model.training
    for name, tensor in tensors(run.folder).items():
        assert torch.equal(tensor, run.model.state_dict()[name])
    assert Run.open(run.folder).summary["rows"]["finished"]["loss"] == rows["finished"]["loss"]
    assert Run.open(run.folder).config["finish"].endswith("finish")


def failing(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.zero_()
    raise RuntimeError("no disk")


def diverging(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.fill_(math.nan)


@pytest.mark.parametrize(
    ("finish", "words"),
    [
        (failing, "RuntimeError: no disk"),
        (diverging, "its loss is nan"),
        (lambda model: untrained(), "the scheme asks for"),
        (lambda model: "done", "returned a str"),
    ],
)
def test_an_error_at_the_end_loses_nothing_of_the_search(search: Any, tmp_path: Path, finish: Any, words: str) -> None:
    plain = search(searcher="uniform", options={}, tune=None, run="plain")
    with pytest.raises(UserError, match=words) as caught:
        search(searcher="uniform", options={}, tune=None, finish=finish)
    assert str(tmp_path / "one") in str(caught.value)
    assert "finished" not in Run.open(tmp_path / "one").summary["rows"]
    found = tensors(tmp_path / "one")
    assert all(torch.equal(tensor, found[name]) for name, tensor in tensors(plain.folder).items())


def test_a_function_that_is_not_there_is_refused_before_the_search(search: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finish 'nowhere'"):
        search(finish="nowhere")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_search_is_not_finished(search: Any) -> None:
    def listener(event: str, facts: Mapping[str, Any]) -> None:
        if event == "trial":
            raise KeyboardInterrupt

    run = search(finish=failing, listener=listener)
    assert "interrupted" in run.summary["ended"]
    assert np.isfinite(run.summary["reward"])
