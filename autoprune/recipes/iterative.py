"""Iterative magnitude pruning: remove the smallest weights, retrain the rest, again (Han et al., NeurIPS 2015).

In every round the smallest of the weights that remain become zero, and the survivors are trained on from the values
they have; nothing is initialised again. A weight that is gone stays gone, through momentum and weight decay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from autoprune import masks
from autoprune.finetune import Recipe, Step, Tell, finetune, holding
from autoprune.masks import Masks
from autoprune.recipes.data import Data, identity
from autoprune.recipes.rates import check, counts
from autoprune.recipes.rounds import sparsities

Scope = Literal["global", "uniform", "quality"]


def smallest(
    model: nn.Module, before: Masks, sparsity: float, scope: Scope = "global", rates: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Masks that remove the smallest magnitudes that are left, until ``sparsity`` of all weights is gone.

    "global" ranks all tensors together, "uniform" every one alone, at the same sparsity or at that of its ``rates``.
    "quality" gives every layer the threshold q std(w), where w are its remaining weights and the one number q is what
    reaches the sparsity: magnitudes over their layer's deviation, ranked together (Han et al. 2015, section 3.1).
    """
    scores = {}
    for name, mask in before.items():
        weight = model.get_parameter(name).detach()
        size = weight[mask].std(correction=0) if scope == "quality" else weight.new_ones(())
        scores[name] = (weight.abs() / size.clamp(min=torch.finfo(size.dtype).tiny)).masked_fill(~mask, -math.inf)
    if scope != "uniform" and rates is None:
        return masks.ranked(scores, sparsity)
    left = counts({name: score.numel() for name, score in scores.items()}, sparsity, rates)
    # what rounding leaves may fall to another layer in every round, but nothing comes back
    return {name: masks.highest(s, min(left[name], int(before[name].sum()))) for name, s in scores.items()}


def retrain(
    model: nn.Module,
    found: Masks,
    data: Data,
    folder: Path,
    recipe: Recipe,
    *,
    step: Step | None = None,
    facts: Mapping[str, Any],
    tell: Tell,
) -> list[dict[str, float]]:
    """Train what the masks leave, in place and from its values; the last epoch is kept.

    ``facts`` say which training this is. The folder of another one, or of the same from other weights, is refused.
    """
    start = {"weights": identity(model, *found.values()), **facts}
    masks.impose(model, found)
    method = replace(holding(found), step=step, keep="last", facts=start)
    train = data.training(str(facts["method"]))
    heard = lambda record: tell({**facts, **record})  # noqa: E731  # a record of finetune, and whose it is
    return finetune(model, train, data.validation or [], folder, recipe, method=method, tell=heard)


def iterative(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int = 0,
    tell: Tell = lambda facts: None,
    schedule: Literal["one_shot", "geometric", "cubic"] = "geometric",
    rounds: int = 5,
    scope: Literal["global", "uniform", "quality"] = "global",
    dropout: bool = False,
    epochs: int = 4,
    lr: float = 0.02,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 128,
    augment: str = "none",
    rates: Mapping[str, float] | None = None,
) -> nn.Module:
    """Prune and retrain in ``rounds``, ``epochs`` each, along a ``schedule`` of sparsities (:mod:`.rounds`).

    A tenth to a hundredth of the learning rate that trained the network is usual. ``dropout`` scales the network's
    dropout with the connections that are left. ``rates`` gives every weight tensor a sparsity of its own to end at,
    in place of ``scope``; together they make ``sparsity``. Every round has its folder, and a run that was stopped goes
    on in it.
    """
    path = sparsities(schedule, sparsity, rounds)
    sizes = {name: model.get_parameter(name).numel() for name in names}
    paths: list[dict[str, float]] | None = None
    if rates is not None:
        check(rates, sizes, sparsity)
        each = {name: sparsities(schedule, rates[name], rounds) for name in names}
        paths = [{name: along[number] for name, along in each.items()} for number in range(rounds)]
        together = [sum(own[name] * size for name, size in sizes.items()) / sum(sizes.values()) for own in paths]
        path = [*together[:-1], sparsity]
    recipe = Recipe(
        epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay, batch=batch, augment=augment, seed=seed
    )
    network = copy.deepcopy(model)
    found: dict[str, Tensor] = {n: torch.ones_like(network.get_parameter(n), dtype=torch.bool) for n in names}
    for number, share in enumerate(path):
        found = smallest(network, found, share, scope, None if paths is None else paths[number])
        masks.impose(network, found)
        facts = {
            "method": "iterative", "round": number + 1, "rounds": rounds, "sparsity": share, "dropout": dropout,
        }  # fmt: skip
        with thinner(network, found) if dropout else ExitStack():
            retrain(network, found, data, folder / f"round-{number + 1:02d}", recipe, facts=facts, tell=tell)
    return network


@contextmanager
def thinner(model: nn.Module, found: Masks) -> Iterator[None]:
    """Less dropout where less is connected: p sqrt(C_after / C_before) (Han et al. 2015, equation 2).

    A dropout is that of the layer after it, in the order in which the network names its modules.
    """
    waiting: list[_DropoutNd] = []
    before: list[tuple[_DropoutNd, float]] = []
    for path, module in model.named_modules():
        mask = found.get(f"{path}.weight" if path else "weight")
        if isinstance(module, _DropoutNd):
            waiting.append(module)
        elif mask is not None:
            for one in waiting:
                before.append((one, one.p))
                one.p *= math.sqrt(int(mask.sum()) / mask.numel())
            waiting = []
    try:
        yield
    finally:
        for one, p in before:
            one.p = p
