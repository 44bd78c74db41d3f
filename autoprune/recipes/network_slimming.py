"""Network Slimming (Liu et al., ICCV 2017): an L1 penalty on batch-norm scales makes training choose the channels.

Afterwards one threshold over all scales says how many channels stay where: ``autoprune search --weights-from FOLDER
--searcher global_threshold --criterion bn_scale``; ``autoprune finetune`` is the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoprune.checkpoint import place
from autoprune.errors import UserError
from autoprune.finetune import Batches, Method, Recipe, Tell, finetune
from autoprune.recipes.slimmable import batch_norms
from autoprune.recipes.source import Source
from autoprune.space import SearchSpace

PENALTY = 1e-4


def network_slimming(
    model: nn.Module,
    space: SearchSpace,
    train: Batches,
    validation: Batches,
    folder: Path | str,
    *,
    recipe: Recipe,
    penalty: float = PENALTY,
    tell: Tell = lambda facts: None,
) -> nn.Module:
    """Train ``model`` in place with ``penalty`` x the sum of the absolute scales of all batch norms in its loss."""
    scales = [norm.weight for _, norm in batch_norms(model) if norm.affine]
    if not scales:
        raise UserError("network slimming ranks channels by their batch norms' scales: this network has none")
    if not penalty >= 0:
        raise UserError(f"penalty = {penalty}: the weight of the scales in the loss is not negative")
    hooks = [scale.requires_grad_().register_hook(partial(_shrunk, scale, penalty)) for scale in scales]
    try:
        method = Method(facts={"recipe": "network_slimming", "penalty": penalty})
        finetune(model, train, validation, folder, recipe, method=method, tell=tell)
    finally:
        for hook in hooks:
            hook.remove()
    return model


def _shrunk(scale: Tensor, penalty: float, gradient: Tensor) -> Tensor:
    """The gradient with that of the penalty."""
    return gradient + penalty * scale.detach().sign()


def read(model: nn.Module, space: SearchSpace, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Source:
    """What was trained, ranked by its scales and repaired as usual."""
    place(model, tensors)
    return Source(model, "bn_scale", None)
