"""Networks that are handed over to other tools, with their spaces and schemes that cut them everywhere."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from autoprune.architectures import ARCHITECTURES
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.space import SearchSpace


def random_scheme(space: SearchSpace, seed: int = 0) -> Scheme:
    """A scheme with indices that cuts most groups, scattered over the units."""
    rng = np.random.default_rng(seed)
    chosen = []
    for group in space.groups:
        units = np.sort(rng.permutation(group.units)[: rng.integers(1, group.units + 1)])
        chosen.append(tuple(units.tolist()))
    kept = tuple(len(units) * group.unit for units, group in zip(chosen, space.groups, strict=True))
    return Scheme(kept, indices=tuple(chosen))


class SharedSum(nn.Module):
    """A convolution whose halves belong to two groups: it is summed with a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Conv2d(3, 10, 1)
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.join = nn.Conv2d(10, 6, 3)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.whole(x) + torch.cat([self.left(x), self.right(x)], 1)
        return self.head(self.join(y))


def sequence(*layers: nn.Module):
    return lambda: nn.Sequential(*layers)


def grouped() -> nn.Module:
    """Depthwise, grouped and transposed convolutions, and a flattened one."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, groups=12), nn.PReLU(12),
        nn.Conv2d(12, 16, 1, groups=4), nn.Conv2d(16, 24, 1, groups=2), nn.ConvTranspose2d(24, 10, 2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 9), nn.ReLU(), nn.Linear(9, 5),
    )  # fmt: skip


def from_torchvision(name: str):
    return lambda: torchvision.models.get_model(name, weights=None)


NETWORKS = {
    "digits": (ARCHITECTURES["digits"], (1, 8, 8)),
    "resnet20": (ARCHITECTURES["resnet20"], (3, 32, 32)),
    "resnet56": (ARCHITECTURES["resnet56"], (3, 32, 32)),
    "resnet18": (from_torchvision("resnet18"), (3, 32, 32)),
    "mobilenet_v2": (from_torchvision("mobilenet_v2"), (3, 32, 32)),
    "resnet50": (from_torchvision("resnet50"), (3, 64, 64)),
    "resnext50": (from_torchvision("resnext50_32x4d"), (3, 64, 64)),
    "densenet121": (from_torchvision("densenet121"), (3, 64, 64)),
    "grouped": (grouped, (3, 12, 12)),
    "shared sum": (SharedSum, (3, 8, 8)),
}
SLOW = ("resnet50", "resnext50", "densenet121")


def marked(names, *more: str):
    """The names, those of large networks (and ``more``) as slow tests."""
    slow = {*SLOW, *more}
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@cache
def network(name: str):
    """The network with statistics that are not the initial ones, an example and its space."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        example = torch.randn(2, *shape)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval(), example, trace(model, example)
