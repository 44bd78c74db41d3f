"""A trained folder: what ``autoprune train`` leaves behind, and a search reads its candidates' weights from."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from autoprune import checkpoint, settings
from autoprune.criteria import Criterion
from autoprune.errors import UserError
from autoprune.finetune import Batches, Recipe, Tell
from autoprune.forward import outputs
from autoprune.recipes.data import identity
from autoprune.recover import Recovery
from autoprune.references import function
from autoprune.run import read_json, write_json
from autoprune.space import SearchSpace

FORMAT, VERSION = "autoprune-recipe", 1
RECORD, TENSORS = "recipe.json", "weights.safetensors"
BEGUN = "begun.json"
DENSE = "dense.safetensors"
"""The whole network alone, as a state dict: what candidates are compared with, and fine-tuned toward."""

TRAINED: Mapping[str, str] = {
    "slimmable": "autoprune.recipes.slimmable:slimmable",
    "universal": "autoprune.recipes.slimmable:universal",
    "autoslim": "autoprune.recipes.slimmable:autoslim",
    "network_slimming": "autoprune.recipes.network_slimming:network_slimming",
    "metapruning": "autoprune.recipes.metapruning:metapruning",
    "prunnet": "autoprune.recipes.prunnet:prunnet",
}
"""Recipes by name: ``(model, space, train, validation, folder, *, recipe, tell, **options) -> nn.Module``.

In the module of each, ``read(model, space, tensors, options) -> Source`` puts the trained tensors back.
"""
KIND = settings.Kind("recipe", positions=5, names=("recipe", "tell"))


@dataclass(frozen=True, eq=False)
class Source:
    """How a search makes candidates of a trained network: what is cut, which channels stay, how they are repaired.

    None for a recovery is the usual one. ``identity`` joins what measurements are recorded under.
    """

    model: nn.Module
    criterion: str | Criterion
    recovery: str | Recovery | None
    identity: Mapping[str, Any] | None = None


def find(recipe: str) -> Callable[..., nn.Module]:
    """A recipe by its name, or by ``package.module:function``."""
    found: Callable[..., nn.Module] = function(recipe, KIND.name, TRAINED)
    return found


def train(
    name: str,
    model: nn.Module,
    space: SearchSpace,
    batches: Batches,
    validation: Batches,
    folder: Path | str,
    *,
    recipe: Recipe,
    options: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    tell: Tell = lambda facts: None,
) -> nn.Module:
    """Train ``model`` in place by the recipe called ``name``, and leave in ``folder`` what a search needs of it.

    ``options`` are the recipe's own. A training that was stopped goes on. ``source`` (how to load the network) is
    written down.
    """
    chosen, given = find(name), dict(options or {})
    settings.check(chosen, KIND, given)
    folder = Path(folder)
    _begin(folder, model, space, batches, validation)
    trained = chosen(model, space, batches, validation, folder, recipe=recipe, tell=tell, **given)
    checkpoint.write(folder / TENSORS, checkpoint.tensors(trained))
    defaults = {key: option.default for key, option in settings.options(chosen, KIND).items()}
    record = {
        "format": FORMAT,
        "version": VERSION,
        "recipe": name,
        "options": {key: value for key, value in (defaults | given).items() if value is not inspect.Parameter.empty},
        "training": asdict(recipe),
        "network": type(model).__name__,
        "space": space.fingerprint,
        "source": dict(source or {}),
    }
    write_json(folder / RECORD, record)
    whole = read(folder, copy.deepcopy(model), space, allow_code=True).model  # whose code has just run
    checkpoint.write(folder / DENSE, {name: t.detach().cpu().contiguous() for name, t in whole.state_dict().items()})
    return trained.eval()


def _begin(folder: Path, model: nn.Module, space: SearchSpace, batches: Batches, validation: Batches) -> None:
    """Write down what is trained on what; a folder that was begun with something else is refused."""
    asked = {
        "network (model and weights)": identity(model),
        "search space (include, exclude, round-to, rates, tie)": space.fingerprint,
        "data (training and validation images)": _digest(batches, validation),
    }
    path = folder / BEGUN
    if path.is_file():
        begun = read_json(path)
        for what, value in asked.items():
            if begun.get(what) != value:
                raise UserError(
                    f"{folder} holds a training of another {what}: the same command goes on with it, another one needs "
                    "another folder"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def _digest(*parts: Batches) -> str:
    tensors = [tensor for part in parts for pair in part for tensor in outputs(pair)]
    return identity(nn.Module(), *tensors)


def read(folder: Path | str, model: nn.Module, space: SearchSpace, *, allow_code: bool = False) -> Source:
    """How to make candidates of what was trained in ``folder``; ``model``, of the same kind, gets its weights.

    A recipe that the folder names as ``package.module:function`` is code, and imported with ``allow_code`` only.
    """
    folder = Path(folder)
    path = folder / RECORD
    if not path.is_file():
        raise UserError(f"{folder} has no {RECORD}: name a folder in which `autoprune train` has finished")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise UserError(
            f"{path} is of format {record.get('format')!r} {record.get('version')!r}: {FORMAT!r} {VERSION} is read here"
        )
    place = TRAINED.get(record["recipe"], record["recipe"])
    if record["recipe"] not in TRAINED:
        if ":" not in place:
            raise UserError(f"{path} names the recipe {place!r}: known are {', '.join(TRAINED)}")
        if not allow_code:
            raise UserError(f"{path} names the recipe {place!r}, which is code: say --allow-code to import it")
    if record["network"] != type(model).__name__:
        raise UserError(f"{folder} holds a trained {record['network']}, the model is a {type(model).__name__}")
    if record["space"] != space.fingerprint:
        raise UserError(
            f"{folder} was trained on another search space of this network: give the options that it was trained with "
            "(--include, --exclude, --round-to, --rates, --tie)"
        )
    tensors: Mapping[str, Tensor] = load_file(folder / TENSORS)
    find(record["recipe"])  # says what is wrong with a name that cannot be imported
    module = resolve_name(place.partition(":")[0])
    if not hasattr(module, "read"):
        raise UserError(
            f"{module.__name__} has no read(model, space, tensors, options), which makes candidates of {path}"
        )
    found: Source = module.read(model, space, tensors, record["options"])
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()[:16]
    return Source(found.model, found.criterion, found.recovery, {"weights_from": [record["recipe"], digest]})
