"""``autoprune sparsify``: single weights of a network become zero."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from autoprune import arguments, completion
from autoprune.option_groups import Narrowed, Network, Output, spread
from autoprune.options import (
    BUDGET,
    NETWORK,
    PRUNED,
    SEARCH,
    Config,
    Data,
    DataSeed,
    Device,
    InputSize,
    Mean,
    Root,
    RunName,
    Std,
    Validation,
    option,
)
from autoprune.recipes import METHODS

IMAGES = 1024


@spread
def sparsify(
    *,
    network: Network,
    data: Data = None,
    images: Annotated[
        int | None, option(NETWORK, "training images for calibration", usual="1024, 512 of the digits")
    ] = None,
    validation: Validation = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    sparsity: Annotated[str, option(BUDGET, "the share of weights to remove: 90% or 0.9")],
    method: Annotated[
        str,
        option(SEARCH, f"{', '.join(METHODS)} or package.module:function", complete=completion.of(*METHODS)),
    ] = "unipts",
    settings: Annotated[
        list[str] | None, option(SEARCH, "an option of the method: KEY=VALUE; repeatable", "--set")
    ] = None,
    seed: Annotated[int, option(SEARCH, "same seed, same network")] = 0,
    device: Device = "cpu",
    rates: Annotated[Path | None, option(PRUNED, "shares to remove layer by layer: scheme.json, JSON or CSV")] = None,
    include: Annotated[list[str] | None, option(PRUNED, "only layers that match this glob; repeatable")] = None,
    exclude: Annotated[list[str] | None, option(PRUNED, "never layers that match this glob; repeatable")] = None,
    run: RunName = None,
    root: Root = "runs",
    config: Config = None,
    output: Output,
) -> None:
    """Set a share of a network's single weights to zero, so that accuracy falls as little as possible.

    The same command with the same --run goes on where it was stopped.

    Example: autoprune sparsify --sparsity 90% --method unipts --set epochs=30 --run sparse
    """
    from autoprune import recipes, report, sparsify
    from autoprune.bar import Bar

    console = output.console()
    share = arguments.read_sparsity(sparsity)
    found = recipes.find(method)
    options = recipes.read(found, arguments.read_pairs(settings))
    dense = arguments.make_network(network.model, network.weights, network.num_classes, Path(root), console)
    usual = None if network.model == "autoprune:digits" and data is None else IMAGES
    wanted = usual if images is None else images
    splits = arguments.load_data(data, network.model, wanted, validation, data_seed, mean, std, input_size)
    example = splits.calibration[0][0][:1]
    layers = sparsify.weights(dense, example, include or ("*",), exclude or ())
    with Bar(console, "sparsifying") as bar:
        result = sparsify.sparsify(
            dense.to(device),
            splits.calibration,
            sparsity=share,
            method=method,
            options=options,
            rates=None if rates is None else sparsify.read_rates(rates, layers),
            train=splits.train,
            validation=splits.validation,
            test=splits.test,
            include=include or ("*",),
            exclude=exclude or (),
            seed=seed,
            run=run,
            root=root,
            name=network.model,
            source=Narrowed(include, exclude).source(network, network.weights, example),
            tell=bar.tell,
        )
    if output.told(result.folder, result.summary):
        return
    console.print(report.comparison(result.summary["rows"]))
    console.print(
        f"{result.summary['sparsity']:.2%} of {sum(result.summary['widths'])} weights are zero; {result.folder}/ has "
        "scheme.json and pruned.safetensors"
    )
