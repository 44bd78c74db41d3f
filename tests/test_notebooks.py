"""The notebooks run from their first cell to their last, and draw what they found."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
WITH_DATA = {"resnet56_latency_budget.ipynb"}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_outputs(name):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert len(notebook.cells) > len(code) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, tmp_path, request):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    manager = pytest.importorskip("jupyter_client.manager")
    if name in WITH_DATA:
        request.getfixturevalue("data_folder")  # skips with the reason where there is none
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    kernel = manager.AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(tmp_path / "k"))
    nbclient.NotebookClient(notebook, km=kernel, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<svg" in data.get("image/svg+xml", "") for data in shown)
    assert any("text/html" in data for data in shown)  # a table
    assert list(tmp_path.glob("runs/*/report.html"))
