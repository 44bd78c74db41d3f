"""What the dense network says about itself on the calibration set, collected once and on demand.

Gram matrices make every candidate's least-squares weights a matter of one Cholesky factorisation, with no
pass over data; gradients give the Taylor criterion.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autoprune.forward import call, logits, to
from autoprune.space import SearchSpace

Batches = Sequence[tuple[Any, Any]]

POSITIONS = 32  # sampled output positions per image and layer
GRAM_LIMIT = 256 * 2**20  # bytes per layer


class StatisticsNotice(UserWarning):
    """Something could not be collected, so a cheaper rule takes its place."""


@dataclass(frozen=True, eq=False)
class Gram:
    """Second moments of what a layer reads.

    ``matrix`` has shape (convolution groups, d, d), the mean of x xT over sampled patches x of
    d = input channels per group x kernel size; ``mean`` is the mean patch, (convolution groups, d). ``rest`` names the
    tensor that can absorb a constant shift of the layer's output: its bias, or the running mean of the
    batch norm that follows it; None if there is neither.
    """

    matrix: Tensor
    mean: Tensor
    rest: str | None

    @cached_property
    def second(self) -> Tensor:
        """The matrix that least squares needs: the covariance where the mean can be absorbed."""
        if self.rest is None:
            return self.matrix
        return self.matrix - self.mean[:, :, None] * self.mean[:, None, :]


class Statistics:
    """Lazily collected facts about ``model``; ``batches`` are calibration pairs (input, label)."""

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace,
        batches: Batches,
        *,
        positions: int = POSITIONS,
        gram_limit: int = GRAM_LIMIT,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.space = space
        self.batches = batches
        self.positions = positions
        self.gram_limit = gram_limit
        self.seed = seed

    @cached_property
    def consumers(self) -> dict[str, nn.Module]:
        """Convolution and linear modules that read a group's channels, by weight path."""
        found: dict[str, nn.Module] = {}
        for piece in (piece for group in self.space.groups for piece in group.slices):
            if piece.role == "in" and piece.tensor == "weight":
                module = self.model.get_submodule(piece.module)
                transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
                if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not transposed:
                    found[piece.path] = module
        return found

    @cached_property
    def grams(self) -> dict[str, Gram]:
        """Gram matrices by weight path; layers above ``gram_limit`` bytes are left out with a notice."""
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        modules = {path: m for path, m in self.consumers.items() if self._fits(path, m)}
        rest = {path: f"{path.removesuffix('weight')}bias" for path, m in modules.items() if m.bias is not None}
        generator = torch.Generator().manual_seed(self.seed)
        fresh: dict[int, tuple[ReferenceType[Tensor], str]] = {}  # outputs of this pass -> weight path
        handles: list[RemovableHandle] = []

        def collect(path: str, module: nn.Module, x: Tensor) -> None:
            rows = sampled_rows(module, x.detach(), self.positions, generator)
            square, total = (rows.mT @ rows).double().cpu(), rows.sum(1).double().cpu()
            if path in sums:
                sums[path][0].add_(square)
                sums[path][1].add_(total)
            else:
                sums[path] = (square, total)
            counts[path] = counts.get(path, 0) + rows.shape[1]

        counts: dict[str, int] = {}
        for path, module in modules.items():
            handles.append(module.register_forward_pre_hook(lambda m, inputs, p=path: collect(p, m, inputs[0])))
            handles.append(module.register_forward_hook(lambda m, i, out, p=path: fresh.__setitem__(id(out), (ref(out), p))))
        for name, norm in self.model.named_modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:

                def absorb(m: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    output, path = fresh.get(id(inputs[0]), (None, ""))
                    if output is not None and output() is inputs[0]:
                        rest.setdefault(path, f"{name}.running_mean")

                handles.append(norm.register_forward_pre_hook(absorb))
        try:
            self._forward(fresh)
        finally:
            for handle in handles:
                handle.remove()
        return {
            path: Gram(square / counts[path], total / counts[path], rest.get(path))
            for path, (square, total) in sums.items()
        }

    def _fits(self, path: str, module: nn.Module) -> bool:
        weight = module.weight
        assert isinstance(weight, Tensor)
        size = weight[0].numel()
        needed = 8 * size * size * int(getattr(module, "groups", 1))
        if needed > self.gram_limit:
            warnings.warn(
                f"{path}: a Gram matrix of {needed / 2**20:.0f} MiB is above the limit of "
                f"{self.gram_limit / 2**20:.0f} MiB; the layer keeps its weights and its channels are ranked by l2",
                StatisticsNotice,
                stacklevel=2,
            )
        return needed <= self.gram_limit

    def _forward(self, fresh: dict[int, tuple[ReferenceType[Tensor], str]]) -> None:
        device = next(self.model.parameters()).device
        with torch.no_grad(), evaluating(self.model):
            for inputs, _ in self.batches:
                call(self.model, to(inputs, device))
                fresh.clear()

    @cached_property
    def taylor(self) -> tuple[NDArray[np.float64], ...]:
        """Per group and unit: mean over images of |sum over positions of a * dC/da| (Molchanov et al. 2017).

        The activation a is what the group's consumers read; the loss C is cross-entropy with the labels,
        or with the network's own answers where a batch has no class labels.
        """
        totals = [np.zeros(group.units) for group in self.space.groups]
        gates: dict[str, Tensor] = {}

        def gate(module: nn.Module, inputs: tuple[Tensor, ...], path: str) -> tuple[Tensor, ...]:
            x = inputs[0]
            axis = 1 if isinstance(module, nn.modules.conv._ConvNd) else x.dim() - 1
            shape = [n if i in (0, axis) else 1 for i, n in enumerate(x.shape)]
            gates[path] = torch.ones(shape, dtype=x.dtype, device=x.device, requires_grad=True)
            return (x * gates[path], *inputs[1:])

        handles = [
            module.register_forward_pre_hook(lambda m, inputs, p=path: gate(m, inputs, p))
            for path, module in self.consumers.items()
        ]
        device = next(self.model.parameters()).device
        images = 0
        try:
            with torch.enable_grad(), evaluating(self.model):
                for inputs, labels in self.batches:
                    answer = logits(call(self.model, to(inputs, device)))
                    paths = list(gates)
                    loss = F.cross_entropy(answer, class_labels(labels, answer), reduction="sum")
                    slopes = torch.autograd.grad(loss, [gates[path] for path in paths], allow_unused=True)
                    images += len(answer)
                    seen = {
                        path: slope.reshape(len(answer), -1).double().cpu().numpy()
                        for path, slope in zip(paths, slopes, strict=True)
                        if slope is not None
                    }
                    self._add_taylor(totals, seen)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(total / images for total in totals)

    def _add_taylor(self, totals: list[NDArray[np.float64]], seen: dict[str, NDArray[np.float64]]) -> None:
        for total, group in zip(totals, self.space.groups, strict=True):
            per_image: NDArray[np.float64] | None = None
            for piece in group.slices:
                if piece.role != "in" or piece.path not in seen:
                    continue
                convolution_groups = int(getattr(self.consumers[piece.path], "groups", 1))
                slope = seen[piece.path]
                stride = slope.shape[1] // convolution_groups
                columns = np.concatenate([piece.positions + g * stride for g in range(convolution_groups)], axis=1)
                part = slope[:, columns].sum(2)
                per_image = part if per_image is None else per_image + part
            if per_image is not None:
                total += np.abs(per_image).sum(0)


def class_labels(labels: Any, answer: Tensor) -> Tensor:
    """The batch's class numbers, or the network's own answers where there are none."""
    if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point():
        return labels.to(answer.device).long()
    return answer.detach().argmax(1)


class evaluating:  # noqa: N801 - a context manager reads as a verb
    """Evaluation mode for the whole network, every module's flag restored afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self._flags = [(module, module.training) for module in model.modules()]

    def __enter__(self) -> None:
        for module, _ in self._flags:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, training in self._flags:
            module.training = training


def sampled_rows(module: nn.Module, x: Tensor, positions: int, generator: torch.Generator | None) -> Tensor:
    """Rows that a layer multiplies its weight with: (convolution groups, rows, input size of one output).

    At most ``positions`` output positions (tokens of a linear layer) per sample are drawn, the same ones for
    every sample of the batch; every one is taken when there are fewer.
    """
    if isinstance(module, nn.Linear):
        tokens = x.reshape(len(x), -1, x.shape[-1])
        chosen = _draw(tokens.shape[1], positions, generator)
        return tokens[:, chosen].reshape(1, -1, x.shape[-1])
    assert isinstance(module, nn.modules.conv._ConvNd)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, _padding(module), mode=mode)
    dims = len(module.kernel_size)
    out = [
        (padded.shape[2 + d] - module.dilation[d] * (module.kernel_size[d] - 1) - 1) // module.stride[d] + 1
        for d in range(dims)
    ]
    chosen = _draw(int(np.prod(out)), positions, generator)
    index: list[Any] = [slice(None), slice(None)]
    for d, coordinate in enumerate(torch.unravel_index(chosen, out)):
        taps = coordinate[:, None] * module.stride[d] + torch.arange(module.kernel_size[d]) * module.dilation[d]
        index.append(taps.reshape(len(chosen), *[-1 if e == d else 1 for e in range(dims)]).to(x.device))
    patches = padded[tuple(index)]  # (batch, channels, positions, *kernel)
    batch, channels, count = patches.shape[:3]
    grouped = patches.reshape(batch, module.groups, channels // module.groups, count, -1)
    return grouped.permute(1, 0, 3, 2, 4).reshape(module.groups, batch * count, -1)


def _draw(total: int, count: int, generator: torch.Generator | None) -> Tensor:
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:count].sort().values


def _padding(module: nn.modules.conv._ConvNd) -> list[int]:
    """Padding as ``F.pad`` wants it: last axis first, both sides."""
    if module.padding == "valid":
        return [0, 0] * len(module.kernel_size)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return list(itertools.chain.from_iterable((t // 2, t - t // 2) for t in reversed(total)))
    return list(itertools.chain.from_iterable((int(p), int(p)) for p in reversed(module.padding)))
