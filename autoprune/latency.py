"""How long networks take on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from autoprune.forward import Example, call

WARM_UP = 3
REPEATS = 21


def measure(models: Mapping[str, nn.Module], example: Example, repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of one forward pass per network.

    Repeats are interleaved, so that a slow spell of the machine falls on all networks alike. Networks are
    taken in the mode they are in, with as many threads as torch has now.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(WARM_UP + repeats):
            for name, model in models.items():
                start = time.perf_counter()
                call(model, example)
                _wait(model)
                if turn >= WARM_UP:
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(model: nn.Module) -> None:
    """Accelerators answer before they are done."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
