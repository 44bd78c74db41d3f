"""``autoprune groups``, ``apply`` and ``export``: what a network offers, and what becomes of a scheme."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from autoprune import arguments, completion
from autoprune.errors import UserError
from autoprune.exporters import EXPORTERS, GRAPHS
from autoprune.option_groups import Network, Output, Removed, spread
from autoprune.options import (
    NETWORK,
    OUTPUT,
    REPAIR,
    AllowCode,
    Calibration,
    Classes,
    DataSeed,
    Debug,
    Force,
    Input,
    InputSize,
    Json,
    Mean,
    Model,
    Origin,
    Source,
    Std,
    Weights,
    option,
)

TARGETS = (*EXPORTERS, *GRAPHS)


@spread
def groups(
    *,
    model: Annotated[str, typer.Argument(help="autoprune:NAME, torchvision:NAME, timm:NAME or package.module:factory")],
    weights: Weights = None,
    num_classes: Classes = None,
    input: Input = None,  # noqa: A002 - the option's name
    removed: Removed,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what may be pruned together, how much it weighs, and what stays whole and why.

    Example: autoprune groups torchvision:resnet18
    """
    from rich.console import Console

    from autoprune import report

    network = Network(model, weights, num_classes).load()
    space = removed.space(network, arguments.make_example(model, input))
    if as_json:
        offered = [
            {
                "name": group.name,
                "members": list(group.members),
                "width": group.width,
                "unit": group.unit,
                "counts": list(group.counts),
            }
            for group in space.groups
        ]
        left_out = [{"name": item.name, "reason": item.reason} for item in space.left_out]
        print(json.dumps({"groups": offered, "left_out": left_out}))
        return
    console = Console()
    for table in report.groups(space):
        console.print(table)


@spread
def apply(
    *,
    scheme: Annotated[Path, typer.Argument(help="scheme file, .json or .csv")],
    model: Model,
    weights: Weights = None,
    num_classes: Classes = None,
    input: Input = None,  # noqa: A002 - the option's name
    data: Annotated[
        str | None, option(NETWORK, "data to choose channels and repair with; without it l2 and no repair")
    ] = None,
    calibration: Calibration = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    criterion: Annotated[
        str | None, option(REPAIR, "for a scheme without indices", usual="obs with data, else l2")
    ] = None,
    recovery: Annotated[
        str | None,
        option(REPAIR, "what repairs the network", usual="least_squares+recalibrate_bn with data, else none"),
    ] = None,
    removed: Removed,
    out: Annotated[Path, option(OUTPUT, "folder for pruned.safetensors and scheme.json")],
    output: Output,
) -> None:
    """Prune a network by a scheme file and save it.

    Example: autoprune apply scheme.json --model torchvision:resnet18 --weights resnet18.pt --out pruned/
    """
    from autoprune import api

    network = Network(model, weights, num_classes).load()
    batches = []
    if data:
        splits = arguments.load_data(data, model, calibration, 1, data_seed, mean, std, input_size)
        batches = splits.calibration
    example = batches[0][0][:1] if batches else arguments.make_example(model, input)
    space = removed.space(network, example, otherwise=arguments.space_of(scheme))
    wanted = arguments.read_scheme(str(scheme), space)
    done = api.apply(
        network,
        space,
        wanted,
        out,
        calibration=batches or None,
        criterion=criterion or (None if batches or space.granularity != "channel" else "l2"),
        recovery=recovery or (None if batches else "none"),
    )
    if output.told(done.folder, done.summary):
        return
    fractions = done.summary["fractions"]
    costs = ", ".join(f"{value:,.0f} {name} ({fractions[name]:.1%})" for name, value in done.summary["costs"].items())
    print(f"{done.folder}/ has the pruned network and its scheme: {costs}")


def export(
    source: Source,
    to: Annotated[
        str,
        option(OUTPUT, f"{', '.join(TARGETS)} or package.module:function", complete=completion.of(*TARGETS)),
    ],
    out: Annotated[Path | None, option(OUTPUT, "file to write", usual="standard output")] = None,
    force: Force = False,
    settings: Annotated[
        list[str] | None, option(OUTPUT, "an option of the exporter: KEY=VALUE; repeatable", "--set")
    ] = None,
    point: Annotated[int | None, option(OUTPUT, "a point of the run's front, from 0, instead of its answer")] = None,
    model: Origin = None,
    weights: Weights = None,
    num_classes: Classes = None,
    input: Input = None,  # noqa: A002 - the option's name
    allow_code: AllowCode = False,
    as_json: Annotated[bool, option(OUTPUT, "print one JSON object about the file of --out", "--json")] = False,
    debug: Debug = False,
) -> None:
    """Write a scheme in another tool's form, or the pruned network as a graph.

    Example: autoprune export my-run --to csv
    """
    from autoprune import exporters
    from autoprune.pruned import TENSORS

    if as_json and out is None:
        raise UserError("--json tells of the file that was written: give --out too, or leave --json away")
    if to in GRAPHS:
        if out is None or point is not None:
            raise UserError(f"--to {to} writes the run's pruned network to a file: give --out, and no --point")
        path, network, space, example = arguments.find_origin(source, model, weights, num_classes, input, allow_code)
        pruned = arguments.pruned_network(path, network)
        options = arguments.read_pairs(settings)
        difference = exporters.write_graph(to, pruned, example, out, options, force=force)
        if as_json:
            print(json.dumps({"file": str(out), "difference": difference}))
        else:
            print(f"{out}: outputs differ from PyTorch's by at most {difference:.2g}")
        return
    exporter = arguments.make_exporter(to, settings)
    path, network, space, example = arguments.find_origin(source, model, weights, num_classes, input, allow_code)
    scheme = arguments.read_scheme(str(path), space) if point is None else arguments.read_point(source, point, space)
    if scheme.granularity != "channel" and (path.parent / TENSORS).is_file():
        network = arguments.pruned_network(path, network)  # masks of single weights are its zeros
    text = exporters.text(exporter, scheme, space, network)
    exporters.check(to, scheme, space, network, example)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    written = exporters.write_text(text, out, force=force)
    print(json.dumps({"file": str(written)}) if as_json else written)
