"""docs/handoff.md speaks of every exporter, and its blocks for tools of others run where those are installed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from autoprune.exporters import EXPORTERS, GRAPHS, find
from autoprune.exporters.notice import HandoffNotice
from autoprune.settings import options

PAGE = Path(__file__).parents[1] / "docs" / "handoff.md"
TEXT = PAGE.read_text(encoding="utf-8")
OURS = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
THEIRS = re.compile(r"^```py\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULES = {"NVIDIA ModelOpt": "modelopt", "NNI": "nni", "NNCF": "nncf", "llm-compressor": "llmcompressor"}
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def test_the_table_has_a_row_for_every_exporter():
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {*EXPORTERS, *GRAPHS}


def test_every_block_for_a_foreign_tool_stands_in_a_section_that_names_it():
    assert sum(len(THEIRS.findall(text)) for text in SECTIONS.values()) == len(THEIRS.findall(TEXT))
    assert {title for title, text in SECTIONS.items() if THEIRS.search(text)} == set(MODULES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", MODULES)
def test_the_blocks_for_a_tool_run_where_it_is_installed(title, tmp_path, monkeypatch):
    if find_spec(MODULES[title]) is None:
        pytest.skip(f"{MODULES[title]} is not installed")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    exec(compile(OURS.search(TEXT)[1], str(PAGE), "exec"), names)
    for block in THEIRS.findall(SECTIONS[title]):
        exec(compile(block, str(PAGE), "exec"), names)


def test_options_on_the_page_are_options_of_the_exporter():
    from autoprune.exporters import KIND

    found = re.findall(r"--to (\w+) ((?:--set \w+=\S+ ?)+)", TEXT)
    assert len(found) >= 6
    for name, settings in found:
        known = options(find(name), KIND)
        assert set(re.findall(r"--set (\w+)=", settings)) <= set(known), name


def test_a_notice_is_a_warning_that_programs_can_filter():
    assert issubclass(HandoffNotice, UserWarning)
