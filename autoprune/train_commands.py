"""``autoprune train`` and ``finetune``: networks from which any scheme can be read off, and the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from autoprune import arguments, completion
from autoprune.errors import UserError
from autoprune.option_groups import Images, Narrowed, Network, Output, spread
from autoprune.options import (
    OUTPUT,
    TRAINING,
    AllowCode,
    Augment,
    Classes,
    Config,
    Device,
    Input,
    LabelSmoothing,
    Lr,
    Origin,
    RunArgument,
    StepImages,
    StepPrecision,
    TensorBoard,
    WeightDecay,
    Weights,
    option,
)

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.finetune import Tell

RECIPES = ("slimmable", "universal", "autoslim", "network_slimming", "metapruning", "prunnet")


@spread
def train(
    *,
    network: Network,
    input: Input = None,  # noqa: A002 - the option's name
    images: Images,
    recipe: Annotated[str, option(TRAINING, ", ".join(RECIPES), complete=completion.of(*RECIPES))] = "universal",
    settings: Annotated[
        list[str] | None, option(TRAINING, "an option of the recipe: KEY=VALUE; repeatable", "--set")
    ] = None,
    epochs: Annotated[int, option(TRAINING, "passes over the training images")] = 10,
    lr: Lr = 0.05,
    batch_size: StepImages = 128,
    weight_decay: WeightDecay = 5e-4,
    label_smoothing: LabelSmoothing = 0.0,
    augment: Augment = "none",
    seed: Annotated[int, option(TRAINING, "same seed, same weights")] = 0,
    device: Device = "cpu",
    narrowed: Narrowed,
    out: Annotated[Path, option(OUTPUT, "folder of the result; one that holds a stopped training goes on")],
    tensorboard: TensorBoard = False,
    config: Config = None,
    output: Output,
) -> None:
    """Train a network once, so that a search reads the weights of every scheme off it.

    It starts from the weights that are given, or from the network's own random ones. Search with the same model, data
    and group options, and --weights-from the folder.

    Example: autoprune train --recipe universal --out supernet --epochs 20
    """
    from autoprune.finetune import Recipe
    from autoprune.recipes import source
    from autoprune.tensorboard import check_installed, drawn

    if tensorboard:
        check_installed()

    console = output.console()
    options = arguments.read_recipe(recipe, settings)
    training = Recipe(
        epochs, lr, batch_size, weight_decay=weight_decay, label_smoothing=label_smoothing, augment=augment, seed=seed
    )
    whole = network.load()
    splits = images.load(network.model)
    if splits.train is None:
        raise UserError(f"data {splits.name!r} has no training part: a recipe needs images to train on")
    example = arguments.make_example(network.model, input) if input else splits.validation[0][0][:1]
    space = narrowed.space(whole, example)

    def hear(event: str, facts: Mapping[str, Any]) -> None:
        say(facts)

    with (
        _shown(console, "training", epochs) as say,
        drawn(out, hear) if tensorboard else nullcontext(hear) as listener,
    ):

        def tell(facts: Mapping[str, Any]) -> None:
            listener("epoch", facts)

        source.train(
            recipe, whole.to(device), space, list(splits.train()), splits.validation, out, recipe=training,
            options=options, tell=tell, source=narrowed.source(network, network.weights, example),
        )  # fmt: skip
    if not output.told(out, {"recipe": recipe, "options": options}):
        console.print(f"{out}: search it with --weights-from {out}")


@spread
def finetune(
    *,
    run: RunArgument,
    model: Origin = None,
    weights: Weights = None,
    num_classes: Classes = None,
    allow_code: AllowCode = False,
    images: Images,
    epochs: Annotated[int, option(TRAINING, "passes over the training images")] = 10,
    lr: Lr = 0.02,
    batch_size: StepImages = 128,
    warmup: Annotated[float, option(TRAINING, "share of the steps in which the rate rises, before its cosine")] = 0.1,
    weight_decay: WeightDecay = 5e-4,
    label_smoothing: LabelSmoothing = 0.0,
    distill: Annotated[float, option(TRAINING, "weight of the divergence from the dense network, from 0 to 1")] = 0.0,
    ema: Annotated[
        float | None, option(TRAINING, "decay per step of an average of the weights, such as 0.999", usual="no average")
    ] = None,
    augment: Augment = "none",
    precision: StepPrecision = "float32",
    seed: Annotated[int, option(TRAINING, "same seed, same weights")] = 0,
    device: Device = "cpu",
    out: Annotated[Path | None, option(OUTPUT, "folder of the result", usual="finetuned/ in the run")] = None,
    config: Config = None,
    output: Output,
) -> None:
    """Train the network of a run to the end; the same command goes on where it was stopped.

    Give the data options of the search, so that the validation images are the same: they judge every epoch, and are
    not trained on.

    Example: autoprune finetune my-run --data imagefolder:photos --epochs 20 --distill 0.5 --augment crop
    """
    from autoprune import page, report
    from autoprune.finetune import Recipe, finish
    from autoprune.run import Run

    console = output.console()
    recipe = Recipe(
        epochs, lr, batch_size, warmup, weight_decay=weight_decay, label_smoothing=label_smoothing, distill=distill,
        ema=ema, augment=augment, seed=seed, precision=precision,
    )  # fmt: skip
    _, network, _, _ = arguments.find_origin(run, model, weights, num_classes, None, allow_code)
    found = Run.open(run)
    splits = images.load(model or found.config["source"]["model"])
    with _shown(console, "fine-tuning", epochs) as tell:
        result = finish(network.to(device), found.folder, splits, out or found.folder / "finetuned", recipe, tell=tell)
    if out is None:
        page.leave(found)  # which now has a row more
    if output.told(result["folder"], result):
        return
    console.print(report.comparison(result["rows"]))
    console.print(
        f"{result['folder']}/ has pruned.safetensors of epoch {result['best']}, the best on validation images"
    )


@contextmanager
def _shown(console: Console, what: str, epochs: int) -> Iterator[Tell]:
    """Who is told of every epoch: a line that stays, above one that is live."""
    from autoprune import report
    from autoprune.bar import Bar

    with Bar(console, what, epochs) as bar:

        def tell(facts: Mapping[str, Any]) -> None:
            bar.tell(facts)
            console.print(report.epoch(facts, epochs))

        yield tell
