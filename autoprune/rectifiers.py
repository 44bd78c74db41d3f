"""Rectifiers: functions that are flat outside an interval, so that errors which stay outside it change nothing.

Found from one forward pass: a layer's output is rectified if rectifiers alone read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Active(NamedTuple):
    """Where a function is not flat: between ``low`` and ``high``."""

    low: float
    high: float

    def aim(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The nearest answers that are read as the targets are.

        A target outside the interval may be missed in its direction: there the answer is its own target.
        """
        aim = torch.where(targets <= self.low, answers.clamp(max=self.low), targets)
        return torch.where(targets >= self.high, answers.clamp(min=self.high), aim)


FIXED: Mapping[str, Active] = {
    "relu": Active(0.0, math.inf),
    "hardswish": Active(-3.0, math.inf),
    "hardsigmoid": Active(-3.0, 3.0),
}


def active(operator: str, arguments: Mapping[str, Any]) -> Active | None:
    """Where an ATen operator (``aten.relu_.default``) is not flat; None if it is no rectifier."""
    name = operator.removeprefix("aten.").partition(".")[0].removesuffix("_")
    if name == "hardtanh":  # ReLU6 too
        return Active(float(arguments["min_val"]), float(arguments["max_val"]))
    return FIXED.get(name)


class Readers:
    """What reads the outputs of layers while a pass runs. Memory is told apart by its address."""

    def __init__(self) -> None:
        self._layers: dict[int, str] = {}  # memory that still holds a layer's output
        self._read: dict[str, Active] = {}
        self._spoilt: set[str] = set()

    def made(self, path: str, address: int) -> None:
        """A layer's output, which lies there. One that lies where another's does is nobody's own."""
        if address in self._layers:
            self._spoilt |= {path, self._layers[address]}
        self._layers[address] = path

    def read(self, address: int, by: Active | None, written: bool) -> None:
        """An operator, a rectifier or another, reads what lies there, and may write its answer in the same place."""
        path = self._layers.get(address)
        if path is None:
            return
        if by is None:
            self._spoilt.add(path)
            return
        known = self._read.get(path, by)
        self._read[path] = Active(min(known.low, by.low), max(known.high, by.high))
        if written:
            del self._layers[address]

    def rectified(self, answers: set[int]) -> Mapping[str, Active]:
        """The layers that rectifiers alone read, if they are not among the network's ``answers``."""
        spoilt = self._spoilt | {path for address, path in self._layers.items() if address in answers}
        return {path: active for path, active in self._read.items() if path not in spoilt}
