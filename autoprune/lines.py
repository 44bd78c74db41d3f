"""Records in a file, one line of JSON each, appended as soon as they are known.

A kill cuts the last line at most. What was cut is no record, and goes before the next one is written: glued to it, both
would be lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_records(path: Path) -> list[Any]:
    """The whole records (objects or lists) of a file in their order; none where there is no file."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [record for record in map(_parsed, lines) if record is not None]


def append_records(path: Path, records: Iterable[Any]) -> None:
    """Write JSON-ready objects or lists behind the whole records of a file, which is made if it is not there."""
    with path.open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            *whole, last = file.read().split(b"\n")
            if _parsed(last) is None:
                file.truncate(sum(len(line) + 1 for line in whole))
            else:  # it lacks only its end
                file.write(b"\n")
        file.writelines(json.dumps(record).encode() + b"\n" for record in records)


def _parsed(line: bytes) -> Any:
    """The record in a line, or None; an object or a list that was cut does not parse."""
    try:
        return json.loads(line)
    except ValueError:
        return None
