"""Prove groups: the sliced network must compute what the dense one does with those channels zeroed.

The check runs on a double-precision copy whose vectors (batch-norm parameters, biases, scales) are
drawn anew, because a freshly initialised network is too symmetric to notice exchanged channels, and whose
batch norms are fitted to the example, because without that the early layers of many networks hardly
reach the output. "Zeroed" means that the layers which consume the channels no longer see them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.forward import Example, call, outputs, to
from autoprune.slicing import named_tensors, prune
from autoprune.space import Group, SearchSpace

from .follow import untouched_rng

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # largest difference, relative to the largest output

Units = NDArray[np.int64]


class Proof:
    """A scratch copy of the model on which groups are tried."""

    def __init__(self, model: nn.Module, example: Example, space: SearchSpace, seed: int = 0) -> None:
        self.space = space
        for dtype in (torch.float64, torch.float32):
            self.model, self.example = _lively(model, dtype, seed), to(example, dtype=dtype)
            self.tolerance = TOLERANCE[dtype]
            try:
                with _fitted(self.model):
                    self._run(self.model)
                self.dense = self._run(self.model)
            except Exception:  # noqa: BLE001, S112  # code that insists on its precision or on its buffers
                continue
            if all(bool(tensor.isfinite().all()) for tensor in self.dense):
                return
        self.model, self.example = copy.deepcopy(model), example  # as it is, then
        self.dense = self._run(self.model)

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), untouched_rng():
            torch.manual_seed(0)
            return [t.detach().clone() for t in outputs(call(model, self.example)) if t.is_floating_point()]

    def flaw(self, kept: Mapping[str, Units]) -> str | None:
        """Why cutting these groups down to these units is wrong; None when sliced equals zeroed."""
        units = [kept.get(group.name, np.arange(group.units)) for group in self.space.groups]
        try:
            sliced = self._run(prune(self.model, self.space, units))
        except Exception as error:  # noqa: BLE001  # whatever goes wrong in it, the network cannot be cut there
            return f"the pruned network does not run: {_short(error)}"
        zeroed = self._zeroed(units)
        if [tensor.shape for tensor in sliced] != [tensor.shape for tensor in zeroed]:
            return "the pruned network's output has another shape"
        gap = _gap(sliced, zeroed)
        if not gap <= self.tolerance:
            return f"sliced and zeroed outputs differ by {gap:.1e} of the largest output"
        if not _gap(self.dense, zeroed) > 10 * self.tolerance:
            return "cutting it does not change the output, so nothing is proved"
        return None

    def _zeroed(self, kept: Sequence[Units]) -> list[Tensor]:
        """The dense network's output when no consumer sees the removed channels."""
        tensors = dict(named_tensors(self.model))
        saved: dict[str, Tensor] = {}
        with torch.no_grad():
            for group, units in zip(self.space.groups, kept, strict=True):
                gone = np.ones(group.units, dtype=bool)
                gone[units] = False
                for piece in group.slices:
                    if piece.role == "in" and gone.any():
                        tensor = tensors[piece.path]
                        saved.setdefault(piece.path, tensor.detach().clone())
                        index = torch.from_numpy(piece.positions[gone].ravel()).to(tensor.device)
                        tensor.index_fill_(piece.axis, index, 0.0)
            result = self._run(self.model)
            for path, value in saved.items():
                tensors[path].copy_(value)
        return result

    def faint(self) -> set[str]:
        """Groups that hardly reach the output, to first order: a flaw in them could have been overlooked.

        All of them where the network has no gradient.
        """
        tensors = dict(named_tensors(self.model))
        readers = {p.path: tensors[p.path] for g in self.space.groups for p in g.slices if p.role == "in"}
        for tensor in readers.values():
            tensor.requires_grad_(True)  # the copy is ours
        try:
            with torch.enable_grad(), untouched_rng():
                result = [t for t in outputs(call(self.model, self.example)) if t.requires_grad and t.numel()]
                probe = torch.stack([(t * torch.randn_like(t)).sum() / t.detach().abs().max() for t in result]).sum()
            slopes = torch.autograd.grad(probe, list(readers.values()), materialize_grads=True)
        except Exception:  # noqa: BLE001  # no gradient, for any reason
            return {group.name for group in self.space.groups}
        work = {
            path: (tensor.detach() * slope).cpu().numpy()
            for (path, tensor), slope in zip(readers.items(), slopes, strict=True)
        }
        return {group.name for group in self.space.groups if not _effect(group, work) > 1000 * self.tolerance}


def _effect(group: Group, work: Mapping[str, NDArray[np.float64]]) -> float:
    """First-order change of the output when the most important unit goes."""
    change = np.zeros(group.units)
    for piece in group.slices:
        if piece.role == "in":
            entries = np.moveaxis(work[piece.path], piece.axis, 0)
            change += entries.reshape(len(entries), -1).sum(1)[piece.positions].sum(1)
    return float(np.abs(change).max())


def prove(
    proof: Proof, time_limit: float, seed: int = 0, progress: Callable[[int], None] | None = None
) -> dict[str, str]:
    """Reasons by name for the groups that fail; all others are sound together.

    Two rounds: a random number of random units stays in every group, then a single one. Groups that
    hardly reach the output are tried once more by themselves. Groups that ``time_limit`` seconds leave
    unproved fail too. ``progress`` is told how many more are decided.
    """
    deadline = time.monotonic() + time_limit
    rng = np.random.default_rng(seed)
    groups = proof.space.groups
    failed = _sift(proof, groups, _draw(groups, rng), deadline, time_limit)
    if progress is not None:
        progress(len(failed))
    standing = [group for group in groups if group.name not in failed]
    kept = _draw(standing, rng, most=1)
    failed |= _sift(proof, standing, kept, deadline, time_limit)
    faint = proof.faint()
    for group in standing:
        if group.name in faint and group.name not in failed:
            failed |= _sift(proof, [group], kept, deadline, time_limit)
    if progress is not None:
        progress(len(standing))
    return failed


def _draw(groups: Sequence[Group], rng: np.random.Generator, most: int | None = None) -> dict[str, Units]:
    """Random units for every group: at least one, not all and not more than ``most``."""
    kept = {}
    for group in groups:
        count = int(rng.integers(1, group.units if most is None else most + 1))
        kept[group.name] = np.sort(rng.choice(group.units, size=count, replace=False)).astype(np.int64)
    return kept


def _sift(
    proof: Proof, groups: Sequence[Group], kept: Mapping[str, Units], deadline: float, time_limit: float
) -> dict[str, str]:
    """Bisect: halves are tried together with all that passed before, so what passes is sound together."""
    sound: list[str] = []
    failed: dict[str, str] = {}
    queue: list[Sequence[Group]] = [groups]
    while queue:
        tried = queue.pop()
        if not tried:
            continue
        names = [group.name for group in tried]
        if time.monotonic() > deadline:
            failed |= dict.fromkeys(names, f"it was not proved within {time_limit:g} s")
            continue
        flaw = proof.flaw({name: kept[name] for name in (*sound, *names)})
        if flaw is None:
            sound += names
        elif len(tried) == 1:
            failed[names[0]] = flaw
        else:
            middle = len(tried) // 2
            queue += [tried[middle:], tried[:middle]]
    return failed


def _lively(model: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    scratch = copy.deepcopy(model).to(dtype)
    _enliven(scratch, seed)
    return scratch


def _enliven(model: nn.Module, seed: int) -> None:
    """Give every vector distinct entries, so that exchanged channels are noticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in named_tensors(model):
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            vector = tensor.numel() == max(tensor.shape)
            if not vector and (tensor == tensor.flatten()[0]).all():  # a matrix of zeros hides all before it
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            tensor.mul_(_uniform(tensor, generator) + 0.5)
            if vector and (tensor >= 0).all():  # variances and scales stay positive
                tensor.add_(0.2 * _uniform(tensor, generator))


@contextmanager
def _fitted(model: nn.Module) -> Iterator[None]:
    """Whatever runs meanwhile gives every batch norm the statistics of what it sees."""

    def fit(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = module.running_mean, module.running_var
        x = inputs[0].detach().transpose(0, 1).flatten(1)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor) and len(x) == len(mean) and x.shape[1] > 1:
            seen = x.var(1)
            mean.copy_(x.mean(1))
            variance.copy_(torch.where(seen > 0.1 * seen.mean(), seen, torch.ones_like(seen)))

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    handles = [module.register_forward_pre_hook(fit) for module in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _uniform(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)


def _gap(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest difference between two lists of tensors, relative to the largest entry of the second."""
    gaps, sizes = [0.0], [0.0]
    for a, b in zip(left, right, strict=True):
        if a.numel():
            gaps.append(float(torch.where(a == b, 0.0, a - b).abs().max()))  # equal infinities differ by nothing
            sizes.append(float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0)
    return float(np.max(gaps)) / (max(sizes) or 1.0)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
