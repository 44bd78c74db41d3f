"""Distiller: a schedule of filter pruners, one per group; EagleEye reads the same files.

``desired_sparsity`` is the removed share of a layer's filters, of which Distiller takes the floor. Coupled layers
stand in one pruner under ``group_dependency: Leader``: the first chooses, the others follow. Only convolutions have
filters here. To remove the zeroed filters add an extension with ``FilterRemover``, which wants to know the
architecture.

A scheme of single weights is one ``SparsityLevelParameterPruner`` with a level per weight, the removed share of its
entries, of which Distiller takes the floor.
"""

from __future__ import annotations

from typing import Any

import yaml
from torch import nn

from autoprune.errors import UserError
from autoprune.exporters.bins import removed
from autoprune.exporters.cuts import REMEDY, cuts, made, one_by_one, rate, weights, without_pattern
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "Distiller"


def schedule(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None, *, prefix: str = "") -> str:
    """The schedule as YAML; ``prefix`` stands before every name (``module.`` under DataParallel)."""
    if scheme.granularity != "channel":
        without_pattern(scheme, space, TOOL)
        found = [one for one in weights(scheme, space, TOOL) if one.kept < one.entries]
        levels = {f"{prefix}{one.layer.weight}": removed(one.entries, one.kept) for one in found}
        return _written({"pruner_0": {"class": "SparsityLevelParameterPruner", "levels": levels}} if levels else {})
    pruners: dict[str, dict[str, Any]] = {}
    for cut in cuts(scheme, space, TOOL):
        makers = made(cut, space, TOOL)
        one_by_one(cut, TOOL)
        for maker in makers:
            if len(space.shapes[maker.layer.weight]) != 4:
                raise UserError(f"{cut} are made by {maker.module}, and {TOOL} ranks filters of convolutions; {REMEDY}")
        pruner: dict[str, Any] = {
            "class": "L1RankedStructureParameterPruner",
            "group_type": "Filters",
            "desired_sparsity": rate(cut, makers, TOOL),
        }
        if len(makers) > 1:
            pruner["group_dependency"] = "Leader"
        pruner["weights"] = [f"{prefix}{maker.layer.weight}" for maker in makers]
        pruners[f"pruner_{len(pruners)}"] = pruner
    return _written(pruners)


def _written(pruners: dict[str, dict[str, Any]]) -> str:
    """The file, with a policy that runs every pruner in the first epoch."""
    policies = [{"pruner": {"instance_name": name}, "epochs": [0]} for name in pruners]
    text: str = yaml.safe_dump({"version": 1, "pruners": pruners, "policies": policies}, sort_keys=False, width=120)
    return text
