"""Options that several commands share: their names, help, panel of the help, and what the shell completes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from autoprune import completion, config_file

NETWORK = "Network and data"
BUDGET = "Budget"
SEARCH = "Search"
REPAIR = "Repair and scoring"
LATENCY = "Device and latency"
WORKERS = "Workers"
PRUNED = "What is pruned"
TRAINING = "Training"
OUTPUT = "Output"


def option(
    panel: str | None,
    explained: str,
    *names: str,
    usual: str | None = None,
    complete: Callable[..., list[str]] | None = None,
) -> Any:
    """An option in a panel of the help; ``usual`` says in words what happens without it."""
    return typer.Option(
        *names, help=explained, rich_help_panel=panel, show_default=usual or True, autocompletion=complete
    )


# Square brackets in a help text would be read as markup and vanish: defaults in words go to ``usual``.
Model = Annotated[str, option(NETWORK, "autoprune:NAME, torchvision:NAME, timm:NAME or package.module:factory")]
Weights = Annotated[str | None, option(NETWORK, "state dict, .pt or .safetensors, or a torchvision weights name")]
WeightsFrom = Annotated[
    str | None, option(NETWORK, "folder of `autoprune train`, to read every candidate's weights off")
]
Classes = Annotated[int | None, option(NETWORK, "classes of the network, where the factory takes it", "--num-classes")]
Input = Annotated[str | None, option(NETWORK, "shape of one input, such as 3x224x224", "--input")]
Data = Annotated[
    str | None,
    option(
        NETWORK, "imagefolder:PATH, cifar10:PATH, package.module:function", usual="digits, with autoprune:digits alone"
    ),
]
Calibration = Annotated[
    int | None, option(NETWORK, "training images for statistics and repair", usual="2048, 512 of the digits")
]
Validation = Annotated[
    int | None, option(NETWORK, "training images that candidates are scored on", usual="2048, 512 of the digits")
]
DataSeed = Annotated[int, option(NETWORK, "which images these are")]
Mean = Annotated[str | None, option(NETWORK, "input mean per channel, comma-separated")]
Std = Annotated[str | None, option(NETWORK, "input deviation per channel, comma-separated")]
InputSize = Annotated[int | None, option(NETWORK, "resize the shorter side and cut the middle square")]
AllowCode = Annotated[
    bool, option(NETWORK, "import the package.module:function that a run or a folder names", "--allow-code")
]
Origin = Annotated[str | None, option(NETWORK, "the network, if the run does not say")]

Budgets = Annotated[
    list[str] | None,
    option(
        BUDGET,
        "cap on what is kept: macs=50%, macs=63M, params=1.2M, latency=8ms, memory=24MiB; repeatable",
        usual="half of the multiply-adds, or of the single weights",
    ),
]
Sparsity = Annotated[
    str | None, option(BUDGET, "share of the weights to remove, such as 90%: a cap on what is kept, weights=10%")
]
OwnCosts = Annotated[
    list[str] | None,
    option(BUDGET, "a cost of your own: NAME=package.module:function(scheme); repeatable", "--cost"),
]

Criterion = Annotated[
    str | None,
    option(
        REPAIR,
        "obs, taylor, fisher, hrank, apoz, act_mean, act_std, fpgm, l1, l2, bn_scale, random or "
        "package.module:function, with options like l1,aggregate=max; for single weights magnitude, layer_normalised, "
        "lamp, taylor, random",
        usual="obs, or magnitude",
    ),
]
Recovery = Annotated[
    str | None,
    option(
        REPAIR,
        "none, least_squares, recalibrate_bn, sequential, fine_tune, joined by +; for single weights also obc",
        usual="least_squares+recalibrate_bn, or recalibrate_bn",
    ),
]
Precision = Annotated[
    str,
    option(
        REPAIR,
        "float32, bfloat16, float16 in the forward passes of candidates; 16 bits are faster on hardware for them",
        complete=completion.of("float32", "bfloat16", "float16"),
    ),
]
Reward = Annotated[
    str,
    option(
        REPAIR,
        "neg_loss, neg_kl, neg_calibrated_kl, accuracy, amc_err, amc_flops, amc_param, latency_penalised, "
        "constraint_punish or package.module:function",
    ),
]
RewardSettings = Annotated[
    list[str] | None, option(REPAIR, "an option of the reward: KEY=VALUE; repeatable", "--reward-set")
]

Device = Annotated[str, option(LATENCY, "cpu, cuda, mps")]
LatencyTable = Annotated[
    str | None,
    option(
        LATENCY, "table of `autoprune latency build`, for a budget that speaks of latency", usual="built here if needed"
    ),
]
LatencyFunction = Annotated[
    str | None, option(LATENCY, "package.module:function(network) that gives milliseconds on a device elsewhere")
]
BatchSize = Annotated[int | None, option(LATENCY, "samples at a time when a network is timed", usual="1")]
Threads = Annotated[int | None, option(LATENCY, "threads when a network is timed", usual="1")]
Dtype = Annotated[str | None, option(LATENCY, "float32, float16, bfloat16 when a network is timed", usual="float32")]
MemoryFormat = Annotated[
    str | None, option(LATENCY, "contiguous, channels_last when a network is timed", usual="contiguous")
]
Backend = Annotated[str | None, option(LATENCY, "eager, compile, onnxruntime when a network is timed", usual="eager")]
Strict = Annotated[bool, option(LATENCY, "refuse a latency table for another device, batch or backend", "--strict")]

NumWorkers = Annotated[
    int, option(WORKERS, "processes that measure at the same time; the result is the same", "--workers")
]
RayAddress = Annotated[
    str | None, option(WORKERS, "Ray that they run on: local, auto, host:port, ray://host:port", usual="local")
]
Cpus = Annotated[float, option(WORKERS, "CPUs that Ray counts for each; fractions share one", "--cpus-per-worker")]
Gpus = Annotated[float, option(WORKERS, "GPUs of each, with --device cuda; fractions share one", "--gpus-per-worker")]
CandidateTimeout = Annotated[
    float | None,
    option(WORKERS, "seconds that a candidate may take, in a process of its own even with one worker"),
]

Include = Annotated[list[str] | None, option(PRUNED, "only groups that match this glob; repeatable")]
Exclude = Annotated[list[str] | None, option(PRUNED, "never groups that match this glob; repeatable")]
RoundTo = Annotated[list[str] | None, option(PRUNED, "keep multiples: 8, or PATTERN=16; repeatable")]
Rates = Annotated[list[str] | None, option(PRUNED, "range of kept rates: PATTERN=0.25:1; repeatable")]
Tie = Annotated[list[str] | None, option(PRUNED, "cut two groups together: A,B; repeatable")]
FoundBy = Annotated[
    str | None,
    option(
        PRUNED,
        "who says what may be cut: traced, an installed name or package.module:function",
        "--space",
        usual="traced",
    ),
]
Granularity = Annotated[
    str | None, option(PRUNED, "what is removed: channel, weight, n:m", usual="channel; n:m with --pattern")
]
Pattern = Annotated[
    str | None, option(PRUNED, "n of m neighbouring weights stay: 2:4 (or all), 1+2:4, any:8 for a free choice")
]
Levels = Annotated[int | None, option(PRUNED, "steps of a layer's sparsity that are tried", usual="1000")]

Settings = Annotated[list[str] | None, option(SEARCH, "an option of the searcher: KEY=VALUE; repeatable", "--set")]
Batch = Annotated[int, option(SEARCH, "schemes proposed at a time")]

Lr = Annotated[float, option(TRAINING, "greatest learning rate")]
StepImages = Annotated[int, option(TRAINING, "images of a step", "--batch-size")]
WeightDecay = Annotated[float, option(TRAINING, "of SGD with momentum 0.9")]
LabelSmoothing = Annotated[float, option(TRAINING, "of the cross-entropy, where there is one")]
Augment = Annotated[str, option(TRAINING, "none, flip, crop", complete=completion.of("none", "flip", "crop"))]
StepPrecision = Annotated[
    str,
    option(
        TRAINING,
        "float32 or bfloat16 in the forward passes, which is faster on hardware for it",
        complete=completion.of("float32", "bfloat16"),
    ),
]

Source = Annotated[str, typer.Argument(help="a run (folder or name) or a scheme file", autocompletion=completion.runs)]
RunArgument = Annotated[str, typer.Argument(help="folder or name of a run", autocompletion=completion.runs)]
RunName = Annotated[
    str | None, option(OUTPUT, "name of the run; an old name continues it", usual="a new one", complete=completion.runs)
]
Root = Annotated[str, option(OUTPUT, "folder that holds the runs")]
Ledger = Annotated[
    str | None,
    option(OUTPUT, "journal file or storage URL that runs share", usual="ledger.jsonl of the run"),
]
TensorBoard = Annotated[bool, option(OUTPUT, "draw TensorBoard curves, in the folder of the result", "--tensorboard")]
Json = Annotated[bool, option(OUTPUT, "print one JSON object", "--json")]
Quiet = Annotated[bool, option(OUTPUT, "print nothing but where the result is", "--quiet", "-q")]
Debug = Annotated[bool, option(OUTPUT, "show the traceback of an error", "--debug")]
Force = Annotated[bool, option(OUTPUT, "replace the file if it is there", "--force")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with options of this command, see `autoprune init`; those given here win over it",
        callback=config_file.take,
        is_eager=True,
    ),
]
