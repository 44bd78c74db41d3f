"""What other runs under the same root know of a run's network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import UserError
from autoprune.page import proxy as proxy_page
from autoprune.page import sensitivity as sensitivity_page
from autoprune.page.parts import Section
from autoprune.run import CONFIG, Run, read_json

SAME = (
    "model", "space", "criterion", "recovery", "evaluate", "precision", "tuning", "tune_data", "seed",
    "calibration_data", "validation_data",
)  # fmt: skip
Found = tuple[str, dict[str, Any]]
"""The name of a run, and its record."""


def sensitivity(run: Run) -> Found | None:
    """The analysis of the same network, cut, repaired and measured in the same way, if one lies beside the run."""
    mine = run.config["request"]
    for folder, record in _records(run, sensitivity_page.RECORD):
        config = _read(folder / CONFIG)
        theirs = _request(config)
        if config.get("reward") == run.config.get("reward") and all(mine.get(key) == theirs.get(key) for key in SAME):
            return folder.name, record
    return None


def proxy(run: Run) -> Found | None:
    """The proxy check of the run's own protocol, if one lies beside it."""
    for folder, record in _records(run, proxy_page.RECORD):
        if _request(record).get("fingerprint") == run.config.get("fingerprint"):
            return folder.name, record
    return None


def sound(draw: Callable[[], Section]) -> Section | None:
    """The section, or none if the record it is made of is not as it was written."""
    try:
        return draw()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _request(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = record.get("request")
    return found if isinstance(found, Mapping) else {}


def _records(run: Run, file: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Sound records in the folders beside the run's own."""
    for path in sorted(run.folder.resolve().parent.glob(f"*/{file}")):
        if record := _read(path):
            yield path.parent, record


def _read(path: Path) -> dict[str, Any]:
    """A record, empty if it cannot be read: another run's damage is no reason to refuse this one."""
    try:
        return read_json(path)
    except UserError:
        return {}
