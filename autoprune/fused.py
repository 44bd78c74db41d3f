"""A layer and the batch norm that alone reads it, read and written as one linear map of the layer's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.patches import WeightLayer
from autoprune.ridge import Moments
from autoprune.targets import affine

LEAST = 1e-3  # of the largest scale of a batch norm: smaller ones are raised before they are divided by


class Linear(NamedTuple):
    """``weight`` (convolution groups, d, o) and ``constant`` (convolution groups, 1, o) of answers = rows W + c."""

    weight: Tensor
    constant: Tensor


@dataclass(frozen=True, eq=False)
class Fused:
    """A layer, and the batch norm behind it, where there is one."""

    layer: WeightLayer
    norm: _BatchNorm | None

    @property
    def groups(self) -> int:
        """Convolution groups."""
        return int(getattr(self.layer, "groups", 1))

    @property
    def columns(self) -> int:
        """How many inputs one output multiplies: d."""
        return self.layer.weight[0].numel()

    @property
    def centred(self) -> bool:
        """Whether something takes up a constant."""
        return self.layer.bias is not None or self.norm is not None

    def read(self) -> Linear:
        """Both as they are, in double precision."""
        factor, constant = self._affine()
        weight = (self.layer.weight.double() * self._along(factor)).reshape(self.groups, -1, self.columns).mT
        if self.layer.bias is not None:
            constant = constant + factor * self.layer.bias.double()
        return Linear(weight, constant.reshape(self.groups, 1, -1))

    def write(self, moments: Moments, solved: Tensor) -> None:
        """Put a solution into the layer and whatever takes up its constant and scale.

        The batch norm gets the statistics that the layer's new output has by these moments of its rows.
        """
        constant = moments.constant(solved).reshape(-1)
        weight = solved.mT.reshape(self.layer.weight.shape)
        if self.norm is None:
            self.layer.weight.copy_(weight)
            if self.layer.bias is not None:
                self.layer.bias.copy_(constant)
            return
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        factor = _raised(self._affine()[0])
        self.layer.weight.copy_(weight / self._along(factor))
        bias = 0.0 if self.layer.bias is None else self.layer.bias.double()
        if not norm.affine:  # the statistics are all that can be set
            norm.running_mean.copy_(bias - constant / factor)
            return
        variance = (solved * (moments.square @ solved)).sum(1).reshape(-1) / moments.count / factor.square()
        norm.running_mean.copy_((moments.mean @ solved).reshape(-1) / factor + bias)
        norm.running_var.copy_(variance)
        norm.weight.copy_(factor * (variance + norm.eps).sqrt())
        norm.bias.copy_(moments.target.reshape(-1))

    def answers(self, x: Tensor) -> Tensor:
        """What both give, without their hooks."""
        made: Tensor = self.layer.forward(x)
        return made if self.norm is None else self.norm.forward(made)

    def _affine(self) -> tuple[Tensor, Tensor]:
        if self.norm is None:
            one = torch.ones(len(self.layer.weight), dtype=torch.double, device=self.layer.weight.device)
            return one, torch.zeros_like(one)
        return affine(self.norm)

    def _along(self, vector: Tensor) -> Tensor:
        return vector.reshape(-1, *[1] * (self.layer.weight.dim() - 1))


def _raised(factor: Tensor) -> Tensor:
    """Without the scales that are too small to divide by."""
    least = LEAST * float(factor.abs().max()) or 1.0
    return torch.where(factor.abs() < least, torch.where(factor < 0, -least, least), factor)
