"""A machine without noise or waiting: networks are timed by counting what their operators do.

Convolutions and linear layers work on eight output channels at a time, so their time is a staircase; all else takes
time in proportion to what it writes, and every call that is no view has a constant price.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoprune.forward import call
from autoprune.latency.conditions import Conditions
from autoprune.latency.units import Replay

STAIR = 8


class Counter(TorchDispatchMode):
    """Adds up the seconds of the operators that run inside it, and lists what they were given."""

    def __init__(self, stair: int, write: float) -> None:
        super().__init__()
        self.stair, self.write = stair, write
        self.seconds = 0.0
        self.calls: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        given = tree_leaves((args, kwargs))
        read = {t.untyped_storage()._cdata for t in given if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not func._schema.is_mutable and all(t.untyped_storage()._cdata in read for t in made):
            return result
        told = tuple(tuple(t.shape) if isinstance(t, Tensor) else t for t in given if isinstance(t, Tensor | int))
        self.calls.append((name, told))
        self.seconds += 2e-6 + sum(self._work(name, args, t) for t in made)
        return result

    def _work(self, name: str, args: Any, made: Tensor) -> float:
        if name not in ("conv2d", "linear"):
            return self.write * made.numel()
        weight = args[1]
        padded = math.ceil(len(weight) / self.stair) * self.stair
        return 1e-10 * padded * made.numel() / len(weight) * weight[0].numel() + 2e-12 * weight.numel()


class Machine:
    """Runs networks in no time and says how long it would have taken.

    ``strange`` is what whole networks take in proportion to the sum of their pieces, ``extra`` seconds come on top.
    ``noise`` is the standard deviation of every reading, as a fraction. After ``patience`` networks it breaks off.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stair, self.write = STAIR, 2e-10
        self.strange, self.extra, self.noise = 1.0, 0.0, 0.0
        self.patience = math.inf
        self.pieces: list[Any] = []
        self.networks = 0
        self.now = 0.0
        self._chance = np.random.default_rng(0)
        monkeypatch.setattr(Conditions, "run", lambda conditions, network, inputs, own=False: self.run(network, inputs))
        monkeypatch.setattr(Conditions, "clock", property(lambda conditions: self.clock))

    def seconds(self, network: nn.Module, inputs: Any) -> float:
        """What a forward pass takes."""
        with torch.inference_mode(), Counter(self.stair, self.write) as counter:
            call(network.eval(), inputs)
        if isinstance(network, Replay):
            self.pieces.append(tuple(counter.calls))
            return counter.seconds
        self.networks += 1
        return counter.seconds * self.strange + self.extra

    def run(self, network: nn.Module, inputs: Any) -> Callable[[], None]:
        if len(self.pieces) + self.networks >= self.patience:
            raise KeyboardInterrupt
        seconds = self.seconds(network, inputs)

        def step() -> None:
            self.now += seconds

        return step

    def clock(self, run: Callable[[], None]) -> float:
        self.now = 0.0  # sums that begin anew are the same in every run, to the last bit
        run()
        return self.now * max(0.1, 1 + self.noise * self._chance.standard_normal())
