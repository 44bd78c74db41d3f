"""How far a sparse network's answers are from the dense one's: what post-training tuning lowers, without labels.

An objective compares the student's tensors with the teacher's, pair by pair, at an epoch. Those that compare answers
get the class scores alone; :func:`layer_mse` gets the output of every pruned layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.distillation import divergence
from autoprune.errors import UserError
from autoprune.forward import call, logits

Name = Literal["base_decayed", "kl", "mse"]
Objective = Callable[[Sequence[Tensor], Sequence[Tensor], int], Tensor]
"""``(student's tensors, teacher's tensors, epoch from 0) -> loss``."""

TEMPERATURE, START, DECAY = 4.0, 8.0, 0.99


def find(name: str, temperature: float = TEMPERATURE, start: float = START, decay: float = DECAY) -> Objective:
    """The objective called ``base_decayed``, ``kl`` or ``mse``."""
    if temperature <= 0 or start <= 0 or not 0 < decay <= 1:
        raise UserError(
            f"temperature = {temperature}, start = {start}, decay = {decay}: positive numbers are needed, and a decay "
            "of at most 1"
        )
    known: dict[str, Objective] = {
        "base_decayed": lambda s, t, epoch: base_decayed(s[0], t[0], divisor(epoch, start, decay), temperature),
        "kl": lambda s, t, epoch: divergence(s[0], t[0], temperature),
        "mse": lambda s, t, epoch: layer_mse(s, t),
    }
    if name not in known:
        raise UserError(f"objective {name!r} is unknown: use one of {', '.join(get_args(Name))}")
    return known[name]


def divisor(epoch: int, start: float = START, decay: float = DECAY) -> float:
    """c(t) = ``start`` x ``decay`` ^ t: the natural logarithm of the base at an epoch, from 0."""
    return start * decay**epoch


def base_decayed(student: Tensor, teacher: Tensor, c: float, temperature: float = TEMPERATURE) -> Tensor:
    """UniPTS's objective (Xie et al., CVPR 2024) on class scores of shape (B, classes), with the logarithm's base e^c.

    With p = softmax(teacher / T): L = T^2 / B sum p (log p - log_softmax(student) / c), so that

        dL/dstudent = T^2 / (B c) (softmax(student) - softmax(teacher / T)):

    a base that shrinks from epoch to epoch raises the gradient while the learning rate falls. The temperature softens
    the teacher alone, and only the student's logarithm is divided: the value is no divergence and may be negative.
    """
    target = functional.log_softmax(teacher / temperature, 1)
    answer = functional.log_softmax(student, 1) / c
    return temperature**2 * functional.kl_div(answer, target, reduction="batchmean", log_target=True)


def layer_mse(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The mean over the layers of |output - dense output|^2 / |dense output|^2."""
    errors = [
        (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
        for found, wanted in zip(student, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def observed(model: nn.Module, inputs: Any, layers: Sequence[str]) -> list[Tensor]:
    """The class scores or, where ``layers`` are named, their outputs, from one forward pass.

    A named layer takes its input as given: no gradient reaches the layers before it, so that each learns for itself.
    """
    if not layers:
        return [logits(call(model, inputs))]
    with _apart(model, layers) as found:
        call(model, inputs)
    return [found[name] for name in layers]


@contextmanager
def _apart(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in layers:
            layer = model.get_submodule(name)

            def keep(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
                found[name] = output

            hooks.enter_context(layer.register_forward_pre_hook(lambda _, given: tuple(x.detach() for x in given)))
            hooks.enter_context(layer.register_forward_hook(keep))
        yield found
