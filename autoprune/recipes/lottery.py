"""Lottery tickets: the sparse network that could have been trained from the start (Frankle and Carbin, ICLR 2019).

Train, remove a share of the remaining weights with the smallest trained magnitudes, all layers together, put the
survivors back to what they were at the beginning, bit for bit, and train again. Networks of some depth need to be put
back not to their initial weights but to those of a few hundred steps later (Frankle et al., ICML 2020).

What a ticket is worth is told by its controls, which share everything but one thing with it: the same mask on weights
drawn anew, another mask of the same sparsity in every layer, or the survivors as they were trained, not put back.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autoprune import checkpoint, masks
from autoprune.errors import UserError
from autoprune.finetune import Recipe, Step, Tell, descent
from autoprune.forward import batch_size
from autoprune.masks import Masks
from autoprune.recipes.data import Data
from autoprune.recipes.initialisation import redraw
from autoprune.recipes.iterative import retrain, smallest
from autoprune.recipes.rounds import shrinking

REWIND = "rewind.safetensors"

Control = Literal["ticket", "random_init", "random_mask", "finetune"]


@dataclass(frozen=True)
class Rewound(Recipe):
    """A recipe that begins ``since`` steps into its schedule, where the weights come from."""

    since: int = 0

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at a step after the rewinding, of so many."""
        return super().rate(self.since + step, self.since + steps)


def lottery(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int = 0,
    tell: Tell = lambda facts: None,
    share: float = 0.2,
    rewind: str = "0",
    control: Literal["ticket", "random_init", "random_mask", "finetune"] = "ticket",
    start: Literal["scratch", "weights"] = "scratch",
    epochs: int = 20,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: float = 0.1,
    batch: int = 128,
    augment: str = "none",
) -> nn.Module:
    """The trained ticket of a sparsity, or one of its controls.

    Every level removes ``share`` of what remains, the last one as much as is left to remove. ``rewind`` is the moment
    that survivors are put back to: "0", the initial weights, or as many steps or epochs of the first training as
    "500it" or "2ep" say; the learning rate goes on from there too. Training starts from weights drawn anew, or from the
    model's. A ``control`` takes the place of the ticket in the last level alone, so that all of them share the levels
    before: "finetune" trains on from the trained values, under the same learning rates (Renda et al. 2020).
    """
    if control not in ("ticket", "random_init", "random_mask", "finetune"):
        raise UserError(f"control {control!r} is unknown: ticket, random_init, random_mask or finetune")
    levels = shrinking(sparsity, share)
    recipe = Recipe(
        epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay, warmup=warmup, batch=batch,
        augment=augment, seed=seed,
    )  # fmt: skip
    images = sum(batch_size(inputs) for inputs, _ in data.training("lottery"))
    per_epoch = images // min(batch, max(1, images))
    since = moment(rewind, per_epoch, epochs)
    again = Rewound(**{**vars(recipe), "epochs": epochs - since // per_epoch, "since": since})
    network = copy.deepcopy(model)
    if start == "scratch":
        redraw(network, seed)
    found: dict[str, Tensor] = {n: torch.ones_like(network.get_parameter(n), dtype=torch.bool) for n in names}
    saving = saved_at(since, per_epoch, folder / REWIND, descent(recipe, None))
    facts = {"method": "lottery", "rewind": rewind, "share": share, "rounds": len(levels)}
    first = {**facts, "round": 0, "sparsity": 0.0}
    retrain(network, found, data, folder / "level-00", recipe, step=saving, facts=first, tell=tell)
    early = load_file(folder / REWIND)
    for number, level in enumerate(levels, 1):
        found = smallest(network, found, level)
        way: Control = control if number == len(levels) else "ticket"
        if way == "random_mask":
            found = shuffled(found, seed)
        if way != "finetune":
            put_back(network, early, found)
        if way == "random_init":
            redraw(network, seed + 1)
        name = f"level-{number:02d}" + ("" if number < len(levels) else f"-{control}-{sparsity}")
        here = {**facts, "round": number, "sparsity": level, "control": way}
        retrain(network, found, data, folder / name, again, facts=here, tell=tell)
    return network


def moment(rewind: str, per_epoch: int, epochs: int) -> int:
    """How many steps "500it" or "2ep" are, of a training with so many steps an epoch."""
    parsed = re.fullmatch(r"(\d+)(it|ep)?", rewind)
    if parsed is None or (parsed[2] is None and int(parsed[1])):
        raise UserError(f"rewind {rewind!r}: give 0, or steps or epochs like 500it or 2ep")
    steps = int(parsed[1]) * (per_epoch if parsed[2] == "ep" else 1)
    if steps >= per_epoch * epochs:
        raise UserError(f"rewind {rewind!r}: the training ends after {per_epoch * epochs} steps ({epochs} epochs)")
    return steps


def saved_at(moment: int, per_epoch: int, path: Path, step: Step) -> Step:
    """A step that writes the network down when so many steps have been made."""
    now, made = -1, 0

    def watched(
        model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, epoch: int
    ) -> float:
        nonlocal now, made
        if epoch != now:  # a training that goes on does so at the beginning of an epoch
            now, made = epoch, epoch * per_epoch
        if made == moment:
            checkpoint.write(path, checkpoint.tensors(model))
        made += 1
        return step(model, optimizer, inputs, labels, epoch)

    return watched


def put_back(model: nn.Module, early: Mapping[str, Tensor], found: Masks) -> None:
    """The survivors as they were, bit for bit, statistics and what no mask is about included; zeros elsewhere."""
    checkpoint.place(model, early)
    masks.impose(model, found)


def shuffled(found: Masks, seed: int) -> dict[str, Tensor]:
    """Random masks that leave as many weights of every tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: masks.highest(torch.rand(mask.shape, generator=generator), int(mask.sum())).to(mask.device)
        for name, mask in found.items()
    }
