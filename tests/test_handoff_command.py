"""``autoprune export`` with a scheme file."""

from __future__ import annotations

import json

import pytest
import torch

import autoprune
from autoprune.architectures import ARCHITECTURES
from autoprune.exporters import EXPORTERS, write
from autoprune.scheme import Scheme

NETWORK = ("--model", "autoprune:digits")


@pytest.fixture
def space():
    return autoprune.trace(ARCHITECTURES["digits"](), torch.zeros(1, 1, 8, 8))


@pytest.fixture
def scheme(space, tmp_path, monkeypatch):
    """A scheme file in the current folder that cuts a group with one layer."""
    monkeypatch.chdir(tmp_path)
    position = space.index("blocks.0.conv1")
    indices = [tuple(range(group.units)) for group in space.groups]
    indices[position] = (1, 4, 5)
    made = Scheme(tuple(len(units) for units in indices), indices=tuple(indices))
    write("json", made, space, "scheme.json")
    return made


def test_a_file_is_exported_for_another_tool(scheme, command_line, tmp_path):
    status, out, err = command_line("export", "scheme.json", *NETWORK, "--to", "torch_prune", "--out", "amounts.json")
    assert (status, out.strip(), err) == (0, "amounts.json", "")
    assert json.loads((tmp_path / "amounts.json").read_text())["blocks.0.conv1"]["amount"] == 16 - 3


def test_a_file_that_is_there_needs_force(scheme, command_line, tmp_path):
    words = ("export", "scheme.json", *NETWORK, "--to", "csv", "--out", "scheme.json")
    before = (tmp_path / "scheme.json").read_text()
    status, _, err = command_line(*words)
    assert status == 2 and "scheme.json exists already" in err and "--force" in err
    assert (tmp_path / "scheme.json").read_text() == before
    status, _, _ = command_line(*words, "--force")
    assert status == 0 and (tmp_path / "scheme.json").read_text().startswith("group,original,kept")


def test_options_of_the_exporter_are_set_by_name(scheme, command_line):
    words = ("export", "scheme.json", *NETWORK, "--to", "mmrazor")
    status, out, _ = command_line(*words, "--set", "prefix=backbone.")
    assert status == 0 and json.loads(out)["backbone.blocks.0.conv1_(0, 16)_16"] == 3
    status, _, err = command_line(*words, "--set", "prefx=backbone.")
    assert status == 2 and "no option 'prefx'" in err and "close: prefix" in err


def test_what_a_format_changes_is_told(scheme, command_line):
    status, out, err = command_line("export", "scheme.json", *NETWORK, "--to", "spdy")
    assert status == 0 and len(out.splitlines()) == 12
    assert err.startswith("warning: SPDY's database has no other sparsities: blocks.0.conv1 0.8125 -> ")


def test_a_scheme_that_a_tool_cannot_follow_is_refused(scheme, command_line):
    status, out, err = command_line("export", "scheme.json", *NETWORK, "--to", "torch_ao")
    assert (status, out) == (2, "") and "torch.ao.pruning cannot prune this network" in err


def test_other_weights_are_told(scheme, command_line, tmp_path):
    record = json.loads((tmp_path / "scheme.json").read_text())
    record["model"] = {"name": "mine", "digest": "0123"}
    (tmp_path / "scheme.json").write_text(json.dumps(record))
    status, _, err = command_line("export", "scheme.json", *NETWORK, "--to", "csv")
    assert status == 0 and "warning: the scheme was made for other weights of mine (digest 0123, here " in err


def test_the_help_lists_every_exporter(command_line):
    _, out, _ = command_line("export", "--help")
    assert all(name in out for name in EXPORTERS)


def test_a_history_of_another_tool_is_exported_like_a_scheme(scheme, space, command_line, tmp_path):
    write("torch_pruning_history", scheme, space, "history.json")
    status, out, err = command_line("export", "history.json", *NETWORK, "--to", "csv")
    assert (status, err) == (0, "") and "blocks.0.conv1,16,3,0.1875" in out
