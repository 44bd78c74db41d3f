"""First-order effects: how the loss of each image answers when a group's channels are scaled.

The derivative of the loss by a gate, a factor of one on a channel, is the sum over positions of a * dC/da. Gates sit
where the group's consumers read, so what they say is what removing the channel does to first order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import UserError
from autoprune.feature_maps import not_finite
from autoprune.forward import call, evaluating, logits, to
from autoprune.patches import WeightLayer
from autoprune.space import SearchSpace, Slice

Matrix = NDArray[np.float64]
Target = Literal["labels", "answers"]


@dataclass(frozen=True, eq=False)
class Effects:
    """Means over images for one group: of the absolute effect and of its square, per unit.

    ``absolute`` and ``square`` (units,) are of all consumers' effects together, which is the effect on the loss;
    ``absolutes`` and ``squares`` (consumers, units) of each consumer alone.
    """

    absolute: Matrix
    square: Matrix
    absolutes: Matrix
    squares: Matrix


def effects(
    model: nn.Module,
    space: SearchSpace,
    consumers: Mapping[str, WeightLayer],
    batches: Iterable[tuple[Any, Any]],
    target: Target,
) -> tuple[Effects | None, ...]:
    """Per group; None for one none of whose consumers runs as a module.

    The loss is cross-entropy with the class labels, or with the network's own ``answers``. Batches pass one by one.
    """
    sums: list[list[Matrix] | None] = [None] * len(space)
    images = 0
    for number, (inputs, labels) in enumerate(batches):
        slopes, count = _slopes(model, consumers, inputs, labels, number, target)
        images += count
        for at, group in enumerate(space.groups):
            readers = [p for p in group.slices if p.role == "in" and p.path in slopes]
            each = np.stack([_of_units(slopes[p.path], consumers[p.path], p) for p in readers]) if readers else None
            if each is None:
                continue
            joint = each.sum(0)
            new = [np.abs(joint).sum(0), (joint**2).sum(0), np.abs(each).sum(1), (each**2).sum(1)]
            before = sums[at]
            sums[at] = new if before is None else [a + b for a, b in zip(before, new, strict=True)]
    return tuple(None if total is None else Effects(*(part / images for part in total)) for total in sums)


def of_weights(
    model: nn.Module, paths: Sequence[str], batches: Iterable[tuple[Any, Any]], target: Target
) -> dict[str, Tensor]:
    """The mean over batches of |w g| by weight path, where g is the gradient of the batch's mean loss by the weight w.

    Weights that the loss does not depend on are left out.
    """
    weights = {path: model.get_parameter(path) for path in paths}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    sums: dict[str, Tensor] = {}
    device, count = next(model.parameters()).device, 0
    try:
        for weight in frozen:
            weight.requires_grad_()
        for number, (inputs, labels) in enumerate(batches):
            with torch.enable_grad(), evaluating(model):
                answer = logits(call(model, to(inputs, device)))
                loss = _loss(answer, labels, number, target) / len(answer)
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            count += 1
            for (path, weight), slope in zip(weights.items(), found, strict=True):
                if slope is not None:
                    if not torch.isfinite(slope).all():
                        raise not_finite(path, "the gradient of the weight", number)
                    effect = (weight.detach() * slope).abs().cpu().double()
                    sums[path] = sums[path] + effect if path in sums else effect
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return {path: total / count for path, total in sums.items()}


def _of_units(slope: Matrix, layer: WeightLayer, piece: Slice) -> Matrix:
    """A consumer's effects by unit, (images, units): those of the unit's channels add up."""
    parts = int(getattr(layer, "groups", 1))
    starts = np.arange(parts) * (slope.shape[1] // parts)
    channels = (starts[:, None, None] + piece.positions).swapaxes(0, 1).reshape(len(piece.positions), -1)
    found: Matrix = slope[:, channels].sum(2)
    return found


def _slopes(
    model: nn.Module, consumers: Mapping[str, WeightLayer], inputs: Any, labels: Any, number: int, target: Target
) -> tuple[dict[str, Matrix], int]:
    """Per consumer: derivatives by its gates, (images, channels); and the number of images."""
    gates: dict[str, Tensor] = {}

    def gate(path: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not inputs:
            return None
        x = inputs[0]
        if not torch.isfinite(x).all():
            raise not_finite(path, "what the layer reads", number)
        channels = x.dim() - 1 if isinstance(layer, nn.Linear) else 1
        shape = [size if axis in (0, channels) else 1 for axis, size in enumerate(x.shape)]
        if path not in gates:  # a layer that is called twice has one gate
            gates[path] = torch.ones(shape[0], shape[channels], dtype=x.dtype, device=x.device, requires_grad=True)
        return (x * gates[path].reshape(shape), *inputs[1:])

    device = next(model.parameters()).device
    with ExitStack() as hooks, torch.enable_grad(), evaluating(model):
        for path, layer in consumers.items():
            hooks.enter_context(layer.register_forward_pre_hook(partial(gate, path)))
        answer = logits(call(model, to(inputs, device)))
        loss = _loss(answer, labels, number, target)
        found = torch.autograd.grad(loss, list(gates.values()), allow_unused=True) if gates else ()
    slopes = {}
    for path, slope in zip(gates, found, strict=True):
        if slope is not None:
            if not torch.isfinite(slope).all():
                raise not_finite(path, "the gradient of what the layer reads", number)
            # where the first axis counts more than images (windows, say), an image's entries follow each other
            images = len(answer) if len(slope) % len(answer) == 0 else 1
            slopes[path] = slope.reshape(images, -1, slope.shape[1]).sum(1).cpu().double().numpy()
    return slopes, len(answer)


def _loss(answer: Tensor, labels: Any, number: int, target: Target) -> Tensor:
    """Cross-entropy, summed over the batch's images so that every image's slopes are its own."""
    classes = class_labels(labels) if target == "labels" else answer.detach().argmax(1)
    if classes is None:
        raise UserError(
            f"taylor and fisher need a loss, and calibration batch {number} has no class labels: give (input, class "
            "numbers) batches, take the network's own answers for labels (`taylor,target=answers`), or use obs"
        )
    try:
        return functional.cross_entropy(answer, classes.to(answer.device), reduction="sum")
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"taylor and fisher need a cross-entropy loss, and on calibration batch {number} there is none between "
            f"answers of shape {tuple(answer.shape)} and labels of shape {tuple(classes.shape)} "
            f"({str(error).splitlines()[0]}): use obs"
        ) from error


def class_labels(labels: Any) -> Tensor | None:
    """The batch's class numbers; None where it has none."""
    if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point():
        return labels.long()
    return None
