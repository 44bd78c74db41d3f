"""Listeners and trackers: who is told what, what is sent where, and that none of them can lose a search."""

from __future__ import annotations

import ast
import json
import logging
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import toy
from autoprune import api, data, demo, trackers
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.fidelity import Batch, Fidelity
from autoprune.ledger import Ledger
from autoprune.listeners import Audience, Steps, farewell, numbers, together
from autoprune.loop import Loop, Stop
from autoprune.reward import Reward
from autoprune.run import Run
from autoprune.scheme import Scheme
from autoprune.trackers.tracker import RECORD, End, Tracker, results
from autoprune.trial import Measurement

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]*)\|$", re.MULTILINE)

Heard = list[tuple[str, Mapping[str, Any]]]


# -- the table of events ---------------------------------------------------------------------------


def written() -> dict[str, set[str]]:
    """Every event of docs/tracking.md with its facts."""
    text = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    table = text[text.index("| event |") :].split("\n\n")[0]
    return {event: set(re.findall(r"`(\w+)`", facts)) for event, _, facts in ROW.findall(table)}


def emitted() -> dict[str, set[str]]:
    """Every event that the code tells, ``tell("event", facts)``, with its facts."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "autoprune").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text if "tell(" in text else "")
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and len(call.args) == 2 and isinstance(call.args[0], ast.Constant)):
                continue
            name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            if name == "tell":
                found.setdefault(call.args[0].value, set()).update(keys(call.args[1], tree))
    return found


def keys(facts: ast.expr, tree: ast.Module) -> Iterator[str]:
    """The keys of a dict that is written there, assigned to a name, or returned by a function of the same file."""
    if isinstance(facts, ast.Dict):
        for key, value in zip(facts.keys, facts.values, strict=True):
            if key is None:
                yield from keys(value, tree)
            else:
                yield ast.literal_eval(key)
        return
    for node in ast.walk(tree):
        if isinstance(facts, ast.Name) and isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == facts.id:
            yield from keys(node.value, tree)
        if isinstance(facts, ast.Call) and isinstance(node, ast.FunctionDef) and node.name == ast.unparse(facts.func):
            for end in ast.walk(node):
                if isinstance(end, ast.Return) and end.value is not None:
                    yield from keys(end.value, tree)


def test_the_page_has_every_event_that_the_code_tells_with_its_facts() -> None:
    assert len(written()) >= 14
    assert written() == emitted()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, with_digits: Callable[[Path], Path]) -> nn.Module:
    """The embedded network."""
    return demo.digits(with_digits(tmp_path_factory.mktemp("network")))


@pytest.fixture(scope="module")
def problem(network: nn.Module) -> api.Problem:
    """What most of these tests search."""
    splits = data.load("digits", calibration=64, validation=64)
    return api.problem(network, torch.zeros(1, 1, 8, 8), splits.calibration, splits.validation, budget="macs=50%")


@pytest.fixture
def search(problem: api.Problem, tmp_path: Path) -> Callable[..., Run]:
    """A short search."""

    def go(trials: int = 3, run: str = "one", reward: Reward | None = None, **choices: Any) -> Run:
        asked = problem if reward is None else replace(problem, reward=reward)
        return asked.search("random", stop=Stop(trials), run=run, root=tmp_path, **choices)

    return go


def test_a_search_tells_what_the_page_says_and_whether_a_trial_was_measured(
    network: nn.Module, search: Callable[..., Run], tmp_path: Path
) -> None:
    heard: Heard = []
    splits = data.load("digits", calibration=64, validation=64)
    run = api.search(
        network, torch.zeros(1, 1, 8, 8), splits.calibration, splits.validation, budget="macs=50%", searcher="random",
        trials=3, run="one", root=tmp_path, listener=lambda event, facts: heard.append((event, dict(facts))),
    )  # fmt: skip
    assert [event for event, _ in heard] == [
        "traced", "budget", "started", "dense", "uniform", *["trial"] * 3, "done",
    ]  # fmt: skip
    for event, facts in heard:
        assert set(facts) == written()[event] - ({"sensitivity"} if event == "done" else set())
    assert heard[2][1] == {"folder": run.folder, "config": json.loads((run.folder / "config.json").read_text())}
    first = [facts["trial"].scheme for event, facts in heard if event == "trial"]
    heard.clear()
    search(listener=lambda event, facts: heard.append((event, dict(facts))), trials=5)
    again = [facts for event, facts in heard if event == "trial"]
    assert [facts["trial"].scheme for facts in again][:3] == first
    assert [facts["measured"] for facts in again] == [False] * 3 + [True] * 2


def test_an_error_that_ends_a_search_is_told(search: Callable[..., Run]) -> None:
    heard: Heard = []

    def broken(measurement: Measurement) -> float:
        raise UserError("no reward today")

    with pytest.raises(UserError, match="no reward today"):
        search(listener=lambda event, facts: heard.append((event, facts)), reward=broken)
    event, facts = heard[-1]
    assert event == "failed"
    assert "no reward today" in str(facts["error"])
    assert "done" not in [event for event, _ in heard]


# -- listeners -------------------------------------------------------------------------------------


def test_several_listeners_hear_everything_in_turn_and_any_may_end_the_search(search: Callable[..., Run]) -> None:
    heard: list[str] = []

    def first(event: str, facts: Mapping[str, Any]) -> bool:
        heard.append("first")
        return event == "trial" and len(facts["loop"].trials) == 2

    run = search(listener=[first, lambda event, facts: heard.append("second")])
    assert run.summary["trials"] == 2
    assert "callback" in run.summary["ended"]
    assert heard == ["first", "second"] * (len(heard) // 2)


def test_a_listener_that_fails_loses_neither_the_search_nor_what_others_hear(
    search: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def broken(event: str, facts: Mapping[str, Any]) -> None:
        raise ConnectionError("nobody\nthere")

    run = search(listener=[broken, lambda event, facts: heard.append(event)])
    assert heard[-1] == "done"
    warned = [record.getMessage() for record in caplog.records if "listener" in record.getMessage()]
    assert len(warned) == 2
    assert "broken failed at 'started' (ConnectionError: nobody there)" in warned[0]
    assert "told of the end alone" in warned[1]
    plain = search(run="plain")
    assert run.summary["kept"] == plain.summary["kept"]
    assert run.summary["reward"] == plain.summary["reward"]


def test_a_listener_that_recovers_is_warned_of_again_and_told_on(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([True, False, False, True, False, False, True, True])
    heard: list[str] = []

    def moody(event: str, facts: Mapping[str, Any]) -> bool:
        if not next(answers):
            raise OSError("away")
        heard.append(event)
        return True

    tell = Audience([moody])
    with caplog.at_level(logging.WARNING):
        assert [tell(letter, {}) for letter in "abcdefgh"] == [True, False, False, True, False, False, True, True]
    assert heard == ["a", "d", "g", "h"]
    assert len(caplog.records) == 2


def test_after_three_failures_in_a_row_a_listener_hears_of_the_end_alone() -> None:
    calls: list[str] = []

    def broken(event: str, facts: Mapping[str, Any]) -> None:
        calls.append(event)
        raise RuntimeError

    tell = together(broken)
    for event in ("a", "b", "c", "d", "failed", "e", "done"):
        assert tell(event, {}) is False
    assert calls == ["a", "b", "c", "failed", "done"]


def test_ctrl_c_passes_and_ends_the_search_with_the_best_so_far(search: Callable[..., Run]) -> None:
    def impatient(event: str, facts: Mapping[str, Any]) -> None:
        if event == "trial":
            raise KeyboardInterrupt

    assert search(listener=[impatient]).summary["interrupted"]


def test_what_cannot_be_called_is_refused_before_anything_happens(search: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="listener 'mlflow' cannot be called"):
        search(listener=["mlflow"])
    assert not (tmp_path / "one").exists()


def test_together_of_nothing_tells_nobody_and_of_an_audience_is_that_audience() -> None:
    assert together(None)("trial", {}) is False
    audience = Audience([])
    assert together(audience) is audience


def test_farewell_tells_of_every_end_by_an_error() -> None:
    heard: Heard = []
    for error in (ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), farewell(lambda event, facts: heard.append((event, facts))):
            raise error
    with farewell(lambda event, facts: heard.append((event, facts))):
        pass
    assert [(event, type(facts["error"])) for event, facts in heard] == [
        ("failed", ValueError), ("failed", KeyboardInterrupt),
    ]  # fmt: skip


# -- trials as numbers -----------------------------------------------------------------------------

SPACE = toy.chain((8, 16, 12))
BUDGET = Budget.parse("macs=60%", SPACE)


def seen(scheme: Scheme) -> Measurement:
    kept = float(sum(scheme.kept))
    return Measurement(loss=kept, accuracy=1 / kept, fractions={"macs": kept / 36}, metrics={"dice": float("nan")})


def play(listener: Callable[[str, Mapping[str, Any]], Any], schemes: list[Scheme], share: float = 1.0) -> Loop:
    """A loop over given schemes that tells of its trials."""

    def proposals() -> Iterator[Any]:
        yield Batch(schemes, Fidelity(share=share))

    stop = Stop(callback=lambda trial, loop: bool(listener("trial", {"trial": trial, "loop": loop, "measured": True})))
    loop = Loop(proposals(), BUDGET, lambda m: m.accuracy, Ledger(None, "toy", SPACE.groups), stop)
    while asked := loop.ask():
        loop.tell((scheme, seen(scheme)) for scheme in asked)
    return loop


SCHEMES = [Scheme((kept, 8, 6)) for kept in (4, 3, 2, 1)]


def test_the_numbers_of_a_trial_are_those_that_it_has() -> None:
    found: list[dict[str, float]] = []
    play(lambda event, facts: found.append(dict(numbers(facts))), SCHEMES)
    assert [one["reward/last"] for one in found] == [1 / 18, 1 / 17, 1 / 16, 1 / 15]
    assert found[0] == {
        "reward/last": 1 / 18, "reward/best": 1 / 18, "fraction/macs": 0.5, "loss": 18.0, "accuracy": 1 / 18,
        "kept/conv0": 0.5, "kept/conv1": 0.5, "kept/conv2": 0.5,
    }  # fmt: skip


def test_trials_are_numbered_through_all_rounds_of_a_search() -> None:
    steps = Steps()
    found: list[int | None] = []
    play(lambda event, facts: found.append(steps(event, facts)), SCHEMES[:2], share=0.5)
    assert found == [None, None]
    steps = Steps()
    found.clear()
    play(lambda event, facts: found.append(steps(event, facts)), SCHEMES[:3])
    steps("tightened", {})
    play(lambda event, facts: found.append(steps(event, facts)), SCHEMES[1:])
    steps("started", {})
    play(lambda event, facts: found.append(steps(event, facts)), SCHEMES[:1])
    assert found == [1, 2, 3, 4, 5, 6, 1]


# -- what all trackers do --------------------------------------------------------------------------


class Notebook(Tracker):
    """A tracker that writes down what it is asked to do; runs in ``gone`` cannot be continued."""

    def __init__(self, place: str = "notebook") -> None:
        super().__init__(place)
        self.pages: list[tuple[Any, ...]] = []
        self.gone: set[str] = set()

    def _open(self, known: str | None, folder: Path, config: Mapping[str, Any]) -> str:
        self.pages.append(("open", known))
        return f"run {len(self.pages)}" if known is None or known in self.gone else known

    def _log(self, found: Mapping[str, float], step: int) -> None:
        self.pages.append(("log", step, found["reward/last"]))

    def _finish(self, rows: Mapping[str, float], files: list[Path]) -> None:
        self.pages.append(("finish", dict(rows), [path.name for path in files]))

    def _close(self, how: End) -> None:
        self.pages.append(("close", how))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has ended, as far as trackers look."""
    (tmp_path / "scheme.json").touch()
    rows = {
        "dense": {"accuracy": 0.75, "kl": None, "costs": {"macs": 36.0}},
        "found": {"accuracy": float("nan"), "costs": {"macs": 18.0}, "metrics": {"dice": 0.5}},
    }
    return Run(tmp_path, {}, {"rows": rows, "interrupted": False})


def follow(tracker: Tracker, run: Run, schemes: list[Scheme], end: str = "done") -> None:
    tracker("started", {"folder": run.folder, "config": {}})
    play(tracker, schemes)
    tracker(end, {"run": run, "error": ValueError()})


def test_a_tracker_gets_every_trial_and_at_the_end_the_rows_and_the_files(run: Run) -> None:
    notebook = Notebook()
    follow(notebook, run, SCHEMES[:2])
    rows = {"dense/accuracy": 0.75, "dense/costs.macs": 36.0, "found/costs.macs": 18.0, "found/metrics.dice": 0.5}
    assert dict(results(run.summary)) == rows
    assert notebook.pages == [
        ("open", None), ("log", 1, 1 / 18), ("log", 2, 1 / 17),
        ("finish", rows, ["scheme.json"]), ("close", "finished"),
    ]  # fmt: skip


def test_a_continued_run_goes_on_where_it_was_and_sends_no_trial_twice(run: Run) -> None:
    follow(Notebook(), run, SCHEMES[:2])
    notebook, elsewhere = Notebook(), Notebook("another store")
    for tracker in (notebook, elsewhere):
        follow(tracker, run, SCHEMES)
    assert notebook.pages[:3] == [("open", "run 1"), ("log", 3, 1 / 16), ("log", 4, 1 / 15)]
    assert elsewhere.pages[:2] == [("open", None), ("log", 1, 1 / 18)]
    assert set(json.loads((run.folder / RECORD).read_text())) == {"notebook", "another store"}


def test_a_run_that_is_gone_over_there_is_sent_whole(run: Run) -> None:
    follow(Notebook(), run, SCHEMES[:2])
    notebook = Notebook()
    notebook.gone = {"run 1"}
    notebook.pages.append(("something else",))
    follow(notebook, run, SCHEMES[:3])
    assert [page for page in notebook.pages if page[0] == "log"] == [
        ("log", 1, 1 / 18), ("log", 2, 1 / 17), ("log", 3, 1 / 16),
    ]  # fmt: skip


def test_trials_that_could_not_be_sent_follow_with_the_next_one(run: Run) -> None:
    class Flaky(Notebook):
        away = 2

        def _log(self, found: Mapping[str, float], step: int) -> None:
            if self.away:
                self.away -= 1
                raise ConnectionError
            super()._log(found, step)

    notebook = Flaky()
    follow(together(notebook), run, SCHEMES[:3])
    assert [page[1] for page in notebook.pages if page[0] == "log"] == [1, 2, 3]
    assert notebook.pages[-1] == ("close", "finished")
    late = Flaky("another place")
    late.away = 3
    follow(together(late), run, SCHEMES[:3])  # it comes back for the end alone
    assert [page[1] for page in late.pages if page[0] == "log"] == [1, 2, 3]


def test_a_search_that_was_interrupted_outside_its_trials_is_told_so(run: Run) -> None:
    notebook = Notebook()
    notebook("started", {"folder": run.folder, "config": {}})
    notebook("failed", {"error": KeyboardInterrupt()})
    assert notebook.pages[-1] == ("close", "interrupted")


def test_how_a_search_ended_is_told_and_nothing_follows(run: Run) -> None:
    failed, interrupted = Notebook(), Notebook("two")
    follow(failed, run, SCHEMES[:1], "failed")
    assert failed.pages[-1] == ("close", "failed")
    run.summary["interrupted"] = True
    follow(interrupted, run, SCHEMES[:1])
    assert interrupted.pages[-1] == ("close", "interrupted")
    before = len(interrupted.pages)
    play(interrupted, SCHEMES)
    interrupted("done", {"run": run})
    assert len(interrupted.pages) == before


def test_before_a_search_starts_and_without_one_there_is_nothing_to_send() -> None:
    notebook = Notebook()
    notebook("traced", {"space": SPACE})
    play(notebook, SCHEMES)
    notebook("done", {"sensitivity": None})
    assert notebook.pages == []


def test_a_run_is_closed_even_if_its_files_cannot_be_sent(run: Run) -> None:
    class Full(Notebook):
        def _finish(self, rows: Mapping[str, float], files: list[Path]) -> None:
            raise OSError("no room")

    notebook = Full()
    follow(together(notebook), run, SCHEMES[:1])
    assert notebook.pages[-1] == ("close", "finished")


# -- the trackers by name --------------------------------------------------------------------------


def make(name: str = "x") -> Notebook:
    return Notebook(name)


def no_listener() -> int:
    return 3


def test_a_tracker_of_ones_own_is_a_function_of_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mytrackers", sys.modules[__name__])
    found = trackers.find("mytrackers:make,name=lab")
    assert isinstance(found, Notebook)
    assert found._place == "lab"
    with pytest.raises(UserError, match="is a int, not a function"):
        trackers.find("mytrackers:no_listener")
    with pytest.raises(UserError, match="no option 'key': its options are name"):
        trackers.find("mytrackers:make,key=1")
    with pytest.raises(UserError, match="tracker 'mlfow' is unknown.*mlflow"):
        trackers.find("mlfow")


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_refused_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as Python marks what cannot be imported
    with pytest.raises(UserError, match=rf"pip install 'autoprune\[{name}\]'"):
        trackers.find(name)


# -- the real ones ---------------------------------------------------------------------------------


def test_mlflow_has_the_search_once_and_whole_also_when_it_was_continued(
    search: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'autoprune[mlflow]'")
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    name = f"mlflow,uri={store},experiment=pruning"
    search(listener=trackers.find(name))
    run = search(listener=trackers.find(name), trials=5)
    client = mlflow.MlflowClient(store)
    (there,) = client.search_runs([client.get_experiment_by_name("pruning").experiment_id])
    assert (there.info.run_name, there.info.status) == ("one", "FINISHED")
    history = client.get_metric_history(there.info.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5]
    assert [point.value for point in history] == pytest.approx(run.history()["loss"].tolist()[1:])
    assert there.data.params["budget.macs"] == str(run.config["request"]["budget"]["macs"])
    assert there.data.params["searcher"] == "random"
    assert there.data.tags["autoprune.stop.trials"] == "5"
    assert there.data.metrics["found/accuracy"] == run.summary["rows"]["found"]["accuracy"]
    assert {file.path for file in client.list_artifacts(there.info.run_id)} == {"scheme.json", "report.html"}
    client.delete_run(there.info.run_id)
    search(listener=trackers.find(name), trials=5)
    (there,) = client.search_runs([client.get_experiment_by_name("pruning").experiment_id])
    assert len(client.get_metric_history(there.info.run_id, "loss")) == 5
    with pytest.raises(UserError, match="no reward today"):
        search(listener=trackers.find(name), trials=6, reward=failing)
    assert client.get_run(there.info.run_id).info.status == "FAILED"


def failing(measurement: Measurement) -> float:
    raise UserError("no reward today")


def test_wandb_has_the_search_once_and_whole_also_when_it_was_continued(
    search: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'autoprune[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    name = f"wandb,project=pruning,mode=offline,folder={tmp_path}"
    search(listener=trackers.find(name))
    run = search(listener=trackers.find(name), trials=5)
    wandb.teardown()  # its own process writes the end of the files
    first, second = (records(path) for path in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")))
    losses = run.history()["loss"].tolist()[1:]
    assert [row["trial"] for row in first["history"]] == [1, 2, 3]
    assert [row["trial"] for row in second["history"]] == [4, 5]
    assert [row["loss"] for row in (*first["history"], *second["history"])] == pytest.approx(losses)
    assert first["id"] == second["id"]
    assert second["config"]["searcher"] == "random"
    assert second["config"]["stop.trials"] == 5
    assert second["summary"]["found/accuracy"] == run.summary["rows"]["found"]["accuracy"]
    assert second["files"] == {"scheme.json", "report.html"}


def records(path: Path) -> dict[str, Any]:
    """What an offline run of W&B holds."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"history": [], "config": {}, "summary": {}, "files": set()}
    for packed in log_entries(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(packed)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["id"] = record.run.run_id
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found["history"].append(items)
        elif kind == "summary":
            found["summary"] |= {
                "/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update
            }
        elif kind in ("artifact", "request") and (record.artifact.name or record.request.log_artifact.artifact.name):
            artifact = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
            found["files"] |= {entry.path for entry in artifact.manifest.contents}
    return found


def log_entries(text: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log after W&B's header: pieces with checksum, length and kind, in blocks of 32 KiB."""
    at, parts = 7, b""
    while at + 7 <= len(text):
        room = 2**15 - at % 2**15
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", text[at + 4 : at + 7])
        parts += text[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""
