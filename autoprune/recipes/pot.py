"""POT: magnitude masks, then each layer by itself toward what it gave in the dense network.

After Lazarevich, Kozlov and Malinin (ICCV workshops 2021) and their Post-training Optimization Tool. At each of two
levels of sparsity the lowest weights go, what is left of every channel gets its spread and mean back, and Adam tunes
each layer on the dense network's inputs and outputs. Errors of earlier layers never enter, so nothing makes up for
them.

Inputs and targets of a layer both come from the dense network, so the squared error of a batch is a quadratic form in
what the weights are off, D A D' with A the second moments of the batch's inputs. A step needs A alone, not the images:
the steps are the ones the convolution would give, at a fraction of the price.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import obc, patches
from autoprune.errors import UserError
from autoprune.forward import batch_size, call, evaluating, to
from autoprune.gram import Gram
from autoprune.patches import WeightLayer
from autoprune.recipes import Tell
from autoprune.recipes.data import Batches, Data
from autoprune.recipes.one_shot import Ranking, kept, recalibrated
from autoprune.slicing import named_tensors

ROWS = 2**26  # bytes of a layer's rows that are squared at the same time
POOL = 2**30  # bytes of the inputs that are kept at the same time, but one layer's at least


@dataclass(frozen=True)
class Adam:
    """How a layer is tuned at each level: ``rounds`` batches of ``batch`` images from a pool of ``images``.

    Every batch is followed for ``steps`` steps. With ``stale`` a gradient is computed anew only after a step that did
    not lower the loss of the batch, and used again otherwise, as the release does (which judges by the mean of all
    layers, tuned side by side; here each layer judges for itself).
    """

    images: int = 300
    rounds: int = 30
    steps: int = 40
    batch: int = 50
    lr: float = 1e-5
    bias_lr: float = 1e-4
    stale: bool = False

    def __post_init__(self) -> None:
        for name in ("images", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: tuning a layer needs at least 1")
        if self.rounds < 0:
            raise UserError(f"rounds = {self.rounds}: give a number of batches, 0 to tune nothing")
        for name in ("lr", "bias_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"{name} = {getattr(self, name)}: a learning rate is a positive number")


def pot(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int,
    tell: Tell,
    ranking: Ranking = "normalised",
    rates: Mapping[str, float] | None = None,
    step: float = 0.1,
    images: int = 300,
    rounds: int = 30,
    steps: int = 40,
    batch: int = 50,
    lr: float = 1e-5,
    bias_lr: float = 1e-4,
    stale: bool = False,
    recalibrate: bool = False,
) -> nn.Module:
    """POT's sparsity at two levels, ``sparsity`` - ``step`` and ``sparsity``; options of tuning as in :class:`Adam`.

    The masks rank |w| / ||W|| over all layers, unless ``rates`` (the shares to remove, by name) or another ranking say
    otherwise. What takes up a constant is a layer's bias, or the running mean of the batch norm that alone reads it:
    the release folds batch norms into their layers. ``recalibrate`` estimates batch-norm statistics anew at the end,
    which the release does not. Memory is a gigabyte, or one layer's inputs for ``images`` images. ``tell`` hears of
    every layer: level, layer, done, of, and its mean squared error on the pool before and after it was tuned.
    """
    how = Adam(images, rounds, steps, batch, lr, bias_lr, stale)
    data.at_least(batch, "pot")
    generator = torch.Generator().manual_seed(seed)
    readers = _readers(model, names, data.calibration, seed)
    sparse = copy.deepcopy(model).eval()
    groups = _together(model, readers, data.calibration, images)
    pool: Mapping[str, Tensor] = {}
    for part in levels(sparsity, step):
        shares = None if rates is None else {name: rate * part / (sparsity or 1) for name, rate in rates.items()}
        chosen = kept(sparse, names, part, ranking if rates is None else "uniform", shares)
        for done, name in enumerate(names, start=1):
            facts: dict[str, Any] = {"level": part, "layer": name, "done": done, "of": len(names)}
            with torch.no_grad():
                weight = sparse.get_parameter(name)
                weight.copy_(repaired(weight, chosen[name]) if name in readers else weight * chosen[name])
                if name in readers:
                    correct_bias(model, sparse, name, readers[name])
                    if name not in pool:
                        pool = {}  # before the next ones come
                        pool = seen(model, next(group for group in groups if name in group), data.calibration, images)
                    facts |= tune(model, sparse, name, readers[name], pool[name], chosen[name], how, generator)
            tell(facts)
    return recalibrated(sparse, data.calibration) if recalibrate else sparse


def levels(sparsity: float, step: float = 0.1) -> list[float]:
    """The sparsities that are gone through: one that is lower by ``step``, if that leaves any, and the asked one."""
    return [sparsity - step, sparsity] if 0 < step < sparsity else [sparsity]


def repaired(weight: Tensor, mask: Tensor) -> Tensor:
    """What is left of a layer's weights, each output channel with about its old spread and mean.

    With a = std(W) / (std(W_masked) + 1e-9) and b = mean(W) - mean(a W_masked), the weights that stay become a w + b.
    Both moments are over all positions of the channel, zeros included, so neither is matched exactly after b.
    """
    dense, left = weight.flatten(1), (weight * mask).flatten(1)
    scaled = left * (dense.std(1, keepdim=True) / (left.std(1, keepdim=True) + 1e-9))
    shift = dense.mean(1, keepdim=True) - scaled.mean(1, keepdim=True)
    return ((scaled + shift) * mask.flatten(1)).reshape(weight.shape)


def correct_bias(model: nn.Module, sparse: nn.Module, name: str, reader: Gram) -> None:
    """Give each output channel of a layer the mean that it has in the dense network, on that network's inputs."""
    if reader.rest is None:
        return
    tensors = dict(named_tensors(sparse))
    tensors[reader.rest].copy_(dict(named_tensors(model))[reader.rest])
    gone = model.get_parameter(name) - sparse.get_parameter(name)
    rows = gone.cpu().double().reshape(len(reader.mean), -1, reader.mean.shape[1])
    reader.absorb((rows @ reader.mean[:, :, None]).flatten(), tensors)


def tune(
    model: nn.Module,
    sparse: nn.Module,
    name: str,
    reader: Gram,
    x: Tensor,
    mask: Tensor,
    how: Adam,
    generator: torch.Generator,
) -> dict[str, float]:
    """Tune one layer in place toward what it gives in the dense network for the inputs ``x`` (images, repeats, ...).

    Adam, without weight decay; masked weights get no gradient, so they do not move. Back come the layer's mean squared
    errors over all of ``x``, ``before`` and ``after``.
    """
    layer = model.get_submodule(name.rpartition(".")[0])
    assert patches.has_rows(layer)
    groups, columns = reader.mean.shape
    target, weight = layer.weight, sparse.get_parameter(name)
    free = mask.reshape(groups, -1, columns)
    off = nn.Parameter((weight - target).reshape(groups, -1, columns))
    constant = _constant(model, sparse, reader)
    parts = [{"params": [off], "lr": how.lr}]
    if constant is not None:
        constant = nn.Parameter(constant.reshape(groups, -1, 1))
        parts.append({"params": [constant], "lr": how.bias_lr})
    optimizer = torch.optim.Adam(parts)

    def slope(square: Tensor) -> tuple[float, Tensor]:
        """The mean squared error and its gradient, from the mean square of the inputs and a one."""
        both = off if constant is None else torch.cat([off, constant], 2)
        square = square[:, : both.shape[2], : both.shape[2]]
        half = both @ square / len(target)
        return float((both * half).sum()), 2 * half

    everything = squared(layer, x)
    before, _ = slope(everything)
    for _ in range(how.rounds):
        square = squared(layer, x[torch.randperm(len(x), generator=generator)[: how.batch]])
        last = math.inf
        for step in range(how.steps):
            loss, gradient = slope(square)
            if step == 0 or not how.stale or loss >= last:
                off.grad = gradient[..., :columns] * free
                if constant is not None:
                    constant.grad = gradient[..., columns:]
            last = loss
            optimizer.step()
    after, _ = slope(everything)
    weight.copy_(torch.where(mask, target + off.reshape(target.shape), torch.zeros_like(target)))
    if constant is not None:
        _set_constant(model, sparse, reader, constant.flatten())
    return {"before": before, "after": after}


def _constant(model: nn.Module, sparse: nn.Module, reader: Gram) -> Tensor | None:
    """What a layer's output has been given, by channel, beyond the dense network's constant."""
    if reader.rest is None:
        return None
    now, dense = (dict(named_tensors(network))[reader.rest] for network in (sparse, model))
    return dense - now if reader.rest.endswith("running_mean") else now - dense


def _set_constant(model: nn.Module, sparse: nn.Module, reader: Gram, constant: Tensor) -> None:
    assert reader.rest is not None
    tensors = dict(named_tensors(sparse))
    tensors[reader.rest].copy_(dict(named_tensors(model))[reader.rest])
    reader.absorb(constant, tensors)


def squared(layer: WeightLayer, x: Tensor) -> Tensor:
    """The mean of r r' over all rows r of the images, each with a one behind it: (groups, columns + 1, columns + 1)."""
    groups = int(getattr(layer, "groups", 1))
    columns = layer.weight[0].numel()
    total = x.new_zeros(groups, columns + 1, columns + 1)
    count = 0
    places = torch.arange(math.prod(patches.output_size(layer, x[0])))
    per_image = len(places) * groups * columns * x.element_size() * x.shape[1]
    for part in x.split(max(1, ROWS // per_image)):
        rows = patches.rows(layer, part.flatten(0, 1), places)
        total[:, :-1, :-1] += rows.mT @ rows
        total[:, -1, :-1] += rows.sum(1)
        count += rows.shape[1]
    total[:, :-1, -1] = total[:, -1, :-1]
    total[:, -1, -1] = count
    return total / count


def seen(model: nn.Module, names: Sequence[str], batches: Batches, images: int) -> dict[str, Tensor]:
    """What some layers read in the dense network for the first images: (images, repeats, ...), by weight.

    Repeats count the windows or crops of an image where a layer's first axis has several for each. A layer
    that runs more than once counts as it runs last.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    last: dict[str, Tensor] = {}
    device = next(model.parameters()).device

    def look(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last[name] = inputs[0].detach()

    with torch.no_grad(), evaluating(model), ExitStack() as hooks:
        for name in names:
            layer = model.get_submodule(name.rpartition(".")[0])
            hooks.enter_context(layer.register_forward_pre_hook(partial(look, name)))
        taken = 0
        for inputs, _ in batches:
            if taken >= images:
                break
            size = min(batch_size(inputs), images - taken)
            call(model, to(inputs, device))
            for name, x in last.items():
                parts[name].append(x.unflatten(0, (batch_size(inputs), -1))[:size].clone())
            taken += size
    return {name: torch.cat(found) for name, found in parts.items()}


def _together(model: nn.Module, names: Iterable[str], batches: Batches, images: int) -> list[list[str]]:
    """The layers in order, as many together as their inputs leave room for."""
    groups: list[list[str]] = []
    left = 0
    for name, x in seen(model, list(names), batches, 1).items():
        needed = images * x.numel() * x.element_size()
        if not groups or needed > left:
            groups.append([])
            left = POOL
        groups[-1].append(name)
        left -= needed
    return groups


def _readers(model: nn.Module, names: Sequence[str], batches: Batches, seed: int) -> dict[str, Gram]:
    """Mean and outlet of every layer that can be tuned; the covariances are not needed and let go."""
    return {
        name: replace(found, covariance=found.covariance[:, :0])
        for name, found in obc.collect(model, names, batches, seed=seed)
    }
