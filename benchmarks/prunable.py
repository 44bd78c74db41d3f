"""How much of ordinary networks a traced search space can prune, as a markdown table.

    python benchmarks/prunable.py [MODEL …]

Weights are random: what can be cut together does not depend on them.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections import Counter

import torch

from autoprune.cost import layer_shares, macs
from autoprune.models import load
from autoprune.search_spaces.traced import trace
from autoprune.space import SearchSpace

SIZES = {
    "autoprune:resnet20": 32,
    "autoprune:resnet56": 32,
    "autoprune:mobilenet_v1": 64,
    "autoprune:digits": 8,
    "torchvision:resnet18": 64,
    "torchvision:resnet50": 64,
    "torchvision:resnext50_32x4d": 64,
    "torchvision:vgg11_bn": 64,
    "torchvision:mobilenet_v2": 64,
    "torchvision:mobilenet_v3_small": 64,
    "torchvision:efficientnet_b0": 64,
    "torchvision:densenet121": 64,
    "torchvision:shufflenet_v2_x1_0": 64,
    "torchvision:squeezenet1_1": 64,
    "torchvision:mnasnet1_0": 64,
    "torchvision:googlenet": 64,
    "torchvision:inception_v3": 96,
    "torchvision:regnet_y_400mf": 64,
    "torchvision:convnext_tiny": 64,
    "torchvision:vit_b_16": 224,
    "torchvision:swin_t": 64,
    "timm:resnet26": 64,
    "timm:mobilenetv3_small_050": 64,
    "timm:convnext_atto": 64,
    "timm:ghostnet_050": 64,
    "timm:repvgg_a0": 64,
    "timm:resnest14d": 64,
    "timm:mixer_s32_224": 224,
    "timm:vit_tiny_patch16_224": 224,
    "timm:levit_128s": 224,
}
COLUMNS = ("network", "groups", "MACs in layers that can be narrowed", "MACs of the smallest scheme")
COLUMNS += ("layers and groups left out", "seconds")


def main() -> None:
    """Print one row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="MODEL", nargs="*", help="networks, instead of those of the table")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|---|{'---:|' * 3}---|---:|")
    for name in names or SIZES:
        print(f"| {' | '.join(row(name))} |", flush=True)


def row(name: str) -> list[str]:
    """What one network offers."""
    network = load(name)
    size = SIZES.get(name, 224)
    channels = 1 if name == "autoprune:digits" else 3
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the proof rejects is listed in the row
        space = trace(network, torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0)))
    seconds = time.perf_counter() - started
    cost = macs(space)
    smallest = cost(space.smallest) / cost(space.dense)
    return [name, str(len(space)), f"{narrowed(space):.1%}", f"{smallest:.1%}", reasons(space), f"{seconds:.1f}"]


def narrowed(space: SearchSpace) -> float:
    """Share of the MACs in layers of which at least one axis is cut by some group."""
    cut = {piece.path for group in space.groups for piece in group.slices}
    shares = layer_shares(space)
    return sum(shares[layer.name] for layer in space.layers if layer.weight in cut)


def reasons(space: SearchSpace) -> str:
    """Why layers stay whole, with how many there are."""
    counted = Counter(re.sub(r"( from \[|: | by [0-9]).*", "", left.reason) for left in space.left_out)
    return "; ".join(f"{count}: {reason}" for reason, count in counted.most_common())


if __name__ == "__main__":
    main()
