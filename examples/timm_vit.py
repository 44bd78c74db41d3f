"""A vision transformer of timm: how wide the MLP of every block has to be."""

from importlib.util import find_spec

import torch

import autoprune
from autoprune import data
from autoprune.search_spaces.named import select

if find_spec("timm") is None:
    print("skipped: timm is not installed (pip install 'autoprune[timm]')")
    raise SystemExit

import timm

torch.manual_seed(0)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=32, depth=3, num_heads=2
)  # random weights, for images of eight pixels; yours come with pretrained=True
splits = data.load("digits", calibration=256, validation=256, batch=64)
batches = list(splits.train())
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, epochs=20, steps_per_epoch=len(batches))
for _ in range(20):
    for images, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
model.eval()

example = torch.zeros(1, 1, 8, 8)
space = select(autoprune.trace(model, example), include=["blocks.*.mlp"])
print(f"{len(space)} groups; the others stay whole: {space.left_out[0].name}, as {space.left_out[0].reason}")
run = autoprune.search(
    model, example, splits.calibration, splits.validation,
    space=space, budget="macs=60%", test=splits.test, trials=16,
)  # fmt: skip
for name, row in run.summary["rows"].items():
    print(f"{name:8} {row['test_accuracy']:.1%} right with {row['fractions']['macs']:.0%} of the multiply-adds")
print(run.scheme.to_frame(space))
