"""Targets: what the dense network computes at sampled positions, for every layer that can be solved anew.

They are recorded once and serve every candidate. A layer that a batch norm alone reads is recorded behind it, and a
layer that completes a residual sum is recorded by that sum (:mod:`autoprune.sums`).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from autoprune import gram, patches, sums
from autoprune.errors import UserError
from autoprune.forward import Example, batch_size, call, evaluating, to
from autoprune.patches import WeightLayer
from autoprune.rectifiers import Clip
from autoprune.statistics import Batches, Statistics, StatisticsNotice
from autoprune.sums import Operator, Operators, Sum

CHUNK = 128  # images whose rows are taken together, at positions of their own


@dataclass(frozen=True)
class Sampling:
    """How much is recorded: ``rows`` per layer from at most ``images``, within two bounds in bytes.

    ``memory`` bounds the recorded targets: rows are left out. ``activations`` bounds what a candidate's pass needs,
    taken as twice the tensors of the largest operator: images are left out. At least two images are used.
    """

    images: int = 1024
    rows: int = 16384
    memory: int = 2**30
    activations: int = 2**31

    def __post_init__(self) -> None:
        for name in ("images", "rows", "memory", "activations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: reconstruction needs at least 1")


@dataclass(frozen=True, eq=False)
class Target:
    """What one layer should give.

    ``values`` has one tensor (images x positions, outputs) per chunk of images, image by image, and ``places`` the
    positions of each chunk. They are outputs of ``norm``, the batch norm that alone reads the layer, where there is
    one, and of the layer otherwise. Where ``sum`` is known the values are the sum's instead. Where ``clip`` is known,
    rectifiers alone read the values. ``before`` is the layer whose rectified output this layer alone reads, if there is
    nothing else between them.
    """

    norm: str | None
    sum: Sum | None
    clip: Clip | None
    before: str | None
    values: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of one network by weight path, taken from the first ``images`` calibration images."""

    model: nn.Module
    images: int
    layers: Mapping[str, Target]


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Factor and constant, per channel, of a batch norm that normalises by its running statistics."""
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if not norm.affine:
        return factor, -factor * norm.running_mean.double()
    factor = factor * norm.weight.detach().double()
    return factor, norm.bias.detach().double() - factor * norm.running_mean.double()


def joined(batches: Batches, images: int) -> tuple[Example, int]:
    """The first ``images`` samples as one example, and how many there are.

    Batches whose samples have another shape than the first's end the set.
    """
    parts: list[Any] = []
    shapes: list[Any] = []
    found = 0
    for inputs, _ in batches:
        size = batch_size(inputs)
        shape = [leaf.shape[1:] if _counts(leaf, size) else None for leaf in tree_leaves(inputs)]
        if found >= images or (parts and shape != shapes):
            break
        shapes, left = shape, images - found
        parts.append(tree_map(lambda leaf, size=size, left=left: leaf[:left] if _counts(leaf, size) else leaf, inputs))
        found += min(size, left)
    return tree_map(lambda *same: torch.cat(same) if _counts(same[0], batch_size(parts[0])) else same[0], *parts), found


def _counts(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size


def _part(example: Example, size: int, start: int) -> Example:
    """A chunk of the example, which holds ``size`` samples."""
    stop = start + CHUNK
    return tree_map(lambda leaf: leaf[start:stop] if _counts(leaf, size) else leaf, example)  # type: ignore[no-any-return]


def record(model: nn.Module, statistics: Statistics, batches: Batches, sampling: Sampling) -> Targets:
    """Run the dense network twice on a few images, to learn its course, and once on all, to record.

    Recorded are convolution and linear layers that run once as a module on inputs whose first axis counts images (or
    windows of them), that share no parameter, whose output is their weight times their rows, and whose Gram matrix is
    within ``statistics.gram_limit``. A notice names the readers of cut channels that are not among them.
    """
    device = next(model.parameters()).device
    few = to(joined(batches, 2)[0], device)
    layers = _candidates(model, statistics.gram_limit)
    norms = gram.norms_behind(model, layers, few)
    modules = dict(model.named_modules())
    exact = _affine_norms(model, {path: modules[name] for path, name in norms.items()}, few)
    ends = {path: (layer, modules[norms[path]] if path in norms else layer) for path, layer in layers.items()}
    course = sums.follow(model, ends, few)
    once = {path: layer for path, layer in layers.items() if course.runs[path] == 1}
    samples = batch_size(few)
    rows = sampling.memory // max(1, 4 * sum(len(layer.weight) for layer in once.values()))
    bound = min(sampling.images, rows, sampling.activations * samples // (2 * course.largest))
    example, images = joined(batches, max(2, bound))
    plain = {path for path in once if path not in norms or norms[path] in exact}  # what is read is what is recorded
    before = {
        second: first for second, first in course.pairs.items() if first in plain and _alike(layers, first, second)
    }
    found = {
        path: Target(norms.get(path), course.sums.get(path), course.clips.get(path), before.get(path))
        if path in plain
        else Target(norms.get(path), None, None, before.get(path))
        for path in once
    }
    recorder = _Recorder(model, once, found, max(1, min(sampling.rows, rows) // images), statistics.seed)
    for start in range(0, images, CHUNK):
        count = min(CHUNK, images - start)
        fitting = {path for path in once if course.lengths[path] * count % samples == 0}
        recorder.take(
            to(_part(example, images, start), device),
            {path: course.lengths[path] * count // samples for path in fitting},
        )
    known = {path: target for path, target in found.items() if path not in recorder.strange and target.values}
    _tell(statistics, known)
    return Targets(model, images, known)


def _alike(layers: Mapping[str, WeightLayer], *paths: str) -> bool:
    """Whether the positions of one layer's output are those of another's input."""
    return len({len(getattr(layers[path], "kernel_size", ())) for path in paths}) == 1


def _candidates(model: nn.Module, gram_limit: int) -> dict[str, WeightLayer]:
    """Layers by weight path that share no parameter and whose Gram matrix is small enough."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return {
        f"{name}.weight" if name else "weight": layer
        for name, layer in model.named_modules()
        if patches.has_rows(layer)
        and layer._parameters.get("weight") is not None
        and all(owners[id(p)] == 1 for p in layer._parameters.values() if p is not None)
        and 8 * layer.weight[0].numel() ** 2 * int(getattr(layer, "groups", 1)) <= gram_limit
    }


def _affine_norms(model: nn.Module, norms: Mapping[str, nn.Module], example: Example) -> set[str]:
    """Names of the batch norms that only scale and shift; some activate too (timm's ``BatchNormAct2d``)."""
    names = {id(module): name for name, module in model.named_modules()}
    found: set[str] = set()

    def compare(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        factor, constant = (v.reshape(-1, *[1] * (output.dim() - 2)) for v in affine(norm))
        if gram.close(factor * inputs[0].double() + constant, output.double()):
            found.add(names[id(norm)])

    with torch.no_grad(), evaluating(model), ExitStack() as hooks:
        for norm in norms.values():
            hooks.enter_context(norm.register_forward_hook(compare))
        call(model, example)
    return found


class _Recorder:
    """Takes the targets from one chunk of images after the other."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, WeightLayer],
        targets: Mapping[str, Target],
        positions: int,
        seed: int,
    ) -> None:
        self.model = model
        self.layers = layers
        self.targets = targets
        self.positions = positions
        self.generator = torch.Generator().manual_seed(seed)
        self.strange: set[str] = set()
        self.totals = {target.sum.total: path for path, target in targets.items() if target.sum is not None}

    def take(self, example: Example, lengths: Mapping[str, int]) -> None:
        """One chunk; ``lengths`` are those of the layers' inputs along the first axis, if that counts images."""
        operators = Operators(self._total)
        with torch.no_grad(), evaluating(self.model), ExitStack() as hooks:
            for path, layer in self.layers.items():
                if path not in self.strange:
                    hooks.enter_context(
                        layer.register_forward_hook(partial(self._output, operators, path, lengths.get(path)))
                    )
            hooks.enter_context(operators)
            call(self.model, example)

    def _output(
        self,
        operators: Operators,
        path: str,
        length: int | None,
        layer: WeightLayer,
        inputs: tuple[Tensor, ...],
        output: Tensor,
    ) -> None:
        with operators.silent():
            target = self.targets[path]
            fits = bool(inputs) and output.numel() > 0 and len(inputs[0]) == length
            if not fits or not patches.regular(layer, inputs[0], output):
                self.strange.add(path)
                return
            places = patches.draw(math.prod(patches.output_size(layer, inputs[0])), self.positions, self.generator)
            found = patches.answers(layer, output, places)
            _check_finite(path, found)
            if not target.places and not gram.close(
                patches.product(layer, patches.rows(layer, inputs[0], places)), found
            ):
                self.strange.add(path)
                return
            target.places.append(places)
            if target.sum is None:
                values = flat(found)
                if target.norm is not None:
                    factor, constant = affine(self.model.get_submodule(target.norm))
                    values = (values * factor + constant).to(values.dtype)
                self._keep(path, values)

    def _total(self, operator: Operator) -> None:
        path = self.totals.get(operator.number)
        if path is not None and path not in self.strange:
            layer, target = self.layers[path], self.targets[path]
            self._keep(path, flat(patches.answers(layer, operator.outputs[0], target.places[-1])))

    def _keep(self, path: str, values: Tensor) -> None:
        _check_finite(path, values)
        self.targets[path].values.append(values.clone())


def _check_finite(path: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise UserError(
            f"{path}: the dense network's output is not finite on the calibration images, so there is nothing to "
            "reconstruct; look for broken images or weights"
        )


def flat(answers: Tensor) -> Tensor:
    """(convolution groups, rows, outputs / groups) as (rows, outputs)."""
    return answers.permute(1, 0, 2).flatten(1)


def _tell(statistics: Statistics, known: Mapping[str, Target]) -> None:
    missing = sorted(set(_readers(statistics)) - known.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        warnings.warn(
            f"{', '.join(missing[:3])}{more}: not seen to run once as a module on images, as weight times input and "
            "within the memory limit; sequential reconstruction leaves their weights as they are",
            StatisticsNotice,
            stacklevel=4,
        )


def _readers(statistics: Statistics) -> Sequence[str]:
    return [piece.path for group in statistics.space.groups for piece in group.slices if piece.role == "in"]
