"""Slimmable networks: one set of weights for every width.

``slimmable`` trains a few widths, each with batch norms of its own (Yu et al., ICLR 2019); ``universal`` trains all
widths between two (Yu and Huang, ICCV 2019): the widest and the narrowest in every step (the sandwich rule) and some
drawn in between, all but the widest learning from the widest's answer (in-place distillation). With ``layerwise``
every group draws a width of its own, which is the first stage of AutoSlim (Yu and Huang 2019): its second is
``autoprune search --weights-from FOLDER --searcher autoslim``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.checkpoint import place
from autoprune.errors import UserError
from autoprune.finetune import Batches, Method, Recipe, Tell, finetune
from autoprune.forward import Example, logits
from autoprune.recipes.narrow import Narrow, draw, first, uniform
from autoprune.recipes.source import Source
from autoprune.scheme import Scheme
from autoprune.slicing import named_tensors, prune
from autoprune.space import SearchSpace

WIDTHS = "1,0.75,0.5,0.25"
NARROWEST = 0.25
DRAWN = 2  # widths in between, a step


class Slimmable(nn.Module):
    """A network and, for each of its narrower schemes, batch norms of that width.

    ``slimmable(inputs, scheme)`` runs a scheme; alone it is the whole network. Parameters and statistics of the whole
    network's batch norms are its own.
    """

    def __init__(self, model: nn.Module, space: SearchSpace, schemes: Sequence[Scheme] = ()) -> None:
        super().__init__()
        self.model = model
        self.schemes = [scheme for scheme in schemes if scheme != space.dense]
        self.norms = nn.ModuleList(
            nn.ModuleList(copy.deepcopy(norm) for _, norm in batch_norms(prune(model, space, first(space, scheme))))
            for scheme in self.schemes
        )
        self._names = [name for name, _ in batch_norms(model)]
        self._narrow = Narrow(model, space)

    def forward(self, inputs: Example, scheme: Scheme | None = None) -> Any:
        """The answer at a scheme's widths."""
        if scheme is None or scheme == self._narrow.space.dense:
            return self._narrow(inputs, self._narrow.space.dense)
        return self._narrow(inputs, scheme, self._own(scheme))

    def network(self, scheme: Scheme) -> nn.Module:
        """The scheme's network with weights of its own, in evaluation mode."""
        space = self._narrow.space
        found = prune(self.model, space, first(space, scheme))
        own = self._own(scheme)
        with torch.no_grad():
            for name, value in named_tensors(found):
                if name in own:
                    value.copy_(own[name])
        return found.eval()

    def _own(self, scheme: Scheme) -> dict[str, Tensor]:
        if scheme not in self.schemes:
            return {}
        norms = self.norms[self.schemes.index(scheme)]
        assert isinstance(norms, nn.ModuleList)
        return {
            f"{name}.{key}": value
            for name, norm in zip(self._names, norms, strict=True)
            for key, value in named_tensors(norm)
        }


def batch_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Every batch norm by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def slimmable(
    model: nn.Module,
    space: SearchSpace,
    train: Batches,
    validation: Batches,
    folder: Path | str,
    *,
    recipe: Recipe,
    widths: str | Sequence[float] = WIDTHS,
    tell: Tell = lambda facts: None,
) -> Slimmable:
    """Train ``model`` in place at several widths: gradients of all of them add up, then one step is made.

    Every width narrower than the whole has batch norms of its own.
    """
    if not batch_norms(model):
        raise UserError(
            "this network has no batch norm to switch between widths: the recipe 'universal' needs none of its own"
        )
    schemes = _schemes(space, widths)
    trained = Slimmable(model, space, schemes)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, epoch: int) -> float:
        optimizer.zero_grad()
        total = 0.0
        for scheme in schemes:
            loss = functional.cross_entropy(
                logits(module(inputs, scheme)), labels, label_smoothing=recipe.label_smoothing
            )
            torch.autograd.backward(loss)
            total += loss.item()
        optimizer.step()
        return total / len(schemes)

    facts = {"recipe": "slimmable", "widths": [list(scheme.kept) for scheme in schemes]}
    method = Method(step, keep="last", facts=facts)
    finetune(trained, train, validation, folder, recipe, method=method, tell=tell)
    return trained


def _schemes(space: SearchSpace, widths: str | Sequence[float]) -> list[Scheme]:
    """The widths' schemes, the widest first; the whole is always among them."""
    given = widths.split(",") if isinstance(widths, str) else widths
    try:
        shares = {float(width) for width in given} | {1.0}
    except ValueError:
        raise UserError(f"widths = {widths!r}: write shares of the whole width, such as {WIDTHS}") from None
    return list(dict.fromkeys(uniform(space, width) for width in sorted(shares, reverse=True)))


def universal(
    model: nn.Module,
    space: SearchSpace,
    train: Batches,
    validation: Batches,
    folder: Path | str,
    *,
    recipe: Recipe,
    narrowest: float = NARROWEST,
    drawn: int = DRAWN,
    sandwich: bool = True,
    distill: bool = True,
    layerwise: bool = False,
    tell: Tell = lambda facts: None,
) -> Slimmable:
    """Train ``model`` in place at all widths from ``narrowest`` on, ``drawn`` random ones a step.

    Without the ``sandwich`` rule two more random widths take the place of the two ends; without ``distill`` all learn
    from labels, as they also do in a step without the whole width. Batch norms share their parameters; running
    statistics are the whole network's, and have to be estimated anew for every other scheme.
    """
    if drawn < 0:
        raise UserError(f"drawn = {drawn}: a number of random widths a step, 0 or more")
    ends = [space.dense, uniform(space, narrowest)]
    trained = Slimmable(model, space)

    def schemes() -> Iterator[Scheme]:
        if sandwich:
            yield from ends
        for _ in range(drawn if sandwich else drawn + len(ends)):
            yield draw(space, narrowest, layerwise)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, epoch: int) -> float:
        optimizer.zero_grad()
        total, target, count = 0.0, None, 0
        for scheme in schemes():
            answer = logits(module(inputs, scheme))
            if target is None:
                loss = functional.cross_entropy(answer, labels, label_smoothing=recipe.label_smoothing)
            else:
                loss = functional.cross_entropy(answer, target)
            torch.autograd.backward(loss)
            if distill and scheme == space.dense:
                target = answer.detach().softmax(1)
            total, count = total + loss.item(), count + 1
        optimizer.step()
        return total / count

    facts = {"recipe": "universal", "narrowest": narrowest, "drawn": drawn, "sandwich": sandwich}
    method = Method(step, keep="last", facts={**facts, "distill": distill, "layerwise": layerwise})
    finetune(trained, train, validation, folder, recipe, method=method, tell=tell)
    return trained


autoslim = partial(universal, layerwise=True)
"""The first stage of AutoSlim: universal training in which every group draws a width of its own."""


def read(model: nn.Module, space: SearchSpace, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Source:
    """Candidates are the first channels of the shared weights; their batch norms are estimated anew."""
    schemes = _schemes(space, options["widths"]) if "widths" in options else ()
    trained = Slimmable(model, space, schemes)
    place(trained, tensors)
    return Source(trained.model, "first", "recalibrate_bn")
