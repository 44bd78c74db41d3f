"""From the words of a command line to networks, data, spaces and schemes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from autoprune import settings
from autoprune.errors import UserError
from autoprune.scheme import Granularity

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from autoprune.data import Splits
    from autoprune.exporters import Exporter
    from autoprune.latency.conditions import Conditions
    from autoprune.reward import Reward
    from autoprune.scheme import Scheme
    from autoprune.space import SearchSpace


def make_network(
    spec: str, weights: str | None, num_classes: int | None, root: Path | None, console: Console | None
) -> nn.Module:
    """The model named on the command line; the embedded one is trained on first use."""
    from autoprune import demo, models

    if spec != "autoprune:digits" or weights is not None or root is None:
        return models.load(spec, weights, num_classes)
    if console is None or (root / demo.WEIGHTS).is_file():
        return demo.digits(root)
    from rich.progress import Progress

    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training the digits network", total=demo.EPOCHS)
        return demo.digits(root, lambda epoch, epochs, loss: bar.update(task, completed=epoch))


def load_data(
    spec: str | None,
    model: str,
    calibration: int | None,
    validation: int | None,
    seed: int,
    mean: str | None,
    std: str | None,
    input_size: int | None,
) -> Any:
    """The data set, with so many images for calibration and validation; the embedded network brings its own."""
    from autoprune import data, demo

    if not spec and model != "autoprune:digits":
        raise UserError(f"--model {model} needs --data: imagefolder:PATH, cifar10:PATH or package.module:function")
    spec = spec or "digits"
    usual = demo.IMAGES if spec == "digits" else 2048  # the digits are too few for the usual number
    return data.load(
        spec, calibration or usual, validation or usual, seed, _numbers("--mean", mean), _numbers("--std", std),
        input_size,
    )  # fmt: skip


def make_tuning(splits: Splits, steps: int | None, lr: float | None, images: int) -> dict[str, Any]:
    """``--tune-steps`` and what goes with it, as arguments of a search; ``images`` are rounded up to whole batches."""
    if steps is None:
        if lr is not None:
            raise UserError(f"--tune-lr {lr} is the learning rate of --tune-steps, which is missing: give it too")
        return {}
    if splits.tuning is None:
        raise UserError(
            f"--tune-steps {steps}: data {splits.name!r} has no training images left to tune on: take fewer for "
            "--calibration and --validation, or let your data function give a part 'tuning'"
        )
    batches: list[Any] = []
    taken = 0
    for inputs, labels in splits.tuning():
        if taken >= images:
            break
        batches.append((inputs, labels))
        taken += len(labels)
    return {"tune": batches, "tune_steps": steps} | ({} if lr is None else {"tune_lr": lr})


def make_conditions(
    device: str,
    batch: int | None = None,
    threads: int | None = None,
    dtype: str | None = None,
    memory_format: str | None = None,
    backend: str | None = None,
) -> Conditions:
    """How networks are timed on a device; what is None is as usual."""
    from autoprune.latency.conditions import Conditions

    given = {"batch": batch, "threads": threads, "dtype": dtype, "memory_format": memory_format, "backend": backend}
    return Conditions(device, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def make_timing(
    device: str,
    table: str | None,
    function: str | None,
    strict: bool,
    costs: Sequence[str] | None,
    **conditions: Any,
) -> dict[str, Any]:
    """What is known of the device that must be fast, as arguments of a search; see :func:`make_conditions`."""
    if table is not None and function is not None:
        raise UserError("--latency-table and --latency-function: give one of them")
    wanted: dict[str, Any] = {"strict": strict, "costs": {}}
    if device != "cpu" or any(value is not None for value in conditions.values()):
        wanted["conditions"] = make_conditions(device, **conditions)
    if table is not None or function is not None:
        wanted["latency"] = table if function is None else resolved("--latency-function", function)
    for name, spec in _pairs("--cost", costs).items():
        wanted["costs"][name] = resolved("--cost", spec)
    return wanted


def resolved(option: str, spec: str) -> Any:
    """The function named by ``package.module:function``."""
    from autoprune.references import function

    return function(spec, option, {})


def split_training(splits: Splits, images: int) -> tuple[list[Any], list[Any]]:
    """Training images that are neither calibration nor validation: some to train on, and others to judge by."""
    batches = list(splits.tuning()) if splits.tuning is not None else []
    total = sum(len(labels) for _, labels in batches)
    if len(batches) < 2:
        raise UserError(
            f"data {splits.name!r} has {total} training images left, which are too few to train and to judge"
        )
    wanted = min(images, total // 2)
    train, held_out = _leading(batches, wanted), _leading(batches[::-1], wanted)
    return train, held_out


def _leading(batches: Sequence[Any], images: int) -> list[Any]:
    """Whole batches with at most so many images together, but one at least."""
    part: list[Any] = []
    for batch in batches:
        images -= len(batch[1])
        if part and images < 0:
            break
        part.append(batch)
    return part


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r}: write one number per channel, such as 0.485,0.456,0.406") from None


def make_example(model: str, text: str | None) -> Any:
    """A random input of the shape given, or of the family's usual one."""
    import torch

    usual = {"autoprune:digits": "1x8x8", "autoprune:resnet": "3x32x32"}
    shape = text or next((size for prefix, size in usual.items() if model.startswith(prefix)), "3x224x224")
    try:
        sizes = [int(part) for part in shape.split("x")]
    except ValueError:
        raise UserError(f"--input {shape!r}: write the shape of one input, such as 3x224x224") from None
    if min(sizes) < 1:
        raise UserError(f"--input {shape!r}: every size is at least 1")
    return torch.randn(1, *sizes, generator=torch.Generator().manual_seed(0))


def make_space(
    network: nn.Module,
    example: Any,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    round_to: Sequence[str] | None = None,
    rates: Sequence[str] | None = None,
    tie: Sequence[str] | None = None,
    *,
    found_by: str | None = None,
) -> SearchSpace:
    """The space that ``found_by`` defines, traced if it is None, narrowed as the options say."""
    from pkgutil import resolve_name

    from autoprune import api

    space = api.define_space(found_by or "traced", network, example)
    define = resolve_name("autoprune.search_spaces.named:define")
    narrowed: SearchSpace = define(
        space,
        include=include or ("*",),
        exclude=exclude or (),
        round_to=round_to or (),
        rates=rates or (),
        ties=tie or (),
    )
    return narrowed


def find_space(found_by: str | None, granularity: str | None, pattern: str | None, levels: int | None) -> str | None:
    """Who defines the search space: ``--space``, or that of single weights as its own options say."""
    options = {"levels": levels, "pattern": pattern}
    given = {name: value for name, value in options.items() if value is not None}
    if granularity not in (None, *get_args(Granularity)):
        raise UserError(f"--granularity {granularity!r} is unknown: use one of {', '.join(get_args(Granularity))}")
    if granularity is None and pattern is None:
        granularity = "channel" if levels is None else "weight"
    if granularity == "channel":
        if given:
            name, value = next(iter(given.items()))
            raise UserError(f"--{name} {value} is of single weights: add --granularity weight")
        return found_by
    if found_by is not None:
        raise UserError(f"--space {found_by} and --granularity {granularity}: give one of them")
    if granularity == "n:m" and pattern is None:
        raise UserError("--granularity n:m: say which with --pattern, such as 2:4")
    return ",".join(["weights", *(f"{name}={value}" for name, value in given.items())])


def space_of(scheme: Path) -> str | None:
    """Who defines the space that a scheme file was made for, as far as its granularity says; None for channels."""
    from autoprune.exporters import scheme_file

    try:
        record = scheme_file.parse(scheme)
    except UserError:  # a table, or another tool's file: its options say
        return None
    if record.get("granularity") == "weight":
        return "weights"
    return f"weights,pattern=any:{scheme_file.block(record)}" if record.get("granularity") == "n:m" else None


def make_caps(budget: Sequence[str] | None, sparsity: str | None, space: SearchSpace) -> list[str]:
    """The caps of ``--budget`` and ``--sparsity``, or half of the multiply-adds, or of the single weights."""
    caps = list(budget or ())
    if sparsity is not None:
        if space.granularity == "channel":
            raise UserError(f"--sparsity {sparsity} is of single weights: add --granularity weight, or give a --budget")
        caps.append(f"weights={100 * (1 - read_sparsity(sparsity)):.12g}%")
    return caps or ["macs=50%" if space.granularity == "channel" else "weights=50%"]


def read_sparsity(text: str) -> float:
    """The share that ``90%`` or ``0.9`` means."""
    digits = text.strip()
    try:
        share = float(digits[:-1]) / 100 if digits.endswith("%") else float(digits)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(f"--sparsity {text}: the share of weights to remove is at least 0% and below 100%, such as 90%")
    return share


def source(
    model: str, weights: str | None, num_classes: int | None, example: Any, *narrowed: Sequence[str] | None
) -> dict[str, Any]:
    """How to load the network and define its space again; ``narrowed`` are the options of :func:`make_space`."""
    names = ("include", "exclude", "round_to", "rates", "tie", "space")
    loaded = {"model": model, "weights": weights, "num_classes": num_classes, "input": list(example.shape[1:])}
    return loaded | dict(zip(names, narrowed, strict=True))


def read_settings(searcher: str, texts: Sequence[str] | None) -> dict[str, Any]:
    """``--set KEY=VALUE`` as typed options of the searcher."""
    from autoprune import searchers

    return settings.read(searchers.find(searcher), searchers.KIND, _pairs("--set", texts))


def read_recipe(recipe: str, texts: Sequence[str] | None) -> dict[str, Any]:
    """``--set KEY=VALUE`` as typed options of a train-once recipe."""
    from autoprune.recipes import source

    return settings.read(source.find(recipe), source.KIND, _pairs("--set", texts))


def read_off(
    folder: str | None,
    network: nn.Module,
    space: SearchSpace,
    criterion: str | None,
    recovery: str | None,
    allow_code: bool,
) -> tuple[nn.Module, dict[str, Any]]:
    """The whole network that was trained in ``folder``, if one is named, and how a search makes candidates of it."""
    if folder is None:
        return network, {"criterion": criterion, "recovery": recovery}
    from autoprune.recipes import source

    found = source.read(folder, network, space, allow_code=allow_code)
    if criterion is not None and criterion != found.criterion:
        raise UserError(
            f"--criterion {criterion}: which weights stay was decided when --weights-from {folder} was trained"
        )
    return found.model, {
        "criterion": found.criterion,
        "recovery": found.recovery if recovery is None else recovery,
        "identity": found.identity,
    }


def dense_weights(folder: str | None) -> str | None:
    """Where the whole network of a trained folder lies."""
    if folder is None:
        return None
    from autoprune.recipes.source import DENSE

    return str((Path(folder) / DENSE).absolute())


def make_reward(reward: str, texts: Sequence[str] | None) -> str | Reward:
    """The reward of the command line: its name alone, or the function with options from ``--reward-set KEY=VALUE``."""
    from autoprune import reward as rewards

    found = rewards.find(reward)
    return rewards.find(rewards.configure(found, _pairs("--reward-set", texts))) if texts else reward


def make_exporter(name: str, texts: Sequence[str] | None) -> Exporter:
    """The exporter of the command line, with its options from ``--set KEY=VALUE``."""
    from autoprune import exporters

    return exporters.configure(name, read_pairs(texts))


def read_pairs(texts: Sequence[str] | None) -> dict[str, str]:
    """``--set KEY=VALUE`` as text by name."""
    return _pairs("--set", texts)


def pruned_network(scheme: Path, network: nn.Module) -> nn.Module:
    """The pruned network beside a scheme file, in the form of the dense ``network``."""
    from autoprune.pruned import TENSORS, load_pruned

    if not (scheme.parent / TENSORS).is_file():
        raise UserError(
            f"there is no {TENSORS} beside {scheme}: "
            "name a run that has finished, or a scheme that `autoprune apply` wrote"
        )
    return load_pruned(lambda: network, scheme.parent)


def _pairs(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for item in texts or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"{option} {item!r}: write KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


def scheme_path(source: str) -> Path:
    """The scheme file of a run, or the file itself."""
    from autoprune.run import SCHEME, Run

    if Path(source).is_file():
        return Path(source)
    path = Run.open(source).folder / SCHEME
    if not path.is_file():
        raise UserError(f"run {source} has no {SCHEME} yet: let it finish first")
    return path


def read_scheme(path: str, space: SearchSpace) -> Scheme:
    """The scheme in a .json or .csv file, checked against the space."""
    from autoprune.exporters import read

    return read(Path(path), space)


def read_point(source: str, point: int, space: SearchSpace) -> Scheme:
    """The scheme of a point of a run's front, checked against the space."""
    from autoprune.run import Run

    if Path(source).is_file():
        raise UserError(f"--point {point}: {source} is one scheme, points are of a run's front; name the run")
    scheme = Run.open(source).point(point)
    space.check(scheme)
    return scheme


def find_origin(
    source: str, model: str | None, weights: str | None, num_classes: int | None, shape: str | None, allow_code: bool
) -> tuple[Path, nn.Module, SearchSpace, Any]:
    """The scheme file, network, space and an example input behind a run or a file."""
    from autoprune.run import SCHEME, Run

    if Path(source).is_file():
        if model is None:
            raise UserError(f"{source}: name the network it was made for with --model")
        network = make_network(model, weights, num_classes, None, None)
        tell_weights(Path(source), network)
        example = make_example(model, shape)
        return Path(source), network, make_space(network, example, found_by=space_of(Path(source))), example
    run = Run.open(source)
    path = run.folder / SCHEME
    if not path.is_file():
        raise UserError(f"run {run.name} has no {SCHEME} yet: let it finish first")
    known = run.config.get("source") or {}
    spec = model or known.get("model")
    if spec is None:
        raise UserError(f"run {run.name} does not say which network it pruned: name it with --model")
    family = spec.partition(":")[0]
    if model is None and family not in ("autoprune", "torchvision", "timm") and not allow_code:
        raise UserError(f"run {run.name} names {spec!r}, which is code: say --allow-code to import it, or give --model")
    found_by = known.get("space")
    if found_by is not None and ":" in found_by.partition(",")[0] and not allow_code:
        raise UserError(f"run {run.name} names the space {found_by!r}, which is code: say --allow-code to import it")
    network = make_network(
        spec, weights or known.get("weights"), num_classes or known.get("num_classes"), run.folder.parent, None
    )
    tell_weights(path, network)
    shape = shape or "x".join(str(n) for n in known.get("input", [])) or None
    named = [known.get(key) for key in ("include", "exclude", "round_to", "rates", "tie")]
    example = make_example(spec, shape)
    return path, network, make_space(network, example, *named, found_by=found_by), example


def tell_weights(path: Path, network: nn.Module) -> None:
    """Warn of a scheme file that names the digest of other weights; other files name none."""
    from autoprune.exporters import scheme_file
    from autoprune.models import digest

    try:
        told = scheme_file.other_weights(path, digest(network))
    except UserError:  # no scheme file: whoever reads it says so, or knows what it is
        return
    if told:
        warnings.warn(told, stacklevel=2)
