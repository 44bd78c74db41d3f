"""What executes a network: torch as it is, ``torch.compile``, or ONNX Runtime."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import UserError
from autoprune.forward import Example, call

Backend = Callable[[nn.Module, Example, int], Callable[[], Any]]
"""(network, inputs, threads) -> a call that runs one forward pass."""


def eager(network: nn.Module, inputs: Example, threads: int) -> Callable[[], Any]:
    """Operator by operator."""
    return lambda: call(network, inputs)


def compiled(network: nn.Module, inputs: Example, threads: int) -> Callable[[], Any]:
    """``torch.compile`` with its default settings; the first call compiles."""
    # Every width is a network of its own: no reason for dynamic shapes, nor to look through the code of the others.
    function = torch.compile(network, dynamic=False, isolate_recompiles=True)  # type: ignore[call-overload]
    return lambda: call(function, inputs)


def onnxruntime(network: nn.Module, inputs: Example, threads: int) -> Callable[[], Any]:
    """ONNX Runtime on the CPU, after ``torch.onnx.export``."""
    try:
        import onnxruntime as ort  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("backend 'onnxruntime' needs more packages: pip install 'autoprune[onnx]'") from None
    tensors = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
    if not isinstance(tensors, tuple | list) or not all(isinstance(value, torch.Tensor) for value in tensors):
        raise UserError(f"backend 'onnxruntime' takes tensors as input, not a {type(inputs).__name__}")
    tensors = tuple(value.contiguous() for value in tensors)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        _export(network, tensors, path)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {told.name: value.cpu().numpy() for told, value in zip(session.get_inputs(), tensors, strict=True)}
    return lambda: session.run(None, feed)


def _export(network: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, inputs, path, dynamo=True, verbose=False)


BACKENDS: Mapping[str, Backend] = {"eager": eager, "compile": compiled, "onnxruntime": onnxruntime}
