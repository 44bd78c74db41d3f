"""Stochastic Frank-Wolfe: train once, prune to any sparsity afterwards, never retrain (Miao et al., ICLR 2022).

Every weight tensor stays in a region whose corners are sparse (:mod:`autoprune.recipes.regions`). A step goes from
where the tensor is toward the corner that the gradient votes for, x <- (1 - a) x + a v: what a corner leaves out
shrinks by 1 - a. After enough steps most weights are near zero, and zeroing them in one go costs little, at any share.

How many steps are enough depends on ``tau``. With a step as long as the gradient's, a = lr ||m|| / ||x - v||, and the
distance to a corner is about ``tau`` times the norm of the initial weights. What is never voted for shrinks by
exp(-sum of a) over a training, so a training of a tenth of the steps needs a tenth of ``tau`` to shrink as much.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from autoprune import checkpoint, masks
from autoprune.errors import UserError
from autoprune.finetune import Method, Recipe, Tell, finetune
from autoprune.recipes.data import Data
from autoprune.recipes.frank_wolfe_init import frank_wolfe_init
from autoprune.recipes.initialisation import norms, redraw
from autoprune.recipes.regions import REGIONS, SHIFTS, Region, Rescale, stride

Regions = Mapping[str, Region]


class FrankWolfe(torch.optim.Optimizer):
    """Projection-free descent: parameters of a group stay in its ``region``; without one it is gradient descent.

    A group is a dictionary with "params" and "region" (see :func:`groups`). The slope m is an average of gradients,
    m <- ``momentum`` m + (1 - ``momentum``) g, the first being m = g. With it and ``rescale`` "gradient", lr = 1 makes
    steps as long as SGD's at lr = 0.1 with momentum 0.9. Points outside of their region are brought in by ``shift``
    when the optimizer is made. The constraint takes the place of weight decay, so there is none.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        rescale: Rescale | None = "gradient",
        shift: Literal["divide", "floor"] = "divide",
    ) -> None:
        if not lr >= 0 or not 0 <= momentum < 1:
            raise UserError(f"lr = {lr}, momentum = {momentum}: not negative, and momentum below 1")
        if rescale not in ("gradient", "diameter", "fast_gradient", None):
            raise UserError(f"rescale {rescale!r} is unknown: gradient, diameter, fast_gradient or None")
        if shift not in SHIFTS:
            raise UserError(f"shift {shift!r} is unknown: use one of {', '.join(SHIFTS)}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "rescale": rescale, "region": None})
        for group in self.param_groups:
            for point in group["params"] if group["region"] else ():
                if group["region"].k > point.numel():
                    raise UserError(f"k = {group['region'].k}: the tensor has {point.numel()} entries")
                with torch.no_grad():
                    point.copy_(SHIFTS[shift](point, group["region"]))

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every tensor that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for point in group["params"]:
                if point.grad is not None:
                    self._move(point, group)
        return loss

    def _move(self, point: Tensor, group: Mapping[str, Any]) -> None:
        state, region = self.state[point], group["region"]
        if "slope" in state:
            slope = state["slope"].lerp_(point.grad, 1 - group["momentum"])
        else:
            assert point.grad is not None
            slope = state["slope"] = point.grad.clone()
        if region is None:
            point.sub_(slope, alpha=group["lr"])
            return
        corner = region.corner(slope)
        point.lerp_(corner, stride(group["lr"], group["rescale"], slope, corner - point, region))


def regions(
    model: nn.Module,
    names: Sequence[str],
    *,
    ball: Literal["polytope", "support"] = "polytope",
    fraction: float = 0.05,
    least: int = 10,
    tau: float = 15.0,
    draws: int = 100,
    seed: int = 0,
) -> dict[str, Region]:
    """A region for every named parameter, as wide as its initialisation is large.

    Corners have ``fraction`` of the tensor's entries, at least ``least`` (the number of classes, in the paper's
    experiments) as far as it has so many. The diameter is 2 ``tau`` times the expected norm of the initial tensor, over
    so many ``draws``.
    """
    if not 0 < fraction <= 1 or least < 1 or not tau > 0:
        raise UserError(f"fraction = {fraction}, least = {least}, tau = {tau}: a share up to 1, and positive numbers")
    if ball not in REGIONS:
        raise UserError(f"ball {ball!r} is unknown: use one of {', '.join(REGIONS)}")
    found: dict[str, Region] = {}
    for name, norm in norms(model, names, draws, seed).items():
        entries = model.get_parameter(name).numel()
        k = min(entries, max(least, int(fraction * entries)))
        found[name] = REGIONS[ball](k, tau * norm / (k**0.5 if ball == "polytope" else 1.0))
    return found


def groups(model: nn.Module, found: Regions) -> list[dict[str, Any]]:
    """The model's parameters for :class:`FrankWolfe`: one group per region, and one without for all others."""
    named = dict(model.named_parameters())
    free = [parameter for name, parameter in named.items() if name not in found]
    constrained = [{"params": [named[name]], "region": region} for name, region in found.items()]
    return [*constrained, *([{"params": free}] if free else [])]


def frank_wolfe(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int = 0,
    tell: Tell = lambda facts: None,
    start: Literal["scratch", "weights"] = "scratch",
    constrain: Literal["weights", "all"] = "weights",
    ball: Literal["polytope", "support"] = "polytope",
    fraction: float = 0.05,
    least: int = 10,
    tau: float = 15.0,
    rescale: Literal["gradient", "diameter", "fast_gradient"] | None = "gradient",
    shift: Literal["divide", "floor"] = "divide",
    init: int = 0,
    epochs: int = 60,
    lr: float = 1.0,
    momentum: float = 0.9,
    batch: int = 128,
    augment: str = "none",
) -> nn.Module:
    """Train by Frank-Wolfe and zero the smallest weights of ``names``, ranked together; nothing is retrained.

    Training starts from weights drawn anew ("scratch") or from the model's. All tensors but ``names`` take plain steps,
    unless ``constrain`` is "all" (as released: batch norm and biases too). ``init`` iterations of SFW-Init come first.
    The folder holds one training whatever the sparsity, so a second sparsity is cut from the same network.
    """
    train = data.training("frank_wolfe")
    masks.kept(1, sparsity)
    recipe = Recipe(epochs=epochs, lr=lr, batch=batch, momentum=momentum, weight_decay=0.0, augment=augment, seed=seed)
    network = copy.deepcopy(model)
    if start == "scratch":
        redraw(network, seed)
    chosen = list(names) if constrain == "weights" else [name for name, _ in network.named_parameters()]
    found = regions(network, chosen, ball=ball, fraction=fraction, least=least, tau=tau, seed=seed)
    if init and not (folder / checkpoint.STATE).is_file():  # a training that goes on has its weights there
        FrankWolfe(groups(network, found), shift=shift)  # brings the weights into their regions
        frank_wolfe_init(network, found, train, lr=lr, rescale=rescale, iterations=init, batch=batch, seed=seed)

    def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        return FrankWolfe(groups(model, found), recipe.lr, recipe.momentum, rescale, shift)

    facts = {
        "method": "frank_wolfe", "start": start, "constrained": chosen, "ball": ball, "fraction": fraction,
        "least": least, "tau": tau, "rescale": rescale, "shift": shift, "init": init,
    }  # fmt: skip
    method = Method(optimizer=optimizer, keep="last", facts=facts)
    finetune(network, train, data.validation or [], folder, recipe, method=method, tell=tell)
    scores = {name: network.get_parameter(name).detach().abs() for name in names}
    masks.impose(network, masks.ranked(scores, sparsity))
    return network
