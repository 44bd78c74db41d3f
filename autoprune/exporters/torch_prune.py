"""torch.nn.utils.prune: how many filters of a layer are zeroed, or masks with the very channels.

By numbers, for a layer whose channels no other layer makes. Amounts are whole numbers, so nothing is rounded:

    for name, how in amounts(scheme, space).items():
        prune.ln_structured(model.get_submodule(name), **how)

PyTorch ranks the filters itself, and zeroes nothing else: a batch norm after the layer still adds its shift, so the
network does not compute what the pruned one does. Layers that are added to each other would be ranked apart, and are
refused.

By masks, for every network, from a scheme with kept indices:

    apply(model, masks(scheme, space))

This computes exactly what the pruned network does. ``finish(model)`` makes the zeros permanent. Either way tensors
keep their size: zeros do not make a network faster.

Of a scheme of single weights the numbers are those of ``prune.l1_unstructured``, which are exact, and the masks are the
zeros of the pruned network, which has to be the model; n of m neighbours are handed over by masks alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from autoprune.errors import UserError
from autoprune.exporters.cuts import alone, cuts, weights
from autoprune.exporters.removed import Removed, mask, removed
from autoprune.forward import Example, call, evaluating, outputs
from autoprune.scheme import Scheme
from autoprune.slicing import prune as sliced
from autoprune.space import SearchSpace

TOOL = "torch.nn.utils.prune"
TOLERANCE = 1e-4  # of the largest output: sums of other lengths round otherwise
BY_MASKS = "hand over the masks (torch_prune_masks)"


def amounts(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> dict[str, dict[str, Any]]:
    """By layer: the arguments of ``prune.ln_structured``, with the number of filters to zero.

    Of single weights those of ``prune.l1_unstructured``.
    """
    if scheme.granularity == "n:m":
        raise UserError(f"{TOOL} has no n of m neighbours; {BY_MASKS}")
    if scheme.granularity == "weight":
        changed = [one for one in weights(scheme, space, TOOL) if one.kept < one.entries]
        return {one.layer.name: {"name": "weight", "amount": one.entries - one.kept} for one in changed}
    axes = {piece.path: piece.axis for group in space.groups for piece in group.slices if piece.role == "out"}
    wanted = {}
    for cut in cuts(scheme, space, TOOL):
        maker = alone(cut, space, TOOL, BY_MASKS)
        dim = axes[maker.layer.weight]
        wanted[maker.module] = {"name": "weight", "amount": maker.width - maker.kept, "n": 2, "dim": dim}
    return wanted


def masks(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> Removed:
    """The entries of every parameter that :func:`apply` is to zero, see :mod:`autoprune.exporters.removed`."""
    return removed(scheme, space, TOOL, model)


def apply(model: nn.Module, masks: Removed) -> nn.Module:
    """Mask the parameters of ``model`` in place with ``prune.custom_from_mask``; returns the model.

    A parameter that several modules share is masked in each of them.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if prune.is_pruned(model):
        raise UserError("the model is masked already: call prune.remove on its masks first, or take a fresh one")
    missing = [path for path in masks if path not in parameters]
    if missing:
        raise UserError(f"the masks are for another model: this one has no parameter {missing[0]}")
    ready = {id(parameters[path]): mask(axes, parameters[path].shape, path) for path, axes in masks.items()}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in ready:
                prune.custom_from_mask(module, name, ready[id(parameter)].to(parameter))
    return model


def finish(model: nn.Module) -> nn.Module:
    """Make the masks permanent: parameters get their plain names back, with zeros in them."""
    for module in model.modules():
        for name in [name.removesuffix("_mask") for name in module._buffers if name.endswith("_mask")]:
            prune.remove(module, name)
    return model


def check_amounts(scheme: Scheme, space: SearchSpace, model: nn.Module, example: Example) -> None:
    """Zero filters of a copy of ``model`` and refuse if a layer has another number of zero filters than the scheme."""
    candidate = copy.deepcopy(model)
    for name, how in amounts(scheme, space).items():
        module = candidate.get_submodule(name)
        if "dim" not in how:
            prune.l1_unstructured(module, **how)
            gone = int((module.get_buffer("weight_mask") == 0).sum())
            if gone != how["amount"]:
                raise UserError(f"{TOOL} zeroes {gone} weights of {name}, the scheme asks for {how['amount']}")
            continue
        prune.ln_structured(module, **how)
        rows = zeros(module.weight_mask, how["dim"])  # type: ignore[arg-type]
        if rows != how["amount"]:
            raise UserError(f"{TOOL} zeroes {rows} filters of {name}, the scheme asks for {how['amount']}")


def check_masks(scheme: Scheme, space: SearchSpace, model: nn.Module, example: Example) -> None:
    """Mask a copy of ``model`` and refuse if it does not compute what the pruned network does, up to rounding.

    Of single weights the model is the pruned network, and masking it must change nothing.
    """
    masked = apply(copy.deepcopy(model), masks(scheme, space, model))
    kept = [torch.tensor(units, dtype=torch.int64).numpy() for units in scheme.indices or ()]
    pruned = sliced(model, space, kept) if scheme.granularity == "channel" else model
    answers = []
    for network in (masked, pruned):
        with torch.no_grad(), evaluating(network):
            answers.append([tensor.double() for tensor in outputs(call(network, example))])
    for ours, theirs in zip(*answers, strict=True):
        worst, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not worst <= TOLERANCE * max(largest, 1.0):
            raise UserError(
                f"{TOOL} does not do what pruning does here: outputs differ by {worst:.2g}; "
                "hand over the pruned network"
            )


def zeros(weight: torch.Tensor, dim: int) -> int:
    """How many entries of an axis are zero throughout."""
    return int((weight.movedim(dim, 0).flatten(1) == 0).all(1).sum())
