"""How long networks take: warmed up, interleaved, with their spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from autoprune.errors import UserError

WARM_UP = 3
REPEATS = 21
SHORTEST = 2e-4  # seconds: what takes less is called several times between two readings of the clock
NOISY = 0.1
SURE, LIMIT = 0.01, 20.0  # a standard error that is small enough to compare networks, and seconds to reach it in

Run = Callable[[], Any]
Clock = Callable[[Run], float]
"""Seconds that a call takes until its result is there."""


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of repeated measurements, in milliseconds."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """From single measurements in seconds."""
        low, median, high = (1e3 * float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
        return cls(median, low, high, len(seconds))

    @property
    def spread(self) -> float:
        """The interquartile range as a fraction of the median."""
        return (self.high - self.low) / self.median

    @property
    def error(self) -> float:
        """The standard error of the median as a fraction of it, if errors are normal: 1.253 sigma / sqrt(n)."""
        return 1.253 * self.spread / 1.349 / math.sqrt(self.repeats)

    def __str__(self) -> str:
        return f"{self.median:.3g} ms (quartiles {self.low:.3g}-{self.high:.3g})"

    def to_dict(self) -> dict[str, float]:
        """A JSON-ready record."""
        return asdict(self)


def measure(
    runs: Mapping[str, Run],
    clock: Clock,
    repeats: int = REPEATS,
    warm_up: int = WARM_UP,
    *,
    until: float | None = None,
    limit: float = LIMIT,
) -> dict[str, Timing]:
    """How long every run takes. Repeats are interleaved: a slow spell of the machine falls on all alike.

    With ``until`` it is repeated on, for at most ``limit`` seconds, until no median has a larger standard error
    (as a fraction of the median).
    """
    if repeats < 1:
        raise UserError(f"{repeats} repeats: at least 1 measurement is needed")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    numbers = dict.fromkeys(runs, 1)

    def take(turns: int) -> dict[str, Timing]:
        for _ in range(turns):
            for name, run in runs.items():
                seconds[name].append(clock(_several(run, numbers[name])) / numbers[name])
        return {name: Timing.of(values) for name, values in seconds.items()}

    with torch.inference_mode():
        for _ in range(warm_up):
            for name, run in runs.items():
                taken = clock(_several(run, numbers[name]))
                if taken < SHORTEST:
                    numbers[name] = math.ceil(numbers[name] * SHORTEST / max(taken, 1e-7))
        timings = take(repeats)
        once = sum(values[-1] * numbers[name] for name, values in seconds.items())
        left = int(limit / max(once, 1e-9)) - repeats
        while until is not None and left > 0 and max(timing.error for timing in timings.values()) > until:
            timings = take(min(repeats, left))
            left -= repeats
    return timings


def _several(run: Run, number: int) -> Run:
    if number == 1:
        return run

    def again() -> None:
        for _ in range(number):
            run()

    return again


def too_noisy(timings: Mapping[str, Timing]) -> str | None:
    """What to tell where the machine is too restless to say how long something takes; None where it is not."""
    name, worst = max(timings.items(), key=lambda item: item[1].spread)
    if worst.spread <= NOISY:
        return None
    return (
        f"the machine is too noisy to tell: half of the measurements of {name} lie {worst.spread:.0%} apart "
        f"({worst}); stop other work, give fewer --threads or more --repeats"
    )


def clock(device: torch.device) -> Clock:
    """The way to time a call on a device: events of its stream on CUDA, else the wall clock."""
    if device.type == "cuda":
        return partial(_events, torch.cuda.current_stream(device))
    if device.type == "mps":
        return _synchronised
    if device.type == "cpu":
        return _wall
    raise UserError(f"device {str(device)!r} has no clock here: use cpu, cuda or mps")


def _wall(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _synchronised(run: Run) -> float:
    torch.mps.synchronize()
    start = time.perf_counter()
    run()
    torch.mps.synchronize()
    return time.perf_counter() - start


def _events(stream: torch.cuda.Stream, run: Run) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record(stream)
    run()
    end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
