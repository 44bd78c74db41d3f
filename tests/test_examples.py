import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
READ = ("quantise.py",)  # tests that bear the script's name run it, and read what it prints


@pytest.mark.parametrize(
    "script", [script for script in EXAMPLES if script.name not in READ], ids=lambda script: script.name
)
def test_the_example_runs(script, tmp_path):
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_example_is_listed():
    text = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{script.name}`" in text for script in EXAMPLES)
