"""The soak on a small scale, and that it sees what it is there to see."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "soak.py"
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="the soak looks for processes in /proc")


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import soak

    return soak


def recorded(*kept: tuple[int, ...], error: str | None = None) -> list[dict[str, Any]]:
    return [{"op_code": 4, "user_attrs": {"kept": list(counts), "measurement": {"error": error}}} for counts in kept]


def written(folder: Path, records: list[dict[str, Any]], rest: str = "") -> None:
    (folder / "run").mkdir(exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in [{"op_code": 0}, *records])
    (folder / "run" / "ledger.jsonl").write_text(text + rest)


def test_a_line_that_is_lost_or_changed_is_a_violation_and_a_cut_one_is_none(soak: ModuleType, tmp_path: Path) -> None:
    ledger = soak.Watched(tmp_path)
    ledger.look()  # there is none yet
    written(tmp_path, recorded((1, 2)), rest='{"op_code": 4, "us')
    ledger.look()
    assert len(ledger.records) == 1
    written(tmp_path, recorded((1, 2), (3, 4)))
    ledger.look()
    assert [record["user_attrs"]["kept"] for record in ledger.records] == [[1, 2], [3, 4]]
    for wrong in (recorded((1, 2)), recorded((1, 2), (3, 5), (3, 4)), recorded((3, 4), (1, 2))):
        written(tmp_path, wrong)
        with pytest.raises(soak.Violation, match="not what they were"):
            ledger.look()


def test_a_scheme_recorded_twice_or_missing_or_failed_is_a_violation(soak: ModuleType) -> None:
    soak.check_once(recorded((1, 2), (3, 4)), 2)
    with pytest.raises(soak.Violation, match="more than once"):
        soak.check_once(recorded((1, 2), (3, 4), (1, 2)), 2)
    with pytest.raises(soak.Violation, match="1 schemes are recorded of 3"):
        soak.check_once(recorded((1, 2)), 3)
    with pytest.raises(soak.Violation, match="its worker died"):
        soak.check_once(recorded((1, 2), error="its worker died"), 1)


def test_measurements_that_no_kill_explains_are_a_violation(soak: ModuleType, tmp_path: Path) -> None:
    seen = soak.Seen(soak.Watched(tmp_path), killed=Counter(worker=1))
    written(tmp_path, recorded((1, 2), (3, 4)))
    seen.ledger.look()
    (tmp_path / soak.NOTES).write_text("9 9\n9 9\n1 2\n1 2\n3 4\n")  # 9 9 is the dense network
    assert soak.check_repeats(tmp_path, seen, 2) == 1
    (tmp_path / soak.NOTES).write_text("1 2\n1 2\n1 2\n3 4\n")
    with pytest.raises(soak.Violation, match="2 measurements were repeated; what was killed explains 1"):
        soak.check_repeats(tmp_path, seen, 2)
    (tmp_path / soak.NOTES).write_text("1 2\n")
    with pytest.raises(soak.Violation, match="nobody measured"):
        soak.check_repeats(tmp_path, seen, 2)


def test_kills_are_the_same_for_a_seed_and_hit_both(soak: ModuleType) -> None:
    kills = soak.schedule(2000, 40, seed=0)
    assert kills == soak.schedule(2000, 40, seed=0) != soak.schedule(2000, 40, seed=1)
    assert Counter(kill.victim for kill in kills) == {"driver": 14, "worker": 26}
    assert all(0 < one.records <= other.records < 2000 for one, other in itertools.pairwise(kills))


def test_a_search_that_was_not_killed_as_often_as_planned_proves_nothing(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(folder: Path, given: Namespace, kills: list[Any]) -> Any:
        return soak.Seen(soak.Watched(folder))

    monkeypatch.setattr(soak, "soak", nothing)
    monkeypatch.setattr(sys, "argv", ["soak.py", "--kills", "3", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match="after 0 of 3 kills: nothing is proved"):
        soak.main()


@pytest.mark.slow
def test_a_search_whose_driver_and_worker_are_killed_is_the_undisturbed_one(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--candidates", "60", "--kills", "2", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed 1 workers and 1 drivers; 60 schemes recorded, each once, none lost, none failed" in done.stdout
