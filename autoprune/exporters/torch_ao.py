"""torch.ao.pruning: the configuration of ``SaliencyPruner``, which ships with PyTorch as an experiment.

    pruner = SaliencyPruner({})
    pruner.prepare(model, config(scheme, space))
    pruner.enable_mask_update = True
    pruner.step()
    pruned = pruner.prune()

``sparsity_level`` is the removed share of a layer's output channels, of which PyTorch takes the floor; the channels
are chosen by the size of their weights. It follows chains of layers and activations only: a batch norm, a sum or a
concatenation behind a pruned layer ends in "still contains FakeStructuredSparsity". :func:`check` finds that out on a
copy.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
from torch import nn

from autoprune import slicing
from autoprune.errors import UserError
from autoprune.exporters.bins import removed
from autoprune.exporters.comparison import refuse_other
from autoprune.exporters.cuts import REMEDY, alone, cuts
from autoprune.forward import Example
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "torch.ao.pruning"


def config(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> list[dict[str, Any]]:
    """One entry per pruned layer: ``tensor_fqn`` and ``sparsity_level``."""
    makers = [alone(cut, space, TOOL) for cut in cuts(scheme, space, TOOL)]
    return [{"tensor_fqn": m.layer.weight, "sparsity_level": removed(m.width, m.kept)} for m in makers]


def check(scheme: Scheme, space: SearchSpace, model: nn.Module, example: Example) -> None:
    """Let PyTorch prune a copy of ``model``; refuse if it cannot, or if a width is not the scheme's."""
    wanted = config(scheme, space)
    if not wanted:
        return
    try:
        pruned = apply(copy.deepcopy(model), wanted)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{TOOL} cannot prune this network ({type(error).__name__}: {reason}): it follows convolutions, "
            f"linear layers and activations in a row, no batch norms and no sums; {REMEDY}"
        ) from error
    kept = [np.arange(count // group.unit) for group, count in zip(space.groups, scheme.kept, strict=True)]
    refuse_other(slicing.prune(model, space, kept), pruned, space, TOOL, values=False)


def apply(model: nn.Module, config: list[dict[str, Any]]) -> nn.Module:
    """The pruned form of ``model``, which is changed on the way."""
    from torch.ao.pruning._experimental.pruner.saliency_pruner import SaliencyPruner

    pruner: Any = SaliencyPruner({})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner.prepare(model, config)
        pruner.enable_mask_update = True
        pruner.step()
        pruned: nn.Module = pruner.prune()
    return pruned
