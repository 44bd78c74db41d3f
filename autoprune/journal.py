"""The journal file under a ledger: opened only after what a killed process left behind is put right.

Optuna's journal is one JSON object per line, appended under a lock. Optuna reads a file whose last line
is cut, but its next append glues a record to that line and the file can never be read again; and a lock
that nobody releases holds every later append up.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.errors import UserError

if TYPE_CHECKING:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

PATIENCE = 10.0  # seconds until an untouched lock counts as abandoned; a writer holds it for milliseconds

log = logging.getLogger(__name__)


def open_journal(path: Path) -> JournalStorage:
    """The storage on a file that is created if it does not exist and repaired if it was cut."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    # Absolute, because Optuna's lock is a link to the path as given: a relative one points nowhere from inside
    # the folder, and Optuna then waits for an abandoned lock in an endless busy loop.
    path = path.resolve()
    if path.is_dir():
        raise UserError(f"ledger {path} is a folder: name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_lock(path)
    repair(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_lock(path)))


def repair(path: Path) -> None:
    """Make the file end with a complete record.

    A last line that was cut is moved to ``<name>.cut``; one that lacks only its line end gets it. A broken
    line further up was not made by a kill and is refused.
    """
    if not path.exists() or not _tail(path)[1]:
        return
    lock = _lock(path)
    lock.acquire()
    try:
        end, rest = _tail(path)  # read again: without the lock it may have been a line in the making
        if _is_record(rest):
            with path.open("ab") as file:
                file.write(b"\n")
        elif rest:
            aside = path.with_name(path.name + ".cut")
            with aside.open("ab") as file:
                file.write(rest.rstrip(b"\n") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.truncate(path, end)
            log.warning("%s: the last line was cut; its %d bytes were moved to %s", path, len(rest), aside.name)
    finally:
        lock.release()


def _tail(path: Path) -> tuple[int, bytes]:
    """Where the complete lines end, in bytes, and the line after that (empty if there is none)."""
    end, rest, broken = 0, b"", 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if rest:
                raise UserError(
                    f"ledger {path}: line {broken} is not a journal record, and records follow it; "
                    f"restore the file from a copy, or remove that line to lose only what it held"
                )
            if line.endswith(b"\n") and _is_record(line):
                end += len(line)
            else:
                rest, broken = line, number
    return end, rest


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and "op_code" in record


def remove_stale_lock(path: Path) -> None:
    """Remove the lock of a writer that died; a lock that changes hands is in use and stays."""
    lock = path.with_name(path.name + ".lock")
    began = time.monotonic()
    first: tuple[int, int] | None = None
    while True:
        try:
            seen = lock.lstat()  # the lock itself, which is a symbolic link
        except FileNotFoundError:
            return
        first = first or (seen.st_ino, seen.st_mtime_ns)
        if (seen.st_ino, seen.st_mtime_ns) != first:
            return
        # Either clock may settle it: the file's age at once, our own watch where hosts disagree about the time.
        if max(time.time() - seen.st_mtime, time.monotonic() - began) >= PATIENCE:
            break
        time.sleep(min(0.05, PATIENCE))
    lock.unlink(missing_ok=True)
    log.warning("%s: removed the lock of a process that no longer runs", path)


def _lock(path: Path) -> JournalFileSymlinkLock | JournalFileOpenLock:
    from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

    # A symbolic link needs a privilege on Windows. Both locks are the file <path>.lock.
    return JournalFileOpenLock(str(path)) if os.name == "nt" else JournalFileSymlinkLock(str(path))
