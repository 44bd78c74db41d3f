"""MetaPruning (Liu et al., ICCV 2019): a small network generates the weights of any scheme.

Every convolution that the space cuts has no weights of its own. Two linear layers make them from the scheme: from the
kept shares of the groups that the convolution reads and writes. Trained on schemes drawn anew every step, the
generators tell how good a scheme is without training it: ``autoprune search --weights-from FOLDER --searcher
evolution --set preset=metapruning``.

The published networks have batch norms per width and a list of layers for each architecture; here batch norms are the
model's own, sliced like in a slimmable network, and any traced space will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from autoprune.checkpoint import place
from autoprune.errors import UserError
from autoprune.finetune import Batches, Method, Recipe, Tell, finetune
from autoprune.forward import Example, logits
from autoprune.recipes.narrow import Narrow, cropped, draw, first
from autoprune.recipes.slimmable import NARROWEST, batch_norms
from autoprune.recipes.source import Source
from autoprune.recover import BN_IMAGES, Context, recalibrate_bn, reestimate
from autoprune.recover import first as few
from autoprune.scheme import Scheme
from autoprune.slicing import named_tensors, selections
from autoprune.space import SearchSpace

HIDDEN = 32


class PruningNet(nn.Module):
    """A network whose convolutions are generated: ``net(inputs, scheme)`` runs a scheme, alone the whole network.

    A convolution's generator is Linear(groups that cut it, ``hidden``), ReLU, Linear(``hidden``, entries of the whole
    weight); of what it gives, the first channels of the scheme are used.
    """

    def __init__(self, model: nn.Module, space: SearchSpace, hidden: int = HIDDEN) -> None:
        super().__init__()
        if not batch_norms(model):
            raise UserError(
                "metapruning generates weights whose scale batch norms take out, and this network has no batch norm: "
                "the recipe 'universal' needs none"
            )
        self.model = model
        self._space = space
        self._narrow = Narrow(model, space)
        convolutions = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, _ConvNd)}
        self._cut: dict[str, list[int]] = {}
        for number, group in enumerate(space.groups):
            for piece in group.slices:
                if piece.path in convolutions and number not in self._cut.setdefault(piece.path, []):
                    self._cut[piece.path].append(number)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Linear(len(groups), hidden), nn.ReLU(), nn.Linear(hidden, model.get_parameter(name).numel())
            )
            for name, groups in self._cut.items()
        )

    def forward(self, inputs: Example, scheme: Scheme | None = None) -> Any:
        """The answer of a scheme's network."""
        scheme = scheme or self._space.dense
        return self._narrow(inputs, scheme, self.weights(scheme))

    def weights(self, scheme: Scheme) -> dict[str, Tensor]:
        """The generated weights of a scheme, by name, at its sizes."""
        device = next(self.generators.parameters()).device
        rates = torch.as_tensor(self._space.rates(scheme), dtype=torch.float32, device=device)
        stays = selections(self._space, first(self._space, scheme), self._shapes)
        made = {}
        for (name, groups), generator in zip(self._cut.items(), self.generators, strict=True):
            whole = generator(rates[groups]).reshape(self._shapes[name])
            made[name] = cropped(whole, stays.get(name, {}))
        return made

    @torch.no_grad()
    def fill(self, candidate: nn.Module, scheme: Scheme) -> None:
        """Put a scheme's weights into its network."""
        for name, weight in self.weights(scheme).items():
            candidate.get_parameter(name).copy_(weight)

    def recover(self, candidate: nn.Module, context: Context) -> None:
        """As a recovery: generated weights, and the batch norms estimated anew."""
        counts = tuple(len(units) * g.unit for units, g in zip(context.kept, context.space.groups, strict=True))
        self.fill(candidate, Scheme(counts, context.space.granularity))
        recalibrate_bn(candidate, context)


def metapruning(
    model: nn.Module,
    space: SearchSpace,
    train: Batches,
    validation: Batches,
    folder: Path | str,
    *,
    recipe: Recipe,
    narrowest: float = NARROWEST,
    hidden: int = HIDDEN,
    tell: Tell = lambda facts: None,
) -> PruningNet:
    """Train generators for ``model``: a scheme a step, every group of a random width from ``narrowest`` on.

    Epochs are judged by the whole network, whose batch norms are estimated anew for that.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        trained = PruningNet(model, space, hidden)

    @contextmanager
    def whole(net: nn.Module) -> Iterator[None]:
        trained.fill(trained.model, space.dense)
        reestimate(trained.model, few(train, BN_IMAGES))
        yield

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, epoch: int) -> float:
        answer = logits(module(inputs, draw(space, narrowest, layerwise=True)))
        loss = functional.cross_entropy(answer, labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.item()

    facts: Mapping[str, Any] = {"recipe": "metapruning", "narrowest": narrowest, "hidden": hidden}
    method = Method(step, used=whole, keep="last", facts=facts)
    finetune(trained, train, validation, folder, recipe, method=method, tell=tell)
    return trained


def read(model: nn.Module, space: SearchSpace, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Source:
    """Candidates get the weights that are generated for them; their batch norms are estimated anew."""
    trained = PruningNet(model, space, options["hidden"])
    place(trained, tensors)
    trained.fill(trained.model, space.dense)
    return Source(trained.model, "first", trained.recover)
