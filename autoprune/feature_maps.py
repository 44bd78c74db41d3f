"""Feature maps: what a layer's channels look like to the rest of the network, image by image.

The map of a layer is its output behind the activation that follows it. On the way there normalisation, dropout, max
pooling and a residual sum are passed, so that in a residual block it is the map after the sum, as HRank's published
code takes it. Where something else reads the output first (a linear bottleneck, attention) the map is the
output as it is then. Layers whose outputs are summed on the way have one map together, under the name of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from autoprune.errors import UserError
from autoprune.forward import batch_size, call, evaluating, to

Vector = NDArray[np.float64]
Record = Callable[[str, Tensor], None]

# Functions of torch by their names, without the underscores of in-place and operator forms.
ACTIVATIONS = {
    "relu", "relu6", "hardtanh", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "softsign", "threshold", "clamp", "clamp_min",
}  # fmt: skip
PASSED = {
    "batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm", "add", "radd", "iadd", "contiguous", "clone",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "max_pool1d", "max_pool2d", "max_pool3d",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Activation:
    """The map's entries over all images and positions, per channel.

    ``zeros`` is the share of them that is exactly zero, ``magnitude`` the mean of their absolute values (behind a ReLU:
    their mean), ``deviation`` the square root of the mean squared distance from their mean.
    """

    zeros: Vector
    magnitude: Vector
    deviation: Vector


@dataclass(frozen=True, eq=False)
class FeatureRank:
    """Mean over ``images`` maps of their matrix rank and of their entries' absolute value, per channel."""

    rank: Vector
    magnitude: Vector
    images: int


def pool(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[tuple[Any, Any]]
) -> dict[str, Activation]:
    """The activation of every layer that runs, by its key; batches pass one by one, in constant memory."""
    found: dict[str, _Pool] = {}
    for number, (inputs, _) in enumerate(batches):
        _observe(model, layers, inputs, number, lambda path, x: found.setdefault(path, _Pool()).add(x))
    return {path: pooled.finish() for path, pooled in found.items()}


def ranks(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[tuple[Any, Any]], images: int
) -> dict[str, FeatureRank]:
    """Average ranks over the first ``images`` images, by layer; the last batch counts as far as it is needed."""
    found: dict[str, _Ranks] = {}
    left = images
    for number, (inputs, _) in enumerate(batches):
        size = batch_size(inputs)
        share = min(size, left)

        def look(path: str, x: Tensor, size: int = size, share: int = share) -> None:
            found.setdefault(path, _Ranks()).add(x[: max(1, len(x) * share // size)])  # several windows may be an image

        _observe(model, layers, inputs, number, look)
        left -= share
        if left <= 0:
            break
    return {path: summed.finish() for path, summed in found.items()}


def _observe(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any, number: int, record: Record) -> None:
    """One forward pass; ``record`` hears of every map, its channels on axis 1."""
    device = next(model.parameters()).device
    maps = _Maps(layers, number, record)
    with ExitStack() as hooks, torch.no_grad(), evaluating(model):
        for path, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(maps.start, path)))
        with maps:
            call(model, to(inputs, device))
        maps.end()


class _Maps(TorchFunctionMode):
    """Follows the layers' outputs through one forward pass until their maps are there."""

    def __init__(self, layers: Mapping[str, nn.Module], number: int, record: Record) -> None:
        super().__init__()
        self.layers = layers
        self.number = number
        self.record = record
        self.bare: dict[int, tuple[Tensor, list[str]]] = {}  # outputs on their way to an activation, and whose

    def start(self, path: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        """A layer has answered."""
        if isinstance(output, Tensor):
            self.bare[id(output)] = (output, [path])

    def end(self) -> None:
        """What nobody has read is a map too."""
        for tensor, paths in self.bare.values():
            self._map(tensor, paths)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.bare] if self.bare else []
        result = func(*args, **(kwargs or {}))
        if read and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # else a shape, a type
            self._follow(getattr(func, "__name__", "").strip("_"), read, result)
        return result

    def _follow(self, operation: str, read: list[Tensor], result: Any) -> None:
        taken = [self.bare.pop(key) for key in {id(tensor): None for tensor in read}]
        paths = list(dict.fromkeys(path for _, several in taken for path in several))
        if operation in PASSED and isinstance(result, Tensor):
            self.bare[id(result)] = (result, paths)
        elif operation in ACTIVATIONS and isinstance(result, Tensor):
            self._map(result, paths)
        else:
            for tensor, several in taken:
                self._map(tensor, several)

    def _map(self, tensor: Tensor, paths: list[str]) -> None:
        path = paths[0]
        linear = isinstance(self.layers[path], nn.Linear)
        if not torch.isfinite(tensor).all():
            raise not_finite(path, "the feature map", self.number)
        self.record(path, tensor.movedim(-1, 1) if linear and tensor.dim() > 2 else tensor)


def not_finite(path: str, what: str, number: int) -> UserError:
    """The error for a network that computes with nan or inf."""
    return UserError(
        f"{path.removesuffix('.weight')}: {what} holds nan or inf on calibration batch {number}: look for them in its "
        "inputs and in the network's weights and batch-norm statistics"
    )


class _Pool:
    """Moments of a map's entries, pooled over batches (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.zeros: Any = 0.0
        self.magnitude: Any = 0.0
        self.mean: Any = 0.0
        self.scatter: Any = 0.0

    def add(self, x: Tensor) -> None:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        count = x.numel() // x.shape[1]
        variance, mean = (m.cpu().double().numpy() for m in torch.var_mean(x, axes, correction=0))
        total = self.count + count
        step = mean - self.mean
        self.scatter = self.scatter + variance * count + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.zeros = self.zeros + (x == 0).sum(axes).cpu().double().numpy()
        self.magnitude = self.magnitude + x.abs().mean(axes).cpu().double().numpy() * count
        self.count = total

    def finish(self) -> Activation:
        return Activation(self.zeros / self.count, self.magnitude / self.count, np.sqrt(self.scatter / self.count))


class _Ranks:
    """Sums over images."""

    def __init__(self) -> None:
        self.images = 0
        self.rank: Any = 0.0
        self.magnitude: Any = 0.0

    def add(self, x: Tensor) -> None:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        matrices = x.reshape(*x.shape[:2], -1, x.shape[-1] if x.dim() > 3 else 1)  # vectors have one column
        self.images += len(x)
        self.rank = self.rank + torch.linalg.matrix_rank(matrices).sum(0).cpu().double().numpy()
        self.magnitude = self.magnitude + matrices.abs().mean((2, 3)).sum(0).cpu().double().numpy()

    def finish(self) -> FeatureRank:
        return FeatureRank(self.rank / self.images, self.magnitude / self.images, self.images)
