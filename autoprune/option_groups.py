"""Options that go together, as one value: what they say, and what that turns into.

A command names a group among its arguments, and :func:`spread` gives it the single options.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune import arguments, options

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from autoprune.latency.conditions import Conditions
    from autoprune.pool import Workers
    from autoprune.reward import Reward
    from autoprune.space import SearchSpace

Command = Callable[..., None]
G = typing.TypeVar("G")


def spread(command: Command) -> Command:
    """Replace every group among a command's arguments by its options."""
    hints = typing.get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}

    def given() -> Iterator[inspect.Parameter]:
        for parameter in inspect.signature(command).parameters.values():
            kind = hints[parameter.name]
            if parameter.name not in groups:
                yield parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
                continue
            inner = typing.get_type_hints(kind, include_extras=True)
            for one in inspect.signature(kind).parameters.values():
                yield one.replace(annotation=inner[one.name], kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(command)
    def single(**values: Any) -> None:
        made = {name: pick(kind, values) for name, kind in groups.items()}
        taken = {one.name for kind in groups.values() for one in fields(kind)}
        command(**made, **{name: value for name, value in values.items() if name not in taken})

    signature = inspect.Signature(list(given()))
    single.__signature__ = signature  # type: ignore[attr-defined] # what inspect looks at first
    single.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return single


def pick(kind: type[G], values: Mapping[str, Any]) -> G:
    """The group, with its options from among ``values``."""
    return kind(**{one.name: values[one.name] for one in fields(typing.cast(Any, kind))})


@dataclass(frozen=True)
class Network:
    """Which network, with which weights."""

    model: options.Model = "autoprune:digits"
    weights: options.Weights = None
    num_classes: options.Classes = None

    def load(self) -> nn.Module:
        """The network; where weights are not given, the factory's own."""
        return arguments.make_network(self.model, self.weights, self.num_classes, None, None)


@dataclass(frozen=True)
class Trained(Network):
    """The same, or one that was trained for any width."""

    weights_from: options.WeightsFrom = None
    allow_code: options.AllowCode = False


@dataclass(frozen=True)
class Images:
    """Which data, and how many images are for what."""

    data: options.Data = None
    calibration: options.Calibration = None
    validation: options.Validation = None
    data_seed: options.DataSeed = 0
    mean: options.Mean = None
    std: options.Std = None
    input_size: options.InputSize = None

    def load(self, model: str) -> Any:
        """The data; the embedded network brings its own."""
        return arguments.load_data(
            self.data, model, self.calibration, self.validation, self.data_seed, self.mean, self.std, self.input_size
        )


@dataclass(frozen=True)
class Caps:
    """What may be kept at most."""

    budget: options.Budgets = None
    sparsity: options.Sparsity = None

    def read(self, space: SearchSpace) -> list[str]:
        """The caps, or half."""
        return arguments.make_caps(self.budget, self.sparsity, space)


@dataclass(frozen=True)
class Repair:
    """How a candidate is made of the dense network, and how exactly it is looked at."""

    criterion: options.Criterion = None
    recovery: options.Recovery = None
    precision: options.Precision = "float32"


@dataclass(frozen=True)
class Scoring:
    """What a measurement is worth."""

    reward: options.Reward = "neg_loss"
    reward_settings: options.RewardSettings = None

    def read(self) -> str | Reward:
        """The reward, with its options."""
        return arguments.make_reward(self.reward, self.reward_settings)


@dataclass(frozen=True)
class Timing:
    """How networks are timed, and where."""

    device: options.Device = "cpu"
    batch_size: options.BatchSize = None
    threads: options.Threads = None
    dtype: options.Dtype = None
    memory_format: options.MemoryFormat = None
    backend: options.Backend = None

    @property
    def asked(self) -> bool:
        """Whether anything is not as usual."""
        return self.device != "cpu" or any(value is not None for value in self._known.values())

    @property
    def _known(self) -> dict[str, Any]:
        named = asdict(self)
        return {"batch": named["batch_size"]} | {
            name: named[name] for name in ("threads", "dtype", "memory_format", "backend")
        }

    def conditions(self) -> Conditions:
        """The conditions that measurements are taken under."""
        return arguments.make_conditions(self.device, **self._known)

    def read(self) -> dict[str, Any]:
        """The conditions as arguments of a search."""
        return arguments.make_timing(self.device, None, None, False, None, **self._known)


@dataclass(frozen=True)
class Predicted(Timing):
    """The same, for a search whose budget may speak of latency."""

    latency_table: options.LatencyTable = None
    latency_function: options.LatencyFunction = None
    strict: options.Strict = False

    def known(self, costs: list[str] | None) -> dict[str, Any]:
        """What is known of the device that must be fast, as arguments of a search, with costs of one's own."""
        return arguments.make_timing(
            self.device, self.latency_table, self.latency_function, self.strict, costs, **self._known
        )


@dataclass(frozen=True)
class Processes:
    """Who measures."""

    workers: options.NumWorkers = 1
    ray_address: options.RayAddress = None
    cpus_per_worker: options.Cpus = 1
    gpus_per_worker: options.Gpus = 0
    candidate_timeout: options.CandidateTimeout = None

    def read(self) -> Workers:
        """The workers that are asked for."""
        from autoprune.pool import Workers

        return Workers(
            self.workers, self.ray_address, self.cpus_per_worker, self.gpus_per_worker, self.candidate_timeout
        )


@dataclass(frozen=True)
class Narrowed:
    """Which groups may be cut, and how far."""

    include: options.Include = None
    exclude: options.Exclude = None
    round_to: options.RoundTo = None
    rates: options.Rates = None
    tie: options.Tie = None
    found_by: options.FoundBy = None

    @property
    def definer(self) -> str | None:
        """Who says what may be cut."""
        return self.found_by

    def space(self, network: nn.Module, example: Any, otherwise: str | None = None) -> SearchSpace:
        """The space of the network; ``otherwise`` defines it where the options do not say who does."""
        return arguments.make_space(network, example, *self.words, found_by=self.definer or otherwise)

    def source(self, network: Network, weights: str | None, example: Any) -> dict[str, Any]:
        """How a run says where its network and space come from."""
        return arguments.source(network.model, weights, network.num_classes, example, *self.words, self.definer)

    @property
    def words(self) -> tuple[list[str] | None, ...]:
        """The options of :func:`autoprune.arguments.make_space` in their order."""
        return self.include, self.exclude, self.round_to, self.rates, self.tie


@dataclass(frozen=True)
class Removed(Narrowed):
    """The same, and whether channels go or single weights."""

    granularity: options.Granularity = None
    pattern: options.Pattern = None
    levels: options.Levels = None

    @property
    def definer(self) -> str | None:
        """Who says what may be cut; for single weights that is known."""
        return arguments.find_space(self.found_by, self.granularity, self.pattern, self.levels)


@dataclass(frozen=True)
class Output:
    """How a command that leaves its result somewhere tells of it."""

    as_json: options.Json = False
    quiet: options.Quiet = False
    debug: options.Debug = False

    def console(self) -> Console:
        """Where it speaks while it works; standard output is for the JSON object alone."""
        from rich.console import Console

        return Console(stderr=self.as_json, quiet=self.quiet)

    def told(self, place: Path | str | None, record: Mapping[str, Any], kind: str = "folder") -> bool:
        """Tell a machine, or where the result is; False where a person wants to read more."""
        if self.as_json:
            print(json.dumps({kind: str(place), **record}))
        elif self.quiet:
            print(place)
        return self.as_json or self.quiet
