"""Every place that a ledger may lie in, for real: a journal, SQLite, PostgreSQL, and Optuna's gRPC proxy."""

from __future__ import annotations

import json
import math
import signal
import socket
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

import autoprune
import servers
from autoprune import api, compare, data, demo, storage
from autoprune import ledger as ledgers
from autoprune.errors import UserError
from autoprune.fidelity import FULL, Fidelity
from autoprune.ledger import Ledger
from autoprune.run import Run
from autoprune.scheme import Scheme
from autoprune.trial import Measurement

GROUPS = ("stem", "block.conv1")
QUICK = Fidelity(share=0.25)
POSTGRESQL_FIRST = [
    "postgresql",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("journal", "sqlite", "grpc")),
]
PROXY_LAST = ["journal", "sqlite", "postgresql", pytest.param("grpc", marks=pytest.mark.slow)]
PASSWORD = "s3cret"  # the beginning of the server's, so that neither spelling of the rest hides it


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Postgres]:
    """A PostgreSQL of our own, for all tests of this file."""
    with servers.postgres() as running:
        yield running


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A new and empty storage of a kind, as one names it."""
    with ExitStack() as stack:

        def place(kind: str) -> str:
            if kind == "journal":
                return str(tmp_path / "ledger.jsonl")
            if kind == "sqlite":
                return f"sqlite:///{tmp_path / 'ledger.db'}"
            if kind == "postgresql":
                return request.getfixturevalue("server").new_database(uuid.uuid4().hex)
            return stack.enter_context(servers.proxy(f"sqlite:///{tmp_path / 'behind.db'}"))

        yield place


@pytest.fixture(params=["journal", "sqlite", "postgresql", "grpc"])
def where(request: pytest.FixtureRequest, make: Callable[[str], str]) -> str:
    """A new and empty storage of each kind."""
    return make(request.param)


def seen(loss: float, **others: Any) -> Measurement:
    return Measurement(loss=loss, accuracy=0.5, costs={"macs": 3e9 + 0.125}, seconds={"total": 2.0}, **others)


def test_a_ledger_is_found_again_as_it_was_written(where: str) -> None:
    odd = Measurement(loss=math.inf, costs={"macs": 7.0}, metrics={"low": -math.inf, "x": 0.1 + 0.2})
    records = {
        (Scheme((4, 16)), FULL): (seen(1.5), -1.5),
        (Scheme((4, 17)), FULL): (odd, 0.1 + 0.2),
        (Scheme((4, 18)), FULL): (seen(2.5), None),
        (Scheme((9, 24)), FULL): (Measurement(error="out of memory"), -math.inf),
        (Scheme((9, 24)), QUICK): (seen(0.5), -0.5),
        (Scheme((4, 16), "weight"), FULL): (seen(3.5), -3.5),
    }
    ledger = Ledger(where, "p", GROUPS)
    for (scheme, fidelity), (measurement, reward) in records.items():
        assert ledger.find(scheme, fidelity) is None
        assert ledger.append(scheme, measurement, reward, fidelity)
        assert not ledger.append(scheme, seen(9.0), -9.0, fidelity)
    again = Ledger(where, "p", GROUPS)
    for one in (ledger, again):
        assert len(one) == len(one.frame()) == len(one.study.trials) == len(records)
        for (scheme, fidelity), (measurement, _) in records.items():
            found = one.find(scheme, fidelity)
            assert found is not None
            assert repr(found) == repr(measurement)  # NaN is not itself
        assert one.frame()["reward"].tolist()[:2] == [-1.5, 0.1 + 0.2]
        assert one.frame()["kept.block.conv1"].tolist() == [16, 17, 18, 24, 24, 16]
    states = [trial.state for trial in again.study.trials]
    assert states == [*[TrialState.COMPLETE] * 2, *[TrialState.FAIL] * 2, TrialState.PRUNED, TrialState.COMPLETE]
    assert again.study.best_trial.params == {"stem": 4, "block.conv1": 17}
    assert len(Ledger(where, "another", GROUPS)) == 0


@pytest.mark.parametrize("where", PROXY_LAST, indirect=True)
def test_of_two_that_hold_it_open_the_first_record_counts_for_both(where: str) -> None:
    first, second = Ledger(where, "p", GROUPS), Ledger(where, "p", GROUPS)
    assert first.append(Scheme((4, 16)), seen(1.5), -1.5)
    assert not second.append(Scheme((4, 16)), seen(1.6), -1.6)
    assert second.append(Scheme((5, 16)), seen(1.0), -1.0)
    assert first.append(Scheme((6, 16)), seen(2.0), -2.0)
    assert first.find(Scheme((5, 16))) == seen(1.0)
    # Neither knows of the other's record when it writes its own.
    first.study.add_trial(first._trial(Scheme((7, 16)), seen(7.0), -7.0, FULL))
    second.study.add_trial(second._trial(Scheme((7, 16)), seen(7.5), -7.5, FULL))
    second._read()
    assert second.find(Scheme((7, 16))) == seen(7.0)
    assert len(second) == len(second.frame()) == 4


def opened(where: str, count: int, *steps: int) -> list[servers.Writer]:
    """Processes that have the ledger open, all of them before one writes."""
    with ThreadPoolExecutor(len(steps)) as pool:
        jobs = [pool.submit(servers.Writer, where, name, count, step) for name, step in enumerate(steps)]
    return [job.result() for job in jobs]


@pytest.mark.parametrize("where", POSTGRESQL_FIRST, indirect=True)
def test_processes_that_open_and_write_at_once_agree_on_every_record(where: str) -> None:
    writers = opened(where, 12, 1, 5, 7)
    for writer in writers:
        writer.go()
    told = [writer.said() for writer in writers]
    assert [writer.end() for writer in writers] == [0, 0, 0]
    ledger = Ledger(where, "p", GROUPS)
    assert len(ledger) == len(ledger.frame()) == 12
    assert all(trial.state.is_finished() for trial in ledger.study.trials)
    for pairs in told:  # what each was told is what everybody is told ever after
        assert len(pairs) == 12
        for number, loss in pairs:
            assert ledger.find(Scheme((number + 1, 1))) == Measurement(loss=loss)


@pytest.mark.parametrize("where", POSTGRESQL_FIRST, indirect=True)
def test_a_writer_that_is_killed_loses_nothing_that_it_had_finished(where: str) -> None:
    safe: set[int] = set()
    for lines in (4, 9):
        (writer,) = opened(where, 40, 1)
        writer.go()
        safe |= {number for number, _ in writer.said(lines)}
        assert writer.end(kill=True) == -signal.SIGKILL
        safe |= {number for number, _ in writer.said()}
        ledger = Ledger(where, "p", GROUPS)
        assert all(ledger.find(Scheme((number + 1, 1))) == Measurement(loss=0.0) for number in safe)
        assert len(safe) <= len(ledger) == len(ledger.study.trials) <= len(safe) + 1
        assert all(trial.state.is_finished() for trial in ledger.study.trials)
    (writer,) = opened(where, 40, 1)
    writer.go()
    assert len(writer.said()) == 40
    assert writer.end() == 0
    ledger = Ledger(where, "p", GROUPS)
    assert len(ledger) == len(ledger.study.trials) == 40


# -- servers that fail -----------------------------------------------------------------------------


def test_a_server_that_comes_back_is_waited_for_and_nothing_is_recorded_twice(
    server: servers.Postgres, make: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(ledgers, "PAUSE", 0.2)
    ledger = Ledger(make("postgresql"), "p", GROUPS)
    assert ledger.append(Scheme((1, 1)), seen(1.0), -1.0)
    server.stop()

    def restart() -> None:
        give_up = time.monotonic() + 30
        while "tried again" not in caplog.text and time.monotonic() < give_up:
            time.sleep(0.1)
        server.start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        assert ledger.append(Scheme((2, 1)), seen(2.0), -2.0)
    finally:
        restarting.join()
    assert "tried again" in caplog.text
    assert PASSWORD not in caplog.text
    assert len(ledger) == len(ledger.study.trials) == 2


def test_a_record_whose_confirmation_was_lost_is_not_written_again(
    make: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.exceptions import StorageInternalError

    monkeypatch.setattr(ledgers, "PAUSE", 0.0)
    ledger = Ledger(make("postgresql"), "p", GROUPS)
    add = ledger.study.add_trial

    def cut_off(trial: Any) -> None:
        monkeypatch.setattr(ledger.study, "add_trial", add)
        add(trial)
        raise StorageInternalError("the connection was closed")

    monkeypatch.setattr(ledger.study, "add_trial", cut_off)
    ledger.append(Scheme((1, 1)), seen(1.0), -1.0)
    assert ledger.find(Scheme((1, 1))) == seen(1.0)
    assert len(ledger.study.trials) == 1


def test_a_server_that_stays_away_ends_the_search_in_one_line(
    server: servers.Postgres, make: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "PATIENCE", 0.0)
    place = make("postgresql")
    ledger = Ledger(place, "p", GROUPS)
    ledger.append(Scheme((1, 1)), seen(1.0), -1.0)
    server.stop()
    try:
        with pytest.raises(UserError, match=r"cannot be written .*the same command continues") as told:
            ledger.append(Scheme((2, 1)), seen(2.0), -2.0)
    finally:
        server.start()
    line = str(told.value)
    assert "\n" not in line
    assert PASSWORD not in line
    assert "127.0.0.1" in line
    again = Ledger(place, "p", GROUPS)
    assert len(again) == 1
    assert ledger.append(Scheme((2, 1)), seen(2.0), -2.0)  # the one that was open goes on too


@pytest.mark.slow
def test_a_proxy_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "PAUSE", 0.2)
    behind, port = f"sqlite:///{tmp_path / 'behind.db'}", servers.free_port()
    with servers.proxy(behind, port) as place:
        ledger = Ledger(place, "p", GROUPS)
        assert ledger.append(Scheme((1, 1)), seen(1.0), -1.0)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(ledger.append, Scheme((2, 1)), seen(2.0), -2.0)
        time.sleep(0.5)
        assert not adding.done()
        with servers.proxy(behind, port):
            assert adding.result()
    assert len(Ledger(behind, "p", GROUPS)) == 2


def refused(place: str) -> str:
    """The line that says why a ledger is not opened."""
    with pytest.raises(UserError) as told:
        Ledger(place, "p", GROUPS)
    line = str(told.value)
    assert "\n" not in line
    assert PASSWORD not in line
    return line


def test_a_wrong_password_or_database_is_one_line(server: servers.Postgres) -> None:
    assert "password authentication failed" in refused(server.url(password="s3cret-but-wrong"))
    line = refused(server.url("nosuchbase"))
    assert '"nosuchbase" does not exist' in line
    assert "***@127.0.0.1" in line
    assert "the database must be there" in line


@pytest.mark.parametrize("kind", ["postgresql", "mysql", "grpc"])
def test_a_server_that_is_not_there_or_says_nothing_is_one_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.need({"postgresql": "psycopg", "mysql": "pymysql", "grpc": "grpc"}[kind], kind)
    monkeypatch.setattr(storage, "ANSWER", 1.0)
    monkeypatch.setitem(storage.LIBPQ, "connect_timeout", 2)  # seconds; the least that libpq takes
    monkeypatch.setitem(storage.MYSQL, "connect_timeout", 1)
    monkeypatch.setitem(storage.MYSQL, "read_timeout", 1)
    account, base = ("", "") if kind == "grpc" else ("me:s3cret@", "/base")
    line = refused(f"{kind}://{account}127.0.0.1:{servers.free_port()}{base}")
    assert "cannot be opened" in line
    assert "1 s" in line
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        line = refused(f"{kind}://{account}127.0.0.1:{silent.getsockname()[1]}{base}")
    assert "cannot be opened" in line


@pytest.mark.parametrize(
    ("place", "without", "remedy"),
    [
        ("postgresql://me:s3cret@h/b", ("psycopg", "psycopg2"), "pip install 'autoprune[postgresql]'"),
        ("postgresql+psycopg://me:s3cret@h/b", ("psycopg",), "pip install 'autoprune[postgresql]'"),
        ("postgresql+asyncpg://me:s3cret@h/b", ("asyncpg",), "pip install 'autoprune[postgresql]'"),
        ("mysql://me:s3cret@h/b", ("pymysql", "MySQLdb"), "pip install 'autoprune[mysql]'"),
        ("mariadb+pymysql://me:s3cret@h/b", ("pymysql",), "pip install 'autoprune[mysql]'"),
        ("grpc://h:13000", ("grpc",), "pip install 'autoprune[grpc]'"),
        ("oracle://me:s3cret@h/b", ("cx_Oracle",), "are known to work"),
        ("nosuchbase://me:s3cret@h/b", (), "are known to work"),
        ("redis://:s3cret@h/0", (), "are known to work"),
    ],
)
def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    place: str, without: tuple[str, ...], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in without:
        monkeypatch.setitem(sys.modules, module, None)
    line = refused(place)
    assert "installed" in line
    assert remedy in line


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("postgresql://me:s3cret@host:5432/base", "postgresql://me:***@host:5432/base"),
        ("postgresql://me:s3cret/with:all?of#it@host/base", "postgresql://me:***@host/base"),
        ("postgresql://me:p@s3cret@host/base", "postgresql://me:***@host/base"),
        ("postgresql://me@azure:s3cret@host/base", "postgresql://me@azure:***@host/base"),
        ("postgresql://host/base?user=me&password=s3cret&x=1", "postgresql://host/base?user=me&password=***&x=1"),
        ("postgresql://host/base?sslpassword=s3cret", "postgresql://host/base?sslpassword=***"),
        ("postgresql://me@host:5432/base", "postgresql://me@host:5432/base"),
        ("mysql+pymysql://me:s3cret@[::1]:3306/base", "mysql+pymysql://me:***@[::1]:3306/base"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("sqlite:////tmp/a:b@c.db", "sqlite:////tmp/a:b@c.db"),
    ],
)
def test_a_password_is_never_shown(place: str, shown: str) -> None:
    assert storage.place(place) == shown


def test_a_file_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.place("a.jsonl") == str(tmp_path / "a.jsonl") == storage.place(Path("a.jsonl"))
    assert storage.place("sqlite:///a.db") == f"sqlite:///{tmp_path / 'a.db'}"
    assert storage.place("sqlite:///a.db?timeout=3") == f"sqlite:///{tmp_path / 'a.db'}?timeout=3"
    assert storage.exists("sqlite:///sub/a.db") is False
    Ledger("sqlite:///sub/a.db", "p", GROUPS)
    assert storage.exists(storage.place("sqlite:///sub/a.db"))
    assert (tmp_path / "sub" / "a.db").is_file()


@pytest.mark.parametrize(
    "place",
    [
        "postgresql://me:p@s3cret@host/base",
        "postgresql://me:s3cret@host:port/base",
        "postgresql://me:pass@s3cret:word@host/base",
        "://me:s3cret@host",
        "grpc://host:port",
        "grpc://me:s3cret@host:13000",
        "grpc://:13000",
        "grpc://host:13000/base",
    ],
)
def test_a_url_that_cannot_be_read_is_refused(place: str) -> None:
    assert "cannot be read" in refused(place)


@pytest.mark.parametrize("place", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(place: str) -> None:
    assert "would be lost" in refused(place)


def test_a_sqlite_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("dear diary, today I pruned a network and wrote a line that is long enough" * 9)
    assert "file is not a database" in refused(f"sqlite:///{tmp_path / 'notes.db'}")
    assert "cannot be opened" in refused(f"sqlite:///{tmp_path}")


def test_a_study_that_was_deleted_ends_in_one_line(make: Callable[[str], str]) -> None:
    import optuna

    place = make("sqlite")
    ledger = Ledger(place, "p", GROUPS)
    optuna.delete_study(study_name="autoprune-p", storage=place)
    with pytest.raises(UserError, match="deleted"):
        ledger.append(Scheme((1, 1)), seen(1.0), -1.0)


# -- whole runs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory, with_digits: Callable[[Path], Path]) -> api.Problem:
    """The trained digits network with small splits."""
    network = demo.digits(with_digits(tmp_path_factory.mktemp("runs")))
    splits = data.load("digits", calibration=64, validation=64)
    example = torch.zeros(1, 1, 8, 8)
    return api.problem(network, example, splits.calibration, splits.validation, budget="macs=50%", name="digits")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Scheme]:
    """Every scheme that is measured in full, in order; the sanity check with nothing repaired is none."""
    schemes = []
    original = autoprune.Evaluator.__call__

    def counting(self: Any, scheme: Scheme, fidelity: Fidelity = FULL) -> Measurement:
        if fidelity.full:
            schemes.append(scheme)
        return original(self, scheme, fidelity=fidelity)

    monkeypatch.setattr(autoprune.Evaluator, "__call__", counting)
    return schemes


@pytest.mark.parametrize("where", PROXY_LAST, indirect=True)
def test_a_search_that_was_stopped_goes_on_and_says_no_password(
    where: str, problem: api.Problem, tmp_path: Path, measured: list[Scheme]
) -> None:
    class Pulled(Exception):  # noqa: N818 - the plug
        pass

    def pull(trial: Any, loop: Any) -> bool:
        if len(loop.trials) == 3:
            raise Pulled
        return False

    whole = problem.search("swap", stop=autoprune.Stop(trials=6), batch=3, run="whole", root=tmp_path)
    schemes = measured.copy()
    measured.clear()
    choices: dict[str, Any] = {"batch": 3, "run": "one", "root": tmp_path, "ledger": where}
    with pytest.raises(Pulled):
        problem.search("swap", stop=autoprune.Stop(trials=6, callback=pull), **choices)
    run = problem.search("swap", stop=autoprune.Stop(trials=6), **choices)
    assert measured == schemes  # none twice, none left out
    assert run.history()["kept"].tolist() == whole.history()["kept"].tolist()
    assert run.summary["kept"] == whole.summary["kept"]
    assert len(run.trials(where)) == len(whole.trials()) == len(schemes)
    assert not (run.folder / "ledger.jsonl").exists()
    for file in run.folder.rglob("*"):
        assert PASSWORD not in file.read_bytes().decode(errors="replace"), file
    if PASSWORD in where:
        with pytest.raises(UserError, match="give its URL with the password"):
            Run.open(run.folder).trials()
    else:
        assert len(Run.open(run.folder).trials()) == len(schemes)


def test_a_comparison_shares_a_database(
    make: Callable[[str], str], problem: api.Problem, tmp_path: Path, measured: list[Scheme]
) -> None:
    choices: dict[str, Any] = {"seeds": (0, 1), "trials": 4, "batch": 4, "root": tmp_path}
    place = make("postgresql")
    found = compare.compare(problem, ["swap", "random"], run="one", ledger=place, **choices)
    assert len(found.frame()) == 4
    assert len(set(measured)) == len(measured)
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or PASSWORD not in file.read_bytes().decode(errors="replace"), file
    measured.clear()
    again = compare.compare(problem, ["swap", "random"], run="two", ledger=place, **choices)
    assert measured == []
    assert again.frame()["reward"].tolist() == found.frame()["reward"].tolist()


# -- the dashboard ---------------------------------------------------------------------------------


def asked(url: str, **note: Any) -> Any:
    """What the dashboard answers; with a note to put there."""
    body = json.dumps(note).encode() if note else None
    request = urllib.request.Request(
        url, data=body, headers={"Content-Type": "application/json"}, method="PUT" if note else "GET"
    )
    with urllib.request.urlopen(request, timeout=servers.START) as reply:
        text = reply.read()
    return json.loads(text) if text else None


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_the_dashboard_shows_a_search_that_runs(
    kind: str, make: Callable[[str], str], problem: api.Problem, tmp_path: Path
) -> None:
    servers.need("optuna_dashboard", "dashboard")
    where = make(kind) if kind == "sqlite" else None  # or the run's own
    addresses: list[str] = []
    views: list[list[dict[str, Any]]] = []

    def look(trial: Any, loop: Any) -> bool:
        if len(loop.trials) == 3:
            name = "ledger.jsonl" if where is None else where  # as people type it, in the folder of the run
            addresses.append(stack.enter_context(servers.dashboard(name, tmp_path / "one")))
        if len(loop.trials) == 3 or (len(loop.trials) == 5 and kind == "sqlite"):
            (study,) = asked(f"{addresses[0]}/api/studies")["study_summaries"]
            page = f"{addresses[0]}/api/studies/{study['study_id']}"
            until = time.monotonic() + servers.START
            while True:  # it keeps what it read for some seconds
                views.append(asked(page)["trials"])
                shown = {one["values"][0] for one in views[-1] if one["state"] == "Complete"}
                if {one.reward for one in loop.trials} <= shown or time.monotonic() > until:
                    break
                time.sleep(1)
            assert {one.reward for one in loop.trials} <= shown
            # Somebody writes a note: the dashboard appends to the same file.
            asked(f"{page}/note", version=len(loop.trials) // 2, body="look here")  # 1, and then 2
        return False

    stop = autoprune.Stop(trials=6, callback=look)
    with ExitStack() as stack:
        run = problem.search("random", stop=stop, batch=3, run="one", root=tmp_path, ledger=where)
    for shown in (views[0][0], views[-1][-1]):
        keys = [attribute["key"] for attribute in shown["user_attrs"]]
        assert {"kept", "fidelity", "protocol", "reward", "measurement"} <= set(keys)
        assert {parameter["name"] for parameter in shown["params"]} == set(run.config["groups"])
    assert len(run.trials()) == 7  # the uniform scheme and six: what the dashboard wrote is no record, and broke none
    assert not list(tmp_path.rglob("*.lock"))
    assert not list(tmp_path.rglob("*.cut"))
