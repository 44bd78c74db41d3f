"""Fixtures for every test. Tests marked slow are left out by the default options; `make test-all` runs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the archives of real data and trained networks."""
    name = os.environ.get("AUTOPRUNE_DATA", "")
    if not name:
        pytest.skip("AUTOPRUNE_DATA is not set: it names the folder with the archives of real data")
    folder = Path(name)
    if not folder.is_dir():
        pytest.skip(f"AUTOPRUNE_DATA={name} is not a folder")
    return folder


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: (exit status, output, errors)."""
    from autoprune import cli

    def go(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autoprune", *words])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go
