"""A small trainer, enough to give a small network honest weights in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import UserError
from autoprune.forward import Example, call, logits

Progress = Callable[[int, int, float], None]


def train(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    epochs: int,
    *,
    seed: int = 0,
    batch: int = 64,
    peak: float = 0.1,
    decay: float = 5e-4,
    progress: Progress | None = None,
) -> None:
    """Train a classifier in place: SGD with Nesterov momentum under a one-cycle learning rate.

    ``batches`` are pairs of an input tensor and class numbers; they are held in memory and dealt anew
    into batches of ``batch`` every epoch, a last one that is not full being left out of that epoch.
    ``peak`` is the largest learning rate. ``progress`` is called after each epoch with its number
    (from 1), the number of epochs and the mean cross-entropy of the epoch. The same seed gives the same
    weights on the same machine with the same number of threads. The model comes back in evaluation mode.
    """
    if epochs < 1:
        raise UserError(f"epochs = {epochs}: training takes at least 1 epoch")
    pairs = list(batches)
    if not pairs:
        raise UserError("there is nothing to train on: the training part has no images")
    device = next(model.parameters()).device
    images = torch.cat([x for x, _ in pairs]).to(device)
    labels = torch.cat([y for _, y in pairs]).to(device)
    # A last batch of one image would leave batch norm without a variance.
    steps = max(1, len(images) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=epochs * steps + 1)
    model.train()
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global stream
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            total = 0.0
            order = torch.randperm(len(images)).to(device)
            for step in range(steps):
                chosen = order[step * batch : (step + 1) * batch]
                total += descend(model, optimizer, images[chosen], labels[chosen])
                schedule.step()
            if progress is not None:
                progress(epoch, epochs, total / steps)
    model.eval()


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Example, labels: Tensor) -> float:
    """One step of the optimizer on the mean cross-entropy of a batch, which is returned."""
    loss = functional.cross_entropy(logits(call(model, inputs)), labels)
    optimizer.zero_grad()
    torch.autograd.backward(loss)  # Tensor.backward is untyped
    optimizer.step()
    return loss.item()
