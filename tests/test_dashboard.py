"""optuna-dashboard on a run: it shows what is measured while it is measured, and writes nothing."""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import servers
import toy
from autoprune import searchers, storage
from autoprune.budget import Budget
from autoprune.dashboard import Server, read_only, serve
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.run import Run, write_json
from autoprune.trial import Measurement, Trial

SPACE = toy.chain((8, 16, 12))
BUDGET = Budget.parse("macs=60%", SPACE)


def need_it() -> None:
    servers.need("optuna_dashboard", "dashboard")


def config(folder: Path, **others: Any) -> None:
    """What a run says of itself, as far as the dashboard looks."""
    folder.mkdir()
    write_json(folder / "config.json", {"fingerprint": "toy", "groups": [g.name for g in SPACE.groups], **others})


@contextmanager
def running(run: Path, **choices: Any) -> Iterator[Server]:
    with serve(Run.open(run), port=0, **choices) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Server, path: str, method: str = "GET", **record: Any) -> tuple[int, Any]:
    """The status and the answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.server_port}{path}", json.dumps(record).encode() if record else None,
        {"Content-Type": "application/json"}, method=method,
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=servers.START) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def search(where: Path | str | None, look: Callable[[Trial, Loop], object], trials: int = 6) -> Loop:
    """A search on a toy space that writes to a ledger, looked at after every trial."""
    stop = Stop(trials, callback=lambda trial, loop: bool(look(trial, loop) and False))
    proposals = searchers.find("random")(SPACE, BUDGET, seed=0, hints=Hints(), batch=2)
    loop = Loop(proposals, BUDGET, lambda m: -m.loss, Ledger(where, "toy", SPACE.groups), stop)
    while schemes := loop.ask():
        loop.tell((scheme, Measurement(loss=float(sum(scheme.kept)))) for scheme in schemes)
    return loop


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_a_search_is_seen_while_it_runs_and_its_ledger_is_not_touched(kind: str, tmp_path: Path) -> None:
    need_it()
    file = tmp_path / "one" / ("ledger.jsonl" if kind == "journal" else "ledger.db")
    where = str(file) if kind == "journal" else f"sqlite:///{file}"
    config(tmp_path / "one", **({} if kind == "journal" else {"ledger": where}))
    views: list[list[float]] = []

    def look(trial: Trial, loop: Loop) -> None:
        if len(loop.trials) not in (3, 6):
            return
        before = file.read_bytes()
        with running(tmp_path / "one") as server:
            page = server.address.removeprefix(f"http://127.0.0.1:{server.server_port}/dashboard")
            assert ask(server, "/dashboard")[0] == 200
            status, answer = ask(server, f"/api{page}")
            assert status == 200
            views.append([one["values"][0] for one in json.loads(answer)["trials"]])
            for method, path, record in (
                ("PUT", f"/api{page}/note", {"version": 1, "body": "look here"}),
                ("POST", f"/api{page}/rename", {"study_name": "mine"}),
                ("POST", "/api/studies", {"study_name": "new", "directions": ["minimize"]}),
                ("DELETE", f"/api{page}", {}),
            ):
                status, answer = ask(server, path, method, **record)
                assert status == 403
                assert "read-only" in json.loads(answer)["reason"]
        assert file.read_bytes() == before
        assert sorted(path.name for path in file.parent.iterdir()) == sorted(["config.json", file.name])

    loop = search(where, look)
    rewards = [trial.reward for trial in loop.trials]
    assert views[1] == rewards
    assert len(views[0]) >= 3
    assert views[0] == rewards[: len(views[0])]


def test_a_line_that_was_cut_by_a_kill_is_left_to_the_next_search(tmp_path: Path) -> None:
    need_it()
    config(tmp_path / "one")
    file = tmp_path / "one" / "ledger.jsonl"
    search(file, lambda trial, loop: None)
    with file.open("ab") as journal:
        journal.write(b'{"op_code": 4, "worker')
    before = file.read_bytes()
    with running(tmp_path / "one") as server:
        status, answer = ask(server, "/api/studies/0")
    assert status == 200
    assert len(json.loads(answer)["trials"]) == 6
    assert file.read_bytes() == before


def test_a_ledger_that_several_share_opens_at_the_study_of_the_run(tmp_path: Path) -> None:
    need_it()
    shared = tmp_path / "shared.jsonl"
    Ledger(shared, "another", ["x"])
    search(shared, lambda trial, loop: None)
    config(tmp_path / "one", ledger=str(shared))
    config(tmp_path / "elsewhere", ledger=str(shared), fingerprint="nothing measured")
    with serve(Run.open(tmp_path / "one"), port=0) as server:
        assert server.address.endswith("/dashboard/studies/1")
    with serve(Run.open(tmp_path / "elsewhere"), port=0) as server:
        assert server.address.endswith("/dashboard")


def test_what_cannot_be_shown_is_refused_in_one_line(tmp_path: Path) -> None:
    need_it()
    config(tmp_path / "one")
    with pytest.raises(UserError, match="run one has no ledger .*ledger.jsonl"):
        serve(Run.open(tmp_path / "one"))
    assert not (tmp_path / "one" / "ledger.jsonl").exists()
    config(tmp_path / "two", ledger=f"postgresql://me:{storage.HIDDEN}@host/db")
    with pytest.raises(UserError, match="give its URL with the password as --ledger"):
        serve(Run.open(tmp_path / "two"))


def test_a_port_that_is_taken_is_refused_with_the_remedy(tmp_path: Path) -> None:
    need_it()
    config(tmp_path / "one")
    search(tmp_path / "one" / "ledger.jsonl", lambda trial, loop: None)
    with serve(Run.open(tmp_path / "one"), port=0) as server:
        with pytest.raises(UserError, match=f"127.0.0.1:{server.server_port} cannot be listened at.*another --port"):
            serve(Run.open(tmp_path / "one"), port=server.server_port)
        with pytest.raises(UserError, match="another --port"):
            serve(Run.open(tmp_path / "one"), port=99999)


def test_without_the_package_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config(tmp_path / "one")
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(UserError, match=r"pip install 'autoprune\[dashboard\]'"):
        serve(Run.open(tmp_path / "one"))


def test_reading_passes_and_nothing_else() -> None:
    passed: list[str] = []

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        passed.append(environ["REQUEST_METHOD"])
        return [b"fine"]

    guarded, told = read_only(app), []
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get"):
        guarded({"REQUEST_METHOD": method}, lambda status, headers: told.append(status))
    assert passed == ["GET", "HEAD"]
    assert told == ["403 Forbidden"] * 6
