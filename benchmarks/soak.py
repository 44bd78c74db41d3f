"""Soak: a long search whose workers and whose driver are killed at random loses nothing and finds the same.

    python benchmarks/soak.py [--candidates 2000] [--kills 40] [--seed 0] [--workers 2] [--root FOLDER]

Runs one search of a small network twice, each in processes of its own on Ray: undisturbed, and under SIGKILLs of
workers and of the driver, which is started again until the search has ended. A third of the kills are the driver's.
When they come is drawn from the seed and printed; they are tied to the number of records, so that a slow machine sees
the same ones. Checked, in the ledger's file itself:

- before and after every kill: what was recorded is still there, unchanged and in its place;
- in the end: every scheme is recorded exactly once, and failed is none;
- the history of trials (order, losses, rewards), the scheme and the answer are those of the undisturbed run;
- a measurement is repeated only if a kill took it out of somebody's hands.

Memory of the driver and of the workers is sampled all the time; printed are its slopes in the undisturbed run.
Exits with 1 and the reason when something is violated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from autoprune import api
from autoprune.errors import UserError
from autoprune.loop import Stop
from autoprune.pool import Workers
from autoprune.run import LEDGER, Run

WIDTHS = (32, 48, 64, 64, 64, 64)
NAP = 0.05  # seconds that a measurement takes at least
LOOK = 0.2  # seconds between two looks
LONGEST = 3.0  # seconds between a kill's turn and the kill
LAST, LATE = 0.85, 0.9  # of the candidates: the last turn, and from when on nobody waits after it
WARM = 0.2  # of the candidates: until then caches fill, and memory says nothing about leaks
STUCK = 300.0  # seconds without a record after which the soak gives up
CREATED = 4  # the journal's code for a new record
NOTES = "measured.txt"  # one line for each measurement that ended, whoever made it


class Violation(Exception):  # noqa: N818 - it is what the soak is about, not a mistake in a program
    """What was to be proved does not hold."""


@dataclass(frozen=True)
class Kill:
    """``victim`` ("worker" or "driver") is killed ``delay`` seconds after the ledger has ``records`` records."""

    records: int
    victim: str
    delay: float


# -- the search ------------------------------------------------------------------------------------


def network() -> nn.Module:
    """Six convolutions that nobody trained; what they answer depends on every channel all the same."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width in zip((1, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10)).eval()


def drive(folder: Path, candidates: int, workers: int, retries: int) -> None:
    """Search, in this process and its workers, until the end or until somebody kills it."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)
    notes = folder / NOTES

    def evaluate(model: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        time.sleep(NAP)
        with notes.open("a") as file:
            file.write(" ".join(str(m.out_channels) for m in model.modules() if isinstance(m, nn.Conv2d)) + "\n")
        return {"loss": float(loss)}

    problem = api.problem(
        network(), torch.zeros(1, 1, 8, 8), [batch], [batch], budget="macs=50%", evaluate=evaluate,
        criterion="l1", recovery="none",
    )  # fmt: skip
    share = min(1.0, (os.cpu_count() or 1) / workers) / 4  # they sleep more than they compute
    with problem.pool(Workers(workers, address="local", cpus=share, retries=retries)) as pool:
        problem.search("swap", stop=Stop(trials=candidates), batch=8 * workers, root=folder, run="run", pool=pool)


# -- looking at it from outside --------------------------------------------------------------------


class Watched:
    """The ledger's file, read again and again; what was in it must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run" / LEDGER
        self._lines = b""
        self.records: list[dict[str, Any]] = []

    def look(self) -> None:
        """Read what is new; a :class:`Violation` if anything that was there is lost, changed or moved."""
        found = self._path.read_bytes() if self._path.is_file() else b""
        before = len(self._lines)
        if found[:before] != self._lines:
            raise Violation(f"the first {before} bytes of {self._path} are not what they were")
        self._lines = found[: found.rfind(b"\n") + 1]
        new = [json.loads(line) for line in self._lines[before:].splitlines()]
        self.records += [record for record in new if record["op_code"] == CREATED]

    @property
    def size(self) -> int:
        """Bytes in complete lines."""
        return len(self._lines)


@dataclass
class Seen:
    """What was observed of one search: its ledger, seconds, kills, and (records, who, process, MiB) of memory."""

    ledger: Watched
    seconds: float = 0.0
    killed: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[int, str, int, float]] = field(default_factory=list)


def descendants(process: int) -> Iterator[tuple[int, str]]:
    """The processes below one, with their command lines."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.name))
    below = list(children.get(process, []))
    while below:
        child = below.pop()
        below += children.get(child, [])
        try:
            yield child, Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def measurers(driver: int) -> list[int]:
    """The worker processes of a driver, oldest first."""
    return sorted(child for child, command in descendants(driver) if command.startswith("ray::Measurer"))


def memory(process: int) -> float | None:
    """Resident memory in MiB, without what is shared with other processes through files and Ray's store."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    return next((int(row.split()[1]) / 1024 for row in status.splitlines() if row.startswith("RssAnon:")), None)


# -- soaking ---------------------------------------------------------------------------------------


def schedule(candidates: int, kills: int, seed: int) -> list[Kill]:
    """When somebody is killed: spread over the search, and every third time the driver."""
    rng = random.Random(seed)
    turns = sorted(rng.randint(1, max(1, int(LAST * candidates))) for _ in range(kills))
    victims = ["driver" if number % 3 == 0 else "worker" for number in range(kills)]
    rng.shuffle(victims)
    return [Kill(turn, victim, rng.uniform(0, LONGEST)) for turn, victim in zip(turns, victims, strict=True)]


def soak(folder: Path, given: argparse.Namespace, kills: list[Kill]) -> Seen:
    """Run the search in ``folder`` to its end under these kills."""
    folder.mkdir(parents=True)
    seen, rng, coming, due = Seen(Watched(folder)), random.Random(given.seed), list(kills), 0.0
    began = news = time.monotonic()
    driver = start(folder, given)
    while driver.poll() is None:
        time.sleep(LOOK)
        now, size = time.monotonic(), seen.ledger.size
        seen.ledger.look()
        count = len(seen.ledger.records)
        news = now if seen.ledger.size > size else news
        if now - news > STUCK:
            driver.kill()
            raise Violation(f"no record for {STUCK:g} s: {complaint(folder)}")
        workers = measurers(driver.pid)
        for who, process in [("driver", driver.pid), *(("worker", worker) for worker in workers)]:
            if (used := memory(process)) is not None:
                seen.memory.append((count, who, process, used))
        if not coming or count < coming[0].records:
            continue
        due = due or now + coming[0].delay
        if (now < due and count < LATE * given.candidates) or (coming[0].victim == "worker" and not workers):
            continue
        victim = driver.pid if coming[0].victim == "driver" else rng.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            seen.killed[coming.pop(0).victim] += 1
        seen.ledger.look()
        if victim == driver.pid:
            driver.wait()
            seen.ledger.look()
            driver = start(folder, given)
        due = 0.0
    if driver.returncode != 0:
        raise Violation(f"the driver ended by itself with {driver.returncode}: {complaint(folder)}")
    seen.ledger.look()
    seen.seconds = time.monotonic() - began
    return seen


def start(folder: Path, given: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A driver of the search in ``folder``."""
    command = [sys.executable, __file__, "--drive", str(folder), "--candidates", str(given.candidates)]
    command += ["--workers", str(given.workers), "--kills", str(given.kills)]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def complaint(folder: Path) -> str:
    """The last line that a driver wrote."""
    return ((folder / "driver.log").read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


# -- what must hold --------------------------------------------------------------------------------


def check_once(records: list[dict[str, Any]], candidates: int) -> None:
    """Every scheme is recorded exactly once, and none failed."""
    found = Counter(tuple(record["user_attrs"]["kept"]) for record in records)
    if len(found) not in (candidates, candidates + 1):  # the uniform scheme, if the search never came to it
        raise Violation(f"{len(found)} schemes are recorded of {candidates}")
    twice = [scheme for scheme, times in found.items() if times > 1]
    if twice:
        raise Violation(f"{len(twice)} schemes are recorded more than once, the first is {twice[0]}")
    errors = [error for record in records if (error := record["user_attrs"]["measurement"]["error"])]
    if errors:
        raise Violation(f"{len(errors)} candidates failed, the first because: {errors[0]}")


def check_same(calm: Path, stormy: Path) -> None:
    """Two searches had the same trials in the same order, and the same answer."""
    histories = [Run.open(folder / "run").history().drop(columns="seconds") for folder in (calm, stormy)]
    try:
        pd.testing.assert_frame_equal(*histories, check_exact=True)
    except AssertionError as error:
        raise Violation(f"the trials differ from the undisturbed run's: {error}") from error
    summaries = [Run.open(folder / "run").summary for folder in (calm, stormy)]
    for key in ("kept", "reward", "trials", "feasible", "failed", "ended", "answer", "front"):
        if summaries[0][key] != summaries[1][key]:
            raise Violation(f"{key} is {summaries[1][key]}, in the undisturbed run {summaries[0][key]}")


def check_repeats(folder: Path, seen: Seen, workers: int) -> int:
    """How many measurements ended and were made again: not more than what the killed had in hand."""
    made = Counter((folder / NOTES).read_text().split("\n")[:-1])
    recorded = {" ".join(map(str, record["user_attrs"]["kept"])) for record in seen.ledger.records}
    if not recorded <= set(made):
        raise Violation(f"{len(recorded - set(made))} schemes are recorded that nobody measured")
    again = sum(
        made[scheme] - 1 for scheme in recorded
    )  # the dense network, looked at by every driver, is no candidate
    # A worker has one in hand; a driver may be recording another, whose worker has its next one already.
    most = seen.killed["worker"] + seen.killed["driver"] * (workers + 1)
    if again > most:
        raise Violation(f"{again} measurements were repeated; what was killed explains {most}")
    return again


def slopes(seen: Seen, candidates: int) -> list[str]:
    """Memory over the records, one line per process that lived through most of the search."""
    told = []
    for who, process in dict.fromkeys((who, process) for _, who, process, _ in seen.memory):
        points = np.array([(n, used) for n, _, p, used in seen.memory if p == process and n >= WARM * candidates])
        if len(points) < 10 or np.ptp(points[:, 0]) < candidates / 2:
            continue
        slope = np.polyfit(points[:, 0], points[:, 1], 1)[0]
        told.append(
            f"{who} {process}: {points[0, 1]:.1f} MiB at {points[0, 0]:.0f} records, {points[-1, 1]:.1f} MiB at "
            f"{points[-1, 0]:.0f}, slope {1024 * slope:.2f} KiB per candidate"
        )
    return told


def main() -> None:
    """Run both searches, check, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--root", default=None, help="keep the runs and the drivers' logs here")
    parser.add_argument("--drive", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive is not None:
        try:
            drive(given.drive, given.candidates, given.workers, retries=given.kills)
        except UserError as error:
            sys.exit(f"error: {error}")
        return
    root = Path(given.root or tempfile.mkdtemp())
    kills = schedule(given.candidates, given.kills, given.seed)
    shown = ", ".join(f"{kill.victim} at {kill.records}" for kill in kills)
    print(f"{given.candidates} candidates, {given.workers} workers, seed {given.seed}")
    print(f"kills, at records: {shown}", flush=True)
    try:
        calm = soak(root / "calm", given, [])
        print(f"undisturbed: {calm.seconds:.0f} s", flush=True)
        for line in slopes(calm, given.candidates):
            print(f"memory, {line}", flush=True)
        stormy = soak(root / "stormy", given, kills)
        if stormy.killed.total() < given.kills:
            raise Violation(f"the search ended after {stormy.killed.total()} of {given.kills} kills: nothing is proved")
        check_once(stormy.ledger.records, given.candidates)
        again = check_repeats(root / "stormy", stormy, given.workers)
        check_same(root / "calm", root / "stormy")
    except Violation as error:
        sys.exit(f"violated: {error} (see {root})")
    peak = {who: max(used for _, w, _, used in stormy.memory if w == who) for who in ("driver", "worker")}
    print(
        f"under kills: {stormy.seconds:.0f} s; killed {stormy.killed['worker']} workers and {stormy.killed['driver']} "
        f"drivers; {len(stormy.ledger.records)} schemes recorded, each once, none lost, none failed; "
        f"{again} measurements repeated; memory at most {peak['driver']:.0f} MiB (driver), {peak['worker']:.0f} MiB "
        "(worker)\nthe trials, their order and their losses, the scheme and the front are those of the undisturbed run"
    )


if __name__ == "__main__":
    main()
