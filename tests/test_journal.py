"""The journal file after a kill: whatever was recorded is found, and recording goes on."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from autoprune import journal
from autoprune.errors import UserError
from autoprune.ledger import Ledger
from autoprune.scheme import Scheme
from autoprune.trial import Measurement

GROUPS = ("a", "b")


def write(path: Path, records: int) -> list[int]:
    """Record schemes (1, 1), (2, 1), ... and return the file's size after each."""
    ledger = Ledger(path, "p", GROUPS)
    sizes = [path.stat().st_size]
    for number in range(1, records + 1):
        ledger.append(Scheme((number, 1)), Measurement(loss=number), -number)
        sizes.append(path.stat().st_size)
    return sizes


def found(ledger: Ledger) -> list[int]:
    return [n for n in range(1, 20) if ledger.find(Scheme((n, 1))) == Measurement(loss=n)]


@pytest.fixture
def no_disk_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("no_disk_wait")
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_wherever_the_last_records_are_cut_the_complete_ones_are_found_and_recording_goes_on(
    step: int, tmp_path: Path
) -> None:
    path = tmp_path / "whole.jsonl"
    sizes = write(path, 3)
    whole = path.read_bytes()
    line_ends = {size + offset for size in sizes[1:] for offset in (-2, -1, 0, 1) if size + offset <= sizes[3]}
    for cut in sorted({*range(sizes[1], sizes[3], step), *line_ends}):
        damaged = tmp_path / f"{cut}.jsonl"
        damaged.write_bytes(whole[:cut])
        # A record is complete without its line end: nothing of it is missing.
        complete = [n for n in (1, 2, 3) if cut >= sizes[n] - 1]
        ledger = Ledger(damaged, "p", GROUPS)
        assert found(ledger) == complete, cut
        assert ledger.append(Scheme((9, 1)), Measurement(loss=9), -9.0)
        assert found(Ledger(damaged, "p", GROUPS)) == [*complete, 9], cut
        damaged.unlink()


def test_a_file_cut_before_its_first_record_is_a_new_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = write(path, 1)[0]
    whole = path.read_bytes()
    for cut in {*range(0, first, 11), first - 1, first}:
        path.write_bytes(whole[:cut])
        assert write(path, 2)
        assert found(Ledger(path, "p", GROUPS)) == [1, 2]


def test_what_was_cut_is_set_aside_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.jsonl"
    sizes = write(path, 2)
    whole = path.read_bytes()
    half = (sizes[1] + sizes[2]) // 2
    path.write_bytes(whole[:half])
    with caplog.at_level(logging.WARNING, logger="autoprune"):
        journal.repair(path)
    assert path.read_bytes() == whole[: sizes[1]]
    assert (tmp_path / "ledger.jsonl.cut").read_bytes() == whole[sizes[1] : half] + b"\n"
    assert f"{half - sizes[1]} bytes" in caplog.text


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\0" * 100 + b"\n", b'{"op_code":4,"x":"\xc3', b"[1, 2]\n", b"\n"])
def test_a_tail_of_garbage_is_set_aside(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert found(Ledger(path, "p", GROUPS)) == [1, 2]
    assert path.read_bytes() == whole


def test_a_sound_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, 2)
    before = path.stat()
    journal.repair(path)
    assert path.stat() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.jsonl"]


def test_a_cut_in_the_middle_is_refused_naming_the_line_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    spoiled = b"".join([*lines[:2], lines[2][:40], lines[3]])  # the record is glued to the cut line: still the last one
    path.write_bytes(spoiled)
    assert found(Ledger(path, "p", GROUPS)) == [1]
    spoiled = b"".join([*lines[:2], lines[2][:40] + b"\n", lines[3]])
    path.write_bytes(spoiled)
    with pytest.raises(UserError, match="line 3 is not"):
        Ledger(path, "p", GROUPS)
    assert path.read_bytes() == spoiled


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\nI pruned\ntoday\n")
    with pytest.raises(UserError, match="line 1"):
        Ledger(path, "p", GROUPS)
    with pytest.raises(UserError, match="folder"):
        Ledger(tmp_path, "p", GROUPS)


def hold(path: Path, age: float) -> Path:
    """The lock that a killed process leaves, ``age`` seconds old."""
    lock = path.with_name(path.name + ".lock")
    lock.symlink_to(path)
    then = time.time() - age
    os.utime(lock, (then, then), follow_symlinks=False)
    return lock


def test_the_lock_of_a_dead_process_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, 1)
    lock = hold(path, age=2 * journal.PATIENCE)
    assert found(Ledger(path, "p", GROUPS)) == [1]
    assert not lock.is_symlink()
    assert "removed the lock" in caplog.text


def test_a_young_lock_that_nobody_releases_is_removed_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PATIENCE", 0.2)
    lock = hold(tmp_path / "ledger.jsonl", age=-3600)  # from a host whose clock is ahead
    journal.remove_stale_lock(tmp_path / "ledger.jsonl")
    assert not lock.is_symlink()


def test_a_lock_that_changes_hands_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    lock = hold(path, age=0)

    def another_takes_it(_: float) -> None:
        lock.unlink()
        hold(path, age=1)

    monkeypatch.setattr(time, "sleep", another_takes_it)
    journal.remove_stale_lock(path)
    assert lock.is_symlink()


def test_a_path_relative_to_the_current_folder_leaves_no_dangling_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    links: list[str] = []
    make = os.symlink

    def remember(target: str, link: str) -> None:
        make(target, link)
        links.append(target)
        assert Path(link).exists(), "Optuna would wait for it in a busy loop without end"

    monkeypatch.setattr(os, "symlink", remember)
    write(Path("run/ledger.jsonl"), 1)
    assert links
