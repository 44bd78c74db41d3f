"""Every example runs as it is, in a folder of its own, and prints what it says.

They run in this process, so that libraries are imported once for all of them; one also runs as the command that the
README names.
"""

import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
SLOW = ("staged.py",)
NEEDS = {"timm_vit.py": "timm", "hugging_face_vit.py": "transformers"}
READ = ("custom_reward.py", "detection.py", "quantise.py", "torch_pruning_finetune.py", *NEEDS)  # tests of their own


@pytest.fixture
def example(with_digits, tmp_path, monkeypatch, capsys):
    """Runs an example; gives its global names and what it printed."""

    def go(name):
        with_digits(tmp_path / "runs")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name])
        with mock.patch.dict(os.environ), torch.random.fork_rng(devices=[]):
            try:
                found = runpy.run_path(str(FOLDER / name), run_name="__main__")
            except SystemExit as end:  # what it needs is missing, and it says so
                if end.code:
                    raise
                found = {}
        return found, capsys.readouterr().out

    return go


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(script.name, marks=pytest.mark.slow) if script.name in SLOW else script.name
        for script in EXAMPLES
        if script.name not in READ
    ],
)
def test_the_example_runs(example, name):
    found, said = example(name)
    if not found:
        pytest.skip(said.strip())
    assert said.strip()


def test_an_example_is_a_command(with_digits, tmp_path):
    with_digits(tmp_path / "runs")
    script = FOLDER / "search_digits.py"
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "parameters:" in done.stdout


@pytest.mark.parametrize(("name", "library"), NEEDS.items())
def test_an_example_says_what_it_lacks(example, name, library):
    found, said = example(name)
    if find_spec(library) is None:
        assert f"skipped: {library} is not installed" in said
    else:
        assert found["run"].summary["rows"]["found"]["fractions"]["macs"] <= 0.6


def test_own_rewards_weigh_what_was_measured_once(example):
    _, said = example("custom_reward.py")
    shares = [float(share) for share in re.findall(r"with ([\d.]+)% of the parameters", said)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert len(set(re.findall(r"(\d+) measurements", said))) == 1


def test_torch_pruning_leaves_the_widths_of_the_scheme(example):
    found, _ = example("torch_pruning_finetune.py")
    pruned, run = found["pruned"], found["run"]
    for group, kept in zip(run.space.groups, run.scheme.kept, strict=True):
        assert pruned.get_submodule(group.name).weight.shape[0] == kept
    assert found["accuracy"](pruned) > 0.5


def test_a_detector_is_searched_by_its_own_metric(example):
    found, _ = example("detection.py")
    run = found["run"]
    rows = run.summary["rows"]
    assert rows["found"]["metrics"]["f1"] == max(run.trials()["metrics.f1"])
    assert rows["found"]["metrics"]["f1"] == found["evaluate"](run.model)["f1"]
    assert rows["dense"]["metrics"]["f1"] > 0.5


def test_the_readme_lists_every_example():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{script.name}`" in text for script in EXAMPLES)
