"""A run: one folder that holds a search whole.

config.json   the request fully resolved, with versions, hardware and git state
ledger.jsonl  every measurement, as an Optuna journal
history.csv   the trials in their order, with what was spent on them
scheme.json   the answer; pruned.safetensors  the pruned network; widths.svg  its picture
summary.json  what came out: dense, uniform, found; report.html  the same to look at
front.json    the Pareto front, with the kept indices of every point; front.svg  its picture
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune import whole
from autoprune.claim import NAME as CLAIM
from autoprune.errors import UserError
from autoprune.ledger import Ledger
from autoprune.storage import HIDDEN, exists, place

if TYPE_CHECKING:
    import pandas as pd

    from autoprune.scheme import Scheme
    from autoprune.space import SearchSpace

ROOT = "runs"
CONFIG, LEDGER, SCHEME, SUMMARY, PICTURE = "config.json", "ledger.jsonl", "scheme.json", "summary.json", "widths.svg"
HISTORY, FRONT = "history.csv", "front.json"
PACKAGES = ("autoprune", "torch", "torchvision", "optuna", "numpy")


@dataclass(eq=False)
class Run:
    """What :func:`autoprune.search` gives back, and what is found again on disk by :meth:`open`.

    ``scheme`` (with kept indices), ``space`` and ``model`` (the pruned network) are there after a search;
    a run opened from disk has the files alone: read the scheme with ``autoprune.exporters.read`` and the
    network with ``autoprune.load_pruned``.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)
    scheme: Scheme | None = None
    space: SearchSpace | None = None
    model: Any = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """A run on disk, by its folder, or by its name under ``runs/``."""
        path = Path(folder)
        if not (path / CONFIG).is_file() and (Path(ROOT) / path / CONFIG).is_file():
            path = Path(ROOT) / path
        if not (path / CONFIG).is_file():
            known = ", ".join(run.name for run in runs()) or "there are none here"
            raise UserError(f"no run {str(folder)!r}: give a folder with a {CONFIG}, or a name under {ROOT}/ ({known})")
        return cls(path, read_json(path / CONFIG), read_json(path / SUMMARY) if (path / SUMMARY).is_file() else {})

    def trials(self, storage: Path | str | None = None) -> pd.DataFrame:
        """Every measurement in the run's ledger, one row each; see :meth:`autoprune.ledger.Ledger.frame`.

        A ledger that several runs share holds the measurements of all. ``storage`` is for one that has moved, or whose
        URL has a password, which is not written down.
        """
        path = storage or self.config.get("ledger") or self.folder / LEDGER
        if "://" in str(path) and HIDDEN in str(path):
            raise UserError(f"the ledger of run {self.name} is {path}: give its URL with the password")
        if not exists(path):
            raise UserError(f"run {self.name} has no ledger {path}: it ended before its first measurement")
        return Ledger(path, self.config["fingerprint"], self.config["groups"]).frame()

    def history(self) -> pd.DataFrame:
        """The trials of the search in the order of their proposal; row 0 is the uniform scheme.

        Columns: ``trials`` and ``seconds`` (what was spent up to and with this one), fidelity, reward (-inf where it
        failed), loss, accuracy, affordable, and ``kept``, the counts with spaces between.
        """
        import pandas as pd

        if not (self.folder / HISTORY).is_file():
            raise UserError(f"run {self.name} has no {HISTORY}: it has not finished")
        return pd.read_csv(self.folder / HISTORY)

    def front(self) -> pd.DataFrame:
        """The Pareto front, by rising value of the last objective; the index is what :meth:`point` takes.

        Columns: the objectives, then reward, accuracy, loss and ``fractions.*`` of the dense network's costs, and
        ``kept``, the counts with spaces between. ``summary["front"]`` has the hypervolume and its reference.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                **point["values"],
                **{key: point[key] for key in ("reward", "accuracy", "loss")},
                **{f"fractions.{name}": value for name, value in point["fractions"].items()},
                "kept": point["kept"],
            }
            for point in self._points()
        )

    def point(self, number: int) -> Scheme:
        """The scheme of a point of the front, with its kept indices where it is of channels."""
        from autoprune.scheme import Scheme

        points = self._points()
        if not 0 <= number < len(points):
            raise UserError(f"point {number}: the front of run {self.name} has {len(points)} points, the first is 0")
        point = points[number]
        counts = tuple(int(count) for count in point["kept"].split())
        indices = [tuple(int(unit) for unit in units.split()) for units in point.get("indices", ())]
        return Scheme(counts, point["granularity"], tuple(indices) or None)

    def _points(self) -> list[dict[str, Any]]:
        if not (self.folder / FRONT).is_file():
            raise UserError(f"run {self.name} has no {FRONT}: it has not finished")
        points: list[dict[str, Any]] = read_json(self.folder / FRONT)["points"]
        return points

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def remove(self) -> None:
        """Delete the folder; a run that is being driven, or a comparison with such a run, is refused."""
        for claim in self.folder.rglob(CLAIM):
            raise UserError(f"run {self.name} is in use (or was killed): remove {claim} if nobody drives it")
        shutil.rmtree(self.folder)


def runs(root: Path | str = ROOT) -> list[Run]:
    """All runs under ``root``, the oldest first."""
    folders = [path.parent for path in Path(root).glob(f"*/{CONFIG}")]
    return [Run.open(folder) for folder in sorted(folders, key=lambda folder: (folder / CONFIG).stat().st_mtime)]


def prepare(folder: Path, config: Mapping[str, Any]) -> None:
    """Start or continue a run in ``folder``.

    ``config["request"]`` is what makes a run the same run. A folder with another request is refused, and
    the message shows what differs. The rest (reward, stop rules, versions) may change from one session
    to the next, and the newest is written down.
    """
    path = folder / CONFIG
    if path.is_file():
        before, now = read_json(path).get("request", {}), json.loads(json.dumps(config["request"]))
        changed = [
            f"{key}: {before.get(key)} -> {now.get(key)}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise UserError(
                f"run {folder.name} was started with another request ({'; '.join(changed)}): "
                "give the same options to continue it, or another --run name"
            )
    write_json(path, config)


def make_folder(root: Path | str, name: str) -> Path:
    """The folder of a run, made if it is missing; a place that cannot be written is refused."""
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise UserError(f"run name {name!r}: use letters, digits, '.', '_', '+' and '-'")
    folder = Path(root) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"run folder {folder} cannot be written ({error.strerror}): choose another --root") from error
    return folder


def new_name(root: Path | str, model: str, budget: str) -> str:
    """A readable slug and the time, numbered if that second has a run already."""
    slug = re.sub(r"[^\w.]+", "-", f"{model} {budget}".lower()).strip("-")
    name = f"{slug}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    number = next(n for n in itertools.count(1) if not (Path(root) / _numbered(name, n)).exists())
    return _numbered(name, number)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write whole or not at all: a kill in the middle leaves the old file."""
    whole.write(path, json.dumps(record, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else is refused by name."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is not a run's file, or it was damaged") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} holds a {type(record).__name__}, not an object")
    return record


def surroundings() -> dict[str, Any]:
    """Versions, hardware and git state, for the record."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *(place(a) if "://" in a else a for a in sys.argv[1:])]),
        **_options_file(),
        "versions": versions,
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "git": _git(),
    }


def _options_file() -> dict[str, str]:
    """What the file of ``--config`` says now: it may say something else by the time anybody repeats the command."""
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        path = following if word == "--config" else word.removeprefix("--config=")
        if word.startswith("--config") and Path(path).is_file():
            return {"options_file": Path(path).read_text(encoding="utf-8")}
    return {}


def _git() -> dict[str, Any] | None:
    """Commit of the current directory and whether it has changes; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    answers = []
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        try:
            done = subprocess.run(  # noqa: S603 - git itself, fixed questions
                [git, *question], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(done.stdout.strip())
    return {"commit": answers[0], "changes": bool(answers[1])}
