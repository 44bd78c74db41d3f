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
    torch._dynamo.reset()  # noqa: SLF001 - every width is a network of its own, none a reason for dynamic shapes
    function = torch.compile(network, dynamic=False)
    return lambda: call(function, inputs)  # type: ignore[arg-type]


def onnxruntime(network: nn.Module, inputs: Example, threads: int) -> Callable[[], Any]:
    """ONNX Runtime on the CPU, after ``torch.onnx.export``."""
    try:
        import onnxruntime as ort  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("backend 'onnxruntime' needs more packages: pip install 'autoprune[onnx]'") from None
    if not isinstance(inputs, torch.Tensor):
        raise UserError(f"backend 'onnxruntime' takes one tensor as input, not a {type(inputs).__name__}")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        _export(network, inputs, path)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs.contiguous().cpu().numpy()}
    return lambda: session.run(None, feed)


def _export(network: nn.Module, inputs: torch.Tensor, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (inputs.contiguous(),), path, dynamo=True, verbose=False)


BACKENDS: Mapping[str, Backend] = {"eager": eager, "compile": compiled, "onnxruntime": onnxruntime}
