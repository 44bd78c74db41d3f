"""Small search spaces and loss landscapes that need neither a network nor torch.

A space is written as a list of layers: what each reads and what it writes. A landscape is a reward
function over schemes. ``play`` is the smallest possible search loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from autoprune.budget import Budget
from autoprune.fidelity import FULL, Batch, Fidelity
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.space import Group, Layer, SearchSpace, Slice
from autoprune.trial import Measurement, Trial

Reward = Callable[[Scheme], float]


def units(count: int, per_unit: int = 1, start: int = 0) -> np.ndarray:
    """Positions of ``count`` units that lie one after the other, each ``per_unit`` entries long."""
    return start + np.arange(count * per_unit).reshape(count, per_unit)


def chain(
    widths: Sequence[int], *, pixels: Sequence[int] | int = 64, inputs: int = 3, classes: int = 10, step: int = 1
) -> SearchSpace:
    """Convolutions one after the other and a linear head; every width is a group: MACs are bilinear."""
    pixels = [pixels] * len(widths) if isinstance(pixels, int) else list(pixels)
    shapes: dict[str, tuple[int, ...]] = {}
    layers, groups = [], []
    for i, (width, size) in enumerate(zip(widths, pixels, strict=True)):
        before = widths[i - 1] if i else inputs
        shapes[f"conv{i}.weight"] = (width, before, 3, 3)
        shapes[f"bn{i}.weight"] = shapes[f"bn{i}.bias"] = (width,)
        layers.append(Layer(f"conv{i}", "conv", f"conv{i}.weight", size, kernel=3))
        after = f"conv{i + 1}" if i + 1 < len(widths) else "head"
        slices = (
            Slice(f"conv{i}", "weight", 0, "out", units(width)),
            Slice(f"bn{i}", "weight", 0, "through", units(width)),
            Slice(f"bn{i}", "bias", 0, "through", units(width)),
            Slice(after, "weight", 1, "in", units(width)),
        )
        groups.append(Group(f"conv{i}", width, slices, legal(width, step)))
    shapes["head.weight"], shapes["head.bias"] = (classes, widths[-1]), (classes,)
    layers.append(Layer("head", "linear", "head.weight", 1))
    return SearchSpace(tuple(groups), tuple(layers), shapes)


def resnet(blocks: int = 9) -> SearchSpace:
    """The inner widths of a CIFAR ResNet (ResNet-56 with 9 blocks a stage); the shortcuts are not cut."""
    shapes: dict[str, tuple[int, ...]] = {"stem.weight": (16, 3, 3, 3)}
    layers = [Layer("stem", "conv", "stem.weight", 32 * 32, kernel=3)]
    groups = []
    trunk = 16
    for stage, (width, size) in enumerate(((16, 32), (32, 16), (64, 8))):
        for block in range(blocks):
            first, second = f"s{stage}b{block}.conv1", f"s{stage}b{block}.conv2"
            shapes[f"{first}.weight"] = (width, trunk, 3, 3)
            shapes[f"{second}.weight"] = (width, width, 3, 3)
            layers += [Layer(name, "conv", f"{name}.weight", size * size, kernel=3) for name in (first, second)]
            slices = (
                Slice(first, "weight", 0, "out", units(width)),
                Slice(second, "weight", 1, "in", units(width)),
            )
            groups.append(Group(first, width, slices, legal(width)))
            trunk = width
    shapes["head.weight"] = (10, 64)
    layers.append(Layer("head", "linear", "head.weight", 1))
    return SearchSpace(tuple(groups), tuple(layers), shapes)


def mixed() -> SearchSpace:
    """What real networks add: a shared width, a grouped convolution, a concatenation and a flatten.

    ``a`` (8 channels) is written by two layers that are summed; a convolution in 2 groups reads it, so
    it leaves in units of two. Its output ``b`` (6) is concatenated behind ``c`` (5) for ``join``, whose
    output ``d`` (4 channels of 2 x 2 pixels) is flattened for ``head``.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "stem.weight": (8, 3, 3, 3),
        "side.weight": (8, 3, 1, 1),
        "split.weight": (6, 4, 3, 3),
        "other.weight": (5, 3, 1, 1),
        "join.weight": (4, 11, 1, 1),
        "join.bias": (4,),
        "head.weight": (10, 16),
        "head.bias": (10,),
    }
    layers = (
        Layer("stem", "conv", "stem.weight", 16, kernel=3),
        Layer("side", "conv", "side.weight", 16),
        Layer("split", "conv", "split.weight", 4, kernel=3, groups=2),
        Layer("other", "conv", "other.weight", 4),
        Layer("join", "conv", "join.weight", 4),
        Layer("head", "linear", "head.weight", 1),
    )
    pairs = np.stack([np.arange(4), np.arange(4) + 4], axis=1)  # unit u: channel u of both halves
    halves = np.stack([np.arange(3), np.arange(3) + 3], axis=1)
    groups = (
        Group(
            "stem",
            8,
            (
                Slice("stem", "weight", 0, "out", pairs),
                Slice("side", "weight", 0, "out", pairs),
                Slice("split", "weight", 1, "in", units(4)),
            ),
            (2, 4, 6, 8),
            unit=2,
        ),
        Group(
            "split",
            6,
            (Slice("split", "weight", 0, "out", halves), Slice("join", "weight", 1, "in", halves + 5)),
            (2, 4, 6),
            unit=2,
        ),
        Group(
            "other",
            5,
            (Slice("other", "weight", 0, "out", units(5)), Slice("join", "weight", 1, "in", units(5))),
            (1, 2, 3, 4, 5),
        ),
        Group(
            "join",
            4,
            (
                Slice("join", "weight", 0, "out", units(4)),
                Slice("join", "bias", 0, "through", units(4)),
                Slice("head", "weight", 1, "in", units(4, 4)),
            ),
            (1, 2, 3, 4),
        ),
    )
    return SearchSpace(groups, layers, shapes)


def sparse(levels: int = 12, m: int | None = None) -> SearchSpace:
    """The single weights of two convolutions and a head, any number of them, or n of ``m`` along the inputs."""
    shapes = {"a.weight": (6, 4, 3, 3), "a.bias": (6,), "b.weight": (8, 4, 1, 1), "head.weight": (10, 8)}
    layers = (
        Layer("a", "conv", "a.weight", 16, kernel=3),
        Layer("b", "conv", "b.weight", 64),
        Layer("head", "linear", "head.weight", 1),
    )
    groups = []
    for layer in layers:
        entries = math.prod(shapes[layer.weight])
        unit = 1 if m is None else entries // m
        counts = {max(1, entries * i // levels) for i in range(1, levels + 1)} if m is None else legal(entries, unit)
        groups.append(Group(layer.name, entries, (), tuple(sorted(counts)), unit, tensor=layer.weight))
    return SearchSpace(tuple(groups), layers, shapes, granularity="weight" if m is None else "n:m")


def legal(width: int, step: int = 1) -> tuple[int, ...]:
    """Every ``step``-th count, and the full width."""
    return tuple(sorted({*range(step, width + 1, step), width}))


def landscape(space: SearchSpace, seed: int, roughness: float = 0.01) -> Reward:
    """Minus a loss as pruning has it: cheap first channels, dear last ones, very unequal groups.

    Each group adds a convex damage of its removed fraction (sensitivities spread log-normally, about
    a factor of ten), damage in neighbouring groups multiplies, and each width is a little luckier or
    unluckier than its neighbours.
    """
    rng = np.random.default_rng(seed)
    sensitivity = rng.lognormal(0.0, 1.0, len(space)) / len(space)
    power = rng.uniform(1.5, 3.0, len(space))
    luck = [rng.normal(0.0, roughness, group.width + 1) for group in space.groups]

    def reward(scheme: Scheme) -> float:
        removed = 1 - space.rates(scheme)
        damage = sensitivity * (removed**power + 0.3 * removed / (1.05 - removed))
        rough = sum(chance[kept] * cut for chance, kept, cut in zip(luck, scheme.kept, removed, strict=True))
        together = float(np.sum(np.sqrt(damage[1:] * damage[:-1])))
        return -(0.3 + float(damage.sum()) + 0.5 * together + float(rough))

    return reward


def unit_scores(space: SearchSpace, seed: int = 0) -> Hints:
    """Hints with random scores, heavier in some groups than in others."""
    rng = np.random.default_rng(seed)
    return Hints(scores=tuple(rng.lognormal(rng.normal(), 1.0, group.units) for group in space.groups))


def answer(scheme: Scheme, reward: Reward, fidelity: Fidelity = FULL) -> Trial:
    """The trial of a scheme; a reward of minus infinity makes it a failed one.

    On a share of the images all rewards are shifted alike, and each is a little off.
    """
    value = reward(scheme)
    failed = value == -math.inf
    if not failed and not fidelity.full:
        chance = np.random.default_rng([*scheme.kept, round(1e6 * fidelity.share)])
        value -= 0.1 + chance.normal(0, 0.01) * math.sqrt(1 / fidelity.share - 1)
    measurement = Measurement(error="told to fail") if failed else Measurement(loss=-value)
    return Trial(scheme, measurement, value, fidelity)


def failing(rule: str, reward: Reward, dense: Scheme) -> Reward:
    """The reward with failures: of "all" schemes asked about, "every other", "the first ten" or "the dense one"."""
    asked = itertools.count()

    def partly(scheme: Scheme) -> float:
        at = next(asked)
        fails = {
            "all": True,
            "every other": at % 2 == 0,
            "the first ten": at < 10,
            "the dense one": scheme == dense,
        }
        return -math.inf if fails[rule] else reward(scheme)

    return partly


def batches(proposals: Proposals, reward: Reward) -> Iterator[list[Trial]]:
    """The trials of one batch after the other, until the searcher returns; closed with it."""
    try:
        batch = Batch.of(next(proposals))
        while True:
            answers = [answer(scheme, reward, batch.fidelity) for scheme in batch.schemes]
            yield answers
            batch = Batch.of(proposals.send(answers))
    except StopIteration:
        return
    finally:
        proposals.close()


def play(proposals: Proposals, reward: Reward, trials: int) -> list[Trial]:
    """Run a searcher until it returns or was told as much as ``trials`` full measurements."""
    told: list[Trial] = []
    with closing(batches(proposals, reward)) as answered:
        for batch in answered:
            told += batch
            if sum(trial.fidelity.share for trial in told) >= trials - 1e-9:
                break
    return told


def kept_by(trials: Sequence[Trial]) -> list[tuple[int, ...]]:
    """The counts of every trial."""
    return [trial.scheme.kept for trial in trials]


def is_full(budget: Budget, scheme: Scheme) -> bool:
    """Whether the scheme is affordable and no group can take one more legal step."""
    for g, group in enumerate(budget.space.groups):
        larger = [count for count in group.counts if count > scheme.kept[g]][:1]
        if any(budget.allows(scheme.replace(g, count)) for count in larger):
            return False
    return budget.allows(scheme)


def capped(space: SearchSpace, text: str) -> Budget:
    """A budget in words: a text of the command line, or one of the two extremes, "smallest" and "everything"."""
    if text == "everything":
        return Budget.parse("macs=100%", space)
    if text == "smallest":
        smallest, _ = Budget.parse("macs=100%", space).reachable()["macs"]
        return Budget.parse(f"macs={smallest}", space)
    return Budget.parse(text, space)


SPACES = {
    "chain": chain((8, 16, 12), pixels=(64, 16, 4)),
    "single group": chain((12,)),
    "units and sums": mixed(),
    "coarse counts": chain((16, 16, 16), step=8),
    "two counts": chain((2, 2), step=1),
    "weights": sparse(),
    "n of m": sparse(m=4),
}
"""What every searcher must cope with."""
BUDGETS = ("macs=60%", "macs=60%,params=50%", "smallest", "everything")
"""The budgets that go with them."""


def one_count() -> SearchSpace:
    """A chain whose middle group has no choice."""
    space = SPACES["chain"]
    first, middle, last = space.groups
    return replace(space, groups=(first, replace(middle, counts=(12,)), last))
