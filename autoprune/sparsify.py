"""Make a network sparse by any method of :mod:`autoprune.recipes`, and write it down: :func:`sparsify`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from torch import nn

from autoprune import data, masks, models, page, recipes, settings
from autoprune.claim import claim
from autoprune.cost import account, costs
from autoprune.errors import UserError
from autoprune.exporters import read, scheme_file
from autoprune.finetune import judge
from autoprune.paths import existing
from autoprune.pruned import TENSORS, load_pruned, save_pruned
from autoprune.recipes import Method, Tell
from autoprune.recipes.data import Batches, Data, Deferred
from autoprune.references import stable_name
from autoprune.run import ROOT, SUMMARY, Run, make_folder, new_name, prepare, surroundings, write_json
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

METHOD = "unipts"


def sparsify(
    model: nn.Module,
    calibration: Any,
    *,
    sparsity: float,
    method: str | Method = METHOD,
    options: Mapping[str, Any] | None = None,
    rates: Mapping[str, float] | None = None,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    run: str | None = None,
    root: Path | str = ROOT,
    name: str | None = None,
    source: Mapping[str, Any] | None = None,
    tell: Tell = lambda facts: None,
) -> Run:
    """A copy of ``model`` in which the share ``sparsity`` of the weights of convolutions and linear layers is zero.

    ``calibration``, ``train``, ``validation`` and ``test`` are loaders, lists of (input, label) batches, data sets or
    functions that return these; which of them a method needs, and whether labels, it says itself. Calibration images
    may be training images; validation images must not. Training images are read when the method asks for them, test
    images once, when everything is over. ``include`` and ``exclude`` are patterns of layers, whose weights together
    lose the share. ``method`` is a name, ``package.module:function`` or a function, ``options`` are its own, and
    ``rates`` the shares to remove layer by layer, where it takes them.

    Everything goes to ``root/run``: ``pruned.safetensors`` (:func:`autoprune.load_pruned` reads it), ``scheme.json``
    with the number of weights each layer keeps, and ``summary.json``, whose rows compare the dense and the sparse
    network. The same name and request continue a run that was stopped; another request is refused. ``tell`` hears what
    the method has to tell.
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity = {sparsity}: the share of weights to remove is at least 0 and below 1")
    chosen = recipes.find(method)
    given = dict(options or {})
    settings.check(chosen, recipes.KIND, given)
    images = data.batches(calibration, "calibration", labels=False)
    space = weights(model, images[0][0], include, exclude)
    names = [str(group.tensor) for group in space.groups]
    if rates is not None:
        if "rates" not in recipes.options(chosen):
            raise UserError(
                f"method {stable_name(method)} decides itself how many weights a layer loses: give no rates"
            )
        given["rates"] = {name if name in names else f"{name}.weight": float(rate) for name, rate in rates.items()}
    judged = None if validation is None else data.batches(validation, "validation")
    title = name or type(model).__name__
    config = {
        "name": title,
        "request": {
            "kind": "sparsity",
            "model": models.digest(model),
            "data": data.fingerprint(images),
            "method": stable_name(method),
            "options": {key: value if key == "rates" else str(value) for key, value in given.items()},
            "sparsity": sparsity,
            "weights": names,
            "seed": seed,
        },
        "groups": [group.name for group in space.groups],
        "source": dict(source or {}),
        **surroundings(),
    }
    folder = make_folder(root, run or new_name(root, title, f"{sparsity:.0%}".replace("%", "")))
    with claim(folder):
        prepare(folder, config)
        if (folder / SUMMARY).is_file() and (folder / TENSORS).is_file():
            done = Run.open(folder)
            done.space, done.model = space, load_pruned(lambda: model, folder)
            return done
        seen = Data(images, None if train is None else Deferred(partial(data.batches, train, "train")), judged)
        sparse = chosen(model, sparsity, seen, names=names, folder=folder, seed=seed, tell=tell, **given)
        left = [int(sparse.get_parameter(name).count_nonzero()) for name in names]
        asked = masks.kept(int(space.widths.sum()), sparsity)
        if sum(left) > asked + len(names):  # published systems round a weight a layer either way
            raise UserError(f"method {stable_name(method)} left {sum(left)} weights where {asked} were asked for")
        scheme = Scheme(tuple(max(1, count) for count in left), space.granularity)  # no layer of a scheme is empty
        absolute, fractions = account(scheme, space, costs(space))
        whole, all_of_it = account(space.dense, space, costs(space))
        last = None if test is None else data.batches(test, "test")
        rows = {
            "dense": {**_row(model, judged, last), "costs": whole, "fractions": all_of_it},
            "sparse": {**_row(sparse, judged, last), "costs": absolute, "fractions": fractions},
        }
        facts = {
            "model": {"name": title, "digest": config["request"]["model"]},
            "costs": {"dense": whole, "kept": absolute},
            "provenance": {key: config["request"][key] for key in ("method", "sparsity", "seed")},
        }
        text = scheme_file.export(scheme, space, facts=facts)
        save_pruned(sparse, folder, text)
        summary = {
            "rows": rows,
            "sparsity": masks.sparsity(sparse, names),
            "kept": list(scheme.kept),
            "widths": [int(width) for width in space.widths],
        }
        write_json(folder / SUMMARY, summary)
        result = Run(folder, config, summary, scheme, space, sparse)
        page.leave(result)
    return result


def weights(model: nn.Module, example: Any, include: Sequence[str], exclude: Sequence[str]) -> SearchSpace:
    """The weights that count, as a search space."""
    define = resolve_name("autoprune.search_spaces.weights:define")
    space: SearchSpace = define(model, example, include=include, exclude=exclude)
    if not len(space):
        raise UserError("no weight is left to prune: include more, or exclude less")
    return space


def read_rates(path: str | Path, space: SearchSpace) -> dict[str, float]:
    """The shares to remove by layer: ``{"layer": share}`` as JSON, or any file of a scheme of this space."""
    path = existing(path)
    if path.suffix.lower() == ".json":
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error})") from None
        if isinstance(record, dict) and "format" not in record:
            wrong = [
                name for name, rate in record.items() if isinstance(rate, bool) or not isinstance(rate, int | float)
            ]
            if wrong:
                raise UserError(f"{path}: the share to remove of {wrong[0]} is {record[wrong[0]]!r}, not a number")
            return record
    removed = 1 - space.rates(read(path, space))
    return {group.name: float(share) for group, share in zip(space.groups, removed, strict=True)}


def _row(model: nn.Module, validation: Batches | None, test: Batches | None) -> dict[str, float]:
    row = {}
    if validation is not None:
        row["loss"], row["accuracy"] = judge(model, validation)
    if test is not None:
        row["test_loss"], row["test_accuracy"] = judge(model, test)
    return row
