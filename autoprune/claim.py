"""One driver per run folder."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from autoprune.errors import UserError

NAME = "driver.json"


class ClaimedError(UserError):
    """Somebody else drives the folder."""


log = logging.getLogger(__name__)


@contextmanager
def claim(folder: Path | str) -> Iterator[None]:
    """Drive the run in ``folder`` alone: ``driver.json`` names the owner until the block ends.

    A folder whose owner is alive, or runs on another host where that cannot be seen, is refused. One whose
    owner died is taken over.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist")
    path = folder / NAME
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    with _guarded(path) as file:
        owner = _owner(file, path)
        if owner is not None:
            _refuse_if_alive(owner, path)
            log.warning("%s: took over from process %d, which has ended", folder, owner["pid"])
        file.truncate(0)
        json.dump(mine, file)
    try:
        yield
    finally:
        with suppress(FileNotFoundError), _guarded(path) as file:
            if _owner(file, path) in (mine, None):  # not in a forked child, nor after somebody took the file away
                path.unlink()


@contextmanager
def _guarded(path: Path) -> Iterator[IO[str]]:
    """The claim file, locked while this process reads it and decides (the claim itself is the content)."""
    while True:
        with path.open("a+") as file:
            # Some network file systems have no locks. All that is lost there is the order of two processes
            # that claim a folder in the same instant.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                current = False
            if current:  # otherwise its owner removed it while we waited for the lock
                yield file
                return


def _owner(file: IO[str], path: Path) -> dict[str, Any] | None:
    file.seek(0)
    text = file.read()
    if not text:
        return None
    try:
        record = json.loads(text)
        return {"host": str(record["host"]), "pid": int(record["pid"]), "started": record["started"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} does not name the driver of this run: remove the file if none is running") from None


def _refuse_if_alive(owner: dict[str, Any], path: Path) -> None:
    who = f"process {owner['pid']} on host {owner['host']}"
    if owner["host"] != socket.gethostname():
        raise ClaimedError(f"run {path.parent} is driven by {who}; if that has ended, remove {path}")
    # A process number is used again; together with the start time it names one process.
    if _started(owner["pid"]) == owner["started"]:
        raise ClaimedError(f"run {path.parent} is driven by {who}, which is running: wait for it or stop it")


def _started(pid: int) -> str | None:
    """When a process of this host was started, in the system's own terms; None if there is none (any more)."""
    if Path("/proc/self/stat").exists():
        try:
            # The name of the program, in parentheses, may hold anything: count fields from behind it.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - pid is a number
    return listed.stdout.strip() or None
