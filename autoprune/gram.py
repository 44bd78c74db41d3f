"""Gram matrices: the second moments of what a layer reads.

They hold everything that least squares needs to know about the calibration set, so one pass over it serves
every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune import patches
from autoprune.forward import call, evaluating, outputs, to
from autoprune.patches import WeightLayer


@dataclass(frozen=True, eq=False)
class Gram:
    """Moments of ``count`` rows of a layer (see :mod:`autoprune.patches`), in double precision on the CPU.

    ``covariance`` has shape (convolution groups, d, d) and ``mean`` (convolution groups, d). ``rest`` names
    the tensor that can absorb a constant shift of the layer's output: its bias, or the running mean of the
    batch norm that reads it; None if there is neither.
    """

    covariance: Tensor
    mean: Tensor
    rest: str | None
    count: int

    @cached_property
    def second(self) -> Tensor:
        """The matrix that least squares needs: means count only where nothing can absorb them."""
        if self.rest is not None:
            return self.covariance
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]

    @torch.no_grad()
    def absorb(self, lost: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Give what each output channel lost on average to the tensor that can take it up, if there is one."""
        if self.rest is not None:
            # a bias adds what the output lost, a running mean subtracts that much less
            sign = -1.0 if self.rest.endswith("running_mean") else 1.0
            tensors[self.rest].add_((sign * lost).to(tensors[self.rest]))


class _Moments:
    """Mean and scatter of rows that arrive in batches (Chan, Golub and LeVeque 1979).

    Every batch is centred before it is squared: a covariance taken as a difference of second moments loses
    its positive definiteness to rounding.
    """

    def __init__(self, rows: Tensor) -> None:
        self.count, self.mean, self.scatter = _moments(rows)

    def add(self, rows: Tensor) -> None:
        count, mean, scatter = _moments(rows)
        total = self.count + count
        step = mean - self.mean
        self.scatter.add_(scatter).baddbmm_(step[:, :, None], step[:, None, :], alpha=self.count * count / total)
        self.mean += step * (count / total)
        self.count = total


def _moments(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    mean = rows.mean(1)
    rows = rows - mean[:, None]
    return rows.shape[1], mean.cpu().double(), (rows.mT @ rows).cpu().double()


def collect(
    model: nn.Module, layers: Mapping[str, WeightLayer], batches: Sequence[tuple[Any, Any]], positions: int, seed: int
) -> dict[str, Gram]:
    """One Gram matrix per layer, by the same key, from at most ``positions`` output positions per image.

    The positions are drawn anew for every batch under ``seed``. Left out are layers that never run as a
    module and layers whose output is not the product of their weight and their rows (a subclass that
    standardises its weight, say).
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, _Moments] = {}
    strange: set[str] = set()

    def look(path: str, layer: WeightLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if path in strange:
            return
        if not inputs or not patches.regular(layer, inputs[0], output):
            strange.add(path)
            return
        chosen = patches.draw(math.prod(patches.output_size(layer, inputs[0])), positions, generator)
        rows = patches.rows(layer, inputs[0], chosen)
        if path in found:
            found[path].add(rows)
        elif close(patches.product(layer, rows), patches.answers(layer, output, chosen)):
            found[path] = _Moments(rows)
        else:
            strange.add(path)

    with ExitStack() as hooks:
        for path, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(look, path)))
        for inputs, _ in batches:
            _answers(model, inputs)
    known = {path: layer for path, layer in layers.items() if path in found and path not in strange}
    rest = _absorbers(model, known, batches[0][0])
    moments = {path: found[path] for path in known}
    return {path: Gram(m.scatter / m.count, m.mean, rest.get(path), m.count) for path, m in moments.items()}


def _answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    device = next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        found = outputs(call(model, to(inputs, device)))
    return [tensor for tensor in found if tensor.is_floating_point() and tensor.numel()]


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to the rounding of a deep network (TF32 included), where a wrong formula is far off."""
    tolerance = max(1e-2, 8 * torch.finfo(b.dtype).eps)
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def _absorbers(model: nn.Module, layers: Mapping[str, WeightLayer], inputs: Any) -> dict[str, str]:
    """What can absorb a constant shift of each layer's output: its bias, else a batch norm's running mean."""
    rest = {path: f"{path.removesuffix('weight')}bias" for path, layer in layers.items() if layer.bias is not None}
    norms = norms_behind(model, {path: layer for path, layer in layers.items() if path not in rest}, inputs)
    return rest | {path: f"{name}.running_mean" for path, name in norms.items()}


def norms_behind(model: nn.Module, layers: Mapping[str, WeightLayer], inputs: Any) -> dict[str, str]:
    """The batch norm that alone reads a layer's output, by the layer's key, for layers that have one.

    A batch norm qualifies if it is called with the layer's very output and, as proof, the network answers
    as before when that output is shifted and the running mean along with it.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    pairs: dict[str, str] = {}

    def sign(path: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.dim() == 2 or not isinstance(layer, nn.Linear):  # the channels are on the first axis but one
            output.__dict__["maker"] = path

    def read(name: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        maker = inputs[0].__dict__.get("maker") if inputs else None
        if maker is not None:
            pairs.setdefault(maker, name)

    with ExitStack() as hooks:
        for path in layers:
            hooks.enter_context(layers[path].register_forward_hook(partial(sign, path)))
        for name, norm in norms.items():
            hooks.enter_context(norm.register_forward_pre_hook(partial(read, name)))
        expected = _answers(model, inputs)

    def proved(paths: list[str]) -> list[str]:
        """Those whose shift is taken back exactly, by bisection."""
        with ExitStack() as hooks:
            for path in paths:
                norm = norms[pairs[path]]
                assert norm.running_var is not None
                amount = (norm.running_var + norm.eps).sqrt()
                hooks.enter_context(layers[path].register_forward_hook(partial(_shift, amount)))
                hooks.enter_context(norm.register_forward_pre_hook(partial(_unshift, amount)))
            if all(close(a, b) for a, b in zip(_answers(model, inputs), expected, strict=True)):
                return paths
        half = len(paths) // 2
        return proved(paths[:half]) + proved(paths[half:]) if half else []

    return {path: pairs[path] for path in (proved(sorted(pairs)) if pairs else [])}


def _shift(amount: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + amount.reshape(-1, *[1] * (output.dim() - 2))


def _unshift(amount: Tensor, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_shift(-amount, norm, (), inputs[0]),)
