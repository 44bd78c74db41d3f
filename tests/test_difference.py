"""Two schemes side by side."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import toy
from autoprune.difference import Difference, Row, compare_files
from autoprune.errors import UserError
from autoprune.exporters import scheme_file
from autoprune.scheme import Scheme

SPACE = toy.chain((8, 16, 12))


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """Two scheme files of one space."""
    found = []
    for name, kept, macs in (("a", (4, 16, 6), 100.0), ("b", (6, 10, 6), 90.0)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "scheme.json"
        path.write_text(scheme_file.export(Scheme(kept), SPACE, facts={"costs": {"kept": {"macs": macs}}}))
        found.append(path)
    return found[0], found[1]


def test_groups_and_costs_stand_side_by_side(files) -> None:
    found = compare_files(*files)
    rows = (Row("conv0", 8, 4, 6), Row("conv1", 16, 16, 10), Row("conv2", 12, 6, 6))
    assert found == Difference(("a", "b"), rows, {"macs": (100.0, 90.0)})
    assert found.moved == 8


def test_the_picture_draws_both_in_proportion(files) -> None:
    root = ElementTree.fromstring(compare_files(*files).chart())
    bars = [float(rect.get("width")) for rect in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert len(bars) == 9
    for number, (width, first, second) in enumerate([(8, 4, 6), (16, 16, 10), (12, 6, 6)]):
        full, one, two = bars[3 * number : 3 * number + 3]
        assert one / full == pytest.approx(first / width, abs=0.01)
        assert two / full == pytest.approx(second / width, abs=0.01)


def test_schemes_of_two_networks_do_not_compare(files, tmp_path) -> None:
    other = tmp_path / "other.json"
    other.write_text(scheme_file.export(Scheme((4, 4)), toy.chain((8, 16))))
    with pytest.raises(UserError, match="group conv2 is in .*scheme.json and not in .*other.json"):
        compare_files(files[0], other)
    other.write_text(scheme_file.export(Scheme((4, 4, 4)), toy.chain((8, 16, 24))))
    with pytest.raises(UserError, match="conv2 has 12 channels in .* and 24 in"):
        compare_files(files[0], other)
    record = json.loads(files[1].read_text())
    record["groups"][0]["kept_channels"] = "many"
    other.write_text(json.dumps(record))
    with pytest.raises(UserError, match="kept_channels is 'many'"):
        compare_files(files[0], other)


def test_the_command(files, tmp_path, command_line) -> None:
    status, out, err = command_line("diff", *map(str, files), "--chart", str(tmp_path / "both.svg"))
    assert status == 0, err
    assert "8 channels apart" in out
    assert "-6" in out
    assert "-10.0%" in out
    assert (tmp_path / "both.svg").read_text().startswith("<svg")
    status, out, _ = command_line("diff", *map(str, files), "--json")
    assert json.loads(out)["moved"] == 8
    status, _, err = command_line("diff", "nothing", "here")
    assert status == 2
    assert "no run 'nothing'" in err
