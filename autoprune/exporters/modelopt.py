"""NVIDIA ModelOpt: the subnet for ``mtn.select``, and FastNAS rules under which it is a legal choice.

    found = export(scheme, space)
    model = mtn.convert(model, mode=[("fastnas", found["rules"])])
    mtn.select(model, found["select"], strict=False)
    model = mtn.export(model)

Values of ``select`` are channels kept, under the name of the layer that makes them first (the one ModelOpt lets
people set; the others of a group follow). A count must be among the choices of every layer and norm that carries the
channels, and by default those are multiples of 32: so the rules name every ratio of the scheme, for every kind of
module, with divisor 1. What is counted is exactly the scheme's; which channels stay is the first ones, or after
``mtn`` has sorted them the most important by ModelOpt's own measure.

Some groups ModelOpt does not offer: channels that are flattened before the classifier, or added to padded ones. With
the package installed :func:`check` finds them on a copy.
"""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import nn

from autoprune import slicing
from autoprune.errors import UserError
from autoprune.exporters.comparison import refuse_other
from autoprune.exporters.cuts import REMEDY, cuts, made
from autoprune.forward import Example
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "NVIDIA ModelOpt"
CHANNELS = (*(f"nn.Conv{n}d" for n in (1, 2, 3)), *(f"nn.ConvTranspose{n}d" for n in (1, 2, 3)))
FEATURES = (
    "nn.Linear",
    *(f"nn.BatchNorm{n}d" for n in (1, 2, 3)),
    "nn.SyncBatchNorm",
    *(f"nn.InstanceNorm{n}d" for n in (1, 2, 3)),
    "nn.LayerNorm",
)
NORMS_OF_CHANNELS = ("nn.GroupNorm",)


def export(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> dict[str, Any]:
    """``rules`` for the mode "fastnas", and ``select``: channels kept by hyper-parameter."""
    select, ratios = {}, set()
    for cut in cuts(scheme, space, TOOL):
        makers = made(cut, space, TOOL)
        first = makers[0]
        if first.layer.groups > 1:
            raise UserError(
                f"the channels of group {cut.group.name} are made by the grouped convolution {first.module}, which "
                f"{TOOL} keeps whole; {REMEDY}"
            )
        kind = "out_channels" if first.layer.kind == "conv" else "out_features"
        select[f"{first.module}.{kind}"] = first.kept
        ratios.add(first.kept / first.width)
    return {"rules": rules(sorted(ratios)), "select": select}


def rules(ratios: list[float]) -> dict[str, Any]:
    """A FastNAS configuration in which every layer may keep any of the ``ratios``."""
    convolutions = {"channels_ratio": ratios, "kernel_size": [], "channel_divisor": 1}
    found = {kind: {"*": dict(convolutions)} for kind in CHANNELS}
    found |= {kind: {"*": {"features_ratio": ratios, "feature_divisor": 1}} for kind in FEATURES}
    return found | {kind: {"*": {"channels_ratio": ratios, "channel_divisor": 1}} for kind in NORMS_OF_CHANNELS}


def check(scheme: Scheme, space: SearchSpace, model: nn.Module, example: Example) -> None:
    """Let the installed ModelOpt prune a copy of ``model``; refuse if it cannot, or if a width is not the scheme's.

    Nothing is checked where the package is missing.
    """
    found = export(scheme, space, model)
    if find_spec("modelopt") is None or not found["select"]:
        return
    try:
        pruned = apply(copy.deepcopy(model), found)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{TOOL} cannot prune this network ({type(error).__name__}: {reason}); {REMEDY}") from error
    kept = [np.arange(count // group.unit) for group, count in zip(space.groups, scheme.kept, strict=True)]
    refuse_other(slicing.prune(model, space, kept), pruned, space, TOOL, values=False)


def apply(model: nn.Module, found: dict[str, Any]) -> nn.Module:
    """The pruned form of ``model``, which is changed on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch import nas as mtn

        model = mtn.convert(model, mode=[("fastnas", found["rules"])])
        mtn.select(model, found["select"], strict=False)
        exported: nn.Module = mtn.export(model)
    return exported
