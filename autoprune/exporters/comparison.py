"""Two pruned forms of one network, tensor by tensor."""

from __future__ import annotations

import torch
from torch import nn

from autoprune.errors import UserError
from autoprune.slicing import named_tensors
from autoprune.space import SearchSpace


def refuse_other(expected: nn.Module, found: nn.Module, space: SearchSpace, tool: str, *, values: bool) -> None:
    """Refuse what a tool made of the network if a tensor's shape (with ``values``, its content) is not ours."""
    theirs = dict(named_tensors(found))
    for path, tensor in named_tensors(expected):
        other = theirs.get(path)
        if other is not None and other.shape == tensor.shape and (not values or torch.equal(other, tensor)):
            continue
        groups = [g.name for g in space.groups if any(piece.path == path for piece in g.slices)]
        if other is None:
            what = f"{path} would be gone"
        elif other.shape == tensor.shape:
            what = f"{path} would hold other channels"
        else:
            what = f"{path} would be {tuple(other.shape)} instead of {tuple(tensor.shape)}"
        raise UserError(
            f"{tool} sees other groups than the search space: {what} (group {', '.join(groups)}); "
            "keep this group whole, or hand over the pruned network"
        )
