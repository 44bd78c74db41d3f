"""Prune, train for a moment, quantise to eight bits: accuracy on test images after every step.

    python examples/quantise.py                            # the digits, in seconds
    AUTOPRUNE_DATA=... python examples/quantise.py --cifar10   # ResNet-20 on CIFAR-10 (JPEG)
        [--budget macs=50%] [--trials 40] [--images 20480] [--epochs 1] [--lr 0.01] [--root FOLDER]

Every network is measured as the ONNX file that one would ship. The search and the training see training images alone;
the test images are looked at once per row, and nothing is chosen by them. Needs pip install 'autoprune[onnx]'.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from torch import Tensor, nn

import autoprune
from autoprune import data, demo, models
from autoprune.exporters import graphs
from autoprune.finetune import Recipe, finetune

if find_spec("onnxruntime") is None:
    print("skipped: onnxruntime is not installed (pip install 'autoprune[onnx]')")
    raise SystemExit

import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Batches = Iterable[tuple[Tensor, Tensor]]


class Images(CalibrationDataReader):
    """What the quantiser measures the range of activations on; ``name`` is the graph's input."""

    def __init__(self, name: str, batches: Batches) -> None:
        self.name, self.batches = name, iter(batches)

    def get_next(self) -> dict[str, object] | None:
        """One batch, or None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch[0].numpy()}


def session(graph: Path) -> onnxruntime.InferenceSession:
    """The graph on the CPU."""
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def quantise(graph: Path, calibration: Batches) -> Path:
    """Weights and activations in eight bits, weights with a scale per channel; a new file beside the old one."""
    prepared, target = graph.with_suffix(".prepared.onnx"), graph.with_suffix(".int8.onnx")
    quant_pre_process(graph, prepared)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser recommends the preparation even after it
    try:
        quantize_static(
            prepared, target, Images(session(prepared).get_inputs()[0].name, calibration),
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
    finally:
        root.setLevel(level)
    return target


def accuracy(graph: Path, test: Batches) -> float:
    """The share of test images that ONNX Runtime gets right."""
    runtime, right, total = session(graph), 0, 0
    for images, labels in test:
        (scores,) = runtime.run(None, {runtime.get_inputs()[0].name: images.numpy()})
        right += int((scores.argmax(1) == labels.numpy()).sum())
        total += len(labels)
    return right / total


def main() -> None:
    """Search, train, quantise and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", action="store_true", help="ResNet-20 on the images of $AUTOPRUNE_DATA")
    parser.add_argument("--budget", default="macs=50%")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--images", type=int, default=20_480, help="training images for the fine-tuning, at most")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--root", type=Path, help="keep the run and the files here, and continue them")
    given = parser.parse_args()
    if given.cifar10:
        folder = Path(os.environ["AUTOPRUNE_DATA"])
        splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
        dense: nn.Module = models.load("autoprune:resnet20", folder / "resnet20-cifar10-jpeg.pt").eval()
    else:
        dense, splits = demo.digits(Path("runs")), data.load("digits", calibration=256, validation=256)
    root = given.root or Path(tempfile.mkdtemp())
    example = splits.validation[0][0][:1]
    assert splits.train is not None
    assert splits.test is not None
    test = list(splits.test())

    run = autoprune.search(
        dense, example, splits.calibration, splits.validation,
        budget=given.budget, trials=given.trials, run="prune-then-quantise", root=root,
    )  # fmt: skip
    macs = run.summary["rows"]["found"]["costs"]["macs"]
    whole = run.summary["rows"]["dense"]["costs"]["macs"]

    def row(label: str, graph: Path, cost: float) -> None:
        size = f"{graph.stat().st_size:,} | {cost / 1e6:.3g} M"
        print(f"| {label} | {accuracy(graph, test):.2%} | {size} |", flush=True)

    def written(network: nn.Module, name: str) -> Path:
        graphs.onnx(network, example, root / name, force=True)
        return root / name

    print("| network | test accuracy | bytes | multiply-adds |\n|---|---|---|---|")
    graph = written(dense, "dense.onnx")
    row("dense, fp32", graph, whole)
    row("dense, int8", quantise(graph, splits.calibration), whole)
    row("pruned, fp32", written(run.model, "pruned.onnx"), macs)
    train = list(islice(splits.train(), max(1, given.images // len(splits.calibration[0][1]))))
    recipe = Recipe(given.epochs, given.lr, distill=0.5, augment="crop" if given.cifar10 else "none")
    finetune(run.model, train, splits.validation, root / "finetuned", recipe, teacher=dense)
    graph = written(run.model, "tuned.onnx")
    row("pruned and fine-tuned, fp32", graph, macs)
    row("pruned and fine-tuned, int8", quantise(graph, splits.calibration), macs)


if __name__ == "__main__":
    main()
