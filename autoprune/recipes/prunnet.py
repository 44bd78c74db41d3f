"""PrunNet: train a network once so that its subnetworks of any capacity work, and agree with it (CVPR 2025).

Every step runs the dense network and its subnetworks of a few capacities (:mod:`autoprune.recipes.scores`) on the same
images, all with the dense network's classifier, which is what keeps their features compatible. With g the gradient of a
pass with respect to the weights it used, mask ⊙ W,

    dL/dW = mask ⊙ g,    dL/ds = mask ⊙ g ⊙ W ⊙ sign(s),

the second straight through the ranking of |s|; the dense pass has no mask, so it moves the score of every weight. What
the passes want of a weight or a score is merged (:mod:`autoprune.recipes.conflict`); all other parameters and the
running statistics follow the dense pass alone. So batch norms of a subnetwork have to be estimated anew
(:func:`autoprune.recover.reestimate`) before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from autoprune import masks
from autoprune.checkpoint import place
from autoprune.errors import UserError
from autoprune.finetune import Batches, Method, Recipe, Tell, finetune
from autoprune.forward import logits
from autoprune.recipes.conflict import Integration, Piece, Projection
from autoprune.recipes.scores import Scored, check
from autoprune.recipes.source import Source
from autoprune.retrieval import last_linear, tapped
from autoprune.space import SearchSpace

CAPACITIES = (0.8, 0.6, 0.4, 0.2)
CLIP = 100.0
PUBLISHED = Recipe(epochs=30, lr=0.1)
"""SGD with momentum 0.9 and weight decay 5e-4, for scores as for weights; the cosine is ours, published are steps."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one pass wants: of the scored weights, of their scores, and of all other parameters, in their order."""

    weights: list[Tensor]
    scores: list[Tensor]
    others: list[Tensor]

    def clipped(self, norm: float) -> Gradients:
        """Scaled down together to at most this Euclidean norm."""
        total = torch.nn.utils.get_total_norm([*self.weights, *self.scores, *self.others])
        scale = (norm / (total + 1e-6)).clamp(max=1.0)
        return Gradients(*([g * scale for g in part] for part in (self.weights, self.scores, self.others)))


@dataclass(frozen=True, eq=False)
class Pass:
    """The loss of one network of the family, its gradients, and its features (if they were asked for)."""

    loss: Tensor
    gradients: Gradients
    features: Tensor | None


def look(
    scored: Scored,
    inputs: Tensor,
    labels: Tensor,
    kept: masks.Masks | None = None,
    *,
    toward: Tensor | None = None,
    compatibility: float = 0.0,
    smoothing: float = 0.0,
) -> Pass:
    """One forward and backward pass of the dense network, or of the subnetwork of masks; no ``.grad`` is touched.

    The loss is the cross-entropy, and for a subnetwork ``compatibility`` x the mean squared distance of its features
    (what the classifier takes) from those of the dense network, ``toward``. Only the dense pass leaves a trace in the
    running statistics.
    """
    network, weights = scored.network, scored.weights()
    others = rest(scored)
    tensors: dict[str, Tensor] = {}
    used: list[Tensor] = list(weights)
    if kept is not None:
        used = [(w.detach() * kept[name]).requires_grad_() for name, w in zip(scored.names, weights, strict=True)]
        tensors = {name: buffer.clone() for name, buffer in network.named_buffers()}
        tensors.update(zip(scored.names, used, strict=True))
    ears: AbstractContextManager[list[Tensor]] = tapped(network) if compatibility else nullcontext([])
    with ears as heard:
        answer = logits(functional_call(network, tensors, (inputs,)))
    features = heard[0] if heard else None
    loss = functional.cross_entropy(answer, labels, label_smoothing=smoothing)
    if features is not None and toward is not None:
        loss = loss + compatibility * functional.mse_loss(features, toward)
    found = torch.autograd.grad(loss, [*used, *others], allow_unused=True, materialize_grads=True)
    seen = list(found[: len(used)])
    if kept is not None:
        seen = [g * kept[name] for name, g in zip(scored.names, seen, strict=True)]
    score = [g * w.detach() * s.detach().sign() for g, w, s in zip(seen, weights, scored.scores, strict=True)]
    gradients = Gradients(seen, score, list(found[len(used) :]))
    return Pass(loss.detach(), gradients, None if features is None else features.detach())


def rest(scored: Scored) -> list[nn.Parameter]:
    """The network's parameters that have no scores."""
    own = {id(weight) for weight in scored.weights()}
    return [parameter for parameter in scored.network.parameters() if id(parameter) not in own]


class Joint:
    """One training's step over all capacities; the stream that orders projections begins anew with every epoch."""

    def __init__(
        self,
        capacities: Sequence[float],
        integration: Integration,
        *,
        compatibility: float = 0.0,
        clip: float = CLIP,
        smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._capacities = capacities
        self._integration = integration
        self._compatibility = compatibility
        self._clip = clip
        self._smoothing = smoothing
        self._seed = seed
        self._epoch = -1
        self._stream = torch.Generator()

    def step(
        self, scored: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, epoch: int
    ) -> float:
        """Merge what the dense network and its subnetworks want, and make one step; the mean of their losses."""
        assert isinstance(scored, Scored)
        if epoch != self._epoch:
            self._stream.manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch = epoch
        common: dict[str, Any] = {"compatibility": self._compatibility, "smoothing": self._smoothing}
        dense = look(scored, inputs, labels, **common)
        small = [
            look(scored, inputs, labels, kept, toward=dense.features, **common)
            for kept in scored.nested(self._capacities)
        ]
        wanted = [dense.gradients, *(one.gradients.clipped(self._clip) for one in small)]
        merged = self._integration.merge([[*each.weights, *each.scores] for each in wanted], self._stream)
        optimizer.zero_grad()
        for parameter, gradient in zip([*scored.weights(), *scored.scores], merged, strict=True):
            parameter.grad = gradient
        for parameter, gradient in zip(rest(scored), dense.gradients.others, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(scored.parameters(), self._clip)
        optimizer.step()
        return float(torch.stack([one.loss for one in (dense, *small)]).mean())


def prunnet(
    model: nn.Module,
    space: SearchSpace | None,
    train: Batches,
    validation: Batches,
    folder: Path | str,
    *,
    recipe: Recipe = PUBLISHED,
    capacities: str | Sequence[float] = CAPACITIES,
    projection: Projection = "sequential",
    per: Piece = "filter",
    alpha: float = 0.5,
    compatibility: float = 0.0,
    clip: float = CLIP,
    dense: str | Sequence[str] | None = None,
    seed: int | None = None,
    tell: Tell = lambda facts: None,
) -> Scored:
    """Train ``model`` in place together with its subnetworks, and keep the last epoch.

    - ``capacities``: the shares of weights that are trained beside the whole; every other one works afterwards too.
    - ``projection``, ``per``, ``alpha``: how gradients are merged, see :class:`autoprune.recipes.conflict.Integration`.
    - ``compatibility``: the weight of the squared distance between a subnetwork's features and the dense network's,
      which the paper has and the released training does not.
    - ``clip``: the largest norm of a subnetwork's gradient, and of the merged one.
    - ``dense``: patterns of the weights that no subnetwork loses (by default the last linear layer, the classifier).
      These and the capacities may be text with commas.
    - ``seed``: of the first scores and of the order of projections (by default the recipe's).

    ``space``, of single weights, is what a search will read off; None where nobody searches.
    """
    shares = _shares(capacities)
    if not (compatibility >= 0 and clip > 0):
        raise UserError(
            f"compatibility = {compatibility}, clip = {clip}: a weight that is not negative and a positive norm are "
            "needed"
        )
    seed = recipe.seed if seed is None else seed
    scored = Scored(model, _pruned(model, dense), seed)
    if space is not None:
        _check(space, scored)
    facts = {
        "recipe": "prunnet", "capacities": shares, "projection": projection, "per": per, "alpha": alpha,
        "compatibility": compatibility, "clip": clip, "names": list(scored.names), "score_seed": seed,
    }  # fmt: skip
    joint = Joint(
        shares,
        Integration(projection, per, alpha),
        compatibility=compatibility,
        clip=clip,
        smoothing=recipe.label_smoothing,
        seed=seed,
    )
    method = Method(joint.step, keep="last", facts=facts)
    finetune(scored, train, validation, folder, recipe, method=method, tell=tell)
    return scored


def read(model: nn.Module, space: SearchSpace, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Source:
    """A candidate keeps each tensor's highest scores; its batch norms are estimated anew."""
    scored = Scored(model, _pruned(model, options["dense"]))
    _check(space, scored)
    place(scored, tensors)
    return Source(scored.network, scored.criterion, "recalibrate_bn")


def _shares(capacities: str | Sequence[float]) -> list[float]:
    """The capacities, the largest first."""
    given = capacities.split(",") if isinstance(capacities, str) else capacities
    try:
        shares = sorted({float(share) for share in given}, reverse=True)
    except ValueError:
        shares = []
    if not shares:
        raise UserError(f"capacities = {capacities!r}: write shares of the weights to keep, such as {CAPACITIES}")
    for share in shares:
        check(share)
    return shares


def _pruned(model: nn.Module, dense: str | Sequence[str] | None) -> list[str]:
    """The names of the weights that get scores."""
    if dense is None:
        classifier = last_linear(model)
        dense = [] if classifier is None else [classifier or "weight"]
    elif isinstance(dense, str):
        dense = dense.split(",")
    return list(masks.weights(model, exclude=dense))


def _check(space: SearchSpace, scored: Scored) -> None:
    if space.granularity == "channel":
        raise UserError("prunnet keeps single weights, no channels: give it a search space of single weights")
    for group in space.groups:
        if group.tensor not in scored.names:
            raise UserError(
                f"{group.tensor} stays dense in every subnetwork: leave it out of the search space (exclude "
                f"{group.name}), or name in dense what shall stay instead"
            )
