"""The template of a plug-in package: it installs, its names are found, and everything it announces works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import autoprune
from autoprune import api, arguments, searchers
from autoprune.architectures import ARCHITECTURES
from autoprune.errors import UserError

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
ANNOUNCED = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
KINDS = ("searcher", "criterion", "recovery", "reward", "exporter", "search_space")
NAME = {kind: next(iter(ANNOUNCED[f"autoprune.{kind}"])) for kind in KINDS}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that pip installed a copy of the template into."""
    copy, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("installed")
    shutil.copytree(PLUGIN, copy)  # a build leaves files beside what it builds
    words = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target), str(copy)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *words], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory, with_digits):
    """The command line in a process that finds the package: (folder, function of the words)."""
    folder = tmp_path_factory.mktemp("home")
    with_digits(folder / "runs")
    program = (
        "import math, shlex, sys\nimport autoprune.latency.meter\nfrom autoprune.cli import main\n"
        "autoprune.latency.meter.SURE = math.inf\n"  # as in conftest.py: networks are timed briefly
        "for line in sys.argv[1:]:\n    sys.argv = ['autoprune', *shlex.split(line)]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, line\n"
    )

    def several(*lines: str) -> subprocess.CompletedProcess:
        """Commands one after the other in one process, because each pays for the imports."""
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        return subprocess.run(
            [sys.executable, "-P", "-c", program, *lines],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return folder, several


def test_the_template_announces_one_of_every_kind():
    assert set(ANNOUNCED) == {f"autoprune.{kind}" for kind in KINDS}
    for names in ANNOUNCED.values():
        for reference in names.values():
            module, _, function = reference.partition(":")
            source = (PLUGIN / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
            assert f"def {function}(" in source


def test_an_installed_package_is_found_by_its_names_and_searches_and_exports(run):
    folder, several = run
    done = several(
        f"search --searcher {NAME['searcher']} --set reach=0.2 --criterion {NAME['criterion']} "
        f"--recovery {NAME['recovery']},step=0.7 --reward {NAME['reward']} --reward-set accuracy=0.5 "
        f"--space {NAME['search_space']},least=0.5 --budget macs=60% --trials 5 --batch 4 --run mine "
        "--calibration 64 --validation 128 --quiet",
        f"export mine --to {NAME['exporter']} --set caption=Found --out table.tex",
        f"groups autoprune:digits --space {NAME['search_space']} --json",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "runs/mine/config.json").read_text())
    request, summary = record["request"], json.loads((folder / "runs/mine/summary.json").read_text())
    assert (request["searcher"], request["criterion"]) == (NAME["searcher"], NAME["criterion"])
    assert request["recovery"] == f"{NAME['recovery']},step=0.7"
    assert record["reward"] == f"mylab.reward:{NAME['reward']}(accuracy=0.5)"
    assert record["source"]["space"] == f"{NAME['search_space']},least=0.5"
    assert request["options"] == {"reach": "0.2"}
    assert summary["trials"] == 5
    # The space's own rule holds of the answer, and the reward's formula of its measurement.
    assert all(
        kept % 2 == 0 and kept >= width / 2 for kept, width in zip(summary["kept"], summary["widths"], strict=True)
    )
    found = summary["rows"]["found"]
    assert found["accuracy"] >= 0.5
    assert summary["reward"] == pytest.approx(0.5 + 1 - found["fractions"]["macs"])
    table = (folder / "table.tex").read_text()
    assert "caption{Found}" in table
    rows = re.findall(r"^ +(\S+) & (\d+) & (\d+) ", table, re.MULTILINE)
    assert [(int(dense), int(kept)) for _, dense, kept in rows] == list(
        zip(summary["widths"], summary["kept"], strict=True)
    )
    for group in json.loads(done.stdout.splitlines()[-1])["groups"]:
        assert group["counts"] == [count for count in range(2, group["width"] + 1, 2) if count >= group["width"] / 4]


def test_without_the_package_its_names_are_unknown():
    with pytest.raises(UserError, match=f"searcher '{NAME['searcher']}' is unknown: use "):
        searchers.find(NAME["searcher"])
    with pytest.raises(UserError, match=f"search_space '{NAME['search_space']}' is unknown: use traced, "):
        api.define_space(NAME["search_space"], ARCHITECTURES["digits"](), torch.zeros(1, 1, 8, 8))


def test_what_is_no_search_space_is_refused_and_options_are_read():
    model, example = ARCHITECTURES["digits"](), torch.zeros(1, 1, 8, 8)
    with pytest.raises(UserError, match="search space .*<lambda> is a str, not a SearchSpace"):
        api.define_space(lambda *_: "groups", model, example)
    with pytest.raises(UserError, match="search_space trace has no option 'sed': its options are .*; close: seed"):
        api.define_space("traced,sed=3", model, example)
    assert len(api.define_space("traced,seed=3", model, example)) == len(autoprune.trace(model, example))


def test_a_run_that_names_code_for_its_space_is_not_followed_without_leave(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "scheme.json").write_text("{}")
    source = {"model": "autoprune:digits", "space": "os:getcwd"}
    (run / "config.json").write_text(json.dumps({"source": source}))
    with pytest.raises(UserError, match="names the space 'os:getcwd', which is code: say --allow-code"):
        arguments.find_origin(str(run), None, None, None, None, False)
