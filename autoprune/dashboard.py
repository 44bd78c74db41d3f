"""``autoprune dashboard``: optuna-dashboard on a run's ledger, whatever its searcher, to look at and not to write."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Annotated, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autoprune.errors import UserError
from autoprune.options import Debug, RunArgument, option

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from autoprune.run import Run

READING = ("GET", "HEAD")
REFUSED = "this view is read-only: the ledger belongs to the search"
LOOPBACK = ("127.0.0.1", "localhost")

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def dashboard(
    run: RunArgument,
    port: Annotated[int, option(None, "where to listen; 0 takes a free one")] = 8080,
    host: Annotated[str, option(None, "address to listen at; there is no password")] = "127.0.0.1",
    ledger: Annotated[
        str | None,
        option(None, "the ledger, if it has moved or its URL has a password", usual="what the run says"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show a run in optuna-dashboard, also while it searches. Nothing is written; Ctrl-C ends it.

    Example: autoprune dashboard my-run --port 8081
    """
    from autoprune.run import Run

    with serve(Run.open(run), host, port, ledger) as server:
        print(f"{run} is at {server.address} (Ctrl-C ends it)", flush=True)
        if host not in LOOPBACK:
            print(f"warning: everybody who reaches {host} can look at it: there is no password", file=sys.stderr)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


class Server(ThreadingMixIn, WSGIServer):
    """Answers several requests at the same time; ``address`` is what a browser opens."""

    daemon_threads = True
    address = ""


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class calls it
        pass  # a line for every picture is of no use to anybody


def serve(run: Run, host: str = "127.0.0.1", port: int = 8080, ledger: str | None = None) -> Server:
    """A server for optuna-dashboard on the ledger of ``run``; call its ``serve_forever``."""
    try:
        wsgi = importlib.import_module("optuna_dashboard").wsgi
    except ImportError as error:
        raise UserError(
            f"the dashboard needs a package that cannot be imported ({error}): pip install 'autoprune[dashboard]'"
        ) from error
    storage = open_to_read(run, ledger)
    page = _page(storage, run)
    try:
        server = make_server(host, port, read_only(wsgi(storage)), server_class=Server, handler_class=_Silent)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port} cannot be listened at ({error}): give another --port or --host") from error
    server.address = f"http://{host}:{server.server_port}{page}"
    return server


def open_to_read(run: Run, ledger: str | None = None) -> BaseStorage:
    """The storage of a run's ledger, left as it is: not even a line that a killed search cut is put right."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from autoprune.run import LEDGER
    from autoprune.storage import HIDDEN, exists, is_path, open_storage

    where = ledger or run.config.get("ledger") or run.folder / LEDGER
    if "://" in str(where) and HIDDEN in str(where):
        raise UserError(f"the ledger of run {run.name} is {where}: give its URL with the password as --ledger")
    if not exists(where):
        raise UserError(f"run {run.name} has no ledger {where}: nothing has been measured in it")
    return JournalStorage(JournalFileBackend(str(Path(where).resolve()))) if is_path(where) else open_storage(where)


def _page(storage: BaseStorage, run: Run) -> str:
    """Where the run's own study is; the list of all where it has none, as a comparison has several."""
    names = {study.study_name: study._study_id for study in storage.get_all_studies()}  # noqa: SLF001
    study = names.get(f"autoprune-{run.config.get('fingerprint')}")
    return "/dashboard" if study is None else f"/dashboard/studies/{study}"


def read_only(app: App) -> App:
    """The application without its buttons that change something: notes, names, deletion."""

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READING:
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "application/json")])
        return [json.dumps({"reason": REFUSED}).encode()]

    return guarded
