"""Sequential reconstruction: solve layer after layer, each from what the pruned network feeds it by then.

Least squares on Gram matrices of the dense network assumes that a layer's remaining inputs are right. In a pruned
network they are not, and the errors grow with depth. Here the calibration images walk once through the candidate; when
they reach a layer, it is solved by ridge regression from the inputs that it really gets to what the dense network
computes there, and the walk goes on with the new weights (He, Zhang and Sun, ICCV 2017, section 3.2, for whole
networks). Where the layer completes a residual sum, the target is the dense network's sum minus the candidate's own
shortcut, so that errors of the trunk are repaired too. Where rectifiers alone read the layer, what they cut off need
not be right (in the spirit of Zhang, Zou, He and Sun, TPAMI 2016, who reconstruct what comes behind the ReLU).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune import patches
from autoprune.errors import UserError
from autoprune.forward import call, evaluating, to
from autoprune.fused import Fused
from autoprune.pairs import Pair, Part
from autoprune.patches import WeightLayer
from autoprune.recover import Context
from autoprune.rectifiers import Clip
from autoprune.ridge import Moments, Rows, System, collected, precise, scarcity
from autoprune.slicing import named_tensors, selections
from autoprune.statistics import StatisticsNotice
from autoprune.sums import Operator, Operators, Sum
from autoprune.targets import CHUNK, Sampling, Targets, flat, joined, record

IMAGES, ROWS = 1024, 16
RIDGE = 1e-2  # of the mean variance of a layer's inputs, toward the weights that it has
ROUNDS = 3  # of solutions for what rectifiers read
EXACT = 1e-4  # of the target's root mean square: such a layer needs no repair


def sequential(
    candidate: nn.Module,
    context: Context,
    ridge: float = RIDGE,
    images: int = IMAGES,
    rounds: int = ROUNDS,
    sweeps: int = 0,
    sampling: Sampling | None = None,
) -> None:
    """Repair every layer behind the first cut, in forward order, in one pass over the calibration images.

    With X the candidate's inputs at sampled positions and T the target, both centred where the layer has a bias or
    feeds a batch norm, W <- W + (X'X + r I)^-1 X'(T - X W), r = ``ridge`` x mean diagonal of X'X. A batch norm that
    alone reads a solved layer gets the statistics of the new output, and the scale and shift with which it gives the
    solution itself, so recalibrating it later changes next to nothing; any other batch norm is recalibrated on the way.
    Layers that give their target as they are, such as all before the first cut, are left alone with their batch norms.

    A target t that a rectifier cuts off may be missed on its side: for a ReLU the squared error of an answer y is
    max(y, 0)^2 where t <= 0. That is convex, and each of ``rounds`` further solutions, toward min(y, 0) there, lowers
    it (by majorisation: the matrix stays the same, so it is factored once). With none, plain least squares is left.

    With ``sweeps``, two layers that have nothing but a rectifier between them are solved in turn, as often, for what
    the second should give (:mod:`autoprune.pairs`). That takes several times as long, and is better.

    At most ``images`` pass, as one batch, and 16 rows of each are solved from, unless a ``sampling`` says otherwise.
    Memory is bounded by the sampling, and by one matrix of ``Statistics.gram_limit``.
    What the dense network gives is recorded once and kept in ``context.remembered``. On a share of the images (a look
    at lower fidelity) no fewer than two are used.
    """
    if context.space.granularity != "channel":
        raise UserError(
            f"recovery sequential repairs networks that lost channels; it does not know {context.space.granularity!r} "
            "granularity: use recalibrate_bn"
        )
    for name, count in (("rounds", rounds), ("sweeps", sweeps)):
        if count < 0:
            raise UserError(f"{name} = {count}: 0 (none) or more are needed")
    walk(candidate, context, ridge, sampling or Sampling(images, ROWS * images), rounds, sweeps)


def walk(
    candidate: nn.Module,
    context: Context,
    ridge: float,
    sampling: Sampling,
    rounds: int = 0,
    sweeps: int = 0,
    settle: Settle | None = None,
) -> None:
    """Walk through the candidate once and repair its layers, as :func:`sequential` says.

    ``settle`` says by weight path what else becomes of a solution: it is given the weights, in the scale of the batch
    norm behind the layer if there is one, and the matrix H of what a change of them costs, and gives back other
    weights. Layers that it names are solved even where they give their target as they are.
    """
    if not (math.isfinite(ridge) and ridge > 0):
        raise UserError(f"ridge = {ridge}: a positive number is needed")
    targets = _targets(context, sampling)
    example, images = joined(context.batches, max(2, math.ceil(context.share * targets.images)))
    state = _Walk(candidate, context, targets, sampling, ridge, images, rounds, sweeps, settle or {})
    with torch.no_grad(), evaluating(candidate), ExitStack() as hooks:
        for path in targets.layers:
            layer = candidate.get_submodule(path.rpartition(".")[0])
            hooks.enter_context(layer.register_forward_pre_hook(partial(state.solve, path)))
        for name, norm in candidate.named_modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None and name not in state.followed:
                hooks.enter_context(norm.register_forward_pre_hook(state.recalibrate))
        hooks.enter_context(state.operators)
        call(candidate, to(example, next(candidate.parameters()).device))
    state.tell()


def _targets(context: Context, sampling: Sampling) -> Targets:
    """Those that are remembered, if they are of this model and sampling; recorded now otherwise."""
    known = context.remembered.get(sampling)
    if not isinstance(known, Targets) or known.model is not context.model:
        known = record(context.model, context.statistics, context.batches, sampling)
        context.remembered[sampling] = known
    return known


Settle = Mapping[str, Callable[[Tensor, Tensor], Tensor]]


class _Walk:
    """The state of one pass through a candidate."""

    def __init__(
        self,
        candidate: nn.Module,
        context: Context,
        targets: Targets,
        sampling: Sampling,
        ridge: float,
        images: int,
        rounds: int,
        sweeps: int,
        settle: Settle,
    ) -> None:
        self.memory = sampling.memory
        self.rounds = rounds
        self.sweeps = sweeps
        self.settle = settle
        self.candidate = candidate
        self.targets = targets.layers
        self.ridge = ridge
        self.images = images
        self.operators = Operators(self._hold)
        self.followed = {target.norm for target in targets.layers.values()}
        shapes = {path: tensor.shape for path, tensor in named_tensors(context.model)}
        self._chosen = selections(context.space, context.kept, shapes)
        self._waiting = Counter(t.sum.shortcut for t in targets.layers.values() if t.sum is not None)
        self._held: dict[int, Operator] = {}  # what makes shortcuts, until nobody waits for them any more
        befores = {target.before for target in targets.layers.values() if target.before in targets.layers}
        self._firsts = befores if sweeps else set()
        self._read: dict[str, tuple[Tensor, Moments | None]] = {}  # of first layers of pairs, until the second runs
        self._scarce: dict[str, tuple[int, int]] = {}  # rows and columns
        self._lost: list[str] = []

    def _hold(self, operator: Operator) -> None:
        if operator.number in self._waiting:
            self._held[operator.number] = operator

    def _shortcut(self, known: Sum, length: int) -> Tensor | None:
        """What the layer's output will be added to; None if the candidate does not run as the dense network does."""
        made = self._held.get(known.shortcut)
        self._waiting[known.shortcut] -= 1
        if not self._waiting[known.shortcut]:
            self._held.pop(known.shortcut, None)
        if made is None or made.name != known.operator or len(made.outputs[known.place]) != length:
            return None
        return made.outputs[known.place]

    def recalibrate(self, norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        """The statistics of what it is about to read."""
        assert norm.running_mean is not None and norm.running_var is not None
        with self.operators.silent():
            x = inputs[0].transpose(0, 1).flatten(1)
            if x.shape[1] > 1:
                variance, mean = torch.var_mean(x, 1)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)

    def solve(self, path: str, layer: WeightLayer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Give the layer new weights, right before it runs, and perhaps something else to read."""
        with self.operators.silent():
            target = self.targets[path]
            read = self._read.pop(target.before, None) if target.before else None
            shortcut = None
            if target.sum is not None:
                shortcut = self._shortcut(target.sum, len(inputs[0]))
                if shortcut is None:
                    self._lost.append(path)
                    return None
            moments = self._solve(path, layer, inputs[0], shortcut)
            if path in self._firsts:
                self._read[path] = inputs[0], moments
            if moments is None or read is None:
                return None
            hidden = self._pair(path, layer, *read, shortcut)
            self._solve(path, layer, hidden, shortcut)
            return hidden, *inputs[1:]

    def _solve(self, path: str, layer: WeightLayer, x: Tensor, shortcut: Tensor | None) -> Moments | None:
        """Give the layer new weights for what it reads; None if those that it has are exact."""
        target = self.targets[path]
        fused = self._fused(path, layer)
        weight, constant = fused.read()
        every: Callable[[], Iterator[Rows]] = partial(self._rows, path, layer, x, shortcut)
        chunks = every()
        first = next(chunks)
        if path not in self.settle and _exact(first, weight, constant):
            return None
        chunks = chain([first], chunks)
        if target.clip is not None and self._fits(first, len(target.values)):
            every = list(chunks).__iter__  # gathered once for all rounds
            chunks = every()
        moments = collected(chunks, centred=fused.centred)
        if not torch.isfinite(moments.cross).all() or not torch.isfinite(moments.square).all():
            raise UserError(
                f"{path}: what the candidate feeds this layer is not finite; look for broken weights before it"
            )
        system = System(moments.square, weight, self._damping(path, moments))
        solved = system.solution(moments)
        if target.clip is not None:
            for _ in range(self.rounds):
                moments.aim(_aimed(every(), solved, moments.constant(solved), target.clip))
                solved = system.solution(moments)
        if path in self.settle:
            settled = self.settle[path](solved.mT.reshape(layer.weight.shape), system.square)
            solved = settled.reshape(weight.mT.shape).mT
        fused.write(moments, solved)
        return moments

    def _pair(
        self, path: str, second: WeightLayer, read: Tensor, moments: Moments | None, shortcut: Tensor | None
    ) -> Tensor:
        """Solve a pair in turn. The first layer keeps what comes of it; given back is what the second reads then."""
        before = self.targets[path].before
        assert before is not None
        layer, clip = self.candidate.get_submodule(before.rpartition(".")[0]), self.targets[before].clip
        assert patches.has_rows(layer) and clip is not None
        both = first, behind = self._fused(before, layer), self._fused(path, second)
        if moments is None:
            moments = collected(self._rows(before, layer, read, None), centred=first.centred)
        parts = list(self._parts(path, layer, second, read, shortcut))
        pair = Pair(parts, moments, clip, self.targets[path].clip, both)
        ridge = self.ridge * scarcity(pair.rows, behind.columns)
        (weight, constant), _ = pair.solve(first.read(), behind.read(), ridge, self.sweeps)
        moments.target = moments.mean @ weight + constant
        first.write(moments, weight)
        return clip(first.answers(read))

    def _parts(
        self, path: str, first: WeightLayer, second: WeightLayer, read: Tensor, shortcut: Tensor | None
    ) -> Iterator[Part]:
        """What a pair is solved from, as far as there is memory for it, but one chunk at least."""
        size, taken = patches.output_size(first, read), 0
        for images, places, wanted in self._wanted(path, second, read, shortcut):
            spots, reads = patches.spots(second, size, places)
            rows = precise(Rows(patches.rows(first, read[images], spots), wanted))
            taken += rows.x.numel() * rows.x.element_size()
            if taken > self.memory and images.start:
                return
            yield Part(rows.x, len(spots), reads.to(rows.x.device), rows.target)

    def _fused(self, path: str, layer: WeightLayer) -> Fused:
        norm = self.targets[path].norm
        behind = None if norm is None else self.candidate.get_submodule(norm)
        assert behind is None or isinstance(behind, _BatchNorm)
        return Fused(layer, behind)

    def _rows(self, path: str, layer: WeightLayer, x: Tensor, shortcut: Tensor | None) -> Iterator[Rows]:
        """What goes in and what should come out, chunk by chunk."""
        for images, places, wanted in self._wanted(path, layer, x, shortcut):
            yield Rows(patches.rows(layer, x[images], places), wanted)

    def _wanted(
        self, path: str, layer: WeightLayer, x: Tensor, shortcut: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Chunks of ``x``, the positions where the layer's output is looked at, and what should come out there."""
        target = self.targets[path]
        kept = self._chosen.get(path, {}).get(0)
        groups = int(getattr(layer, "groups", 1))
        # where the first axis counts more than images (windows, say), an image's entries follow each other
        each = len(x) // self.images
        for number, (values, places) in enumerate(zip(target.values, target.places, strict=True)):
            images = slice(number * CHUNK * each, (number + 1) * CHUNK * each)
            if not len(x[images]):
                return
            wanted = values[: len(x[images]) * len(places)].to(x.device)
            wanted = wanted if kept is None else wanted[:, kept.to(x.device)]
            if shortcut is not None:
                wanted = wanted - flat(patches.answers(layer, shortcut[images], places))
            yield images, places, wanted.unflatten(1, (groups, -1)).permute(1, 0, 2)

    def _fits(self, rows: Rows, chunks: int) -> bool:
        """Whether there is memory for so many chunks."""
        return chunks * rows.x.numel() * rows.x.element_size() <= self.memory

    def _damping(self, path: str, moments: Moments) -> float:
        """The ridge, raised where there are few rows."""
        columns = moments.square.shape[-1]
        if moments.count <= columns:
            self._scarce[path] = moments.count, columns
        return self.ridge * scarcity(moments.count, columns)

    def tell(self) -> None:
        """Warn of what went less than well."""
        if self._scarce:
            path, (rows, columns) = next(iter(self._scarce.items()))
            more = f" (and {len(self._scarce) - 1} more layers)" if len(self._scarce) > 1 else ""
            warnings.warn(
                f"{path}: {rows} calibration rows have rank {rows} at most, {columns} are needed{more}; the ridge is "
                "raised in proportion, give more calibration images",
                StatisticsNotice,
                stacklevel=4,
            )
        if self._lost:
            warnings.warn(
                f"{', '.join(self._lost[:3])}: the candidate does not run as the dense network does, so the residual "
                "sum is not found; the layer keeps its weights",
                StatisticsNotice,
                stacklevel=4,
            )


def _aimed(rows: Iterator[Rows], solved: Tensor, constant: Tensor, clip: Clip) -> Iterator[Rows]:
    """The rows, with the targets that answers of this solution should have."""
    for x, target in map(precise, rows):
        yield Rows(x, clip.aim(x @ solved.to(x.dtype) + constant.to(x.dtype), target))


def _exact(rows: Rows, weight: Tensor, offset: Tensor) -> bool:
    """Whether the weights give the target as they are."""
    gap = rows.x.double() @ weight + offset - rows.target
    return bool(gap.square().mean() <= EXACT**2 * rows.target.double().square().mean())
