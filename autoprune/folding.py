"""Batch norms folded into the layers before them, for networks that are only looked at.

In evaluation mode a batch norm is a factor and a constant per channel. Where it alone reads a layer, both go into the
layer's weight and bias, and the feature map is read and written once less.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import gram
from autoprune.forward import call, evaluating, outputs, to
from autoprune.targets import affine

Norms = Mapping[str, str]
"""The batch norm that goes into each layer, by their dotted names."""

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
EXACT = 1e-4  # of the largest answer: what a deep network may differ by when its sums are rounded otherwise


def foldable(model: nn.Module, inputs: Any) -> dict[str, str]:
    """The layers of a network that can take up the batch norm behind them; none if any is doubtful.

    A pair qualifies by :func:`autoprune.gram.norms_behind`, which proves that nothing else reads the layer, and by its
    types: a subclass may do more than its parent. All pairs together are then tried on ``inputs``: code that
    asks a batch norm for its weight, say, does not run without it.
    """
    layers: dict[str, Any] = {path: layer for path, layer in model.named_modules() if _is_plain(layer, LAYERS)}
    pairs = gram.norms_behind(model, layers, inputs) if layers else {}
    pairs = {path: name for path, name in pairs.items() if _is_plain(model.get_submodule(name), NORMS)}
    if not pairs:
        return {}
    folded = copy.deepcopy(model)
    fold(folded, pairs)
    try:
        before, after = _answers(model, inputs), _answers(folded, inputs)
    except Exception:  # noqa: BLE001 - the network cannot do without the modules; it is then scored as it is
        return {}
    same = all((a - b).abs().max() <= EXACT * a.abs().max() for a, b in zip(before, after, strict=True))
    return pairs if same else {}


@torch.no_grad()
def fold(model: nn.Module, norms: Norms) -> None:
    """Move batch norms, as they are in evaluation mode, into the layers before them, in place.

    A pair that a recovery has made something else of stays as it is.
    """
    for path, name in norms.items():
        layer, norm = model.get_submodule(path), model.get_submodule(name)
        if not (_is_plain(layer, LAYERS) and _is_plain(norm, NORMS)):
            continue
        factor, constant = affine(norm)
        weight, bias = layer.get_parameter("weight"), layer._parameters["bias"]
        if bias is not None:
            constant = constant + factor * bias.double()
        factor = factor.reshape(-1, *[1] * (weight.dim() - 1))
        layer.weight = nn.Parameter((weight.double() * factor).to(weight.dtype), requires_grad=False)
        layer.bias = nn.Parameter(constant.to(weight.dtype), requires_grad=False)
        model.set_submodule(name, nn.Identity())


def _is_plain(module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is what its type says: no subclass, nothing hooked on, in single or double precision."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return (
        type(module) in types
        and not (module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001 - torch has no public name
        and all(t.dtype in (torch.float32, torch.float64) for t in tensors if t.is_floating_point())
    )


def _answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    device = next(model.parameters()).device
    with torch.inference_mode(), evaluating(model):
        return [t.double() for t in outputs(call(model, to(inputs, device))) if t.is_floating_point() and t.numel()]
