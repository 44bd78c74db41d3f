"""``autoprune train``: networks from which any scheme can be read off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from autoprune import arguments
from autoprune.errors import UserError
from autoprune.options import (
    Calibration,
    Classes,
    Data,
    DataSeed,
    Debug,
    Device,
    Exclude,
    FoundBy,
    Include,
    Input,
    InputSize,
    Json,
    Mean,
    Model,
    Rates,
    RoundTo,
    Std,
    Tie,
    Validation,
    Weights,
)


def train(
    out: Annotated[Path, typer.Option(help="folder of the result; one that holds a stopped training goes on")],
    recipe: Annotated[
        str, typer.Option(help="slimmable, universal, autoslim, network_slimming, metapruning or prunnet")
    ] = "universal",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="an option of the recipe: KEY=VALUE; repeatable")
    ] = None,
    model: Model = "autoprune:digits",
    weights: Weights = None,
    num_classes: Classes = None,
    input: Input = None,  # noqa: A002 - the option's name
    data: Data = None,
    epochs: Annotated[int, typer.Option(help="passes over the training images")] = 10,
    lr: Annotated[float, typer.Option(help="greatest learning rate")] = 0.05,
    batch_size: Annotated[int, typer.Option(help="images of a step")] = 128,
    weight_decay: Annotated[float, typer.Option(help="of SGD with momentum 0.9")] = 5e-4,
    label_smoothing: Annotated[float, typer.Option(help="of the cross-entropy, where the recipe has one")] = 0.0,
    augment: Annotated[str, typer.Option(help="none, flip, crop")] = "none",
    seed: Annotated[int, typer.Option(help="same seed, same weights")] = 0,
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = None,
    rates: Rates = None,
    tie: Tie = None,
    found_by: FoundBy = None,
    calibration: Calibration = None,
    validation: Validation = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    device: Device = "cpu",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="draw the epochs as TensorBoard curves")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a network once, so that a search reads the weights of every scheme off it.

    It starts from the weights that are given, or from the network's own random ones. Search with the same model, data
    and group options, and --weights-from the folder.

    Example: autoprune train --recipe universal --out supernet --epochs 20
    """
    from rich.console import Console

    from autoprune import report
    from autoprune.finetune import Recipe
    from autoprune.recipes import source
    from autoprune.tensorboard import check_installed, drawn

    if tensorboard:
        check_installed()

    console = Console(stderr=as_json)
    options = arguments.read_recipe(recipe, settings)
    training = Recipe(
        epochs, lr, batch_size, weight_decay=weight_decay, label_smoothing=label_smoothing, augment=augment, seed=seed
    )
    network = arguments.make_network(model, weights, num_classes, None, None)
    splits = arguments.load_data(data, model, calibration, validation, data_seed, mean, std, input_size)
    if splits.train is None:
        raise UserError(f"data {splits.name!r} has no training part: a recipe needs images to train on")
    example = arguments.make_example(model, input) if input else splits.validation[0][0][:1]
    narrowed = (include, exclude, round_to, rates, tie)
    space = arguments.make_space(network, example, *narrowed, found_by=found_by)

    def hear(event: str, facts: Mapping[str, Any]) -> None:
        console.print(report.epoch(facts, epochs))

    with drawn(out, hear) if tensorboard else nullcontext(hear) as listener:
        source.train(
            recipe, network.to(device), space, list(splits.train()), splits.validation, out,
            recipe=training, options=options, tell=partial(listener, "epoch"),
            source=arguments.source(model, weights, num_classes, example, *narrowed, found_by),
        )  # fmt: skip
    if as_json:
        print(json.dumps({"folder": str(out), "recipe": recipe, "options": options}))
        return
    console.print(f"{out}: search it with --weights-from {out}")
