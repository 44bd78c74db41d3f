import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import autoprune
from autoprune import data, demo
from autoprune.errors import UserError
from autoprune.fidelity import FULL
from autoprune.reward import constraint_punish
from autoprune.run import LEDGER, Run


@pytest.fixture(scope="module")
def digits(tmp_path_factory, with_digits):
    """The trained digits network and small splits."""
    network = demo.digits(with_digits(tmp_path_factory.mktemp("runs")))
    return network, torch.zeros(1, 1, 8, 8), data.load("digits", calibration=128, validation=128)


@pytest.fixture
def search(digits, tmp_path):
    network, example, splits = digits

    def go(**choices):
        given = {"budget": "macs=50%", "trials": 6, "root": tmp_path, "run": "one", "batch": 3, **choices}
        return autoprune.search(network, example, splits.calibration, splits.validation, **given)

    return go


def schemes(run):
    frame = run.trials()
    kept = [column for column in frame.columns if column.startswith("kept.")]
    return [tuple(row) for row in frame[kept].to_numpy().tolist()]


def test_a_search_ends_with_an_affordable_scheme_and_a_network_of_those_widths(search, digits):
    network, _, splits = digits
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run = search(test=splits.test)
    rows = run.summary["rows"]
    assert rows["found"]["fractions"]["macs"] <= 0.5
    assert run.summary["reward"] >= run.summary["uniform_reward"]
    assert run.summary["trials"] == 6
    widths = {name: tensor.shape for name, tensor in run.model.named_parameters()}
    for group, count in zip(run.space.groups, run.scheme.kept, strict=True):
        assert widths[group.slices[0].path][group.slices[0].axis] == count
    entries = sum(tensor.numel() for tensor in run.model.parameters())
    assert entries == rows["found"]["costs"]["params"]
    assert set(rows) == {"dense", "uniform", "found"}
    assert all({"test_accuracy", "latency", "accuracy"} <= set(row) for row in rows.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_folder_holds_the_run_whole(search, digits):
    network, example, _ = digits
    run = search()
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "config.json",
        LEDGER,
        "front.json",
        "history.csv",
        "scheme.json",
        "pruned.safetensors",
        "report.html",
        "widths.svg",
        "summary.json",
    }
    again = autoprune.load_pruned(lambda: network, run.folder)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(example), run.model(example))
    assert Run.open(run.folder).summary == json.loads(json.dumps(run.summary))
    config = json.loads((run.folder / "config.json").read_text())
    assert torch.__version__.startswith(config["versions"]["torch"])
    assert config["request"]["seed"] == 0


def test_the_same_seed_gives_the_same_schemes_and_numbers(search):
    first, second = search(run="one"), search(run="two")
    assert schemes(first) == schemes(second)
    assert first.trials()["loss"].tolist() == second.trials()["loss"].tolist()
    assert first.scheme == second.scheme


def test_another_seed_gives_other_schemes(search):
    assert schemes(search(searcher="random", seed=0)) != schemes(search(searcher="random", seed=1, run="two"))


def test_a_finished_run_is_extended_without_measuring_anything_twice(search, monkeypatch):
    short = schemes(search(trials=4))
    measured = []
    original = autoprune.Evaluator.__call__

    def counting(self, scheme, fidelity=FULL):
        if fidelity.full:
            measured.append(scheme)
        return original(self, scheme, fidelity=fidelity)

    monkeypatch.setattr(autoprune.Evaluator, "__call__", counting)
    longer = search(trials=9)
    assert len(measured) == len(set(measured)) == len(schemes(longer)) - len(short)
    assert schemes(longer)[: len(short)] == short
    assert schemes(longer) == schemes(search(trials=9, run="undisturbed"))


def test_another_reward_reuses_the_measurements(search, monkeypatch):
    search(searcher="random")
    monkeypatch.setattr(autoprune.Evaluator, "candidate", _only_for_the_answer(autoprune.Evaluator.candidate))
    run = search(searcher="random", reward="accuracy")
    assert run.summary["reward"] == run.summary["rows"]["found"]["accuracy"]


def test_options_of_a_reward_are_written_down_and_wrong_ones_refused_before_any_run_exists(search, tmp_path):
    with pytest.raises(UserError, match="target = 2"):
        search(reward=partial(constraint_punish, target=2))
    assert not (tmp_path / "one").exists()
    run = search(searcher="uniform", reward=partial(constraint_punish, target=0.3))
    assert run.summary["reward"] == pytest.approx(0.3 - run.summary["rows"]["found"]["fractions"]["macs"])
    assert Run.open(run.folder).config["reward"] == "autoprune.reward:constraint_punish(target=0.3)"


def test_what_a_wrong_reward_could_not_score_is_not_measured_again(search, monkeypatch):
    with pytest.raises(UserError, match="returned '.*' .str.: a reward must be a finite number"):
        search(searcher="uniform", reward=lambda m: str(m.accuracy))
    monkeypatch.setattr(autoprune.Evaluator, "candidate", _only_for_the_answer(autoprune.Evaluator.candidate))
    assert search(searcher="uniform").summary["trials"] == 1


def _only_for_the_answer(original):
    """Let the sanity check and the final networks through, but no more than that."""
    calls = []

    def counting(self, scheme, fidelity=FULL):
        calls.append(scheme)
        assert len(calls) <= 3, "something was measured again"
        return original(self, scheme, fidelity)

    return counting


def test_the_same_name_with_another_budget_is_refused_with_the_difference(search):
    search()
    with pytest.raises(UserError, match="another request.*budget"):
        search(budget="macs=40%")


def test_the_test_set_is_asked_for_once_and_only_at_the_end(search, digits):
    splits = digits[2]
    events, looks = [], []

    def test():
        looks.append(list(events))
        return splits.test()

    search(test=test, listener=lambda event, facts: events.append(event))
    assert len(looks) == 1
    assert looks[0].count("trial") == 6
    search(test=test)
    assert len(looks) == 1  # the answer is the same: what was seen is read again


def test_events_come_in_order(search):
    events = []
    search(listener=lambda event, facts: events.append(event))
    assert events == ["traced", "budget", "started", "dense", "uniform", *["trial"] * 6, "done"]


def test_ctrl_c_leaves_a_valid_best_so_far_and_the_run_goes_on_later(search):
    seen = []

    def impatient(event, facts):
        if event == "trial":
            seen.append(facts)
            if len(seen) == 3:
                raise KeyboardInterrupt

    run = search(listener=impatient)
    assert "interrupted" in run.summary["ended"]
    assert run.summary["rows"]["found"]["fractions"]["macs"] <= 0.5
    assert (run.folder / "pruned.safetensors").is_file()
    assert schemes(search()) == schemes(search(run="undisturbed"))


def test_several_caps_hold_at_once(search):
    run = search(budget=["macs=60%", "params=40%"])
    fractions = run.summary["rows"]["found"]["fractions"]
    assert fractions["macs"] <= 0.6
    assert fractions["params"] <= 0.4


def test_target_and_timeout_stop_the_search(search):
    assert "target" in search(target=-1e9).summary["ended"]
    assert "timeout" in search(timeout=1e-6, run="two").summary["ended"]


@pytest.mark.parametrize("searcher", ["uniform", "random", "netadapt", "swap"])
def test_every_searcher_runs_end_to_end(search, searcher):
    run = search(searcher=searcher, trials=60 if searcher == "netadapt" else 4)
    assert run.summary["rows"]["found"]["fractions"]["macs"] <= 0.5


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "taylor", "obs"])
def test_every_criterion_runs_end_to_end(search, criterion):
    assert search(criterion=criterion, searcher="uniform").summary["trials"] == 1


def test_a_start_scheme_is_tried(search):
    space = search().space
    start = space.smallest
    run = search(start=[start], trials=8, run="two")
    assert start.kept in schemes(run)


def test_an_option_that_the_searcher_does_not_have_is_refused(search):
    known = "its options are moves, exchanges, curves"
    with pytest.raises(UserError, match=f"searcher auto has no option 'spread': {known}"):
        search(options={"spread": 1})
    with pytest.raises(UserError, match="searcher swap: option screen='4': expected a whole number"):
        search(searcher="swap", options={"screen": "4"})


def test_options_of_a_searcher_that_are_out_of_range_are_refused_before_any_run_exists(search, tmp_path):
    with pytest.raises(UserError, match="step=3"):
        search(searcher="swap", options={"step": 3.0})
    assert not list(tmp_path.iterdir())


def test_an_unreachable_budget_is_refused_with_the_range_before_any_run_exists(search, tmp_path):
    with pytest.raises(UserError, match=r"cannot be reached.*from"):
        search(budget="macs=10")
    assert not (tmp_path / "one").exists()


def test_a_network_that_cannot_run_is_refused(digits, tmp_path):
    _, _, splits = digits
    with pytest.raises(UserError, match="cannot run on the example input"):
        autoprune.search(
            nn.Sequential(nn.Flatten(), nn.Linear(5, 10)),
            torch.zeros(1, 1, 8, 8),
            splits.calibration,
            splits.validation,
            budget="macs=50%",
            root=tmp_path,
        )


def test_labels_out_of_range_and_empty_loaders_are_refused(digits, tmp_path):
    network, example, splits = digits
    images, labels = splits.validation[0]
    for validation, words in (([(images, labels + 7)], "validation.*range|label"), ([], "validation")):
        with pytest.raises(UserError, match=words):
            autoprune.search(network, example, splits.calibration, validation, budget="macs=50%", root=tmp_path)


def test_a_network_with_nothing_to_prune_says_why(digits, tmp_path):
    _, example, splits = digits
    alone = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match="nothing in this network can be pruned.*output"):
        autoprune.search(alone, example, splits.calibration, splits.validation, budget="macs=50%", root=tmp_path)


def test_a_network_whose_answers_vary_is_refused(digits, tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
            self.calls = 0

        def forward(self, x):
            return self.net(x) + torch.randn(len(x), 10)

    _, example, splits = digits
    with pytest.raises(UserError, match="nothing cut|not repeatable|nothing in this network"):
        autoprune.search(Noisy(), example, splits.calibration, splits.validation, budget="macs=50%", root=tmp_path)


def test_an_own_task_needs_no_labels(search, digits):
    network, _, splits = digits
    images = splits.validation[0][0]
    with torch.no_grad():
        wanted = network(images)

    def evaluate(model):
        with torch.no_grad():
            return {"loss": float((model(images) - wanted).square().mean()), "size": 1.0}

    run = search(evaluate=evaluate)
    assert run.summary["rows"]["dense"]["metrics"]["loss"] == 0.0
    assert np.isfinite(run.summary["reward"])


def test_an_own_task_without_loss_needs_a_named_reward(search):
    with pytest.raises(UserError, match="reward"):
        search(evaluate=lambda model: {"dice": 0.5})
    run = search(evaluate=lambda model: {"dice": 0.5}, reward=lambda m: m.metrics["dice"])
    assert run.summary["reward"] == 0.5


def test_candidates_that_break_are_recorded_and_the_search_goes_on(search, monkeypatch):
    original = autoprune.Evaluator.candidate
    calls = []

    def fragile(self, scheme, fidelity=FULL):
        calls.append(scheme)
        if len(calls) in (4, 6):
            raise RuntimeError("out of luck")
        return original(self, scheme, fidelity)

    monkeypatch.setattr(autoprune.Evaluator, "candidate", fragile)
    run = search(trials=8)
    frame = run.trials()
    assert run.summary["failed"] == 2
    assert frame["error"].dropna().tolist() == ["RuntimeError: out of luck"] * 2
    assert run.summary["trials"] == 8


def test_a_killed_search_continues_where_it_stopped(tmp_path, with_digits):
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import torch, autoprune
        from autoprune import data, demo
        network = demo.digits(Path(sys.argv[1]))
        splits = data.load("digits", calibration=64, validation=64)
        autoprune.search(network, torch.zeros(1, 1, 8, 8), splits.calibration, splits.validation, budget="macs=50%",
                         trials=int(sys.argv[2]), root=sys.argv[1], run=sys.argv[3], searcher="random", batch=4)
        """
    )

    def command(trials, name):
        return [sys.executable, "-c", program, str(tmp_path), str(trials), name]

    with_digits(tmp_path)
    process = subprocess.Popen(command(5000, "killed"))
    ledger = tmp_path / "killed" / LEDGER
    deadline = time.monotonic() + 120
    while not (ledger.is_file() and ledger.read_text().count('"measurement"') > 6):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    recorded = schemes(Run.open(tmp_path / "killed"))
    assert len(recorded) > 6
    subprocess.run(command(len(recorded) + 5, "killed"), check=True)
    finished = schemes(Run.open(tmp_path / "killed"))
    assert finished[: len(recorded)] == recorded
    assert len(set(finished)) == len(finished)


def test_the_scheme_file_prunes_the_network_to_the_same_answers(search, digits, tmp_path):
    from autoprune import api, exporters

    network, example, _ = digits
    run = search(recovery="none")
    scheme = exporters.read(Path(run.folder) / "scheme.json", run.space)
    assert scheme == run.scheme
    done = api.apply(network, run.space, scheme, tmp_path / "out", recovery="none")
    again = autoprune.load_pruned(lambda: network, tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(example), run.model(example))
    assert done.summary["costs"] == run.summary["rows"]["found"]["costs"]
    assert done.scheme == run.scheme


def test_a_run_in_a_shared_ledger_is_read_from_anywhere_and_its_password_is_not_written_down(
    search, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = search(trials=2, ledger="shared.jsonl")
    monkeypatch.chdir("/")
    assert len(Run.open(run.folder).trials()) >= 2
    secret = Run(run.folder, {**run.config, "ledger": "postgresql://me:***@host/db"})
    with pytest.raises(UserError, match="give its URL with the password"):
        secret.trials()


def test_own_functions_of_one_name_are_told_apart_by_an_identity_and_cost_tables_by_their_values(digits):
    network, example, splits = digits

    def fingerprint(**choices):
        made = autoprune.api.problem(
            network, example, splits.calibration, splits.validation, budget="macs=50%", **choices
        )
        return made.evaluator.fingerprint

    def evaluate(model):
        return {"loss": 1.0}

    assert fingerprint(evaluate=evaluate, identity={"set": 1}) != fingerprint(evaluate=evaluate, identity={"set": 2})
    ends = {"ends": lambda scheme: float(scheme.kept[0] > 1) + 1}
    bent = {"ends": lambda scheme: float(scheme.kept[0] > 9) + 1}  # the same at both ends
    assert fingerprint(costs=ends) != fingerprint(costs=bent)
    assert fingerprint(costs=ends) == fingerprint(costs=ends)
