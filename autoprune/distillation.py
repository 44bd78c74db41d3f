"""A short fine-tuning without labels: follow the dense network on calibration data (Hinton et al. 2015)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune import masking, masks
from autoprune.errors import UserError
from autoprune.forward import call, evaluating, logits, to
from autoprune.recover import Context
from autoprune.tuning import rounds, training

STEPS, LR, TEMPERATURE, MOMENTUM, SEED = 60, 0.02, 2.0, 0.9, 0


def divergence(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """KL(teacher || student) of class scores (dimension 1), both divided by the temperature, times its square.

    The mean over everything but the classes. The square keeps gradients as large as those of labels, whatever the
    temperature (Hinton et al. 2015).
    """
    answer = functional.log_softmax(student / temperature, 1)
    target = functional.log_softmax(teacher / temperature, 1)
    summed = functional.kl_div(answer, target, reduction="sum", log_target=True)
    return temperature**2 * (summed * answer.shape[1] / answer.numel())


def fine_tune(
    candidate: nn.Module,
    context: Context,
    steps: int = STEPS,
    lr: float = LR,
    temperature: float = TEMPERATURE,
    *,
    late: float = 1.0,
) -> None:
    """Lower KL(dense || candidate) on the calibration batches, at ``temperature``, by SGD with Nesterov momentum.

    The learning rate falls from ``lr`` to zero along a cosine. ``late`` scales it from layer to layer: the first
    parameter learns at ``late`` x ``lr``, the last at ``lr``, those between at powers between (layer-wise decay; below
    1 it spares early layers). The dense network's answers are computed once per batch and remembered. On a share of
    the images the share of the steps is taken. It is best followed by ``recalibrate_bn``. Single weights that were
    removed stay zero.
    """
    if steps < 1 or not (math.isfinite(lr) and lr > 0) or not temperature > 0 or not late > 0:
        raise UserError(
            f"fine_tune: steps = {steps}, lr = {lr}, temperature = {temperature}, late = {late}: all must be positive"
        )
    answers = _answers(context)
    steps = max(1, math.ceil(context.share * steps))
    device = next(candidate.parameters()).device
    sparse = context.space.granularity != "channel"
    keep = masking.by_name(context.space, context.kept, device) if sparse else {}
    with training(candidate, SEED) as (parameters, generator):
        optimizer = torch.optim.SGD(_groups(parameters, lr, late), lr=lr, momentum=MOMENTUM, nesterov=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        numbers = rounds(range(len(context.batches)), generator)
        with masks.held(candidate, keep, optimizer):
            for _ in range(steps):
                number = next(numbers)
                inputs = to(context.batches[number][0], device)
                loss = divergence(logits(call(candidate, inputs)), answers[number].to(device), temperature)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()


def _answers(context: Context) -> list[Tensor]:
    """The dense network's logits on every calibration batch."""
    known = context.remembered.get(fine_tune)
    if known is None or known[0] is not context.model:
        device = next(context.model.parameters()).device
        with torch.no_grad(), evaluating(context.model):
            found = [logits(call(context.model, to(inputs, device))).float().cpu() for inputs, _ in context.batches]
        if not found or found[0].dim() < 2:
            raise UserError("fine_tune needs calibration batches and a network that answers with class scores")
        known = context.remembered[fine_tune] = (context.model, found)
    answers: list[Tensor] = known[1]
    return answers


def _groups(parameters: list[nn.Parameter], lr: float, late: float) -> list[dict[str, object]]:
    last = max(1, len(parameters) - 1)
    return [{"params": [p], "lr": lr * late ** (1 - at / last)} for at, p in enumerate(parameters)]
