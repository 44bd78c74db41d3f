"""What each operator does to channel labels: one short rule per kind of operator.

A rule ``(book, call)`` looks at the axes of the inputs, declares ties and frozen labels, and says what
the axes of the outputs are made of. Outputs it says nothing about are nobody's channels; whatever meets
them later is frozen. :data:`RULES` lists the rules by operator name, :func:`rule_for` also knows the
families that a name pattern or torch's own tag identifies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from .call import Call, Rule
from .layers import convolution, embedding, product, product_and_sum
from .mixing import along, because, group_norm, layer_norm, reduce, unknown, weight_norm
from .moving import expand, permute, repeat, reshape, squeeze, unsqueeze
from .parting import cat, channel_shuffle, glu, pad, part, pixel_shuffle, pixel_unshuffle, select, split, stack, unbind
from .passing import SPATIAL, batch_norm, buffer, nothing, pointwise, same, spatial

RULES: dict[str, Rule] = {
    **dict.fromkeys(("new_full", "new_ones", "new_zeros"), nothing),
    "new_empty": buffer,
    **dict.fromkeys(("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"), same),
    **dict.fromkeys(("_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh", "positive"), same),
    **dict.fromkeys(("bernoulli", "fill", "native_dropout", "normal", "uniform", "zero"), same),
    **dict.fromkeys(("_prelu_kernel", "copy", "hardswish", "hardtanh", "log_sigmoid_forward"), pointwise),
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), batch_norm),
    **dict.fromkeys(("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("_batch_norm_with_update", "_batch_norm_no_update"), batch_norm),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumprod", "cumsum", "flip", "roll", "sort"), along),
    **dict.fromkeys(("all", "amax", "amin", "any", "argmax", "argmin", "linalg_vector_norm", "logsumexp"), reduce),
    **dict.fromkeys(
        ("max", "mean", "median", "min", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean"), reduce
    ),
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "_fused_rms_norm": layer_norm,
    "_weight_norm_interface": weight_norm,
    "convolution": convolution,
    "mm": product,
    "bmm": product,
    "addmm": product_and_sum,
    "baddbmm": product_and_sum,
    "embedding": embedding,
    "t": permute,
    "transpose": permute,
    "permute": permute,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "repeat": repeat,
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias"), reshape),
    "select": select,
    "unbind": unbind,
    "slice": part,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), split),
    "glu": glu,
    "cat": cat,
    "stack": stack,
    "constant_pad_nd": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "im2col": because("its patches are unfolded into columns"),
    "unfold": because("windows are taken along it"),
}

PRODUCTS = {"convolution", "mm", "bmm", "addmm", "baddbmm", "_trilinear"}
"""Operators whose result is no longer a weight, even if weights are all that goes in."""

FAMILIES: Sequence[tuple[str, Rule]] = (
    ("attention", because("attention needs its heads whole")),
    ("rnn|lstm|gru", because("a recurrent layer keeps its state whole")),
    ("fft", because("a Fourier transform mixes it")),
)


def rule_for(call: Call) -> Rule:
    """The rule for an operator; the in-place form follows the plain one."""
    name = call.name if call.name.startswith("__") else call.name.rstrip("_")
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in call.func.tags:
        return pointwise
    if SPATIAL.search(name):
        return spatial
    return next((rule for pattern, rule in FAMILIES if re.search(pattern, name)), unknown)
