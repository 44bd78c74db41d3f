"""SFW-Init: initial weights from which the first Frank-Wolfe step leads as far down as possible (Miao et al. 2022).

Every tensor gets one positive factor. The factors are learnt, by Adam, to lower the loss *after* one step that is only
imagined: the gradient that makes the step stays in the graph, so the factors' own gradients are of second order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from autoprune.errors import UserError
from autoprune.finetune import Batches
from autoprune.forward import evaluating, logits
from autoprune.recipes.regions import Region, Rescale, stride

LEAST = 0.01  # a factor of a weight; a bias may go to 0
CLIP = 1.0  # of a factor's gradient


def frank_wolfe_init(
    model: nn.Module,
    regions: dict[str, Region],
    batches: Batches,
    *,
    lr: float = 1.0,
    rescale: Rescale | None = "gradient",
    iterations: int = 390,
    batch: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, float]:
    """Scale every tensor of ``model``, in place; the factors by name come back.

    The gradient is taken on 2 ``batch`` images and the loss after the step on as many, half of which are new; ``lr``
    and ``rescale`` are those of the training to come, ``rate`` Adam's. A tensor that is zero has no factor. Batch norms
    use the statistics of their batch and remember none. Scaled weights may lie outside of their region.
    """
    if iterations < 1 or not lr > 0:
        raise UserError(f"iterations = {iterations}, lr = {lr}: at least 1 iteration, and a positive step, are needed")
    images = torch.cat([inputs for inputs, _ in batches])
    labels = torch.cat([classes for _, classes in batches])
    size = min(batch, len(images) // 3)
    if size < 1:
        raise UserError(f"{len(images)} images: the initialisation needs at least 3")
    points = {name: p.detach() for name, p in model.named_parameters() if p.is_floating_point() and bool(p.any())}
    scales = {name: point.new_ones((), requires_grad=True) for name, point in points.items()}
    optimizer = torch.optim.Adam(scales.values(), lr=rate)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model), torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.train()
        for _ in range(iterations):
            chosen = torch.randperm(len(images), generator=generator)[: 3 * size]
            inputs, classes = images[chosen].to(device), labels[chosen].to(device)
            scaled = {name: scale * points[name] for name, scale in scales.items()}
            before = _loss(model, scaled, inputs[: 2 * size], classes[: 2 * size])
            slopes = torch.autograd.grad(before, list(scaled.values()), create_graph=True)
            moved = {
                name: _moved(point, slope, regions.get(name), lr, rescale)
                for (name, point), slope in zip(scaled.items(), slopes, strict=True)
            }
            after = _loss(model, moved, inputs[size:], classes[size:]) / lr
            optimizer.zero_grad()
            torch.autograd.backward(after, inputs=list(scales.values()))
            for scale in scales.values():
                assert scale.grad is not None
                scale.grad.clamp_(-CLIP, CLIP)
            optimizer.step()
            with torch.no_grad():
                for name, scale in scales.items():
                    scale.clamp_(min=0.0 if name.endswith("bias") else LEAST)
    with torch.no_grad():
        for name, scale in scales.items():
            model.get_parameter(name).mul_(scale)
    return {name: scale.item() for name, scale in scales.items()}


def _loss(model: nn.Module, points: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy at other parameters; running statistics are counted on copies."""
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return functional.cross_entropy(logits(functional_call(model, {**points, **statistics}, (inputs,))), labels)


def _moved(point: Tensor, slope: Tensor, region: Region | None, lr: float, rescale: Rescale | None) -> Tensor:
    """Where one step without momentum leads; the corner is a constant of it."""
    if region is None:
        return point - lr * slope
    toward = region.corner(slope.detach()) - point
    return point + stride(lr, rescale, slope, toward, region) * toward
