"""The command line: ``autoprune search``, ``compare``, ``sensitivity``, ``groups`` and what is done with runs."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune import arguments, evaluate_commands, latency_commands, sparsify_commands, train_commands
from autoprune.errors import UserError
from autoprune.exporters import EXPORTERS, GRAPHS
from autoprune.options import (
    AllowCode,
    Backend,
    BatchSize,
    Calibration,
    CandidateTimeout,
    Classes,
    Cpus,
    Criterion,
    Data,
    DataSeed,
    Debug,
    Device,
    Dtype,
    Exclude,
    FoundBy,
    Gpus,
    Granularity,
    Include,
    Input,
    InputSize,
    Json,
    LatencyFunction,
    LatencyTable,
    Levels,
    Mean,
    MemoryFormat,
    Model,
    NumWorkers,
    OwnCosts,
    Pattern,
    Rates,
    RayAddress,
    Recovery,
    Root,
    RoundTo,
    Sparsity,
    Std,
    Strict,
    Threads,
    Tie,
    Validation,
    Weights,
    WeightsFrom,
)
from autoprune.searchers import SEARCHERS

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.run import Run

app = typer.Typer(
    help="Find how many channels every layer of a trained network keeps, under a budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(latency_commands.app, name="latency")


@app.command()
def search(
    model: Model = "autoprune:digits",
    data: Data = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="cap on what is kept: macs=50%, macs=63M, params=1.2M, latency=8ms, memory=24MiB [half]"),
    ] = None,
    weights: Weights = None,
    weights_from: WeightsFrom = None,
    num_classes: Classes = None,
    calibration: Calibration = None,
    validation: Validation = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    searcher: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(SEARCHERS)} or package.module:function [auto; with --objectives optuna]"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="an option of the searcher: KEY=VALUE; repeatable")
    ] = None,
    criterion: Criterion = None,
    recovery: Recovery = None,
    reward: Annotated[
        str,
        typer.Option(
            help="neg_loss, neg_kl, accuracy, amc_err, amc_flops, amc_param, latency_penalised, constraint_punish "
            "or package.module:function"
        ),
    ] = "neg_loss",
    reward_settings: Annotated[
        list[str] | None, typer.Option("--reward-set", help="an option of the reward: KEY=VALUE; repeatable")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="distinct schemes to measure")] = 100,
    timeout: Annotated[float | None, typer.Option(help="seconds of measuring")] = None,
    target: Annotated[float | None, typer.Option(help="stop at this reward")] = None,
    seed: Annotated[int, typer.Option(help="same seed, same result")] = 0,
    batch: Annotated[int, typer.Option(help="schemes proposed at a time")] = 8,
    device: Device = "cpu",
    latency_table: LatencyTable = None,
    latency_function: LatencyFunction = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    dtype: Dtype = None,
    memory_format: MemoryFormat = None,
    backend: Backend = None,
    strict: Strict = False,
    cost: OwnCosts = None,
    workers: NumWorkers = 1,
    ray_address: RayAddress = None,
    cpus_per_worker: Cpus = 1,
    gpus_per_worker: Gpus = 0,
    candidate_timeout: CandidateTimeout = None,
    run: Annotated[str | None, typer.Option(help="name of the run; an old name continues it")] = None,
    root: Root = "runs",
    ledger: Annotated[
        str | None, typer.Option(help="journal file or storage URL that runs share [ledger.jsonl of the run]")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = None,
    rates: Rates = None,
    tie: Tie = None,
    found_by: FoundBy = None,
    granularity: Granularity = None,
    pattern: Pattern = None,
    levels: Levels = None,
    sparsity: Sparsity = None,
    start: Annotated[list[str] | None, typer.Option(help="scheme file to start from; repeatable")] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="several at once, for a Pareto front: accuracy,macs; also loss, kl, reward, any cost, a metric of "
            "your own (-NAME if less is better), a reward"
        ),
    ] = None,
    tune_steps: Annotated[
        int | None, typer.Option(help="training steps of every candidate before it is measured [none]")
    ] = None,
    tune_lr: Annotated[float | None, typer.Option(help="their learning rate [0.01]")] = None,
    tune_images: Annotated[
        int, typer.Option(help="training images for it, neither calibration nor validation, in whole batches")
    ] = 2048,
    polish: Annotated[
        str | None, typer.Option(help="a more thorough repair for the answer alone, such as sequential,images=2048")
    ] = None,
    race: Annotated[
        float | None,
        typer.Option(help="stop candidates that cannot win; the probability of stopping a better one, such as 0.01"),
    ] = None,
    finish: Annotated[
        str | None, typer.Option(help="package.module:function that trains the answer at the end: function(model)")
    ] = None,
    as_json: Json = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="draw the trials as TensorBoard curves, in the run's folder")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but the result's folder")] = False,
    debug: Debug = False,
) -> None:
    """Search a pruning scheme and prune the network for real.

    With no option at all: a small network on the bundled digits, at half of its multiply-adds.

    Example: autoprune search --model torchvision:resnet18 --weights r18.pt --data imagefolder:photos --budget macs=50%
    """
    from rich.console import Console

    from autoprune import api
    from autoprune.pool import Workers
    from autoprune.progress import Watch

    console = Console(stderr=as_json, quiet=quiet)
    searcher = searcher or api.usual_searcher(objectives or ())
    chosen = arguments.read_settings(searcher, settings)
    asked = Workers(workers, ray_address, cpus_per_worker, gpus_per_worker, candidate_timeout)
    scored = arguments.make_reward(reward, reward_settings)
    network = arguments.make_network(model, weights, num_classes, None if weights_from else Path(root), console)
    splits = arguments.load_data(data, model, calibration, validation, data_seed, mean, std, input_size)
    tuning = arguments.make_tuning(splits, tune_steps, tune_lr, tune_images)
    example = splits.validation[0][0][:1]
    found_by = arguments.find_space(found_by, granularity, pattern, levels)
    space = arguments.make_space(network, example, include, exclude, round_to, rates, tie, found_by=found_by)
    network, cut = arguments.read_off(weights_from, network, space, criterion, recovery)
    weights = arguments.dense_weights(weights_from) or weights
    timed = arguments.make_timing(
        device, latency_table, latency_function, strict, cost, batch=batch_size, threads=threads, dtype=dtype,
        memory_format=memory_format, backend=backend,
    )  # fmt: skip
    watch = Watch(console, trials, quiet or as_json)
    try:
        result = api.search(
            network,
            example,
            splits.calibration,
            splits.validation,
            budget=arguments.make_caps(budget, sparsity, space),
            searcher=searcher,
            options=chosen,
            **cut,
            reward=scored,
            test=splits.test,
            trials=trials,
            timeout=timeout,
            target=target,
            seed=seed,
            batch=batch,
            device=device,
            space=space,
            start=[arguments.read_scheme(path, space) for path in start or []],
            objectives=objectives or (),
            finish=finish,
            polish=polish,
            race=race,
            **tuning,
            **timed,
            also=(objectives or "", *(reward_settings or ())),
            tables=root,
            run=run,
            root=root,
            ledger=ledger,
            name=model,
            listener=watch,
            tensorboard=tensorboard,
            workers=asked,
            source=arguments.source(
                model, weights, num_classes, example, include, exclude, round_to, rates, tie, found_by
            ),
        )
    finally:
        watch.close()
    if as_json:
        print(json.dumps({"folder": str(result.folder), **result.summary}))
    elif quiet:
        print(result.folder)
    else:
        _tell_result(console, result, tensorboard)


@app.command()
def compare(
    run: Annotated[str, typer.Option(help="name of the comparison; an old name continues or extends it")],
    searcher: Annotated[
        list[str] | None,
        typer.Option(help="a searcher, with options as NAME,KEY=VALUE; repeatable [uniform, random and the default]"),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="repeatable [0, 1, 2]")] = None,
    model: Model = "autoprune:digits",
    data: Data = None,
    budget: Annotated[list[str] | None, typer.Option(help="as for search [half]")] = None,
    weights: Weights = None,
    weights_from: WeightsFrom = None,
    num_classes: Classes = None,
    calibration: Calibration = None,
    validation: Validation = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    criterion: Criterion = None,
    recovery: Recovery = None,
    reward: Annotated[str, typer.Option(help="as for search")] = "neg_loss",
    reward_settings: Annotated[
        list[str] | None, typer.Option("--reward-set", help="an option of the reward: KEY=VALUE; repeatable")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="trials of each run [60, or none with --seconds]")] = None,
    seconds: Annotated[float | None, typer.Option(help="seconds of measuring of each run")] = None,
    batch: Annotated[int, typer.Option(help="schemes proposed at a time")] = 8,
    device: Device = "cpu",
    latency_table: LatencyTable = None,
    latency_function: LatencyFunction = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    dtype: Dtype = None,
    memory_format: MemoryFormat = None,
    backend: Backend = None,
    strict: Strict = False,
    cost: OwnCosts = None,
    workers: NumWorkers = 1,
    ray_address: RayAddress = None,
    cpus_per_worker: Cpus = 1,
    gpus_per_worker: Gpus = 0,
    candidate_timeout: CandidateTimeout = None,
    root: Root = "runs",
    ledger: Annotated[
        str | None, typer.Option(help="journal file or storage URL of all runs [ledger.jsonl of the comparison]")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = None,
    rates: Rates = None,
    tie: Tie = None,
    found_by: FoundBy = None,
    granularity: Granularity = None,
    pattern: Pattern = None,
    levels: Levels = None,
    sparsity: Sparsity = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search with several searchers and seeds at equal cost, and show who found what.

    Example: autoprune compare --run first --searcher swap --searcher "evolution,population=12" --seed 0 --trials 40
    """
    from rich.console import Console

    from autoprune import api, report
    from autoprune import compare as side_by_side
    from autoprune.pool import Workers

    console = Console(stderr=as_json)
    asked = Workers(workers, ray_address, cpus_per_worker, gpus_per_worker, candidate_timeout)
    scored = arguments.make_reward(reward, reward_settings)
    network = arguments.make_network(model, weights, num_classes, None if weights_from else Path(root), console)
    splits = arguments.load_data(data, model, calibration, validation, data_seed, mean, std, input_size)
    example = splits.validation[0][0][:1]
    found_by = arguments.find_space(found_by, granularity, pattern, levels)
    space = arguments.make_space(network, example, include, exclude, round_to, rates, tie, found_by=found_by)
    network, cut = arguments.read_off(weights_from, network, space, criterion, recovery)
    weights = arguments.dense_weights(weights_from) or weights
    timed = arguments.make_timing(
        device, latency_table, latency_function, strict, cost, batch=batch_size, threads=threads, dtype=dtype,
        memory_format=memory_format, backend=backend,
    )  # fmt: skip
    problem = api.problem(
        network,
        example,
        splits.calibration,
        splits.validation,
        budget=arguments.make_caps(budget, sparsity, space),
        **cut,
        reward=scored,
        test=splits.test,
        device=device,
        space=space,
        name=model,
        **timed,
        also=tuple(reward_settings or ()),
        tables=root,
        source=arguments.source(model, weights, num_classes, example, include, exclude, round_to, rates, tie, found_by),
    )
    with problem.pool(asked) as pool:
        found = side_by_side.compare(
            problem,
            searcher or ["uniform", "random", api.SEARCHER],
            seeds=seed or (0, 1, 2),
            trials=60 if trials is None and seconds is None else trials,
            seconds=seconds,
            batch=batch,
            run=run,
            root=root,
            ledger=ledger,
            tell=lambda one: console.print(report.finished(one), soft_wrap=True),
            pool=pool,
        )
    if as_json:
        print(json.dumps({"folder": str(found.folder), "runs": found.frame().to_dict("records")}))
        return
    console.print(report.searchers(found.frame()))
    console.print(f"{found.folder}/ has the table ({side_by_side.TABLE}) and the curves")


@app.command()
def sensitivity(
    model: Model = "autoprune:digits",
    data: Data = None,
    points: Annotated[int, typer.Option(help="counts measured of every group, evenly spaced")] = 5,
    weights: Weights = None,
    weights_from: WeightsFrom = None,
    num_classes: Classes = None,
    calibration: Calibration = None,
    validation: Validation = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    criterion: Criterion = None,
    recovery: Recovery = None,
    reward: Annotated[str, typer.Option(help="as for search")] = "neg_loss",
    reward_settings: Annotated[
        list[str] | None, typer.Option("--reward-set", help="an option of the reward: KEY=VALUE; repeatable")
    ] = None,
    device: Device = "cpu",
    workers: NumWorkers = 1,
    ray_address: RayAddress = None,
    cpus_per_worker: Cpus = 1,
    gpus_per_worker: Gpus = 0,
    candidate_timeout: CandidateTimeout = None,
    run: Annotated[str | None, typer.Option(help="name of the run; an old name continues it")] = None,
    root: Root = "runs",
    ledger: Annotated[
        str | None, typer.Option(help="journal file or storage URL that runs share [ledger.jsonl of the run]")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = None,
    rates: Rates = None,
    tie: Tie = None,
    found_by: FoundBy = None,
    granularity: Granularity = None,
    pattern: Pattern = None,
    levels: Levels = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what every group loses when it alone is cut, the most sensitive first.

    Example: autoprune sensitivity --model torchvision:resnet18 --weights r18.pt --data imagefolder:photos --points 3
    """
    from rich.console import Console
    from rich.progress import Progress

    from autoprune import api, report
    from autoprune import sensitivity as analysis
    from autoprune.pool import Workers

    console = Console(stderr=as_json)
    asked = Workers(workers, ray_address, cpus_per_worker, gpus_per_worker, candidate_timeout)
    scored = arguments.make_reward(reward, reward_settings)
    network = arguments.make_network(model, weights, num_classes, None if weights_from else Path(root), console)
    splits = arguments.load_data(data, model, calibration, validation, data_seed, mean, std, input_size)
    example = splits.validation[0][0][:1]
    found_by = arguments.find_space(found_by, granularity, pattern, levels)
    space = arguments.make_space(network, example, include, exclude, round_to, rates, tie, found_by=found_by)
    network, cut = arguments.read_off(weights_from, network, space, criterion, recovery)
    problem = api.problem(
        network,
        example,
        splits.calibration,
        splits.validation,
        budget="macs=100%",
        **cut,
        reward=scored,
        device=device,
        space=space,
        name=model,
    )
    with problem.pool(asked) as pool, Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=1 + points * len(space))
        found = analysis.sensitivity(
            problem,
            points=points,
            run=run,
            root=root,
            ledger=ledger,
            listener=lambda event, facts: bar.advance(task, event == "trial"),
            pool=pool,
        )
    if as_json:
        print(json.dumps({"folder": str(found.folder), **found.to_dict()}))
        return
    console.print(report.sensitivity(found.to_dict()))
    console.print(f"{found.folder}/ has the curves ({analysis.PICTURE}) and every number ({analysis.ROWS})")


@app.command("proxy-check")
def proxy_check(
    run: Annotated[str, typer.Option(help="name of the check; an old name continues it")],
    schemes: Annotated[int, typer.Option(help="schemes of equal cost that are scored and trained")] = 12,
    epochs: Annotated[int, typer.Option(help="passes over the training images for each")] = 1,
    lr: Annotated[float, typer.Option(help="greatest learning rate of the training")] = 0.02,
    train_images: Annotated[int, typer.Option(help="images to train each on, and as many again to judge it by")] = 8192,
    repairs: Annotated[
        list[str] | None, typer.Option(help="repairs whose scores are compared; repeatable [four of them]")
    ] = None,
    seed: Annotated[int, typer.Option(help="which schemes these are")] = 0,
    model: Model = "autoprune:digits",
    data: Data = None,
    budget: Annotated[list[str] | None, typer.Option(help="as for search [half]")] = None,
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
    root: Root = "runs",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hold the fast scores of some schemes against their accuracy after a short fine-tuning.

    Example: autoprune proxy-check --run check --schemes 8 --model torchvision:resnet18 --data imagefolder:photos
    """
    from rich.console import Console

    from autoprune import api, report
    from autoprune.finetune import Recipe
    from autoprune.proxy import RECOVERIES
    from autoprune.proxy import proxy_check as checked
    from autoprune.run import make_folder

    console = Console(stderr=as_json)
    network = arguments.make_network(model, weights, num_classes, Path(root), console)
    splits = arguments.load_data(data, model, calibration, validation, data_seed, mean, std, input_size)
    train, held_out = arguments.split_training(splits, train_images)
    problem = api.problem(
        network, splits.validation[0][0][:1], splits.calibration, splits.validation, budget=budget or ["macs=50%"],
        criterion=criterion, recovery=recovery, device=device, name=model,
    )  # fmt: skip
    folder = make_folder(root, run)
    record = checked(
        problem.evaluator, problem.budget, train, held_out, folder, recoveries=repairs or RECOVERIES, number=schemes,
        recipe=Recipe(epochs, lr), seed=seed, tell=lambda row: console.print(report.scored(row), soft_wrap=True),
    )  # fmt: skip
    if as_json:
        print(json.dumps({"folder": str(folder), **record}))
        return
    console.print(report.proxies(record))


@app.command()
def groups(
    model: Annotated[str, typer.Argument(help="autoprune:NAME, torchvision:NAME, timm:NAME or package.module:factory")],
    weights: Weights = None,
    num_classes: Classes = None,
    input: Input = None,  # noqa: A002 - the option's name
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = None,
    rates: Rates = None,
    tie: Tie = None,
    found_by: FoundBy = None,
    granularity: Granularity = None,
    pattern: Pattern = None,
    levels: Levels = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what may be pruned together, how much it weighs, and what stays whole and why.

    Example: autoprune groups torchvision:resnet18
    """
    from rich.console import Console

    from autoprune import report

    console = Console()
    network = arguments.make_network(model, weights, num_classes, None, console)
    example = arguments.make_example(model, input)
    found_by = arguments.find_space(found_by, granularity, pattern, levels)
    space = arguments.make_space(network, example, include, exclude, round_to, rates, tie, found_by=found_by)
    if as_json:
        print(
            json.dumps(
                {
                    "groups": [
                        {
                            "name": g.name,
                            "members": list(g.members),
                            "width": g.width,
                            "unit": g.unit,
                            "counts": list(g.counts),
                        }
                        for g in space.groups
                    ],
                    "left_out": [{"name": item.name, "reason": item.reason} for item in space.left_out],
                }
            )
        )
        return
    for table in report.groups(space):
        console.print(table)


@app.command()
def apply(
    scheme: Annotated[Path, typer.Argument(help="scheme file, .json or .csv")],
    model: Model,
    out: Annotated[Path, typer.Option(help="folder for pruned.safetensors and scheme.json")],
    weights: Weights = None,
    num_classes: Classes = None,
    input: Input = None,  # noqa: A002 - the option's name
    data: Annotated[
        str | None, typer.Option(help="data to choose channels and repair with; without it l2 and no repair")
    ] = None,
    calibration: Calibration = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    criterion: Annotated[str | None, typer.Option(help="for a scheme without indices [obs with data, else l2]")] = None,
    recovery: Annotated[str | None, typer.Option(help="[least_squares+recalibrate_bn with data, else none]")] = None,
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = None,
    rates: Rates = None,
    tie: Tie = None,
    found_by: FoundBy = None,
    granularity: Granularity = None,
    pattern: Pattern = None,
    levels: Levels = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune a network by a scheme file and save it.

    Example: autoprune apply scheme.json --model torchvision:resnet18 --weights resnet18.pt --out pruned/
    """
    from autoprune import api

    network = arguments.make_network(model, weights, num_classes, None, None)
    batches = []
    if data:
        splits = arguments.load_data(data, model, calibration, 1, data_seed, mean, std, input_size)
        batches = splits.calibration
    example = batches[0][0][:1] if batches else arguments.make_example(model, input)
    found_by = arguments.find_space(found_by, granularity, pattern, levels) or arguments.space_of(scheme)
    space = arguments.make_space(network, example, include, exclude, round_to, rates, tie, found_by=found_by)
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
    if as_json:
        print(json.dumps({"folder": str(done.folder), **done.summary}))
        return
    fractions = done.summary["fractions"]
    costs = ", ".join(f"{value:,.0f} {name} ({fractions[name]:.1%})" for name, value in done.summary["costs"].items())
    print(f"{done.folder}/ has the pruned network and its scheme: {costs}")


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="a run (folder or name) or a scheme file")],
    to: Annotated[str, typer.Option(help=f"{', '.join([*EXPORTERS, *GRAPHS])} or package.module:function")],
    out: Annotated[Path | None, typer.Option(help="file to write [standard output]")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the file if it is there")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="an option of the exporter: KEY=VALUE; repeatable")
    ] = None,
    point: Annotated[int | None, typer.Option(help="a point of the run's front, from 0, instead of its answer")] = None,
    model: Annotated[str | None, typer.Option(help="the network, if the run does not say")] = None,
    weights: Weights = None,
    num_classes: Classes = None,
    input: Input = None,  # noqa: A002 - the option's name
    allow_code: AllowCode = False,
    debug: Debug = False,
) -> None:
    """Write a scheme in another tool's form, or the pruned network as a graph.

    Example: autoprune export my-run --to csv
    """
    from autoprune import exporters
    from autoprune.pruned import TENSORS

    if to in GRAPHS:
        if out is None or point is not None:
            raise UserError(f"--to {to} writes the run's pruned network to a file: give --out, and no --point")
        path, network, space, example = arguments.find_origin(source, model, weights, num_classes, input, allow_code)
        pruned = arguments.pruned_network(path, network)
        options = arguments.read_pairs(settings)
        difference = exporters.write_graph(to, pruned, example, out, options, force=force)
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
    else:
        print(exporters.write_text(text, out, force=force))


app.command()(evaluate_commands.evaluate)
app.command()(sparsify_commands.sparsify)
app.command()(train_commands.train)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="a run (folder or name) or a scheme file")],
    second: Annotated[str, typer.Argument(help="another")],
    chart: Annotated[Path | None, typer.Option(help="write the comparison as a picture, .svg")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two schemes of one network, group by group.

    Example: autoprune diff my-run other-run --chart both.svg
    """
    from rich.console import Console

    from autoprune import report
    from autoprune.difference import compare_files

    found = compare_files(arguments.scheme_path(first), arguments.scheme_path(second))
    if chart is not None:
        chart.write_text(found.chart(), encoding="utf-8")
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    Console().print(report.difference(found))


@app.command()
def finetune(
    run: Annotated[str, typer.Argument(help="folder or name of a run")],
    data: Data = None,
    epochs: Annotated[int, typer.Option(help="passes over the training images")] = 10,
    lr: Annotated[float, typer.Option(help="greatest learning rate")] = 0.02,
    batch_size: Annotated[int, typer.Option(help="images of a step")] = 128,
    warmup: Annotated[float, typer.Option(help="share of the steps in which the rate rises, before its cosine")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="of SGD with momentum 0.9")] = 5e-4,
    label_smoothing: Annotated[float, typer.Option(help="of the cross-entropy")] = 0.0,
    distill: Annotated[float, typer.Option(help="weight of the divergence from the dense network, in [0, 1]")] = 0.0,
    ema: Annotated[
        float | None, typer.Option(help="decay per step of an average of the weights, such as 0.999")
    ] = None,
    augment: Annotated[str, typer.Option(help="none, flip, crop")] = "none",
    seed: Annotated[int, typer.Option(help="same seed, same weights")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder of the result [finetuned/ in the run]")] = None,
    model: Annotated[str | None, typer.Option(help="the network, if the run does not say")] = None,
    weights: Weights = None,
    num_classes: Classes = None,
    calibration: Calibration = None,
    validation: Validation = None,
    data_seed: DataSeed = 0,
    mean: Mean = None,
    std: Std = None,
    input_size: InputSize = None,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the network of a run to the end; the same command goes on where it was stopped.

    Give the data options of the search, so that the validation images are the same: they judge every epoch, and are
    not trained on.

    Example: autoprune finetune my-run --data imagefolder:photos --epochs 20 --distill 0.5 --augment crop
    """
    from rich.console import Console

    from autoprune import report
    from autoprune.finetune import Recipe, finish
    from autoprune.run import Run

    console = Console(stderr=as_json)
    recipe = Recipe(
        epochs, lr, batch_size, warmup, weight_decay=weight_decay, label_smoothing=label_smoothing, distill=distill,
        ema=ema, augment=augment, seed=seed,
    )  # fmt: skip
    _, network, _, _ = arguments.find_origin(run, model, weights, num_classes, None, allow_code)
    found = Run.open(run)
    named = model or found.config["source"]["model"]
    splits = arguments.load_data(data, named, calibration, validation, data_seed, mean, std, input_size)
    result = finish(
        network.to(device), found.folder, splits, out or found.folder / "finetuned", recipe,
        tell=lambda facts: console.print(report.epoch(facts, epochs)),
    )  # fmt: skip
    if as_json:
        print(json.dumps(result))
        return
    console.print(report.comparison(result["rows"]))
    console.print(
        f"{result['folder']}/ has pruned.safetensors of epoch {result['best']}, the best on validation images"
    )


@app.command("report")
def report_(
    runs: Annotated[list[str], typer.Argument(help="folders or names of runs; several are compared")],
    out: Annotated[Path | None, typer.Option(help="file to write [report.html in the run, here for several]")] = None,
    debug: Debug = False,
) -> None:
    """Draw runs as a page that opens in any browser, without a network.

    Example: autoprune report my-run other-run --out both.html
    """
    from autoprune import page
    from autoprune.run import Run

    found = [Run.open(run) for run in runs]
    path = out or (found[0].folder if len(found) == 1 else Path()) / page.REPORT
    path.write_text(page.render(found), encoding="utf-8")
    print(path)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="folder or name of a run")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run found.

    Example: autoprune show my-run
    """
    from rich.console import Console

    from autoprune import report
    from autoprune.run import Run, read_json

    found = Run.open(run)
    if as_json:
        print(json.dumps({"folder": str(found.folder), "config": found.config, "summary": found.summary}))
        return
    console = Console()
    summary = found.summary
    if not summary:
        console.print(f"run {found.name} has not finished: start it again with the same options and --run {found.name}")
        return
    kind = found.config["request"].get("kind")
    if kind == "sensitivity":
        console.print(report.sensitivity(read_json(found.folder / "sensitivity.json")))
        return
    if kind == "comparison":
        from autoprune.compare import Comparison

        console.print(report.searchers(Comparison.open(found.folder).frame()))
        return
    console.print(report.comparison(summary["rows"]))
    console.print(report.narrowed(found.config["groups"], summary["widths"], summary["kept"]))
    if kind == "sparsity":
        return
    if "latency" in summary:
        console.print(report.verdict(summary["latency"]))
    request = found.config["request"]
    if request.get("objectives"):
        console.print(report.front(summary["front"], found.front()))
    console.print(
        f"{found.config['name']} under {request['budget']}: "
        f"{request['searcher']}, {request['criterion']}, {request['recovery']}; "
        f"{report.spent(summary)}, {summary['feasible']} affordable, {summary['failed']} failed, "
        f"{summary['seconds']:.0f} s of measuring; {summary['ended']}"
    )


@app.command()
def runs(
    root: Root = "runs",
    remove: Annotated[list[str] | None, typer.Option(help="delete this run; repeatable")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the runs with their disk use, or remove some.

    Example: autoprune runs --remove my-run
    """
    from rich.console import Console

    from autoprune import report
    from autoprune import run as folders

    for name in remove or []:
        run = folders.Run.open(Path(root) / name)
        if yes or typer.confirm(f"delete {run.folder} ({report.size(run.size)})?"):
            run.remove()
            print(f"removed {run.folder}", file=sys.stderr if as_json else sys.stdout)
    found = folders.runs(root)
    if as_json:
        print(
            json.dumps(
                [{"name": r.name, "folder": str(r.folder), "bytes": r.size, "summary": r.summary} for r in found]
            )
        )
    elif found:
        Console().print(report.runs(found))
    else:
        print(f"no runs in {root}/")


def _tell_result(console: Console, result: Run, tensorboard: bool) -> None:
    from autoprune import report

    summary = result.summary
    console.print(report.comparison(summary["rows"]))
    console.print(
        f"{report.spent(summary)}, {summary['feasible']} affordable, {summary['failed']} failed, "
        f"{summary['seconds']:.0f} s of measuring; {summary['ended']}"
    )
    if summary["kept"] == summary["uniform"]:
        console.print("nothing better than uniform rates was found: give it more --trials")
    if "latency" in summary:
        console.print(report.verdict(summary["latency"]))
    if result.config["request"]["objectives"]:
        console.print(report.front(summary["front"], result.front()))
    console.print(f"\n{result.folder}/ has scheme.json, pruned.safetensors, widths.svg and every measurement")
    curves = f"   tensorboard --logdir {result.folder}" if tensorboard else ""
    tool = "torch_pruning" if result.scheme is None or result.scheme.granularity == "channel" else "torch_prune_masks"
    point = " --point 0" if result.config["request"]["objectives"] else ""
    console.print(
        f"next: autoprune show {result.folder}   autoprune export {result.folder} --to {tool}{point}{curves}",
        soft_wrap=True,
    )


def main() -> None:
    """Entry point: one line per error, a traceback only with ``--debug``."""
    debug = "--debug" in sys.argv
    warnings.filterwarnings("ignore", message="TF32 acceleration")  # torch speaks of hardware that nobody asked for
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        line = (str(error).strip().splitlines() or [""])[0]
        print(f"error: {type(error).__name__}: {line} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
