"""What parallel measuring costs and what it brings: overhead, speed-up, many nodes, waiting for the slowest.

    AUTOPRUNE_DATA=... python benchmarks/scale.py [overhead] [speedup] [nodes] [idle] [--most 32]

- overhead: seconds a candidate takes when measuring it takes none, in this process and with two workers.
- speedup: ResNet-56 on CIFAR-10, one worker and two in turns, each computing with one thread (needs AUTOPRUNE_DATA).
- nodes: Ray clusters of 1 to ``--most`` nodes, simulated on this machine, with candidates that take a second of sleep.
- idle: the share of their time that eight workers wait, because a batch ends when its last candidate has arrived, by
  the size of the batch and by how unequal the candidates are.

Without a name, all of them. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import heapq
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch

from autoprune import api, architectures, data, models
from autoprune.budget import Budget
from autoprune.fidelity import FULL, Fidelity
from autoprune.hints import Hints
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.pool import InProcess, Pool, Workers
from autoprune.problem import drive
from autoprune.ray_pool import RayPool
from autoprune.scheme import Scheme
from autoprune.searchers.random_rates import random_rates
from autoprune.trial import Measurement, Trial

NODES = (1, 2, 4, 8, 16, 32)
STORE = 80 * 2**20  # bytes of object store per simulated node; Ray wants 75 MiB at least
ROUNDS = 10  # candidates per worker and batch
WORKERS, MEAN = 8, 0.4  # of the idle share: workers, and seconds that a candidate takes
SPREADS = (0.1, 0.25, 0.5, 1.0)  # standard deviations of the logarithm of those seconds
BATCHES = (1, 2, 4, 10)  # candidates per worker


class Pretended:
    """What a pool needs of an evaluator, without a network: it sleeps, and makes a loss up."""

    def __init__(self, seconds: Callable[[Scheme], float]) -> None:
        self.seconds = seconds
        self.device = SimpleNamespace(type="cpu")
        self.threads = 1

    def prepare(self) -> None:
        """Nothing is known once."""

    def to(self, device: Any) -> Pretended:
        """It runs anywhere."""
        return self

    def __call__(self, scheme: Scheme, *, fidelity: Fidelity = FULL) -> Measurement:
        """Sleep as long as the scheme takes."""
        seconds = self.seconds(scheme)
        time.sleep(seconds)
        return Measurement(loss=float(np.dot(scheme.kept, np.sin(range(len(scheme))))), seconds={"total": seconds})


class Search:
    """Random widths of ResNet-56, recorded in a journal file as in every run."""

    def __init__(self) -> None:
        self.space = api.trace(architectures.resnet56(), torch.zeros(1, 3, 32, 32))
        self.budget = Budget.parse("macs=50%", self.space)

    def schemes(self, number: int, seed: int = 0) -> list[Scheme]:
        """The first proposals."""
        return next(random_rates(self.space, self.budget, seed=seed, hints=Hints(), batch=number))

    def run(self, pool: Pool, trials: int, batch: int, spent: dict[str, float] | None = None) -> list[float]:
        """When the search began and when every trial was admitted; in ``spent`` the seconds of ask and ledger."""
        times = [time.perf_counter()]

        def callback(trial: Trial, loop: Loop) -> bool:
            times.append(time.perf_counter())
            return False

        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder) / "ledger.jsonl", "scale", self.space.groups)
            searcher = random_rates(self.space, self.budget, seed=0, hints=Hints(), batch=batch)
            loop = Loop(searcher, self.budget, lambda m: -m.loss, ledger, Stop(trials, callback=callback))
            if spent is not None:
                loop.ask = clocked(loop.ask, "ask", spent)  # type: ignore[method-assign]
                ledger.append = clocked(ledger.append, "ledger", spent)  # type: ignore[method-assign]
            drive(loop, pool)
        return times


def clocked(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """The function, and what its calls take, summed up."""

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

    return timed


def overhead(search: Search, trials: int = 2000) -> None:
    """Milliseconds per candidate that takes no time."""
    print(f"\n{trials} candidates of {len(search.space)} groups that take no time, batches of 20, milliseconds each\n")
    print(
        "| measured | in all | ask | ledger | schedule | the first 400 | the last 400 |\n|---|---|---|---|---|---|---|"
    )
    nothing = Pretended(lambda scheme: 0.0)
    with started(2), RayPool(nothing, Workers(2)) as two:  # type: ignore[arg-type]
        for name, pool in (("in the process", InProcess(nothing)), ("2 workers", two)):  # type: ignore[arg-type]
            search.run(pool, 40, 20)
            spent: dict[str, float] = {}
            times = np.array(search.run(pool, trials, 20, spent)) * 1000
            whole = (times[-1] - times[0]) / trials
            ask, ledger = (spent[part] * 1000 / trials for part in ("ask", "ledger"))
            first, last = (times[400] - times[0]) / 400, (times[-1] - times[-401]) / 400
            figures = (whole, ask, ledger, whole - ask - ledger, first, last)
            print(f"| {name} | {' | '.join(f'{figure:.2f}' for figure in figures)} |", flush=True)


def speedup(search: Search, candidates: int = 16, repeats: int = 3) -> None:
    """Two workers against one on real measurements."""
    folder = Path(os.environ["AUTOPRUNE_DATA"])
    splits = data.load(f"imagefolder:{folder / 'cifar10-jpeg.tar.xz'}")
    network = models.load("autoprune:resnet56", folder / "resnet56-cifar10-jpeg.pt").eval()
    problem = api.problem(
        network, torch.zeros(1, 3, 32, 32), splits.calibration, splits.validation, budget="macs=50%", space=search.space
    )
    print(f"\nResNet-56, {candidates} candidates with 2,048 + 2,048 images, load {os.getloadavg()[0]:.1f} before\n")
    print("| turn | one worker, s | two workers, s | ratio |\n|---|---|---|---|")
    ratios, seconds = [], []
    with started(2), problem.pool(Workers(1, cpus=0.5)) as one, problem.pool(Workers(2, cpus=0.5)) as two:
        for pool in (one, two):
            list(pool.measure(search.schemes(2, seed=1), FULL))
        for turn in range(repeats):
            took = []
            for pool in (one, two) if turn % 2 == 0 else (two, one):
                began = time.perf_counter()
                found = [measured for _, measured in pool.measure(search.schemes(candidates), FULL)]
                took.append(time.perf_counter() - began)
                if pool is one:
                    seconds += [measured.seconds["total"] for measured in found]
            took = took if turn % 2 == 0 else took[::-1]
            ratios.append(took[0] / took[1])
            print(f"| {turn + 1} | {took[0]:.1f} | {took[1]:.1f} | {ratios[-1]:.2f} |", flush=True)
    spread = statistics.stdev(np.log(seconds))
    print(
        f"\nspeed-up {statistics.median(ratios):.2f} (median); a candidate takes {statistics.mean(seconds):.2f} s, the "
        f"standard deviation of its logarithm is {spread:.2f}"
    )


def nodes(search: Search, most: int) -> None:
    """Efficiency on clusters that are simulated: a node has one CPU on paper, one worker, and sleeping candidates."""
    from ray.cluster_utils import Cluster

    print(f"\ncandidates that take 1 s, two batches of {ROUNDS} candidates per node\n")
    print("| nodes | candidates | seconds | ideal | efficiency | workers ready after, s |\n|---|---|---|---|---|---|")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    ray.init(address=cluster.address, **quiet)
    try:
        for count in [count for count in NODES if count <= most]:
            while len(cluster.worker_nodes) < count:
                cluster.add_node(num_cpus=1, object_store_memory=STORE)
            began = time.perf_counter()
            with RayPool(Pretended(lambda scheme: 1.0), Workers(count)) as pool:  # type: ignore[arg-type]
                while len(pool._idle) < count:  # noqa: SLF001 - the start of workers is not what is timed
                    list(pool.measure(search.schemes(count), FULL))
                ready = time.perf_counter() - began
                trials = 2 * ROUNDS * count
                times = search.run(pool, trials, ROUNDS * count)
            took, ideal = times[-1] - times[0], trials / count
            print(f"| {count} | {trials} | {took:.1f} | {ideal:.1f} | {ideal / took:.1%} | {ready:.0f} |", flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


def idle(search: Search) -> None:
    """How long workers wait for the slowest candidate of a batch, simulated and with Ray."""
    print(
        f"\n{WORKERS} workers, candidates of {MEAN} s on average (lognormal): share of their time that workers wait\n"
    )
    head = " | ".join(f"batch = {size} × workers" for size in BATCHES)
    print(f"| spread | how | {head} |\n|---|---|{'---|' * len(BATCHES)}")
    with started(WORKERS):
        for spread in SPREADS:
            shares = [waiting(spread, WORKERS * size) for size in BATCHES]
            print(f"| {spread} | simulated | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
            takes = lasting(spread)
            with RayPool(Pretended(takes), Workers(WORKERS)) as pool:  # type: ignore[arg-type]
                while len(pool._idle) < WORKERS:  # noqa: SLF001 - as above
                    list(pool.measure(search.schemes(WORKERS), FULL))
                shares = []
                for size in BATCHES:
                    trials = WORKERS * 20
                    times = search.run(pool, trials, WORKERS * size)
                    busy = sum(takes(scheme) for scheme in proposals(search, trials, WORKERS * size))
                    shares.append(1 - busy / WORKERS / (times[-1] - times[0]))
            print(f"| {spread} | measured | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


def lasting(spread: float) -> Callable[[Scheme], float]:
    """Seconds by scheme: lognormal, with mean ``MEAN``, the same for a scheme whenever it is measured."""

    def seconds(scheme: Scheme) -> float:
        rng = np.random.default_rng(scheme.kept)
        return float(MEAN * rng.lognormal(-(spread**2) / 2, spread))

    return seconds


def proposals(search: Search, trials: int, batch: int) -> list[Scheme]:
    """What a search of so many trials measures."""
    searcher = random_rates(search.space, search.budget, seed=0, hints=Hints(), batch=batch)
    found: dict[Scheme, None] = {}
    while len(found) < trials:
        found |= dict.fromkeys(next(searcher))
    return list(found)[:trials]


def waiting(spread: float, batch: int, batches: int = 2000) -> float:
    """The idle share where scheduling takes no time: whoever is free takes the next candidate of the batch."""
    rng = np.random.default_rng(0)
    busy = whole = 0.0
    for _ in range(batches):
        seconds: Sequence[float] = rng.lognormal(-(spread**2) / 2, spread, batch)
        free = [0.0] * WORKERS
        for lasts in seconds:
            heapq.heapreplace(free, free[0] + lasts)
        busy, whole = busy + sum(seconds), whole + WORKERS * max(free)
    return 1 - busy / whole


@contextmanager
def started(cpus: int) -> Iterator[None]:
    """A Ray of this process that believes in so many CPUs."""
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def main() -> None:
    """Measure what was asked for, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="overhead, speedup, nodes, idle")
    parser.add_argument("--most", type=int, default=NODES[-1], help="simulated nodes at most")
    given = parser.parse_args()
    parts = {"overhead": overhead, "speedup": speedup, "nodes": lambda s: nodes(s, given.most), "idle": idle}
    if unknown := set(given.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(parts)}")
    wanted = given.parts or list(parts)
    if "speedup" in wanted and "AUTOPRUNE_DATA" not in os.environ:
        raise SystemExit("set AUTOPRUNE_DATA to the folder that holds the archives, or leave speedup out")
    search = Search()
    for name in wanted:
        parts[name](search)


if __name__ == "__main__":
    main()
