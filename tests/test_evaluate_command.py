"""``autoprune evaluate``: schemes that are there already, measured as a search would measure them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autoprune import api, appraisal, slicing
from autoprune.appraisal import appraise
from autoprune.architectures import ARCHITECTURES
from autoprune.errors import UserError
from autoprune.exporters import write
from autoprune.latency.meter import Meter
from autoprune.latency.stopwatch import Timing
from autoprune.recover import recalibrate_bn
from autoprune.reward import neg_loss
from autoprune.scheme import Scheme

EXAMPLE = torch.zeros(1, 1, 8, 8)
DATA = ("--calibration", "64", "--validation", "96")


def batches(seed: int, images: int = 48):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(images, 1, 8, 8, generator=generator), torch.randint(10, (images,), generator=generator))]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ARCHITECTURES["digits"]().eval()


@pytest.fixture(scope="module")
def space(model):
    return api.trace(model, EXAMPLE)


@pytest.fixture
def problem(model, space):
    def make(**given):
        return api.problem(model, EXAMPLE, batches(1), batches(2), budget="macs=100%", space=space, **given)

    return make


@pytest.fixture
def home(model, tmp_path, monkeypatch):
    """A current folder with the weights of the network."""
    monkeypatch.chdir(tmp_path)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    return tmp_path


@pytest.fixture
def evaluate(home, command_line):
    return lambda *words: command_line("evaluate", *words, "--weights", "net.safetensors", *DATA)


def rates(**given: float):
    return {name.replace("__", "."): rate for name, rate in given.items()}


# --- from Python ------------------------------------------------------------------------------------------------------


def test_rows_are_what_the_evaluator_measures_and_the_costs_of_the_widths(problem, space, monkeypatch):
    monkeypatch.setattr(appraisal, "here", lambda *_: Meter(lambda n: {k: Timing.of([len(k)]) for k in n}, "a ruler"))
    schemes = {
        "half": space.floor([0.5] * len(space)),
        "one": Scheme.from_rates(rates(blocks__1__conv1=0.25), space),
    }
    heard = []
    made = problem()
    found = appraise(made, schemes, tell=heard.append)
    assert list(found.rows) == ["dense", "half", "one"]
    assert heard == ["half", "one"]
    assert found.rows["dense"]["loss"] == made.evaluator.dense.loss
    assert found.rows["dense"]["kept"] == [group.width for group in space.groups]
    for name, scheme in schemes.items():
        row, expected = found.rows[name], made.evaluator(scheme)
        assert (row["loss"], row["accuracy"], row["kl"]) == (expected.loss, expected.accuracy, expected.kl)
        parameters = sum(tensor.numel() for tensor in made.evaluator.candidate(scheme).parameters())
        assert row["costs"]["params"] == parameters
        assert row["kept"] == list(scheme.kept)
        assert row["latency"] == len(name)  # seconds
        assert "test_accuracy" not in row
    assert found.timed == "a ruler"
    frame = found.frame()
    assert list(frame.index) == list(found.rows)
    assert frame.loc["half", "costs.macs"] == found.rows["half"]["costs"]["macs"]
    assert json.loads(json.dumps(found.to_dict()))["groups"] == [group.name for group in space.groups]


def test_chosen_channels_are_kept_and_others_are_measured_differently(problem, space):
    position = space.index("blocks.1.conv1")
    whole = [tuple(range(group.units)) for group in space.groups]
    schemes = {}
    for name, units in (("first", range(4)), ("last", range(28, 32))):
        indices = [*whole[:position], tuple(units), *whole[position + 1 :]]
        schemes[name] = Scheme(tuple(len(kept) for kept in indices), indices=tuple(indices))
    found = appraise(problem(recovery="none"), schemes)
    assert found.rows["first"]["kept"] == found.rows["last"]["kept"]
    assert found.rows["first"]["loss"] != found.rows["last"]["loss"]


def test_test_data_is_looked_at_once_and_only_when_it_is_given(problem, space):
    looks = []

    def test():
        looks.append(1)
        return batches(3)

    scheme = space.floor([0.5] * len(space))
    made = problem(test=test)
    found = appraise(made, {"half": scheme})
    assert len(looks) == 1
    seen = made.evaluator.observe(made.evaluator.candidate(scheme), batches(3))
    assert found.rows["half"]["test_accuracy"] == seen.accuracy
    assert found.rows["half"]["test_loss"] == seen.loss
    assert found.rows["dense"]["test_loss"] == made.evaluator.observe(made.evaluator.model, batches(3)).loss
    appraise(problem(), {"half": scheme})
    assert len(looks) == 1


def test_what_a_ledger_holds_is_not_measured_again(problem, space, tmp_path, monkeypatch):
    schemes = {"half": space.floor([0.5] * len(space)), "dense-ish": space.dense.replace(0, 8)}
    first = appraise(problem(), schemes, ledger=tmp_path / "ledger.jsonl")
    asked = []
    original = api.Evaluator.__call__
    monkeypatch.setattr(
        api.Evaluator, "__call__", lambda self, scheme, **given: asked.append(scheme) or original(self, scheme, **given)
    )
    more = {**schemes, "third": space.floor([0.75] * len(space))}
    again = appraise(problem(), more, ledger=tmp_path / "ledger.jsonl")
    assert [scheme for scheme in asked if scheme != space.dense] == [more["third"]]
    for name in schemes:
        assert again.rows[name]["loss"] == first.rows[name]["loss"]
    rewards = {trial.value for trial in _trials(problem(), tmp_path / "ledger.jsonl")}
    assert rewards == {-again.rows[name]["loss"] for name in more}


def _trials(made, path: Path):
    from autoprune.ledger import Ledger

    return Ledger(path, made.evaluator.fingerprint, made.evaluator.space.groups).study.get_trials()


def test_a_scheme_that_breaks_leaves_its_reason_and_the_others(problem, space):
    half, third = space.floor([0.5] * len(space)), space.floor([0.34] * len(space))

    def breaks(candidate, context):
        if len(context.kept[0]) == half.kept[0]:
            raise RuntimeError("not this one")
        recalibrate_bn(candidate, context)

    found = appraise(problem(recovery=breaks), {"half": half, "third": third})
    assert found.rows["half"] == {"kept": list(half.kept), "error": "RuntimeError: not this one"}
    assert found.rows["third"]["loss"] > 0
    from autoprune import report

    cells = [list(column.cells) for column in report.appraisal(found.rows).columns]
    assert cells[0] == ["dense", "half", "third"]
    assert cells[1][1] == "failed: RuntimeError: not this one"


def test_a_task_of_ones_own_needs_no_loss(problem, space):
    made = problem(evaluate=lambda network: {"weights": sum(t.numel() for t in network.parameters())}, reward=neg_loss)
    found = appraise(made, {"half": space.floor([0.5] * len(space))})
    assert found.rows["half"]["metrics"]["weights"] == found.rows["half"]["costs"]["params"]


def test_the_dense_networks_name_is_taken(problem, space):
    with pytest.raises(UserError, match="a scheme cannot be called 'dense'"):
        appraise(problem(), {"dense": space.dense})


# --- from the command line --------------------------------------------------------------------------------------------


def test_every_kind_of_file_is_read_and_measured_alike(evaluate, home, model, space):
    indices = [tuple(range(group.units)) for group in space.groups]
    indices[space.index("conv")] = (0, 2, 3, 5, 6, 9, 11, 15)
    indices[space.index("blocks.0.conv1")] = tuple(range(4, 12))
    scheme = Scheme(tuple(len(units) for units in indices), indices=tuple(indices))
    counts = Scheme(scheme.kept)
    write("json", scheme, space, "mine.json")
    write("csv", counts, space, "rates.csv")
    write("torch_pruning_history", scheme, space, "history.json")
    pruned = slicing.prune(model, space, [np.asarray(units) for units in indices])
    read = [
        layer.weight for layer in space.layers if space.shapes[layer.weight][1] > 1
    ]  # one channel: depthwise to AMC
    (home / "amc.txt").write_text(",".join(str(pruned.get_parameter(weight).shape[1]) for weight in read))
    save_file(pruned.state_dict(), home / "theirs.safetensors")
    run = home / "runs" / "before"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (home / "mine.json").rename(run / "scheme.json")
    sources = ("before", "history.json", "rates.csv", "amc.txt", "theirs.safetensors")
    status, out, err = evaluate(*sources, "--criterion", "l2", "--recovery", "none", "--json")
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert list(rows) == ["dense", *sources]
    for source in sources:
        assert rows[source]["kept"] == list(scheme.kept)
        assert rows[source]["costs"] == rows["rates.csv"]["costs"]
    assert rows["before"]["loss"] == rows["history.json"]["loss"]  # the very channels
    assert rows["rates.csv"]["loss"] == rows["amc.txt"]["loss"] == rows["theirs.safetensors"]["loss"]  # l2's channels
    assert rows["before"]["loss"] != rows["rates.csv"]["loss"]
    words = ("--criterion", "l2", "--recovery", "none", "--json")
    status, out, err = evaluate("rates.csv", *words, "--precision", "bfloat16")
    assert status == 0, err
    assert json.loads(out)["rows"]["rates.csv"]["loss"] != rows["rates.csv"]["loss"]


def test_the_table_has_a_line_a_network_and_test_images_are_asked_for(evaluate, home):
    (home / "a.csv").write_text("group,kept_rate\nblocks.1.conv1,0.5\n")
    status, out, err = evaluate("a.csv")
    assert status == 0, err
    assert "test" not in out
    assert all(word in out for word in ("dense", "a.csv", "accuracy", "loss", "MACs", "parameters", "ms"))
    status, out, _ = evaluate("a.csv", "--test", "--json")
    row = json.loads(out)["rows"]["a.csv"]
    assert 0 <= row["test_accuracy"] <= 1 and row["test_loss"] > 0


def test_what_is_wrong_with_a_file_is_told_before_anything_is_measured(evaluate, home, space, monkeypatch):
    monkeypatch.setattr(api, "problem", lambda *_, **__: pytest.fail("measured"))
    (home / "good.csv").write_text("group,kept\nconv,8\n")
    (home / "names.csv").write_text("group,kept\nblocks.9.conv1,8\n")
    (home / "much.csv").write_text("group,kept\nconv,17\n")
    write("json", space.dense, space, "other.json")
    record = json.loads((home / "other.json").read_text())
    record["groups"][0]["original_channels"] = 24
    (home / "other.json").write_text(json.dumps(record))
    (home / "short.txt").write_text("16,16\n")
    for source, message in (
        ("names.csv", "names.csv: line 2: no group is called 'blocks.9.conv1'"),
        ("much.csv", "much.csv: group conv: 17 kept channels is not a legal count"),
        ("other.json", "other.json: the file was made for another model: group conv has 16 channels here, 24 in"),
        ("short.txt", "short.txt: the list has 2 numbers, the network"),
        ("absent.json", "no file or folder absent.json"),
        ("no-run", "no run 'no-run'"),
    ):
        status, _, err = evaluate("good.csv", source)
        assert status == 2
        assert message in err
