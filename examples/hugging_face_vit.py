"""A vision transformer of Hugging Face: batches are dicts, outputs are objects, and nothing has to be adapted."""

from importlib.util import find_spec

import torch

import autoprune
from autoprune import data

if find_spec("transformers") is None:
    print("skipped: transformers is not installed (pip install transformers)")
    raise SystemExit

from transformers import ViTConfig, ViTForImageClassification

CONFIG = ViTConfig(
    image_size=8, patch_size=4, num_channels=1, num_labels=10,
    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128,
)  # fmt: skip


def fresh() -> ViTForImageClassification:
    """The dense network with random weights; yours is ``from_pretrained(...)``."""
    return ViTForImageClassification(CONFIG)


def as_dicts(batches: list) -> list[dict[str, torch.Tensor]]:
    """Batches as the collators of Hugging Face make them."""
    return [{"pixel_values": images, "labels": labels} for images, labels in batches]


torch.manual_seed(0)
model = fresh()
splits = data.load("digits", calibration=256, validation=256, batch=64)
batches = as_dicts(splits.train())
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, epochs=20, steps_per_epoch=len(batches))
model.train()
for _ in range(20):
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        schedule.step()
model.eval()

example = {"pixel_values": torch.zeros(1, 1, 8, 8)}
run = autoprune.search(
    model, example, as_dicts(splits.calibration), as_dicts(splits.validation),
    budget="macs=60%", test=as_dicts(splits.test()), trials=16,
)  # fmt: skip
for name, row in run.summary["rows"].items():
    print(f"{name:8} {row['test_accuracy']:.1%} right with {row['fractions']['macs']:.0%} of the multiply-adds")
print(run.scheme.to_frame(run.space))

again = autoprune.load_pruned(fresh, run.folder)  # one config has one width for all blocks, so this is how to load it
assert torch.equal(again(**example).logits, run.model(**example).logits)
