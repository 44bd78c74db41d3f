"""Make one gradient of several that disagree: those of networks which share their weights (PrunNet, CVPR 2025).

For one tensor let g_1 … g_N be the gradients of N networks. First each is *projected* (PCGrad, Yu et al., NeurIPS
2020): for every other j, in random order, where <g_i, g_j> < 0,

    g_i' = g_i - <g_i, g_j> / (|g_j|² + ε) g_j,    ε = 1e-8,

so that it no longer works against g_j. Then those that had to bend most count least:

    r_i = ((cos(g_i', g_i) + 1) / 2)^α,    merged = N Σ_i (r_i / Σ_k r_k) g_i',

the cosine over the whole tensor. All of this follows from inner products, so the gradients themselves are read twice:
for the N x N Gram matrix of every filter, and for the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from autoprune.errors import UserError

EPSILON = 1e-8
TINY = 1e-300  # a cosine with a zero gradient is 0

Projection = Literal["sequential", "last", "none"]
Piece = Literal["filter", "tensor"]


@dataclass(frozen=True)
class Integration:
    """How gradients are merged.

    ``projection``: "sequential" projects what earlier projections left (PCGrad); "last" projects the original gradient
    each time and keeps the last result, as the released code does; "none" sums the gradients as they are. Neither of
    the first two promises that nothing conflicts any more when N > 2. ``per``: every "filter" of a convolution (a slice
    along the first axis; other tensors as a whole) is projected by itself, or every "tensor". ``alpha`` is the power α;
    0 sums the projected gradients.
    """

    projection: Projection = "sequential"
    per: Piece = "filter"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        for name, kind in (("projection", Projection), ("per", Piece)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(get_args(kind))}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise UserError(f"alpha = {self.alpha}: the power of a weight is a number of at least 0")

    def merge(self, gradients: Sequence[Sequence[Tensor]], stream: torch.Generator | None = None) -> list[Tensor]:
        """One gradient per tensor, from those of N networks for the same list of tensors.

        Every tensor is merged by itself; ``stream`` draws the order of the projections, the same for all of them (None:
        from torch's global stream).
        """
        stacks = [torch.stack(several) for several in zip(*gradients, strict=True)]
        if self.projection == "none":
            return [stack.sum(0) for stack in stacks]
        pieces = [self._pieces(stack) for stack in stacks]
        grams = [piece.double() @ piece.double().mT for piece in pieces]
        mixtures = projected(torch.cat(grams), self.projection, stream).split([len(gram) for gram in grams])
        merged = []
        for stack, piece, gram, mixed in zip(stacks, pieces, grams, mixtures, strict=True):
            blend = len(stack) * (reliability(gram, mixed, self.alpha)[:, None] * mixed).sum(1)
            merged.append((blend.to(piece).unsqueeze(1) @ piece).reshape(stack.shape[1:]))
        return merged

    def _pieces(self, stack: Tensor) -> Tensor:
        """What is projected by itself, shape (pieces, N, entries)."""
        if self.per == "filter" and stack.dim() > 3:
            return stack.flatten(2).transpose(0, 1)
        return stack.flatten(1).unsqueeze(0)


SUM = Integration("none", alpha=0.0)
"""The naive way."""


def projected(gram: Tensor, projection: Projection, stream: torch.Generator | None = None) -> Tensor:
    """The projected gradients as mixtures of the original ones.

    ``gram`` has shape (pieces, N, N), and so has the answer: its entry (p, i, j) is what piece p of g_i' has of g_j.
    """
    count = gram.shape[-1]
    mixed = torch.eye(count, dtype=gram.dtype, device=gram.device).expand_as(gram).clone()
    for i in range(count):
        own, original = mixed[:, i], mixed[:, i].clone()
        for j in torch.randperm(count, generator=stream).tolist():
            if j == i:
                continue
            current = original if projection == "last" else own
            inner = (current * gram[:, :, j]).sum(-1)
            bent = current.clone()
            bent[:, j] -= inner / (gram[:, j, j] + EPSILON)
            own.copy_(torch.where((inner < 0).unsqueeze(-1), bent, own))
    return mixed


def reliability(gram: Tensor, mixed: Tensor, alpha: float) -> Tensor:
    """The weights of N gradients, which sum to one: the less a gradient was bent, the higher (shapes as above)."""
    inner = (mixed * gram).sum((0, 2))
    bent = ((mixed @ gram) * mixed).sum((0, 2)).clamp(min=0)
    straight = gram.diagonal(dim1=-2, dim2=-1).sum(0)
    cosine = (inner / (bent * straight).sqrt().clamp(min=TINY)).clamp(-1, 1)
    powers = ((cosine + 1) / 2) ** alpha
    return powers / powers.sum()
