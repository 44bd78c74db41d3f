"""Options that several commands share, with their help."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="autoprune:NAME, torchvision:NAME, timm:NAME or package.module:factory")]
Weights = Annotated[str | None, typer.Option(help="state dict, .pt or .safetensors, or a torchvision weights name")]
WeightsFrom = Annotated[
    str | None, typer.Option(help="folder of `autoprune train`, to read every candidate's weights off")
]
Classes = Annotated[
    int | None, typer.Option("--num-classes", help="classes of the network, where the factory takes it")
]
Input = Annotated[str | None, typer.Option("--input", help="shape of one input, such as 3x224x224")]
Data = Annotated[
    str | None,
    typer.Option(help="imagefolder:PATH, cifar10:PATH, package.module:function [digits for autoprune:digits]"),
]
Calibration = Annotated[int | None, typer.Option(help="training images for statistics and repair [2048]")]
Validation = Annotated[int | None, typer.Option(help="training images that candidates are scored on [2048]")]
DataSeed = Annotated[int, typer.Option(help="which images these are")]
Mean = Annotated[str | None, typer.Option(help="input mean per channel, comma-separated")]
Std = Annotated[str | None, typer.Option(help="input deviation per channel, comma-separated")]
InputSize = Annotated[int | None, typer.Option(help="resize the shorter side and cut the middle square")]
Include = Annotated[list[str] | None, typer.Option(help="only groups that match this glob; repeatable")]
Exclude = Annotated[list[str] | None, typer.Option(help="never groups that match this glob; repeatable")]
RoundTo = Annotated[list[str] | None, typer.Option(help="keep multiples: 8, or PATTERN=16; repeatable")]
Rates = Annotated[list[str] | None, typer.Option(help="range of kept rates: PATTERN=0.25:1; repeatable")]
Tie = Annotated[list[str] | None, typer.Option(help="cut two groups together: A,B; repeatable")]
FoundBy = Annotated[
    str | None,
    typer.Option("--space", help="who says what may be cut: traced, an installed name or package.module:function"),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="obs, taylor, fisher, hrank, apoz, act_mean, act_std, fpgm, l1, l2, bn_scale, random or "
        "package.module:function, with options like l1,aggregate=max; for single weights magnitude, layer_normalised, "
        "lamp, taylor, random [obs or magnitude]"
    ),
]
Recovery = Annotated[
    str | None,
    typer.Option(
        help="none, least_squares, recalibrate_bn, sequential, fine_tune, joined by +; for single weights also obc "
        "[least_squares+recalibrate_bn or recalibrate_bn]"
    ),
]
Granularity = Annotated[
    str | None, typer.Option(help="what is removed: channel, weight, n:m [channel; n:m with --pattern]")
]
Pattern = Annotated[
    str | None, typer.Option(help="n of m neighbouring weights stay: 2:4 (or all), 1+2:4, any:8 for a free choice")
]
Levels = Annotated[int | None, typer.Option(help="steps of a layer's sparsity that are tried [1000]")]
Sparsity = Annotated[
    str | None, typer.Option(help="share of the weights to remove, such as 90%: a cap on what is kept, weights=10%")
]
Root = Annotated[str, typer.Option(help="folder that holds the runs")]
NumWorkers = Annotated[
    int, typer.Option("--workers", help="processes that measure at the same time; the result is the same")
]
RayAddress = Annotated[
    str | None, typer.Option(help="Ray that they run on: local, auto, host:port, ray://host:port [local]")
]
Cpus = Annotated[float, typer.Option("--cpus-per-worker", help="CPUs that Ray counts for each; fractions share one")]
Gpus = Annotated[float, typer.Option("--gpus-per-worker", help="GPUs of each, with --device cuda; fractions share one")]
CandidateTimeout = Annotated[
    float | None, typer.Option(help="seconds that a candidate may take, in a process of its own even with one worker")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]

LatencyTable = Annotated[
    str | None,
    typer.Option(help="table of `autoprune latency build`, for a budget that speaks of latency [built here]"),
]
LatencyFunction = Annotated[
    str | None, typer.Option(help="package.module:function(network) that gives milliseconds on a device elsewhere")
]
BatchSize = Annotated[int | None, typer.Option(help="samples at a time when a network is timed [1]")]
Threads = Annotated[int | None, typer.Option(help="threads when a network is timed [1]")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16 when a network is timed [float32]")]
MemoryFormat = Annotated[
    str | None, typer.Option(help="contiguous, channels_last when a network is timed [contiguous]")
]
Backend = Annotated[str | None, typer.Option(help="eager, compile, onnxruntime when a network is timed [eager]")]
Strict = Annotated[bool, typer.Option("--strict", help="refuse a latency table for another device, batch or backend")]
OwnCosts = Annotated[
    list[str] | None,
    typer.Option("--cost", help="a cost of your own: NAME=package.module:function(scheme); repeatable"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="import the package.module:factory that the run names")]
