"""Any reinforcement learner searches: PPO of Stable-Baselines3 trains on the pruning environment itself.

``learn()`` plays the episodes, one action a group, and the environment asks the evaluator for every finished scheme.
Printed are the dense network and the best scheme that was met. Forty episodes show how the parts fit together;
learning takes many more.
"""

from pathlib import Path

import gymnasium
import torch
from stable_baselines3 import PPO

import autoprune
from autoprune import Evaluator, Measurement, Scheme, data, demo

EPISODES = 40

model = demo.digits(Path("runs"))
splits = data.load("digits", calibration=128, validation=256)
space = autoprune.trace(model, torch.zeros(1, 1, 8, 8))
evaluator = Evaluator(model, space, splits.calibration, splits.validation)
measured: dict[Scheme, Measurement] = {}


def measure(scheme: Scheme) -> Measurement:
    """The evaluator, which is not asked twice for the same scheme."""
    if scheme not in measured:
        measured[scheme] = evaluator(scheme)
    return measured[scheme]


env = gymnasium.make(
    "autoprune.envs:autoprune/Pruning-v0", space=space, budget="macs=40%", reward="neg_loss", evaluator=measure
)
steps = 8 * len(space)  # eight whole episodes between two updates
agent = PPO("MlpPolicy", env, n_steps=steps, batch_size=len(space), gamma=1.0, seed=0, device="cpu")
agent.learn(EPISODES * len(space))

best, measurement = max(measured.items(), key=lambda item: -item[1].loss)
dense = evaluator.dense
print(f"{len(measured)} schemes measured")
print(f"dense  accuracy {dense.accuracy:.1%}, loss {dense.loss:.4f}")
print(f"best   accuracy {measurement.accuracy:.1%}, loss {measurement.loss:.4f}", end=", ")
print(", ".join(f"{fraction:.1%} of the {cost}" for cost, fraction in measurement.fractions.items()))
for group, kept in zip(space.groups, best.kept, strict=True):
    print(f"{group.name:16} {kept:3} of {group.width}")
