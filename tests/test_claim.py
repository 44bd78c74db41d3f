"""One driver per run folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.claim import NAME, claim
from autoprune.errors import UserError

HOLD = """
import sys, time
from autoprune.claim import claim
with claim(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(60)
"""


def driver(folder: Path) -> subprocess.Popen[str]:
    """Another process that has claimed the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


def test_the_owner_is_named_while_the_block_lasts(tmp_path: Path) -> None:
    with claim(tmp_path):
        record = json.loads((tmp_path / NAME).read_text())
        assert record["host"] == socket.gethostname()
        assert record["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_claim_ends_with_an_exception_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claim(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_second_driver_in_the_same_process_is_refused_and_the_first_keeps_its_claim(tmp_path: Path) -> None:
    with claim(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()} on host {socket.gethostname()}"), claim(tmp_path):
            pass
        assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_a_living_driver_is_respected_and_a_killed_one_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = driver(tmp_path)
    try:
        with pytest.raises(UserError, match=f"process {process.pid} on host"), claim(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / NAME).exists()
    with claim(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert f"took over from process {process.pid}" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sees an unreaped process through /proc")
def test_a_killed_driver_that_its_parent_has_not_yet_buried_is_dead(tmp_path: Path) -> None:
    process = driver(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with claim(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    process.wait()


def test_a_process_number_used_again_is_not_the_owner(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": "long ago"}))
    with claim(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["started"] != "long ago"


def test_a_driver_on_another_host_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(UserError, match=r"process 1 on host elsewhere.*remove .*driver\.json"), claim(tmp_path):
        pass


@pytest.mark.parametrize("text", ["{", "[]", '{"host": "x"}'])
def test_a_claim_that_cannot_be_read_is_refused_with_the_remedy(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=r"remove the file"), claim(tmp_path):
        pass


def test_a_claim_cut_before_its_first_letter_is_free(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    with claim(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


RIVAL = """
import os, sys
from pathlib import Path
from autoprune.claim import claim
from autoprune.errors import UserError
won = 0
for _ in range(150):
    try:
        with claim(sys.argv[1]):
            os.close(os.open(Path(sys.argv[1]) / "inside", os.O_CREAT | os.O_EXCL))
            os.unlink(Path(sys.argv[1]) / "inside")
            won += 1
    except UserError:
        pass
print(won)
"""


def test_of_processes_that_claim_at_the_same_moment_one_succeeds(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": "long ago"}))
    rivals = [
        subprocess.Popen([sys.executable, "-c", RIVAL, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    won = [int(rival.communicate()[0]) for rival in rivals]
    assert all(rival.returncode == 0 for rival in rivals)  # no two of them were ever inside together
    assert sum(won) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"), claim(tmp_path / "absent"):
        pass


def test_a_run_folder_may_be_deleted_under_its_driver(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with claim(folder):
        shutil.rmtree(folder)
    assert not folder.exists()


def test_a_claim_that_was_taken_away_is_not_removed_from_its_new_owner(tmp_path: Path) -> None:
    other = json.dumps({"host": "elsewhere", "pid": 1, "started": "1"})
    with claim(tmp_path):
        (tmp_path / NAME).write_text(other)
    assert (tmp_path / NAME).read_text() == other
