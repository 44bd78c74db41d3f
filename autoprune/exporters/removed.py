"""The very entries that a scheme removes from every parameter: masks in a form that a file can hold.

``{"conv1.weight": {"0": [3, 17]}, "conv2.weight": {"0": [5], "1": [3, 17]}}`` says which entries of which axis go.
Everything that carries a removed channel is listed: the filters that make it, batch norms, biases and the columns that
read it. A network masked this way computes what the pruned one computes.

Where single weights are removed, ``{"conv1.weight": {"kept": [0, 7, 12]}}`` says which entries stay, counted through
the tensor row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.exporters.cuts import cuts, entries
from autoprune.masks import present
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

Removed = dict[str, dict[str, list[int]]]


def removed(scheme: Scheme, space: SearchSpace, tool: str, model: nn.Module | None = None) -> Removed:
    """Removed entries by parameter and axis, ascending; the scheme has to say which channels stay.

    Of single weights the ``model``, which has to be the pruned network, says which are zero.
    """
    if scheme.granularity != "channel":
        return _entries(scheme, space, tool, model)
    cuts(scheme, space, tool)
    if scheme.indices is None:
        raise UserError(
            f"the scheme says how many channels stay, not which, and masks for {tool} need to know: export a scheme "
            "with kept indices (`autoprune apply` writes one)"
        )
    gone: dict[str, dict[str, set[int]]] = {}
    for group, kept in zip(space.groups, scheme.indices, strict=True):
        units = np.setdiff1d(np.arange(group.units), kept)
        for piece in group.slices:
            if len(units) and piece.path in space.shapes:  # buffers are no parameters, and tools mask only those
                axes = gone.setdefault(piece.path, {})
                axes.setdefault(str(piece.axis), set()).update(piece.positions[units].ravel().tolist())
    return {path: {axis: sorted(entries) for axis, entries in axes.items()} for path, axes in gone.items()}


def _entries(scheme: Scheme, space: SearchSpace, tool: str, model: nn.Module | None) -> Removed:
    counts = entries(scheme, space)
    if model is None:
        raise UserError(f"masks of single weights for {tool} are the pruned network's zeros: hand it over as the model")
    found = {
        path: {"kept": stays.flatten().nonzero()[:, 0].tolist()} for path, stays in present(model, list(counts)).items()
    }
    for path, kept in counts.items():
        if len(found[path]["kept"]) > kept:
            raise UserError(
                f"{path} has {len(found[path]['kept'])} weights that are not zero where the scheme keeps {kept}: masks "
                f"for {tool} are the pruned network's zeros, so hand over that one"
            )
    return {path: stays for path, stays in found.items() if counts[path] < prod(space.shapes[path])}


def mask(axes: Mapping[str, Iterable[int]], shape: Sequence[int], path: str = "the parameter") -> Tensor:
    """Ones where a parameter of ``shape`` keeps its entries, zeros where they go."""
    ones = torch.ones(tuple(shape))
    if "kept" in axes:
        stays = torch.tensor(sorted(axes["kept"]), dtype=torch.int64)
        if len(stays) and not 0 <= int(stays[0]) <= int(stays[-1]) < ones.numel():
            raise UserError(f"{path} has {ones.numel()} entries: there is none of number {int(stays[-1])}")
        return torch.zeros(ones.numel()).index_fill_(0, stays, 1).reshape(ones.shape)
    for axis, gone in axes.items():
        chosen = sorted(gone)
        if int(axis) >= len(shape) or (chosen and not 0 <= chosen[0] <= chosen[-1] < shape[int(axis)]):
            raise UserError(f"{path} has shape {tuple(shape)}: axis {axis} has no entries {chosen[:1] + chosen[-1:]}")
        ones.index_fill_(int(axis), torch.tensor(chosen, dtype=torch.int64), 0)
    return ones
