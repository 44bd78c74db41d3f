"""The pruned network itself as a file for other programs: ONNX, or a program of ``torch.export``.

Unlike an exporter of schemes these take a network, the pruned one:

    network = load_pruned(factory, "runs/mine")
    difference = onnx(network, example, "mine.onnx")

Both return the largest absolute difference between the outputs of the written graph and of PyTorch, on random input,
and refuse a graph that computes something else. The first axis of every input is the batch; it stays free, which is
tried with another size, unless ``batch`` says "fixed": then it is that of the example.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.forward import Example, call, evaluating, outputs, repeated
from autoprune.paths import expand
from autoprune.slicing import named_tensors

Batch = Literal["free", "fixed"]
TOLERANCE = 1e-3  # of the largest output; the difference found is usually a thousandth of that
SAMPLES = 3  # another number than the graph is traced with


def onnx(
    network: nn.Module, example: Example, path: str | Path, *, batch: Batch = "free", force: bool = False
) -> float:
    """Write an ONNX file and run it with ONNX Runtime on the CPU; needs the extra "onnx"."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401 - torch.onnx needs it, and says so late
    except ImportError:
        raise UserError("an ONNX file needs more packages: pip install 'autoprune[onnx]'") from None
    target, inputs = _target(path, force), _inputs(example)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    def export(candidate: nn.Module) -> Callable[..., Sequence[Tensor]]:
        torch.onnx.export(
            candidate, _traced(inputs, batch), target, dynamo=True, verbose=False, external_data=False,
            dynamic_shapes=_free(inputs, batch),
        )  # fmt: skip
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        names = [told.name for told in session.get_inputs()]

        def run(*tensors: Tensor) -> list[Tensor]:
            feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            return [torch.as_tensor(value) for value in session.run(None, feed)]

        return run

    return _written(network, inputs, target, batch, export)


def torch_export(
    network: nn.Module, example: Example, path: str | Path, *, batch: Batch = "free", force: bool = False
) -> float:
    """Write a program of ``torch.export`` (``torch.export.load`` reads it)."""
    target, inputs = _target(path, force), _inputs(example)
    if target.suffix != ".pt2":
        raise UserError(f"{target}: a program of torch.export is a file ending in .pt2")

    def export(candidate: nn.Module) -> Callable[..., Sequence[Tensor]]:
        program = torch.export.export(candidate, _traced(inputs, batch), dynamic_shapes=_free(inputs, batch))
        torch.export.save(program, target)
        module = program.module()
        return lambda *tensors: outputs(module(*tensors))

    return _written(network, inputs, target, batch, export)


def _target(path: str | Path, force: bool) -> Path:
    target = expand(path)
    if target.exists() and not force:
        raise UserError(f"{target} exists already: choose another file, or replace it with force (--force)")
    if not target.parent.is_dir():
        raise UserError(f"{target} cannot be written: there is no folder {target.parent}")
    return target


def _inputs(example: Example) -> tuple[Tensor, ...]:
    tensors = (example,) if isinstance(example, Tensor) else example
    if not isinstance(tensors, tuple | list) or not all(isinstance(value, Tensor) for value in tensors):
        raise UserError(f"a graph is written for tensors as input, not for a {type(example).__name__}")
    return tuple(value.detach().cpu() for value in tensors)


def _traced(inputs: tuple[Tensor, ...], batch: Batch) -> tuple[Tensor, ...]:
    """What tracers see: two samples where the batch is free, because they take one for a constant."""
    return tuple(repeated(inputs, 2)) if batch == "free" else inputs


def _free(inputs: tuple[Tensor, ...], batch: Batch) -> Any:
    if batch == "fixed":
        return None
    dimension = torch.export.Dim("batch")
    return tuple({0: dimension} for _ in inputs)


def _written(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    target: Path,
    batch: Batch,
    export: Callable[[nn.Module], Callable[..., Sequence[Tensor]]],
) -> float:
    """Write the graph and compare it; a graph that is wrong is removed."""
    if any(tensor.device.type != "cpu" for _, tensor in named_tensors(network)):
        network = copy.deepcopy(network).cpu()
    try:
        with torch.no_grad(), evaluating(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = export(network)
            samples = repeated(inputs, SAMPLES) if batch == "free" else inputs
            tried = tuple(torch.randn_like(value) if value.is_floating_point() else value for value in samples)
            expected = outputs(call(network, tried))
            found = run(*tried)
    except Exception as error:
        target.unlink(missing_ok=True)
        reason = (str(error).strip().splitlines() or [""])[0]
        remedy = "; try with batch='fixed' (--set batch=fixed)" if batch == "free" else ""
        raise UserError(f"no graph of this network ({type(error).__name__}: {reason}){remedy}") from error
    pairs = zip(expected, found, strict=True)
    worst = max(float((ours.double() - theirs.double()).abs().max()) for ours, theirs in pairs)
    largest = max(float(tensor.abs().max()) for tensor in expected)
    if not worst <= TOLERANCE * max(1.0, largest):
        target.unlink(missing_ok=True)
        raise UserError(f"the graph written for {target} computes something else: outputs differ by {worst:.3g}")
    return worst
