"""The search decides how much of every layer goes, Torch-Pruning removes it, and plain PyTorch trains what is left."""

import copy
from pathlib import Path

import torch
import torch_pruning as tp

import autoprune
from autoprune import data, demo
from autoprune.exporters import torch_pruning

EPOCHS = 5

dense = demo.digits(Path("runs"))
splits = data.load("digits", calibration=256, validation=256)  # splits.train has no validation and no test image
example = torch.zeros(1, 1, 8, 8)
run = autoprune.search(dense, example, splits.calibration, splits.validation, budget="macs=25%", trials=16, run="to-tp")


def accuracy(model: torch.nn.Module) -> float:
    """The share of test images that are named right; the test images decide nothing."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(images).argmax(1) == labels for images, labels in splits.test()]).float().mean().item()


pruned = copy.deepcopy(dense)
tp.pruner.BasePruner(
    pruned,
    (example,),
    importance=tp.importance.MagnitudeImportance(),
    pruning_ratio=0.0,  # of layers that are not named; half of them would go otherwise
    pruning_ratio_dict=torch_pruning.ratios(run.scheme, run.space, pruned),
).step()
widths = {name: tuple(tensor.shape) for name, tensor in pruned.named_parameters()}
assert widths == {name: tuple(tensor.shape) for name, tensor in run.model.named_parameters()}
print(f"{len(widths)} tensors, each as large as the search wanted it")
print(f"dense                 {accuracy(dense):.1%}")
print(f"cut by Torch-Pruning  {accuracy(pruned):.1%}")
print(f"cut by autoprune      {accuracy(run.model):.1%}, repaired without training")

batches = list(splits.train())
optimizer = torch.optim.SGD(pruned.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(batches))
pruned.train()
for _ in range(EPOCHS):
    for images, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(pruned(images), labels).backward()
        optimizer.step()
        schedule.step()
print(f"and fine-tuned        {accuracy(pruned):.1%}, {EPOCHS} epochs")
