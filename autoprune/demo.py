"""The embedded default: a small network on scikit-learn's digits, trained once and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from autoprune import data, models
from autoprune.training import train

EPOCHS = 12
IMAGES = 512  # for calibration and for validation; the set has 1,437 training images
WEIGHTS = "digits-network.safetensors"


def digits(root: Path, progress: Callable[[int, int, float], None] | None = None) -> nn.Module:
    """The trained network; its weights are trained in a few seconds when ``root`` does not have them yet."""
    from safetensors.torch import save_file

    path = root / WEIGHTS
    if path.is_file():
        return models.load("autoprune:digits", path).eval()
    network = models.load("autoprune:digits")
    part = data.load("digits", IMAGES, IMAGES).train
    assert part is not None
    train(network, part(), EPOCHS, seed=0, progress=progress)
    root.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(network.state_dict(), temporary)
    temporary.replace(path)
    return network.eval()
