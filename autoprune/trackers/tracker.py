"""What trackers have in common: which numbers of a search go where, and when."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from autoprune.listeners import Steps, numbers
from autoprune.page import REPORT
from autoprune.run import SCHEME, read_json, write_json

RECORD = "trackers.json"
"""Which run of a tracker a folder belongs to, and how many of its trials are there already."""
FILES = (SCHEME, REPORT)
PLAIN = (str, int, float, bool)

End = Literal["finished", "interrupted", "failed"]


class Tracker(ABC):
    """Follows one search after the other.

    What was asked for goes there at the start, the numbers of every full trial as they come, and at the end the rows
    of the summary, ``scheme.json`` and ``report.html``. A continued run goes on in the tracker's run of before.
    """

    def __init__(self, place: str) -> None:
        self._place = place  # tells this tracker from others in a run's record
        self._folder: Path | None = None
        self._run = ""
        self._logged = 0
        self._waiting: dict[int, Mapping[str, float]] = {}  # trials that could not be sent when they came
        self._steps = Steps()

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Take one event; those of which nothing is sent pass by."""
        step = self._steps(event, facts)
        if event == "started":
            self._start(facts["folder"], facts["config"])
        elif self._folder is None:
            return
        elif step is not None and step > self._logged:
            self._waiting[step] = dict(numbers(facts))
            self._send(self._folder)
        elif event == "done":
            self._done(self._folder, facts["run"].summary)
        elif event == "failed":
            self._end("interrupted" if isinstance(facts["error"], KeyboardInterrupt) else "failed")

    @abstractmethod
    def _open(self, known: str | None, folder: Path, config: Mapping[str, Any]) -> str:
        """Go on with the run ``known``, or begin one where that is None or gone; its name there."""

    @abstractmethod
    def _log(self, found: Mapping[str, float], step: int) -> None:
        """The numbers of a trial."""

    @abstractmethod
    def _finish(self, rows: Mapping[str, float], files: list[Path]) -> None:
        """The numbers at the end, and the files."""

    @abstractmethod
    def _close(self, how: End) -> None:
        """Nothing follows."""

    def _start(self, folder: Path, config: Mapping[str, Any]) -> None:
        before = _records(folder).get(self._place, {})
        known = before.get("run")
        self._run = self._open(known, folder, config)
        self._logged = before["trials"] if self._run == known else 0
        self._folder = folder
        self._waiting.clear()
        self._remember(folder)

    def _send(self, folder: Path) -> None:
        """Everything that waits, in its order; what fails waits on."""
        while self._waiting:
            step = min(self._waiting)
            self._log(self._waiting[step], step)
            del self._waiting[step]
            self._logged = step
            self._remember(folder)

    def _remember(self, folder: Path) -> None:
        record = {"run": self._run, "trials": self._logged}
        write_json(folder / RECORD, {**_records(folder), self._place: record})

    def _done(self, folder: Path, summary: Mapping[str, Any]) -> None:
        try:
            self._send(folder)
            self._finish(dict(results(summary)), [folder / name for name in FILES if (folder / name).is_file()])
        finally:
            self._end("interrupted" if summary["interrupted"] else "finished")

    def _end(self, how: End) -> None:
        self._folder = None
        self._close(how)


def _records(folder: Path) -> dict[str, Any]:
    return read_json(folder / RECORD) if (folder / RECORD).is_file() else {}


def asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the run the same run: it never changes."""
    request = {f"{name}_digest" if name == "model" else name: value for name, value in config["request"].items()}
    return {"model": config["name"], **dict(_flat(request))}


def session(config: Mapping[str, Any]) -> dict[str, Any]:
    """What may be another when the run is continued: reward, stop rules, versions, machine."""
    return dict(_flat({key: value for key, value in config.items() if key not in ("name", "request", "groups")}))


def results(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every finite number of the comparison at the end: ``found/accuracy``, ``dense/costs.macs``."""
    for row, record in summary["rows"].items():
        for name, value in _flat(record):
            if isinstance(value, int | float) and math.isfinite(value):
                yield f"{row}/{name}", float(value)


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested records as one, with dotted names; what is None or empty is left out."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, PLAIN):
            yield f"{prefix}{name}", value
        elif value:
            yield f"{prefix}{name}", json.dumps(value)
