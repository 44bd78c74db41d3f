"""examples/quantise.py: what its table says is what its files are."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from autoprune import api, cost, data, demo
from autoprune.finetune import judge

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
SCRIPT = Path(__file__).parents[1] / "examples" / "quantise.py"
LINE = re.compile(r"^\| (.+?) \| ([\d.]+)% \| ([\d,]+) \| ([\d.]+) M \|$", re.MULTILINE)
FILES = {
    "dense, fp32": "dense.onnx",
    "dense, int8": "dense.int8.onnx",
    "pruned, fp32": "pruned.onnx",
    "pruned and fine-tuned, fp32": "tuned.onnx",
    "pruned and fine-tuned, int8": "tuned.int8.onnx",
}


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("quantise", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(example, monkeypatch, capsys, *words: str) -> dict[str, tuple[float, int, float]]:
    """Accuracy, bytes and millions of multiply-adds by label."""
    monkeypatch.setattr(sys, "argv", ["quantise.py", *words])
    example.main()
    lines = LINE.findall(capsys.readouterr().out)
    return {label: (float(share) / 100, int(size.replace(",", "")), float(macs)) for label, share, size, macs in lines}


def right(path: Path, batches) -> float:
    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (told,) = runtime.get_inputs()
    hits = [runtime.run(None, {told.name: x.numpy()})[0].argmax(1) == y.numpy() for x, y in batches]
    return sum(int(hit.sum()) for hit in hits) / sum(len(hit) for hit in hits)


def test_the_table_on_the_digits(example, with_digits, tmp_path, monkeypatch, capsys):
    with_digits(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    rows = run(example, monkeypatch, capsys, "--root", "out", "--trials", "2")
    assert list(rows) == list(FILES)
    network, splits = demo.digits(Path("runs")), data.load("digits", calibration=256, validation=256)
    test = list(splits.test())
    for label, name in FILES.items():
        accuracy, size, _ = rows[label]
        assert size == (tmp_path / "out" / name).stat().st_size
        assert accuracy == pytest.approx(right(tmp_path / "out" / name, test), abs=1e-4)
        tensors = onnx.load(tmp_path / "out" / name).graph.initializer
        kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors if len(tensor.dims) == 4}
        assert kinds == ({"INT8"} if "int8" in label else {"FLOAT"})
    assert rows["dense, fp32"][0] == pytest.approx(judge(network, test)[1], abs=1e-4)
    # Eight bits cost 0.3 points of the dense network, and none to 0.3 of five pruned ones.
    for before, after in (
        ("dense, fp32", "dense, int8"),
        ("pruned and fine-tuned, fp32", "pruned and fine-tuned, int8"),
    ):
        assert rows[after][0] > rows[before][0] - 0.02
        assert rows[after][1] < rows[before][1] / 1.5
        assert rows[after][2] == rows[before][2]
    space = api.trace(network, test[0][0][:1])
    macs = cost.costs(space)["macs"]
    assert rows["dense, fp32"][2] == pytest.approx(macs(space.dense) / 1e6, rel=1e-2)
    assert rows["pruned, fp32"][2] <= rows["dense, fp32"][2] / 2 * 1.01


def test_the_page_prints_rows_of_the_script():
    page = (SCRIPT.parents[1] / "docs" / "quantise.md").read_text(encoding="utf-8")
    rows = {label: (float(share), int(size.replace(",", ""))) for label, share, size, _ in LINE.findall(page)}
    assert list(rows) == list(FILES)
    assert rows["pruned and fine-tuned, int8"][1] < rows["dense, int8"][1] < rows["dense, fp32"][1]
