"""A network and data of your own: nothing has to be said about the structure."""

import torch
from torch import nn

import autoprune
from autoprune.training import train


class TwoRoads(nn.Module):
    """Two branches that are concatenated, gated and summed with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(20, 20, 1), nn.Sigmoid())
        self.mix = nn.Conv2d(20, 20, 3, padding=1)
        self.head = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = x * self.gate(x) + self.mix(x)
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
labels = torch.randint(4, (768,))
images = torch.randn(768, 3, 12, 12) + torch.stack([labels / 2, labels % 2, labels // 2], 1)[:, :, None, None]
batches = [(images[i : i + 128], labels[i : i + 128]) for i in range(0, 768, 128)]
model = TwoRoads()
train(model, batches[:3], epochs=5, peak=0.02)

space = autoprune.trace(model, images[:1])
for group in space.groups:
    print(f"{group.name:12} {group.width:3} channels, cut together: {', '.join(group.members)}")
run = autoprune.search(model, images[:1], batches[3:4], batches[4:], budget="macs=30%", trials=12, run="example-own")
print(run.summary["rows"]["found"]["accuracy"])
