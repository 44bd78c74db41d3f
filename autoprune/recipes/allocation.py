"""Rates of the layers, bred by UniPTS's reducing-regrowing search on a few calibration images.

A candidate is one shot: the lowest magnitudes of every layer go, batch norms are re-estimated, and what counts is how
far its answers are from the dense network's. The breeding is :func:`autoprune.searchers.evolution.evolution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import reward
from autoprune.budget import Budget
from autoprune.cost import costs
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.forward import Example
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.masks import kept as left
from autoprune.recipes import Tell
from autoprune.recipes.data import Batches, Data, identity
from autoprune.searchers.evolution import evolution
from autoprune.space import SearchSpace

LEDGER = "ledger.jsonl"
BATCH = 64


def search(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int,
    tell: Tell,
    images: int = 512,
    population: int = 10,
    generations: int = 6,
    release: bool = False,
) -> dict[str, float]:
    """The best rates found, as the shares to remove by name.

    Half of the first ``images`` calibration images are for batch norms, the other half for judging; no label is
    needed. ``generations`` follow the first population. What was measured is in the folder's ledger, so that a
    search that was stopped goes on. With ``release`` it is the published search, see
    :func:`autoprune.recipes.unipts.unipts`.
    """
    if population < 2 or generations < 1 or images < 2:
        raise UserError(
            f"population = {population}, generations = {generations}, search_images = {images}: a search needs at "
            "least 2, 1 and 2"
        )
    score = reward.find("accuracy" if release else "neg_kl")
    inputs = data.inputs("unipts")
    space = weight_space(model, inputs[:1], names)
    if release:
        labels = torch.cat([classes for _, classes in data.labelled("unipts in mode release")])
        seen, judged = _parts(inputs, labels, torch.Generator().manual_seed(seed))
    else:
        seen, judged = _parts(inputs[:images], None, None)
    known = {"model and images": identity(model, inputs)}
    evaluator = Evaluator(model, space, seen, judged, device=next(model.parameters()).device, identity=known)
    together = left(int(space.widths.sum()), sparsity)
    budget = Budget(space, {"weights": together}, costs(space))
    options: dict[str, Any] = {"population": population, "generations": generations}
    if release:
        options["preset"] = "unipts_release"
    folder.mkdir(parents=True, exist_ok=True)
    records = Ledger(folder / LEDGER, evaluator.fingerprint, space.groups)
    proposals = evolution(space, budget, seed=seed, hints=evaluator.hints(), **options)
    loop = Loop(proposals, budget, score, records, Stop())
    of = population + 2 * (population // 2) * generations
    try:
        while schemes := loop.ask():
            loop.tell((scheme, evaluator(scheme)) for scheme in schemes)
            best = None if loop.best is None else loop.best.reward
            tell({"stage": "search", "done": len(loop.trials), "of": of, "best": best})
    finally:
        loop.close()
    if loop.best is None:
        raise UserError(f"no candidate of the search could be measured: {loop.trials[0].measurement.error}")
    removed = space.rates(loop.best.scheme)
    return {str(group.tensor): 1 - float(rate) for group, rate in zip(space.groups, removed, strict=True)}


def weight_space(model: nn.Module, example: Example, names: Sequence[str]) -> SearchSpace:
    """The named weights as a search space."""
    define = resolve_name("autoprune.search_spaces.weights:define")
    space: SearchSpace = define(model, example, include=names)
    missing = set(names) - {str(group.tensor) for group in space.groups}
    if missing:
        reasons = "; ".join(found.reason for found in space.left_out if f"{found.name}.weight" in missing)
        raise UserError(f"{min(missing)} cannot be searched ({reasons}): exclude it, or give rates")
    return space


def _parts(images: Tensor, labels: Tensor | None, again: torch.Generator | None) -> tuple[Batches, Batches]:
    """What re-estimates batch norms, and what judges: every other image, or the same ones drawn ``again``."""
    if again is not None:
        assert labels is not None
        drawn = torch.randint(len(images), (len(images),), generator=again)
        batches = list(zip(images[drawn].split(BATCH), labels[drawn].split(BATCH), strict=True))
        return batches, batches
    return [(part, None) for part in images[::2].split(BATCH)], [(part, None) for part in images[1::2].split(BATCH)]
