"""Prove groups: the sliced network must compute what the dense one does with those channels zeroed.

The check runs on a double-precision copy whose vectors (batch-norm parameters, biases, scales) are
drawn anew, because a freshly initialised network is too symmetric to notice exchanged channels. "Zeroed"
means that the layers which consume the channels no longer see them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.forward import Example, call, outputs, to
from autoprune.slicing import prune
from autoprune.space import Group, SearchSpace

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # largest difference, relative to the largest output


class Proof:
    """A scratch copy of the model on which groups are tried."""

    def __init__(self, model: nn.Module, example: Example, space: SearchSpace, seed: int = 0) -> None:
        self.space = space
        self.rng = np.random.default_rng(seed)
        self.model = copy.deepcopy(model)
        self.dtype = torch.float64
        self.example = to(example, dtype=torch.float64)
        try:
            self.model.double()
            self._run(self.model)
        except Exception:  # code that insists on single precision is proved in single precision
            self.model = copy.deepcopy(model)
            self.dtype, self.example = torch.float32, example
        _enliven(self.model, seed)
        self.dense = self._run(self.model)

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return [t.detach().clone() for t in outputs(call(model, self.example)) if t.is_floating_point()]

    def flaw(self, groups: Sequence[Group]) -> str | None:
        """Why cutting these groups together is wrong; None when sliced equals zeroed."""
        kept = []
        chosen = {group.name for group in groups}
        for group in self.space.groups:
            units = np.arange(group.units)
            if group.name in chosen:
                count = int(self.rng.integers(1, group.units)) if group.units > 2 else 1
                units = np.sort(self.rng.choice(units, size=count, replace=False))
            kept.append(units)
        try:
            sliced = self._run(prune(self.model, self.space, kept))
        except Exception as error:
            return f"the pruned network does not run: {_short(error)}"
        zeroed = self._zeroed(kept)
        scale = max((float(t.abs().max()) for t in zeroed if t.numel()), default=0.0) or 1.0
        tolerance = TOLERANCE[self.dtype] * scale
        if len(sliced) != len(zeroed) or any(a.shape != b.shape for a, b in zip(sliced, zeroed, strict=True)):
            return "the pruned network's output has another shape"
        gap = max((float((a - b).abs().max()) for a, b in zip(sliced, zeroed, strict=True) if a.numel()), default=0.0)
        if not gap <= tolerance:
            return f"sliced and zeroed outputs differ by {gap / scale:.1e} of the largest output"
        moved = max((float((a - b).abs().max()) for a, b in zip(self.dense, zeroed, strict=True) if a.numel()), default=0.0)
        if not moved > 10 * tolerance:
            return "cutting it does not change the output, so nothing is proved"
        return None

    def _zeroed(self, kept: Sequence[np.ndarray]) -> list[Tensor]:
        """The dense network's output when no consumer sees the removed channels."""
        tensors = dict(self.model.named_parameters())
        saved: dict[str, Tensor] = {}
        with torch.no_grad():
            for group, units in zip(self.space.groups, kept, strict=True):
                gone = np.ones(group.units, dtype=bool)
                gone[units] = False
                for piece in group.slices:
                    if piece.role == "in" and gone.any():
                        tensor = tensors[piece.path]
                        saved.setdefault(piece.path, tensor.detach().clone())
                        index = torch.from_numpy(piece.positions[gone].ravel())
                        tensor.index_fill_(piece.axis, index, 0.0)
            result = self._run(self.model)
            for path, value in saved.items():
                tensors[path].copy_(value)
        return result


def prove(proof: Proof, time_limit: float, progress: Callable[[int], None] | None = None) -> dict[str, str]:
    """Reasons by name for the groups that fail, found by bisection: sound groups are proved together.

    Groups that the time limit leaves unproved fail too.
    """
    deadline = time.monotonic() + time_limit
    failed: dict[str, str] = {}
    queue: list[list[Group]] = [list(proof.space.groups)]
    while queue:
        groups = queue.pop()
        if not groups:
            continue
        if time.monotonic() > deadline:
            failed |= {group.name: f"not proved within {time_limit:.0f} s" for group in groups}
            continue
        flaw = proof.flaw(groups)
        if flaw is None:
            if progress is not None:
                progress(len(groups))
        elif len(groups) == 1:
            failed[groups[0].name] = flaw
        else:
            middle = len(groups) // 2
            queue += [groups[middle:], groups[:middle]]
    return failed


def _enliven(model: nn.Module, seed: int) -> None:
    """Give every vector distinct entries, so that exchanged channels are noticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            if (tensor == tensor.flatten()[0]).all() and tensor.numel() > max(tensor.shape):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))  # a matrix of zeros hides all before it
            scale = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
            tensor.mul_(scale.to(tensor))
            if tensor.numel() == max(tensor.shape) and (tensor >= 0).all():
                shift = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 0.2
                tensor.add_(shift.to(tensor))  # variances and scales stay positive


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160]
