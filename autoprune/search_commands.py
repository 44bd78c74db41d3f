"""``autoprune search``, ``compare``, ``sensitivity`` and ``proxy-check``: what measures many candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from autoprune import arguments, completion
from autoprune.opening import opened
from autoprune.option_groups import (
    Caps,
    Images,
    Narrowed,
    Network,
    Output,
    Predicted,
    Processes,
    Removed,
    Repair,
    Scoring,
    Trained,
    spread,
)
from autoprune.options import (
    OUTPUT,
    REPAIR,
    SEARCH,
    TRAINING,
    Batch,
    Budgets,
    Config,
    Device,
    Ledger,
    Lr,
    OwnCosts,
    Root,
    RunName,
    Settings,
    TensorBoard,
    option,
)
from autoprune.searchers import SEARCHERS
from autoprune.trackers import TRACKERS

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.run import Run


@spread
def search(
    *,
    network: Trained,
    images: Images,
    caps: Caps,
    cost: OwnCosts = None,
    searcher: Annotated[
        str | None,
        option(
            SEARCH,
            f"{', '.join(SEARCHERS)} or package.module:function",
            usual="auto; with --objectives optuna",
            complete=completion.of(*SEARCHERS),
        ),
    ] = None,
    settings: Settings = None,
    trials: Annotated[int | None, option(SEARCH, "distinct schemes to measure")] = 100,
    timeout: Annotated[float | None, option(SEARCH, "seconds of measuring")] = None,
    target: Annotated[float | None, option(SEARCH, "stop at this reward")] = None,
    seed: Annotated[int, option(SEARCH, "same seed, same result")] = 0,
    batch: Batch = 8,
    start: Annotated[list[str] | None, option(SEARCH, "scheme file to start from; repeatable")] = None,
    objectives: Annotated[
        str | None,
        option(
            SEARCH,
            "several at once, for a Pareto front: accuracy,macs; also loss, kl, reward, any cost, a metric of "
            "your own (-NAME if less is better), a reward",
        ),
    ] = None,
    race: Annotated[
        float | None,
        option(SEARCH, "stop candidates that cannot win; the probability of stopping a better one, such as 0.01"),
    ] = None,
    repair: Repair,
    scoring: Scoring,
    tune_steps: Annotated[
        int | None, option(REPAIR, "training steps of every candidate before it is measured", usual="none")
    ] = None,
    tune_lr: Annotated[float | None, option(REPAIR, "their learning rate", usual="0.01")] = None,
    tune_images: Annotated[
        int, option(REPAIR, "training images for it, neither calibration nor validation, in whole batches")
    ] = 2048,
    polish: Annotated[
        str | None, option(REPAIR, "a more thorough repair for the answer alone, such as sequential,sweeps=2")
    ] = None,
    finalists: Annotated[
        int, option(REPAIR, "how many of the best candidates are polished; the best then is the answer")
    ] = 1,
    finish: Annotated[
        str | None, option(REPAIR, "package.module:function that trains the answer at the end: function(model)")
    ] = None,
    timing: Predicted,
    processes: Processes,
    removed: Removed,
    run: RunName = None,
    root: Root = "runs",
    ledger: Ledger = None,
    tensorboard: TensorBoard = False,
    tracker: Annotated[
        list[str] | None,
        option(
            OUTPUT,
            f"{', '.join(TRACKERS)} or package.module:function, with options: mlflow,experiment=pruning; repeatable",
            complete=completion.of(*TRACKERS),
        ),
    ] = None,
    config: Config = None,
    output: Output,
) -> None:
    """Search a pruning scheme and prune the network for real.

    With no option at all: a small network on the bundled digits, at half of its multiply-adds.

    Example: autoprune search --model torchvision:resnet18 --weights r18.pt --data imagefolder:photos --budget macs=50%
    """
    from autoprune import api, trackers
    from autoprune.progress import Watch

    console = output.console()
    searcher = searcher or api.usual_searcher(objectives or ())
    chosen = arguments.read_settings(searcher, settings)
    asked, reward = processes.read(), scoring.read()
    told = [trackers.find(text) for text in tracker or []]
    task = opened(network, images, removed, repair, root, console)
    tuning = arguments.make_tuning(task.splits, tune_steps, tune_lr, tune_images)
    watch = Watch(console, trials, output.quiet or output.as_json)
    try:
        result = api.search(
            task.network,
            task.example,
            task.splits.calibration,
            task.splits.validation,
            budget=caps.read(task.space),
            searcher=searcher,
            options=chosen,
            **task.candidates,
            reward=reward,
            test=task.splits.test,
            trials=trials,
            timeout=timeout,
            target=target,
            seed=seed,
            batch=batch,
            device=timing.device,
            space=task.space,
            start=[arguments.read_scheme(path, task.space) for path in start or []],
            objectives=objectives or (),
            finish=finish,
            polish=polish,
            finalists=finalists,
            race=race,
            **tuning,
            **timing.known(cost),
            also=tuple(scoring.reward_settings or ()),
            tables=root,
            run=run,
            root=root,
            ledger=ledger,
            name=network.model,
            listener=[watch, *told],
            tensorboard=tensorboard,
            workers=asked,
            source=task.source,
        )
    finally:
        watch.close()
    if not output.told(result.folder, result.summary):
        _tell_result(console, result, tensorboard)


@spread
def compare(
    *,
    network: Trained,
    images: Images,
    caps: Caps,
    cost: OwnCosts = None,
    searcher: Annotated[
        list[str] | None,
        option(
            SEARCH,
            "a searcher, with options as NAME,KEY=VALUE; repeatable",
            usual="uniform, random and the default",
            complete=completion.of(*SEARCHERS),
        ),
    ] = None,
    seed: Annotated[list[int] | None, option(SEARCH, "repeatable", usual="0, 1, 2")] = None,
    trials: Annotated[int | None, option(SEARCH, "trials of each run", usual="60, or none with --seconds")] = None,
    seconds: Annotated[float | None, option(SEARCH, "seconds of measuring of each run")] = None,
    batch: Batch = 8,
    repair: Repair,
    scoring: Scoring,
    timing: Predicted,
    processes: Processes,
    removed: Removed,
    run: Annotated[str, option(OUTPUT, "name of the comparison; an old name continues or extends it")],
    root: Root = "runs",
    ledger: Ledger = None,
    config: Config = None,
    output: Output,
) -> None:
    """Search with several searchers and seeds at equal cost, and show who found what.

    Example: autoprune compare --run first --searcher swap --searcher "evolution,population=12" --seed 0 --trials 40
    """
    from autoprune import api, report
    from autoprune import compare as side_by_side

    console = output.console()
    asked, reward = processes.read(), scoring.read()
    task = opened(network, images, removed, repair, root, console)
    problem = task.problem(
        budget=caps.read(task.space), reward=reward, test=task.splits.test, device=timing.device,
        **timing.known(cost), also=tuple(scoring.reward_settings or ()), tables=root, source=task.source,
    )  # fmt: skip
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
    if not output.told(found.folder, {"runs": found.frame().to_dict("records")}):
        console.print(report.searchers(found.frame()))
        console.print(f"{found.folder}/ has the table ({side_by_side.TABLE}) and the curves")


@spread
def sensitivity(
    *,
    network: Trained,
    images: Images,
    points: Annotated[int, option(SEARCH, "counts measured of every group, evenly spaced")] = 5,
    repair: Repair,
    scoring: Scoring,
    device: Device = "cpu",
    processes: Processes,
    removed: Removed,
    run: RunName = None,
    root: Root = "runs",
    ledger: Ledger = None,
    config: Config = None,
    output: Output,
) -> None:
    """Measure what every group loses when it alone is cut, the most sensitive first.

    Example: autoprune sensitivity --model torchvision:resnet18 --weights r18.pt --data imagefolder:photos --points 3
    """
    from rich.progress import Progress

    from autoprune import report
    from autoprune import sensitivity as analysis

    console = output.console()
    asked, reward = processes.read(), scoring.read()
    task = opened(network, images, removed, repair, root, console)
    problem = task.problem(budget="macs=100%", reward=reward, device=device)
    with problem.pool(asked) as pool, Progress(console=console, disable=not console.is_terminal) as bar:
        measuring = bar.add_task("measuring", total=1 + points * len(task.space))
        found = analysis.sensitivity(
            problem,
            points=points,
            run=run,
            root=root,
            ledger=ledger,
            listener=lambda event, facts: bar.advance(measuring, event == "trial"),
            pool=pool,
        )
    if not output.told(found.folder, found.to_dict()):
        console.print(report.sensitivity(found.to_dict()))
        console.print(f"{found.folder}/ has the curves ({analysis.PICTURE}) and every number ({analysis.ROWS})")


@spread
def proxy_check(
    *,
    network: Network,
    images: Images,
    budget: Budgets = None,
    schemes: Annotated[int, option(SEARCH, "schemes of equal cost that are scored and trained")] = 12,
    seed: Annotated[int, option(SEARCH, "which schemes these are")] = 0,
    repair: Repair,
    repairs: Annotated[
        list[str] | None, option(REPAIR, "repairs whose scores are compared; repeatable", usual="four of them")
    ] = None,
    epochs: Annotated[int, option(TRAINING, "passes over the training images for each")] = 1,
    lr: Lr = 0.02,
    train_images: Annotated[int, option(TRAINING, "images to train each on, and as many again to judge it by")] = 8192,
    device: Device = "cpu",
    run: Annotated[str, option(OUTPUT, "name of the check; an old name continues it")],
    root: Root = "runs",
    config: Config = None,
    output: Output,
) -> None:
    """Hold the fast scores of some schemes against their accuracy after a short fine-tuning.

    Example: autoprune proxy-check --run check --schemes 8 --model torchvision:resnet18 --data imagefolder:photos
    """
    from autoprune import report
    from autoprune.finetune import Recipe
    from autoprune.proxy import RECOVERIES
    from autoprune.proxy import proxy_check as checked
    from autoprune.run import make_folder

    console = output.console()
    task = opened(network, images, Narrowed(), repair, root, console)
    train, held_out = arguments.split_training(task.splits, train_images)
    problem = task.problem(budget=budget or ["macs=50%"], device=device)
    folder = make_folder(root, run)
    record = checked(
        problem.evaluator, problem.budget, train, held_out, folder, recoveries=repairs or RECOVERIES, number=schemes,
        recipe=Recipe(epochs, lr), seed=seed, name=problem.name,
        tell=lambda row: console.print(report.scored(row), soft_wrap=True),
    )  # fmt: skip
    if not output.told(folder, record):
        console.print(report.proxies(record))


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
    console.print(
        f"\n{result.folder}/ has report.html (for a browser), scheme.json, pruned.safetensors and every measurement"
    )
    curves = f"   tensorboard --logdir {result.folder}" if tensorboard else ""
    tool = "torch_pruning" if result.scheme is None or result.scheme.granularity == "channel" else "torch_prune_masks"
    point = " --point 0" if result.config["request"]["objectives"] else ""
    console.print(
        f"next: autoprune show {result.folder}   autoprune export {result.folder} --to {tool}{point}{curves}",
        soft_wrap=True,
    )
