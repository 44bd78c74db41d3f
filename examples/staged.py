"""Prune, train, prune again: two stages beside one step to the same budget, with as many epochs of training.

In stages the network recovers before it loses more, and the second search sees the recovered one. Whether that pays
depends on the network and on how much goes: this prints it for yours.
"""

from pathlib import Path

import torch
from torch import nn

import autoprune
from autoprune import data, demo
from autoprune.cost import costs
from autoprune.training import train

EPOCHS = 8
BUDGETS = 0.3, 0.08  # shares of the dense network's multiply-adds

dense, example = demo.digits(Path("runs")), torch.zeros(1, 1, 8, 8)
splits = data.load("digits", calibration=256, validation=256)
space = autoprune.trace(dense, example)
whole = costs(space)["macs"](space.dense)


def tell(what: str, model: nn.Module) -> None:
    """Accuracy on the test images, by which nothing is chosen."""
    with torch.no_grad():
        right = [model(images).argmax(1) == labels for images, labels in splits.test()]
    print(f"{what:36} {torch.cat(right).float().mean():.1%}")


def pruned(model: nn.Module, share: float) -> nn.Module:
    """The network that a search down to this share finds."""
    return autoprune.search(
        model, example, splits.calibration, splits.validation, budget=f"macs={share * whole:.0f}", trials=12
    ).model


def trained(model: nn.Module, epochs: int) -> nn.Module:
    """The network itself, trained on images that judge nothing."""
    train(model, splits.train(), epochs, peak=0.05)
    return model


tell("dense", dense)
model = dense
for share in BUDGETS:
    model = pruned(model, share)
    tell(f"stage to {share:.0%}: found", model)
    tell(f"stage to {share:.0%}: {EPOCHS} epochs later", trained(model, EPOCHS))
model = pruned(dense, BUDGETS[-1])
tell(f"one step to {BUDGETS[-1]:.0%}: found", model)
tell(f"one step to {BUDGETS[-1]:.0%}: {2 * EPOCHS} epochs later", trained(model, 2 * EPOCHS))
