"""NNI: the ``config_list`` of its pruners, for 3.0 and for 2.x.

    pruner = L1NormPruner(model, config_list)           # 3.0
    pruner = L1NormPruner(model, config_list_2)         # 2.x, mode="dependency_aware" where layers are coupled

``sparse_ratio`` and ``sparsity_per_layer`` are the removed share of a layer's output channels, of which NNI takes the
floor. In 3.0 the layers of a group carry one ``dependency_group_id`` and must have the very same ratio; a grouped
convolution among them makes NNI choose in blocks. In 2.x coupled layers take the smallest ratio of a group, which is
here the same for all. A scheme of single weights is for ``LevelPruner``, whose ratio is the removed share of a layer's
weights, of which it takes the floor. NNI only masks; its ``ModelSpeedup`` makes the network smaller, and does not run
on current PyTorch.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from autoprune.exporters.bins import removed
from autoprune.exporters.cuts import cuts, made, rate, weights, without_pattern
from autoprune.scheme import Scheme
from autoprune.space import Layer, SearchSpace

TOOL = "NNI"


def config_list(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> list[dict[str, Any]]:
    """The form of 3.0: one entry per group."""
    found: list[dict[str, Any]] = []
    if scheme.granularity != "channel":
        without_pattern(scheme, space, TOOL)
        return [
            {"op_names": [one.layer.name], "sparse_ratio": removed(one.entries, one.kept), "granularity": "default"}
            for one in weights(scheme, space, TOOL)
            if one.kept < one.entries
        ]
    for cut in cuts(scheme, space, TOOL):
        makers = made(cut, space, TOOL)
        entry: dict[str, Any] = {
            "op_names": [maker.module for maker in makers],
            "sparse_ratio": rate(cut, makers, TOOL),
            "granularity": "out_channel",
        }
        if len(makers) > 1:
            entry["dependency_group_id"] = cut.group.name
        if cut.group.unit > 1:
            entry["internal_metric_block"] = cut.group.unit
        found.append(entry)
    return found


def config_list_2(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> list[dict[str, Any]]:
    """The form of 2.x: one entry per group and kind of layer. Without the model kinds are guessed from shapes."""
    if scheme.granularity != "channel":
        without_pattern(scheme, space, TOOL)
        return [
            {
                "op_types": [_kind(one.layer, space, model)],
                "op_names": [one.layer.name],
                "sparsity_per_layer": removed(one.entries, one.kept),
            }
            for one in weights(scheme, space, TOOL)
            if one.kept < one.entries
        ]
    found = []
    for cut in cuts(scheme, space, TOOL):
        makers = made(cut, space, TOOL)
        ratio = rate(cut, makers, TOOL)
        kinds = {_kind(maker.layer, space, model): None for maker in makers}
        found += [
            {
                "op_types": [kind],
                "op_names": [maker.module for maker in makers if _kind(maker.layer, space, model) == kind],
                "sparsity_per_layer": ratio,
            }
            for kind in kinds
        ]
    return found


def _kind(layer: Layer, space: SearchSpace, model: nn.Module | None) -> str:
    """The layer's class by name."""
    if model is not None:
        return type(model.get_submodule(layer.name)).__name__
    dimensions = len(space.shapes[layer.weight]) - 2
    return "Linear" if layer.kind == "linear" else f"Conv{dimensions}d"
