"""A training on disk, one file an epoch: weights, momenta, moving average, and what has happened so far. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.precision import FULL
from autoprune.slicing import named_tensors

STATE, HISTORY = "finetune.safetensors", "finetune.json"


@dataclass(eq=False)
class Progress:
    """How far a training is: epochs done, one record for each, and which of them was the best."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: int = -1


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, on the CPU, by name."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in named_tensors(model)}


@torch.no_grad()
def place(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put such copies back."""
    for name, tensor in named_tensors(model):
        if name not in values or values[name].shape != tensor.shape:
            found = tuple(values[name].shape) if name in values else "nothing"
            raise UserError(
                f"the training in this folder is of another network: {name} is {tuple(tensor.shape)} here, {found} "
                "there; choose another folder"
            )
        tensor.copy_(values[name])


def write(path: Path, values: Mapping[str, Tensor], facts: str = "{}") -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    save_file(dict(values), part, metadata={"facts": facts})
    part.replace(path)


def save(
    folder: Path,
    recipe: Mapping[str, Any],
    progress: Progress,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write an epoch down. It is one file, so that a kill leaves this epoch or the one before."""
    values = {f"{key}.{name}": tensor for key, model in networks.items() for name, tensor in tensors(model).items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                values[f"optimizer.{number}.{key}"] = value.detach().cpu().clone().contiguous()
    facts = {"recipe": dict(recipe), **asdict(progress)}
    write(folder / STATE, values, json.dumps(facts))
    (folder / HISTORY).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def resume(
    folder: Path, recipe: Mapping[str, Any], networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> Progress:
    """Put the last epoch of a folder back, if there is one; a training by another recipe is refused."""
    path = folder / STATE
    if not path.is_file():
        return Progress()
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    before = {"precision": FULL, **facts["recipe"]}  # older folders do not tell it
    changed = [f"{key}: {before.get(key)} -> {value}" for key, value in recipe.items() if before.get(key) != value]
    if changed:
        raise UserError(
            f"{folder} holds a training by another recipe ({'; '.join(changed)}): give the same to go on, or another "
            "folder"
        )
    values = load_file(path)
    for key, model in networks.items():
        place(model, {name.removeprefix(f"{key}."): t for name, t in values.items() if name.startswith(f"{key}.")})
    for number, parameter in enumerate(_parameters(optimizer)):
        for name in (name for name in values if name.startswith(f"optimizer.{number}.")):
            key = name.split(".", 2)[2]
            # Adam counts its steps on the CPU
            optimizer.state[parameter][key] = values[name] if key == "step" else values[name].to(parameter.device)
    return Progress(facts["epoch"], facts["history"], facts["best"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
