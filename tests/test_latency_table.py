from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.errors import UserError
from autoprune.latency.conditions import Conditions
from autoprune.latency.table import FORMAT, VERSION, Entry, Table, read_csv, write_csv

LINE = Entry("line", {(4,): 1.0, (8,): 2.0, (16,): 6.0})
SQUARE = Entry("square", {(2, 10): 1.0, (2, 30): 3.0, (6, 10): 2.0, (6, 30): 8.0})
HERE = {"name": "a machine", "system": "Linux", "torch": "2"}


def table(*entries: Entry, conditions: Conditions | None = None, **options: Any) -> Table:
    return Table(conditions or Conditions(), HERE, {entry.signature: entry for entry in entries}, **options)


def test_at_the_points_the_time_is_what_was_measured_and_between_them_it_is_straight() -> None:
    assert [LINE((n,)) for n in (4, 6, 8, 10, 16)] == [1.0, 1.5, 2.0, 3.0, 6.0]
    assert [SQUARE(point) for point in SQUARE.points] == list(SQUARE.points.values())
    assert SQUARE((4, 20)) == pytest.approx((1 + 3 + 2 + 8) / 4)
    assert Entry("point", {(): 5.0})(()) == 5.0


def test_below_the_first_point_the_time_is_that_of_the_first_point() -> None:
    assert LINE((1,)) == 1.0
    assert SQUARE((1, 5)) == 1.0


def test_within_a_stair_the_time_is_that_of_its_end() -> None:
    stairs = Entry("stairs", {(8,): 1.0, (16,): 2.0, (24,): 3.0, (30,): 4.0}, (8,))
    assert [stairs((n,)) for n in (1, 8, 9, 16, 17, 24, 25, 30)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_stairs_between_lines_that_were_not_measured_stay_stairs() -> None:
    stairs = Entry("stairs", {(8,): 1.0, (24,): 3.0}, (8,))
    assert [stairs((n,)) for n in (9, 12, 16, 17, 24)] == [2, 2, 2, 3, 3]


def test_longer_is_never_quicker() -> None:
    entry = Entry("dip", {(4,): 5.0, (8,): 2.0, (16,): 6.0})
    assert [entry((n,)) for n in (2, 4, 6, 8, 16)] == [2, 2, 2, 2, 6]


@st.composite
def grids(draw: st.DrawFn) -> Entry:
    letters = draw(st.integers(1, 2))
    axes = [sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=4))) for _ in range(letters)]
    points: list[tuple[int, ...]] = [()]
    for axis in axes:
        points = [(*point, length) for point in points for length in axis]
    ms = st.floats(0.01, 100)
    stairs = tuple(draw(st.integers(1, 9)) for _ in range(letters))
    return Entry("any", {point: draw(ms) for point in points}, stairs)


@settings(max_examples=150, deadline=None, database=None)
@given(grids(), st.data())
def test_an_entry_is_monotone_and_never_above_a_longer_measured_time(entry: Entry, data: st.DataObject) -> None:
    larger = tuple(data.draw(st.integers(1, axis[-1])) for axis in entry.axes)
    smaller = tuple(data.draw(st.integers(1, length)) for length in larger)
    assert 0 < entry(smaller) <= entry(larger) * (1 + 1e-12)
    for point, ms in entry.points.items():
        padded = [min(-(-n // s) * s, axis[-1]) for n, s, axis in zip(point, entry.stairs, entry.axes, strict=True)]
        if padded == list(point):
            assert entry(point) <= ms
    assert Entry.from_dict(json.loads(json.dumps(entry.to_dict())))(larger) == entry(larger)


@pytest.mark.parametrize(
    ("points", "stairs", "message"),
    [
        ({(2, 10): 1.0, (2, 30): 3.0, (6, 10): 2.0}, (), "the point A=6, B=30 is missing"),
        ({(2,): 0.0}, (), "at A=2: 0.0 ms is no positive time; measure it again"),
        ({(2,): -1.0}, (), "no positive time"),
        ({(2,): math.nan}, (), "nan ms is no positive time"),
        ({(2,): math.inf}, (), "no positive time"),
        ({(): math.nan}, (), "at its only point"),
        ({(-2,): 1.0}, (), "at A=-2: no length is negative"),
        ({}, (), "the same one or two lengths"),
        ({(2,): 1.0, (2, 3): 1.0}, (), "the same one or two lengths"),
        ({(2, 3, 4): 1.0}, (), "the same one or two lengths"),
        ({(2,): 1.0}, (0,), "stairs [0] are not one step per length"),
        ({(2,): 1.0}, (8, 8), "stairs [8, 8] are not"),
    ],
)
def test_an_entry_with_holes_or_times_that_are_none_is_refused(points: Any, stairs: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        Entry("piece", points, stairs)
    assert message in str(error.value) and "piece" in str(error.value)


def test_beyond_the_end_nothing_is_guessed() -> None:
    with pytest.raises(UserError, match="line: it ends at 16, the network needs 17"):
        LINE((17,))


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.json"
    before = table(
        LINE, SQUARE, Entry("point", {(): 0.5}), conditions=Conditions(batch=4), calibrations={"f": {"mape": 0.1}}
    )
    before.save(path)
    after = Table.load(path)
    assert (after.conditions, after.machine, after.calibrations) == (Conditions(batch=4), HERE, {"f": {"mape": 0.1}})
    assert [e.to_dict() for e in after.entries.values()] == [e.to_dict() for e in before.entries.values()]
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table(LINE).save(path)
    with pytest.raises(TypeError):
        table(SQUARE, calibrations={"f": {"no": object()}}).save(path)
    assert list(Table.load(path).entries) == ["line"]


def test_a_merged_table_has_all_entries_and_the_later_one_decides() -> None:
    again = Entry("line", {(4,): 9.0})
    both = table(LINE, SQUARE, calibrations={"a": {}}).merged(table(again, calibrations={"b": {}}))
    assert both.entries == {"line": again, "square": SQUARE}
    with pytest.raises(UserError, match="tables of other conditions do not mix: cpu, batch 1.* and cpu, batch 2"):
        table().merged(table(conditions=Conditions(batch=2)))


def test_missing_signatures_are_told_once_each() -> None:
    assert table(LINE).missing(["line", "square", "other", "square"]) == ["square", "other"]


def test_a_table_for_something_else_says_in_what_it_differs() -> None:
    made = table(conditions=Conditions(batch=4, threads=2))
    assert made.differs(Conditions(batch=4, threads=2), HERE) is None
    told = made.differs(Conditions(batch=8, threads=2), {"name": "another"})
    assert told == "the latency table was made for batch 4, not 8; a machine, not another"


def record(**changes: Any) -> dict[str, Any]:
    entry = {"signature": "line", "points": [[4, 1.0], [8, 2.0]]}
    return {"format": FORMAT, "version": VERSION, "machine": {}, "conditions": {}, "entries": [entry]} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no latency table"),
        (json.dumps({"entries": []}), "is no latency table: its format is not 'autoprune-latency-table'"),
        (json.dumps(record(version=2)), "has version 2, this program reads 1"),
        (json.dumps(record(conditions={"cores": 2})), "condition 'cores' is unknown"),
        (json.dumps(record(conditions={"batch": "4"})), "batch = '4'"),
        (json.dumps(record(conditions=[1])), "conditions is a list, not a dict"),
        (json.dumps(record(entries={"line": 1})), "entries is a dict, not a list"),
        (json.dumps(record(machine="mine")), "machine is a str, not a dict"),
        (json.dumps(record(calibrations=None)), "calibrations is a NoneType"),
        (json.dumps(record(entries=[{"points": [[1, 2.0]]}])), "an entry cannot be read (KeyError: 'signature')"),
        (json.dumps(record(entries=["line"])), "an entry cannot be read"),
        (json.dumps(record(entries=[{"signature": "a", "points": [["x", 2.0]]}])), "an entry cannot be read"),
        (json.dumps(record(entries=[{"signature": "a", "points": [[1.5, 2.0]]}])), "an entry cannot be read"),
        (json.dumps(record(entries=[{"signature": "a", "points": [[]]}])), "an entry cannot be read"),
        (json.dumps(record(entries=[{"signature": "a", "points": [[1, float("nan")]]}])), "no positive time"),
    ],
)
def test_a_file_that_is_no_table_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        Table.load(path)
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="autoprune latency build --out"):
        Table.load(tmp_path / "none.json")


def test_a_table_is_data_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    code = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    text = json.dumps(record(entries=[{"signature": code, "points": [[4, 1.0]]}], machine={"name": code}))
    path.write_text(text)
    assert list(Table.load(path).entries) == [code]
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(UserError, match="no JSON"):
        Table.load(path)
    assert not (tmp_path / "ran").exists()


def test_points_may_be_written_and_read_as_columns(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    rows = [
        (e.signature, point, ms) for e in (LINE, SQUARE, Entry("p, q", {(): 2.0})) for point, ms in e.points.items()
    ]
    write_csv(rows, path)
    assert [entry.to_dict()["points"] for entry in read_csv(path)] == [
        e.to_dict()["points"] for e in (LINE, SQUARE, Entry("p, q", {(): 2.0}))
    ]
    write_csv([("line", (4,), None)], path)
    with pytest.raises(UserError, match="line 2: lengths are whole numbers and ms a number"):
        read_csv(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,ms\n", "column 'signature' is missing; the columns are signature, A, B, ms"),
        ("", "column 'signature' is missing"),
        ("signature,A,B,ms\nline,four,,1\n", "line 2"),
        ("signature,A,B,ms\nline,4,,1\nline,8,,fast\n", "line 3"),
        ("signature,A,B,ms\nline,4,,0\n", "0.0 ms is no positive time"),
        ("signature,A,B,ms\nline,4,1,1\nline,8,2,1\n", "the point A=4, B=2 is missing"),
    ],
)
def test_columns_that_are_no_table_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_csv(path)
    assert message in str(error.value)
