"""Criteria of single weights: one score per entry of a group's tensor, in its shape.

Within a tensor a mask keeps the highest scores. Searchers also compare scores between tensors, and there the criteria
differ: ``magnitude`` as weights are, ``layer_normalised`` by what a weight is worth to its own layer, ``lamp`` by what
removing it loses of what is left of its layer, ``taylor`` by the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoprune.criteria import chance
from autoprune.errors import UserError
from autoprune.slopes import Target
from autoprune.space import Group
from autoprune.statistics import Statistics


def magnitude(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """The absolute value of the weight (Han et al. 2015)."""
    return _weight(group, model, "magnitude").abs()


def layer_normalised(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """The absolute value as a share of the tensor's Euclidean length (Lazarevich et al. 2021)."""
    weight = _weight(group, model, "layer_normalised")
    return weight.abs() / (weight.norm() or 1.0)


def lamp(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """The square over the sum of all squares that are not smaller (Lee et al., ICLR 2021, equation 4).

    The best weight of every tensor scores 1, so that one threshold for all tensors empties none.
    """
    squares = _weight(group, model, "lamp").square().flatten()
    largest_first = squares.argsort(descending=True)
    scores = torch.empty_like(squares)
    sums = squares[largest_first].cumsum(0)
    scores[largest_first] = squares[largest_first] / torch.where(sums == 0, 1.0, sums)
    return scores.reshape(model.get_parameter(str(group.tensor)).shape)


def taylor(group: Group, model: nn.Module, statistics: Statistics, *, target: Target = "labels") -> Tensor:
    """First-order change of the loss when the weight is zeroed, |w g|, the mean over calibration batches.

    Per batch, as Molchanov et al. (2019) take it; g is the gradient of the batch's mean loss, with class labels or
    with the network's own answers (``target="answers"``).
    """
    found = statistics.weight_effects(target)
    path = str(group.tensor)
    if path not in found:
        raise UserError(f"criterion taylor: no gradient reached {path} on the calibration set; use magnitude")
    return found[path]


def random(group: Group, model: nn.Module, statistics: Statistics, *, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), drawn from ``seed`` and the group's name: the same in every session."""
    return torch.from_numpy(chance.draw(group.name, group.width, seed)).reshape(_weight(group, model, "random").shape)


def _weight(group: Group, model: nn.Module, criterion: str) -> Tensor:
    weight = model.get_parameter(str(group.tensor)).detach().cpu().double()
    if not torch.isfinite(weight).all():
        raise UserError(f"{group.tensor} holds nan or inf: criterion {criterion} cannot rank it; mend the weights")
    return weight
