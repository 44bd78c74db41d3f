"""Fixtures for every test. Tests marked slow are left out by the default options; `make test-all` runs them."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session", autouse=True)
def _timed_briefly() -> Iterator[None]:
    """Searches time their networks some 20 times, and not on until a busy machine has quietened.

    How long it takes to be sure is the business of the stopwatch's own tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "autoprune.latency.meter" in sys.modules:  # else nothing that was collected makes networks
            patch.setattr("autoprune.latency.meter.SURE", math.inf)
        yield


@pytest.fixture(scope="session")
def with_digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Puts the weights of the embedded network into a folder, where its first use would train them anew."""
    from autoprune import demo

    home = tmp_path_factory.mktemp("trained")
    demo.digits(home)

    def put(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(home / demo.WEIGHTS, folder)
        return folder

    return put


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
