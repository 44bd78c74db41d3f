"""NNCF: a table of masks, one per weight, because its own interface knows one ratio for the whole network.

    model = nncf.prune(model, mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL, ratio=table["ratio"], examples_inputs=x)
    write_masks(get_pruned_modules(model), table)

``ratio`` is the removed share of all weights of convolutions and linear layers: as near as NNCF's own number comes to
the scheme. The masks say the very channels, so the scheme has to have indices; those of single weights are the zeros of
the pruned network, which has to be the model. They are zeros: nothing gets smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autoprune.errors import UserError
from autoprune.exporters.cuts import layers, weights
from autoprune.exporters.removed import mask, removed
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "NNCF"


def table(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> dict[str, Any]:
    """``ratio`` of all weights, and per weight its ``shape``, ``ratio`` removed and the ``removed`` entries by axis."""
    known = layers(space)
    gone = {path: axes for path, axes in removed(scheme, space, TOOL, model).items() if path in known}
    found = weights(scheme, space, TOOL)
    masks = {
        one.layer.weight: {
            "shape": list(space.shapes[one.layer.weight]),
            "ratio": one.removed,
            "removed": gone[one.layer.weight],
        }
        for one in found
        if one.layer.weight in gone
    }
    entries, kept = sum(one.entries for one in found), sum(one.kept for one in found)
    return {"ratio": (entries - kept) / entries, "masks": masks}


def write_masks(pruned_modules: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    """Put the masks where NNCF keeps its own: ``pruned_modules`` is what its ``get_pruned_modules(model)`` returns.

    A weight that the scheme leaves whole is unmasked.
    """
    missing = [path for path in table["masks"] if path not in pruned_modules]
    if missing:
        raise UserError(f"{TOOL} masks no weight {missing[0]}: prune the same network, with no ignored scope")
    for path, module in pruned_modules.items():
        entry = table["masks"].get(path)
        old: torch.Tensor = module.binary_mask
        new = torch.ones_like(old) if entry is None else mask(entry["removed"], old.shape, path).to(old)
        old.copy_(new)
