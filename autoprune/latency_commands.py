"""``autoprune latency``: time networks, measure tables for a device, read others', see how well they predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune import arguments
from autoprune.errors import UserError
from autoprune.option_groups import Narrowed, Network, Output, Timing, spread
from autoprune.options import (
    LATENCY,
    NETWORK,
    OUTPUT,
    BatchSize,
    Classes,
    Config,
    Debug,
    Input,
    Json,
    Weights,
    option,
)

if TYPE_CHECKING:
    from torch import nn

    from autoprune.space import SearchSpace

app = typer.Typer(help="Time networks on a device, and predict how long others take there.", no_args_is_help=True)
EVERYTHING = Narrowed()


@app.command()
@spread
def measure(
    *,
    schemes: Annotated[list[Path] | None, typer.Argument(help="scheme files to time beside the dense network")] = None,
    network: Network,
    input: Input = None,  # noqa: A002 - the option's name
    timing: Timing,
    repeats: Annotated[int, option(LATENCY, "measurements of each network, taken in turns")] = 21,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the network, and what schemes make of it: median and quartiles.

    Example: autoprune latency measure --model torchvision:resnet18 --batch-size 8 --memory-format channels_last
    """
    from rich.console import Console

    from autoprune import report
    from autoprune.latency.calibrate import sliced
    from autoprune.latency.stopwatch import too_noisy

    if repeats < 3:
        raise UserError(f"--repeats {repeats}: quartiles need at least 3")
    dense, example, space = _space(network, input)
    conditions = timing.conditions()
    networks: dict[str, nn.Module] = {"dense": dense}
    for path in schemes or []:
        networks[str(path)] = sliced(dense, space, arguments.read_scheme(str(path), space))
    timings = conditions.measure(networks, example, repeats)
    noise = too_noisy(timings)
    if as_json:
        rows = {name: timing.to_dict() for name, timing in timings.items()}
        print(json.dumps({"conditions": conditions.to_dict(), "timings": rows, "noise": noise}))
        return
    console = Console()
    console.print(report.timings(timings, f"{network.model}, {conditions}"))
    if noise:
        console.print(noise)


@app.command()
@spread
def build(
    *,
    out: Annotated[Path, option(OUTPUT, "table to write; one that exists is extended")],
    network: Network,
    input: Input = None,  # noqa: A002 - the option's name
    timing: Timing,
    narrowed: Narrowed,
    config: Config = None,
    output: Output,
) -> None:
    """Measure a table of this device for a network. A build that was stopped goes on where it was.

    Example: autoprune latency build --model torchvision:resnet18 --out laptop.json --threads 2
    """
    from rich.progress import Progress

    from autoprune import report
    from autoprune.latency.build import build as measured
    from autoprune.latency.table import Table

    console = output.console()
    dense, example, space = _space(network, input, narrowed)
    known = Table.load(out) if out.is_file() else None
    conditions = timing.conditions()
    if known is not None and not timing.asked:
        conditions = known.conditions
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)

        def tell(event: str, facts: Any) -> None:
            if event == "estimate":
                bar.update(task, total=facts["points"])
                bar.console.print(
                    f"{facts['points']} points of {facts['signatures']} signatures, about {facts['seconds']} s"
                )
            elif event == "points":
                bar.advance(task, facts["points"])

        table = measured(dense, example, space, conditions, out, known=known, tell=tell)
    facts = table.calibrations[space.fingerprint]
    if not output.told(out, {"entries": len(table.entries), **facts}, kind="table"):
        console.print(f"{out} has {len(table.entries)} signatures for {conditions} on {table.machine['name']}")
        console.print(report.agreement(facts))


@app.command()
@spread
def check(
    *,
    table: Annotated[Path, typer.Argument(help="table of `autoprune latency build`")],
    network: Network,
    input: Input = None,  # noqa: A002 - the option's name
    networks: Annotated[int, option(LATENCY, "random schemes to time")] = 12,
    seed: Annotated[int, option(LATENCY, "which schemes these are")] = 2,
    narrowed: Narrowed,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time networks of random schemes and hold them against what the table predicts.

    Example: autoprune latency check laptop.json --model torchvision:resnet18
    """
    from rich.console import Console

    from autoprune import report
    from autoprune.latency.check import check as checked
    from autoprune.latency.table import Table

    dense, example, space = _space(network, input, narrowed)
    facts = checked(Table.load(table), dense, example, space, networks, seed)
    if as_json:
        print(json.dumps(facts))
        return
    console = Console()
    for predicted, seen in facts["checked"]:
        console.print(f"predicted {predicted:.3f} ms, measured {seen:.3f} ms")
    console.print(report.agreement(facts))


@app.command("import")
@spread
def import_(
    *,
    sources: Annotated[list[Path], typer.Argument(help="tables to read: .csv (signature, A, B, ms) or .json")],
    out: Annotated[Path, option(OUTPUT, "table to write; one that exists is extended")],
    model: Annotated[str | None, option(NETWORK, "say which signatures of this network are still missing")] = None,
    weights: Weights = None,
    num_classes: Classes = None,
    input: Input = None,  # noqa: A002 - the option's name
    timing: Timing,
    machine: Annotated[
        str | None,
        option(LATENCY, "the device that a .csv was measured on", usual="that of the table, or elsewhere"),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge tables that were measured elsewhere; where two have the same signature, the later one decides.

    Example: autoprune latency import phone.csv --out phone.json --machine "my phone" --model torchvision:resnet18
    """
    from autoprune.latency.table import Table, read_csv

    conditions = timing.conditions()
    table = Table.load(out) if out.is_file() else None
    for path in sources:
        if path.suffix == ".csv":
            entries = {entry.signature: entry for entry in read_csv(path)}
            known = {"name": "elsewhere"} if table is None else dict(table.machine)
            name = {**known, "name": machine} if machine else known
            read = Table(conditions if table is None else table.conditions, name, entries)
        else:
            read = Table.load(path)
        table = read if table is None else table.merged(read)
    assert table is not None
    table.save(out)
    named = None if model is None else Network(model, weights, num_classes)
    found = {} if named is None else _signatures(named, input, table.conditions.batch)
    missing = table.missing(found)
    if as_json:
        print(json.dumps({"table": str(out), "entries": len(table.entries), "missing": list(missing)}))
        return
    print(f"{out} has {len(table.entries)} signatures for {table.conditions}")
    for signature in missing:
        print(f"missing: {signature}")


@app.command()
@spread
def signatures(
    *,
    network: Network,
    input: Input = None,  # noqa: A002 - the option's name
    batch_size: BatchSize = None,
    out: Annotated[
        Path | None, option(OUTPUT, "write a .csv to fill in: a grid of lengths for every signature")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the pieces that a table needs, to measure them elsewhere.

    Example: autoprune latency signatures --model torchvision:resnet18 --out phone.csv
    """
    from autoprune.latency.table import write_csv

    found = _signatures(network, input, batch_size or 1)
    if as_json and out is None:
        print(json.dumps({signature: [list(span) for span in ranges] for signature, ranges in found.items()}))
        return
    if out is None:
        for signature, spans in found.items():
            ranges = ", ".join(f"{letter} {low} to {high}" for letter, (low, high, _) in zip("AB", spans, strict=False))
            print(f"{signature}{f'  [{ranges}]' if ranges else ''}")
        return
    rows = [(signature, lengths, None) for signature, spans in found.items() for lengths in _grid(spans)]
    write_csv(rows, out)
    if as_json:
        print(json.dumps({"file": str(out), "points": len(rows), "signatures": len(found)}))
        return
    print(f"{out} has {len(rows)} points of {len(found)} signatures: fill in ms, then `autoprune latency import {out}`")


def _grid(spans: Any) -> list[tuple[int, ...]]:
    grid: list[tuple[int, ...]] = [()]
    for low, high, step in spans:
        lines = sorted({low, *(high - (high - low) * n // 4 // step * step for n in range(4))})
        grid = [(*lengths, line) for lengths in grid for line in lines]
    return grid


def _signatures(named: Network, shape: str | None, batch: int) -> dict[str, Any]:
    from autoprune.latency.units import spans, units
    from autoprune.operations import record

    network, example, space = _space(named, shape)
    operations = record(network, example, space, batch)
    return dict(spans(units(operations), operations, space))


def _space(named: Network, shape: str | None, narrowed: Narrowed = EVERYTHING) -> tuple[nn.Module, Any, SearchSpace]:
    network = named.load().eval()
    example = arguments.make_example(named.model, shape)
    return network, example, narrowed.space(network, example)
