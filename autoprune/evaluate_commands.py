"""``autoprune evaluate``: schemes that are there already, measured as a search would measure them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune import arguments
from autoprune.errors import UserError
from autoprune.options import (
    Backend,
    BatchSize,
    Calibration,
    Classes,
    Criterion,
    Data,
    DataSeed,
    Debug,
    Device,
    Dtype,
    Exclude,
    FoundBy,
    Include,
    InputSize,
    Json,
    Mean,
    MemoryFormat,
    Model,
    Rates,
    Recovery,
    Root,
    RoundTo,
    Std,
    Threads,
    Tie,
    Validation,
    Weights,
)

if TYPE_CHECKING:
    from torch import nn

    from autoprune.scheme import Scheme
    from autoprune.space import SearchSpace


def evaluate(
    schemes: Annotated[
        list[str],
        typer.Argument(
            help="scheme file, table of rates, AMC list, history, pruned .safetensors, or a run; repeatable"
        ),
    ],
    model: Model = "autoprune:digits",
    data: Data = None,
    weights: Weights = None,
    num_classes: Classes = None,
    calibration: Calibration = None,
    validation: Validation = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    criterion: Criterion = None,
    recovery: Recovery = None,
    device: Device = "cpu",
    batch_size: BatchSize = None,
    threads: Threads = None,
    dtype: Dtype = None,
    memory_format: MemoryFormat = None,
    backend: Backend = None,
    test: Annotated[bool, typer.Option("--test", help="look at the test images as well, once per network")] = False,
    root: Root = "runs",
    ledger: Annotated[
        str | None, typer.Option(help="journal file or storage URL to share measurements with runs [none]")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = None,
    rates: Rates = None,
    tie: Tie = None,
    found_by: FoundBy = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure schemes found elsewhere beside the dense network: validation loss, accuracy, costs, latency here.

    Give the data, criterion and recovery of a search, and the numbers compare with that search's.

    Example: autoprune evaluate mine.csv theirs.json --model torchvision:resnet18 --data imagefolder:photos
    """
    from rich.console import Console
    from rich.progress import Progress

    from autoprune import api, report
    from autoprune.appraisal import appraise

    console = Console(stderr=as_json)
    network = arguments.make_network(model, weights, num_classes, Path(root), console)
    splits = arguments.load_data(data, model, calibration, validation, data_seed, mean, std, input_size)
    if test and splits.test is None:
        raise UserError(f"--test: data {splits.name!r} has no test images")
    example = splits.validation[0][0][:1]
    files = {source: _file(source) for source in schemes}
    found_by = found_by or arguments.space_of(next(iter(files.values())))
    space = arguments.make_space(network, example, include, exclude, round_to, rates, tie, found_by=found_by)
    wanted = {source: _read(source, path, space, network) for source, path in files.items()}
    timed = arguments.make_timing(
        device, None, None, False, None, batch=batch_size, threads=threads, dtype=dtype, memory_format=memory_format,
        backend=backend,
    )  # fmt: skip
    problem = api.problem(
        network, example, splits.calibration, splits.validation, budget="macs=100%", criterion=criterion,
        recovery=recovery, test=splits.test if test else None, device=device, space=space, name=model, **timed,
    )  # fmt: skip
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=len(wanted))
        found = appraise(problem, wanted, ledger=ledger, tell=lambda name: bar.advance(task))
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    console.print(report.appraisal(found.rows))


def _file(source: str) -> Path:
    """The file that is named, or the scheme file of a run."""
    from autoprune.paths import existing, expand

    # A word with an ending is a file: whoever misspelt it is not told of runs.
    named = expand(source)
    return existing(source) if named.is_file() or named.suffix else arguments.scheme_path(source)


def _read(source: str, path: Path, space: SearchSpace, network: nn.Module) -> Scheme:
    """The scheme in a file; what is wrong with it is told with the name that it goes by."""
    arguments.tell_weights(path, network)
    try:
        return arguments.read_scheme(str(path), space)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{source}: {error}") from None
