"""``autoprune evaluate``: schemes that are there already, measured as a search would measure them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune import arguments, completion
from autoprune.errors import UserError
from autoprune.option_groups import Images, Narrowed, Network, Repair, Timing, spread
from autoprune.options import NETWORK, OUTPUT, Config, Debug, Json, Root, option

if TYPE_CHECKING:
    from torch import nn

    from autoprune.scheme import Scheme
    from autoprune.space import SearchSpace


@spread
def evaluate(
    *,
    schemes: Annotated[
        list[str],
        typer.Argument(
            help="scheme file, table of rates, AMC list, history, pruned .safetensors, or a run; repeatable",
            autocompletion=completion.runs,
        ),
    ],
    network: Network,
    images: Images,
    test: Annotated[bool, option(NETWORK, "look at the test images as well, once per network", "--test")] = False,
    repair: Repair,
    timing: Timing,
    narrowed: Narrowed,
    root: Root = "runs",
    ledger: Annotated[
        str | None,
        option(OUTPUT, "journal file or storage URL to share measurements with runs", usual="none"),
    ] = None,
    config: Config = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure schemes found elsewhere beside the dense network: validation loss, accuracy, costs, latency here.

    Give the data, criterion, recovery and precision of a search, and the numbers compare with that search's.

    Example: autoprune evaluate mine.csv theirs.json --model torchvision:resnet18 --data imagefolder:photos
    """
    from rich.console import Console
    from rich.progress import Progress

    from autoprune import api, report
    from autoprune.appraisal import appraise

    console = Console(stderr=as_json)
    dense = arguments.make_network(network.model, network.weights, network.num_classes, Path(root), console)
    splits = images.load(network.model)
    if test and splits.test is None:
        raise UserError(f"--test: data {splits.name!r} has no test images")
    example = splits.validation[0][0][:1]
    files = {source: _file(source) for source in schemes}
    space = narrowed.space(dense, example, otherwise=arguments.space_of(next(iter(files.values()))))
    wanted = {source: _read(source, path, space, dense) for source, path in files.items()}
    problem = api.problem(
        dense, example, splits.calibration, splits.validation, budget="macs=100%", criterion=repair.criterion,
        recovery=repair.recovery, precision=repair.precision, test=splits.test if test else None,
        device=timing.device, space=space, name=network.model, **timing.read(),
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
