"""UniPTS: post-training sparsity from a few calibration images, without labels (Xie et al., CVPR 2024).

Three parts, each of use alone: rates of the layers from an evolutionary search (:mod:`autoprune.recipes.allocation`),
a divergence from the dense network whose logarithm's base shrinks as training goes
(:mod:`autoprune.recipes.objective`), and training in which the masks follow the weights at every step
(:mod:`autoprune.recipes.dynamic`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.errors import UserError
from autoprune.finetune import Recipe, finetune
from autoprune.forward import evaluating
from autoprune.recipes import Tell, allocation
from autoprune.recipes import objective as objectives
from autoprune.recipes.data import Data, identity
from autoprune.recipes.dynamic import PULL, Answers, Dynamic, highest, wearing
from autoprune.recipes.objective import DECAY, START, TEMPERATURE, observed
from autoprune.recipes.one_shot import recalibrated
from autoprune.recipes.rates import counts, floored

LEAST = 16  # images: fewer say nothing about the statistics of a batch
PASS = 256  # images in one forward pass of the teacher


@dataclass(frozen=True)
class Published:
    """What the release does in its own way; :func:`unipts` says what each means."""

    teacher_mode: Literal["eval", "train"] = "eval"
    augment: str = "none"
    population: int = 10
    generations: int = 6
    quirks: bool = False


MODES: Mapping[str, Published] = {
    "default": Published(),
    "release": Published("train", "crop", population=25, generations=25, quirks=True),
}


def unipts(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int,
    tell: Tell,
    mode: Literal["default", "release"] = "default",
    rates: Mapping[str, float] | None = None,
    search: bool = True,
    search_images: int = 512,
    population: int | None = None,
    generations: int | None = None,
    epochs: int = 100,
    batch: int = 64,
    lr: float = 0.01,
    weight_decay: float = 1e-4,
    augment: str | None = None,
    objective: objectives.Name = "base_decayed",
    temperature: float = TEMPERATURE,
    start: float = START,
    decay: float = DECAY,
    period: int = 1,
    pull: float = PULL,
    teacher_mode: Literal["eval", "train"] | None = None,
) -> nn.Module:
    """Find rates, then train with moving masks toward the dense network's answers on the calibration images.

    - ``rates``: the shares to remove by name; without them they are searched, or equal with ``search=False``.
    - ``search_images``, ``population``, ``generations``: how rates are searched, see
      :func:`autoprune.recipes.allocation.search`.
    - ``epochs``, ``batch``, ``lr``, ``weight_decay``, ``augment``: SGD with momentum 0.9, one epoch of warm-up, then a
      cosine to zero. The published rates are 0.01 and 1e-4 for ResNets, 0.05 and 4e-5 for MobileNet v2. No epoch at
      all leaves it at magnitude masks and batch norms estimated anew.
    - ``objective``: "base_decayed" (with ``temperature``, and ``start`` x ``decay`` ^ epoch as the logarithm of the
      base), "kl", or "mse" of every layer's output for itself.
    - ``period``: steps between two updates of the masks; 0 keeps the first ones.
    - ``pull``: what draws masked weights toward zero, SR-STE's decay.
    - ``teacher_mode``: whether the dense network normalises with its own statistics or those of the batch.

    ``mode="release"`` is what was published as code: a teacher in training mode, images drawn with replacement and
    shifted and mirrored in every epoch, floor(s n) weights removed of a layer, and the search with its quirks
    (25 x 25; what small layers cannot take is lost, so that up to a percent more is removed than was asked for; judged
    by accuracy on the images that the statistics come from, so labels are needed). Two things of the release are left
    out: it keeps the best epoch by test accuracy, and adds noise of deviation 1e-6 to images, which changes nothing.
    """
    published = MODES[mode]
    given: dict[str, Any] = {"teacher_mode": teacher_mode, "augment": augment}
    given |= {"population": population, "generations": generations}
    chosen = replace(published, **{name: value for name, value in given.items() if value is not None})
    if period < 0 or pull < 0 or epochs < 0:
        raise UserError(f"period = {period}, pull = {pull}, epochs = {epochs}: not negative, please")
    data.at_least(LEAST, "unipts")
    compared = objectives.find(objective, temperature, start, decay)
    sizes = {name: model.get_parameter(name).numel() for name in names}
    if rates is None and search:
        rates = allocation.search(
            model, sparsity, data, names=names, folder=folder / "search", seed=seed, tell=tell, images=search_images,
            population=chosen.population, generations=chosen.generations, release=chosen.quirks,
        )  # fmt: skip
    removed = rates or dict.fromkeys(names, sparsity)
    kept = floored(sizes, removed) if chosen.quirks else counts(sizes, sparsity, rates)
    sparse = copy.deepcopy(model)
    if not epochs:
        masks.impose(sparse, highest(sparse, kept))
        return recalibrated(sparse.eval(), data.calibration)
    images = data.inputs("unipts")
    if chosen.quirks:
        images = images[torch.randint(len(images), (len(images),), generator=torch.Generator().manual_seed(seed))]
    recipe = Recipe(
        epochs, lr, batch, min(1 / epochs, 0.5), weight_decay=weight_decay, augment=chosen.augment, seed=seed
    )
    layers = [name.rpartition(".")[0] for name in names] if objective == "mse" else []
    answers = _answers(model, images, layers, chosen)
    dynamic = Dynamic(
        kept, compared, answers, layers=layers, period=period, per_epoch=len(images) // min(batch, len(images)),
        pull=pull,
    )  # fmt: skip
    facts = {
        "method": "unipts", "kept": list(kept.values()), "objective": objective, "temperature": temperature,
        "start": start, "decay": decay, "period": period, "pull": pull, "teacher_mode": chosen.teacher_mode,
        "model and images": identity(model, images),
    }  # fmt: skip
    with wearing(sparse, kept):
        finetune(
            sparse, [(images, torch.arange(len(images)))], [], folder / "training", recipe,
            method=dynamic.method(facts), tell=lambda epoch: tell({"stage": "training", "epochs": epochs, **epoch}),
        )  # fmt: skip
    return sparse.eval()


def _answers(model: nn.Module, images: Tensor, layers: Sequence[str], chosen: Published) -> Answers:
    """What the dense network says: once for all where that is possible, else at every step."""
    device = next(model.parameters()).device
    if chosen.teacher_mode == "eval" and chosen.augment == "none" and not layers:
        with torch.no_grad(), evaluating(model):
            known = torch.cat([observed(model, part.to(device), ())[0] for part in images.split(PASS)])
        return lambda inputs, numbers: [known[numbers]]
    teacher = copy.deepcopy(model).train(chosen.teacher_mode == "train")

    def look(inputs: Tensor, numbers: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return observed(teacher, inputs, layers)

    return look
