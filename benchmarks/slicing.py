"""Time to make one candidate: our slicing beside Torch-Pruning, ResNet-56 cut to about half of its multiply-adds.

Both make the same network, one after the other in the same run, so that a busy machine slows down both. Ours
is `prune` with the units given; theirs is what a loop over candidates does, a deep copy and a `BasePruner` step.

    python benchmarks/slicing.py [--rounds 25]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch_pruning
from torch import nn

from autoprune.architectures import resnet56
from autoprune.search_spaces.traced import trace
from autoprune.slicing import choose, named_tensors, prune
from autoprune.space import SearchSpace

ROUNDS = 25
TARGET = 5.0


def theirs(model: nn.Module, example: torch.Tensor, cut: set[str]) -> nn.Module:
    """The candidate as Torch-Pruning makes it: half of the filters with the smallest L1 norm go."""
    candidate = copy.deepcopy(model)
    whole = [m for name, m in candidate.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and name not in cut]
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    torch_pruning.pruner.BasePruner(candidate, example, importance, pruning_ratio=0.5, ignored_layers=whole).step()
    return candidate


def ours(model: nn.Module, space: SearchSpace, norms: list[np.ndarray]) -> nn.Module:
    """The same candidate by index selection."""
    return prune(model, space, choose(space, space.floor([0.5] * len(space)), norms))


def seconds(make: Callable[[], nn.Module]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    make()
    return time.perf_counter() - start


def main() -> None:
    """Print the median times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each is taken, in turns")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, example = resnet56().eval(), torch.randn(1, 3, 32, 32)
    space = trace(model, example)
    norms = [model.get_submodule(g.name).weight.detach().abs().sum((1, 2, 3)).double().numpy() for g in space.groups]
    cut = {group.name for group in space.groups}

    def by_torch_pruning() -> nn.Module:
        return theirs(model, example, cut)

    def by_autoprune() -> nn.Module:
        return ours(model, space, norms)

    shapes = [{path: tuple(t.shape) for path, t in named_tensors(make())} for make in (by_torch_pruning, by_autoprune)]
    if shapes[0] != shapes[1]:
        raise SystemExit("the two candidates differ in shape: nothing to compare")
    times: dict[str, list[float]] = {"Torch-Pruning": [], "autoprune": []}
    for _ in range(rounds):
        times["Torch-Pruning"].append(seconds(by_torch_pruning))
        times["autoprune"].append(seconds(by_autoprune))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:<14} {1000 * value:7.1f} ms per candidate")
    ratio = median["Torch-Pruning"] / median["autoprune"]
    print(f"ratio          {ratio:7.1f} (target: at least {TARGET:.0f})")


if __name__ == "__main__":
    main()
