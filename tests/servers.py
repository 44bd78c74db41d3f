"""What the tests of storages start: PostgreSQL, Optuna's gRPC proxy, optuna-dashboard, and processes that write."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

NOBODY = 65534
START = 60.0  # seconds until a server must answer
PROXY = """
import sys, warnings
warnings.simplefilter("ignore")
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def need(module: str, extra: str) -> None:
    """Skip unless the module can be imported."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'autoprune[{extra}]'")


class Postgres:
    """A cluster of databases in a folder of its own, which an ordinary user may run and kill."""

    def __init__(self, binaries: Path, folder: Path, port: int) -> None:
        self.binaries, self.folder, self.port = binaries, folder, port
        self.log = folder / "log"
        # The server refuses to run as root: then it runs as nobody.
        self._as = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.getuid() == 0 else []
        if self._as:
            os.chown(folder, NOBODY, NOBODY)

    def call(self, program: str, *words: str, check: bool = True) -> None:
        environment = {**os.environ, "HOME": str(self.folder), "LC_ALL": "C"}
        done = subprocess.run(
            [*self._as, str(self.binaries / program), *words],
            cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if check and done.returncode:
            log = self.log.read_text() if self.log.exists() else ""
            raise RuntimeError(f"{program} failed: {done.stderr}{log}")

    def make(self) -> None:
        password = self.folder / "password"
        password.write_text("s3cret/pass")
        password.chmod(0o644)
        self.call("initdb", "-D", "db", "-U", "pruner", "-A", "scram-sha-256", "--pwfile", "password",
                  "--no-sync", "-E", "UTF8", "--locale=C")  # fmt: skip

    def start(self) -> None:
        listens = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        self.call("pg_ctl", "-D", "db", "-l", "log", "-w", "-t", str(int(START)), "-o", listens, "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-D", "db", "-m", "immediate", "stop", check=False)

    def url(self, database: str = "postgres", password: str = "s3cret%2Fpass") -> str:
        return f"postgresql://pruner:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self, name: str) -> str:
        """The URL of an empty database."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)


def _open_to_others() -> Path:
    """A folder for temporary files that another user can reach, if the server has to run as one."""
    usual = Path(tempfile.gettempdir()).resolve()
    if os.getuid():
        return usual
    for folder in (usual, Path("/tmp"), Path("/var/tmp")):
        if all(place.stat().st_mode & 0o001 for place in (folder, *folder.parents)):
            return folder
    pytest.skip("PostgreSQL does not run as root, and another user can reach no folder for temporary files")


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that is stopped at the end."""
    need("psycopg", "postgresql")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not installed and on_path is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv to run it as somebody else")
    binaries = installed[-1].parent if installed else Path(str(on_path)).resolve().parent
    # Not pytest's folder: that is closed to other users, and its path is too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="autoprune-pg-", dir=_open_to_others()))
    server = Postgres(binaries, folder, free_port())
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def proxy(url: str, port: int | None = None) -> Iterator[str]:
    """The URL of Optuna's gRPC proxy before a storage."""
    need("grpc", "grpc")
    port = free_port() if port is None else port
    with _running([sys.executable, "-c", PROXY, url, str(port)], port):
        yield f"grpc://127.0.0.1:{port}"


@contextlib.contextmanager
def dashboard(storage: str, cwd: Path) -> Iterator[str]:
    """The address of an optuna-dashboard on a storage as one names it on its command line, from a folder."""
    need("optuna_dashboard", "dashboard")
    port = free_port()
    command = [sys.executable, "-m", "optuna_dashboard._cli", storage, "--host", "127.0.0.1", "--port", str(port)]
    with _running([*command, "--server", "wsgiref"], port, cwd):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command: list[str], port: int, cwd: Path | None = None) -> Iterator[None]:
    """A server process that answers on the port, ended in the end."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=cwd, stdout=said, stderr=said)
        try:
            until = time.monotonic() + START
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > until:
                        said.seek(0)
                        raise RuntimeError(f"{command} does not answer: {said.read()}") from None
                    time.sleep(0.1)
            yield
        finally:
            process.kill()
            process.wait()


class Writer:
    """A process that holds a ledger open, and, told to go, appends its schemes and says of each what it found after."""

    def __init__(self, where: str, name: int, count: int, step: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["autoprune.ledger", "optuna.storages", "sqlalchemy.orm"])
        self._here, there = context.Pipe()
        self.process = context.Process(target=_write, args=(where, name, count, step, there))
        self.process.start()
        there.close()
        assert self._here.recv() == "open"

    def go(self) -> None:
        self._here.send("go")

    def said(self, lines: int | None = None) -> list[tuple[int, float]]:
        """The next so many pairs of number and loss, or all until its end."""
        pairs: list[tuple[int, float]] = []
        with contextlib.suppress(EOFError, ConnectionResetError):
            while lines is None or len(pairs) < lines:
                pairs.append(self._here.recv())
        return pairs

    def end(self, *, kill: bool = False) -> int | None:
        """Wait for its end, or make one; the exit status."""
        if kill:
            self.process.kill()
        self.process.join(START)
        return self.process.exitcode


def _write(where: str, name: int, count: int, step: int, to: Connection) -> None:
    from autoprune.ledger import Ledger
    from autoprune.scheme import Scheme
    from autoprune.trial import Measurement

    ledger = Ledger(where, "p", ("stem", "block.conv1"))
    to.send("open")
    to.recv()
    for turn in range(count):
        number = turn * step % count
        scheme = Scheme((number + 1, 1))
        ledger.append(scheme, Measurement(loss=float(name)), -float(name))
        found = ledger.find(scheme)
        assert found is not None
        to.send((number, found.loss))
