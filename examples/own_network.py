"""A network and data of your own in fifteen lines: nothing has to be said about the structure."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import autoprune
from autoprune.training import train


class Shortcut(nn.Sequential):
    """What is added has to keep the channels of what it is added to: autoprune sees that for itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input and what its layers make of it."""
        return x + super().forward(x)


def layer(inputs: int, outputs: int, padding: int = 0) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU())


torch.manual_seed(0)
pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
model = nn.Sequential(layer(1, 16), Shortcut(layer(16, 16, padding=1)), layer(16, 32), pool, nn.Linear(32, 10))
digits = load_digits()
images, labels = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
fit, judge, test = ((images[part], labels[part]) for part in (slice(1000), slice(1000, 1400), slice(1400, None)))
train(model, [fit], epochs=8)

run = autoprune.search(model, images[:1], fit, judge, budget="macs=40%", test=test, trials=12)
for name, row in run.summary["rows"].items():
    print(f"{name:8} {row['test_accuracy']:.1%} right, {row['costs']['macs']:,.0f} multiply-adds")
print(run.scheme.to_frame(run.space))
