"""Rectifiers: functions that clip (ReLU, ReLU6), so that errors beyond their bounds change nothing.

Found from one forward pass: a layer's output is clipped if rectifiers alone read it, and two layers are a pair if the
second alone reads what one rectifier makes of the first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Clip(NamedTuple):
    """A rectifier: min(max(x, ``low``), ``high``)."""

    low: float
    high: float

    def __call__(self, x: Tensor) -> Tensor:
        """The clipped values."""
        return x.clamp(self.low, self.high)

    def slope(self, x: Tensor) -> Tensor:
        """Where it lets changes through: true between the bounds."""
        return (x > self.low) & (x < self.high)

    def aim(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The nearest values to the answers that become what the targets become.

        Targets beyond a bound may be missed on its side: an answer that lies there is its own aim.
        """
        aim = torch.where(targets <= self.low, answers.clamp(max=self.low), targets)
        return torch.where(targets >= self.high, answers.clamp(min=self.high), aim)


def clip(operator: str, arguments: Mapping[str, Any]) -> Clip | None:
    """What an ATen operator (``aten.relu_.default``) does, if it is a rectifier."""
    name = operator.removeprefix("aten.").partition(".")[0].removesuffix("_")
    if name == "relu":
        return Clip(0.0, math.inf)
    if name == "hardtanh":  # ReLU6 too
        return Clip(float(arguments["min_val"]), float(arguments["max_val"]))
    return None


class Readers:
    """What reads the outputs of layers while a pass runs. Memory is told apart by its address."""

    def __init__(self) -> None:
        self._outputs: dict[int, str] = {}  # memory that holds a layer's output
        self._hidden: dict[int, str] = {}  # memory that holds what a rectifier made of it
        self._clips: dict[str, Clip] = {}
        self._reads: Counter[str] = Counter()
        self._followers: dict[str, set[str | None]] = {}  # which layers read the hidden values; None: anything else
        self._spoilt: set[str] = set()

    def made(self, path: str, address: int) -> None:
        """A layer's output, which lies there. Layers whose outputs lie in one place are not told apart."""
        if address in self._outputs:
            self._spoilt |= {path, self._outputs[address]}
        self._outputs[address] = path

    def read(self, address: int, by: Clip | None, made: int, layer: str | None) -> None:
        """An operator, a rectifier or another, reads what lies there, and its answer lies at ``made``.

        ``layer`` is the one whose operator it is.
        """
        if address in self._outputs:
            path = self._outputs[address]
            if by is None:
                self._spoilt.add(path)
                return
            known = self._clips.get(path, by)
            self._clips[path] = Clip(min(known.low, by.low), max(known.high, by.high))
            self._reads[path] += 1
            if made == address:  # in place
                del self._outputs[address]
            self._hidden[made] = path
        elif address in self._hidden:
            self._followers.setdefault(self._hidden[address], set()).add(layer)

    def clipped(self, answers: set[int]) -> Mapping[str, Clip]:
        """The layers that rectifiers alone read, if they are not among the network's ``answers``."""
        spoilt = self._spoilt | {path for address, path in self._outputs.items() if address in answers}
        return {path: found for path, found in self._clips.items() if path not in spoilt}

    def pairs(self, answers: set[int]) -> Mapping[str, str]:
        """The first layer by the second, of layers with nothing but one rectifier between them."""
        spoilt = {path for address, path in self._hidden.items() if address in answers}
        found: dict[str, str] = {}
        for first in self.clipped(answers):
            followers = self._followers.get(first, set())
            second = next(iter(followers), None)
            if second is not None and len(followers) == self._reads[first] == 1 and first not in spoilt:
                found[second] = first
        return found
