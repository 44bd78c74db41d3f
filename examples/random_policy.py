"""What a wall is for: where random episodes end under one budget, with the paper's wall and with the two-sided one.

Both walls keep every episode within half of the multiply-adds. The one-sided wall only forbids too much, so random
actions end far below the budget, where schemes of very different cost compete; the two-sided wall ends at it. The
network is ResNet-18 without trained weights: the walk is arithmetic over the search space and measures nothing.
"""

import gymnasium
import numpy as np
import torch

import autoprune
from autoprune import models

EPISODES = 100

space = autoprune.trace(models.load("torchvision:resnet18"), torch.zeros(1, 3, 64, 64))
print(f"{len(space)} groups; multiply-adds of {EPISODES} random schemes, as fractions of the dense network's:")
for wall in ("one-sided", "two-sided"):
    env = gymnasium.make("autoprune.envs:autoprune/Pruning-v0", space=space, budget="macs=50%", wall=wall)
    env.action_space.seed(0)
    fractions = []
    for _ in range(EPISODES):
        _, info = env.reset()
        while "scheme" not in info:
            *_, info = env.step(env.action_space.sample())
        fractions.append(info["fractions"]["macs"])
    names = ("smallest", "quartile", "median", "quartile", "largest")
    quantiles = np.quantile(fractions, (0, 0.25, 0.5, 0.75, 1))
    shown = "  ".join(f"{name} {value:.2%}" for name, value in zip(names, quantiles, strict=True))
    print(f"{wall}: {shown}  mean {np.mean(fractions):.2%}")
