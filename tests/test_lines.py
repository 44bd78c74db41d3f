"""Lines of JSON outlive a kill at any byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.lines import append_records, read_records

RECORDS = [{"round": 0, "words": "groß\n"}, [["conv", [16, 8], 0.25]], {"nothing": None}]


def test_what_is_appended_is_read_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    append_records(path, RECORDS[:2])
    append_records(path, [])
    append_records(path, RECORDS[2:])
    assert read_records(path) == RECORDS
    assert len(path.read_text().splitlines()) == len(RECORDS)


def test_a_file_that_was_cut_anywhere_keeps_every_whole_record_before_and_after(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append_records(path, RECORDS)
    content = path.read_bytes()
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        # a record is whole once its last byte before the line end is there
        whole = RECORDS[: content[: end + 1].count(b"\n")]
        assert read_records(path) == whole
        append_records(path, [{"later": 1}])
        append_records(path, [{"later": 2}])
        assert read_records(path) == [*whole, {"later": 1}, {"later": 2}]
        assert len(path.read_bytes().splitlines()) == len(whole) + 2


@pytest.mark.parametrize("glued", [b'{"round": 3, "timi{"round": 1}', b"\x00\x00\xff"])
def test_a_line_that_is_no_record_costs_only_itself(tmp_path: Path, glued: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"round": 0}\n' + glued + b'\n{"round": 2}\n')
    assert read_records(path) == [{"round": 0}, {"round": 2}]
