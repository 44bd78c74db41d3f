"""llm-compressor: a recipe of Wanda modifiers, one stage per sparsity.

``oneshot(model, dataset, recipe="recipe.yaml")`` runs it. The format has shares of single weights, so a layer gets
the share of its weights that the scheme removes. Wanda zeroes ``int(columns * sparsity)`` weights of every row, so
what it can remove are whole columns' worth; the nearest is written, and a warning says what it changes. Layers keep
their size, and no channel is zeroed as a whole. Schemes of n of m neighbours are handed over exactly, as mask
structures; the tool lays blocks along a row of the flattened weight, which in a convolution with a larger kernel than
1x1 are other neighbours than along the inputs.

One modifier class may stand once in a stage and a list of sparsities goes by the order of layers in the model, hence
a stage per sparsity.
"""

from __future__ import annotations

from collections import defaultdict
from math import prod

import yaml
from torch import nn

from autoprune.exporters.bins import removed
from autoprune.exporters.cuts import block, weights
from autoprune.exporters.notice import tell
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "llm-compressor"


def recipe(
    scheme: Scheme, space: SearchSpace, model: nn.Module | None = None, *, modifier: str = "WandaPruningModifier"
) -> str:
    """The recipe as YAML; ``modifier`` is any that takes ``sparsity``, ``mask_structure`` and ``targets``."""
    targets: dict[tuple[float, str], list[str]] = defaultdict(list)
    changes = []
    m = block(scheme, space)
    for one in weights(scheme, space, TOOL):
        if m > 1 and one.kept < one.entries:
            targets[one.removed, f"{m * one.kept // one.entries}:{m}"].append(one.layer.name)
            continue
        columns = prod(space.shapes[one.layer.weight][1:])
        zeros = min(round(columns * one.removed), columns - 1)
        if zeros:
            targets[removed(columns, columns - zeros), "0:0"].append(one.layer.name)
        if zeros / columns != one.removed:
            changes.append(f"{one.layer.name} {one.removed:.4f} -> {zeros / columns:.4f}")
    tell(f"{TOOL} zeroes the same number of weights in every row", changes)
    stages = {
        f"sparsity_{number}_stage": {
            "pruning_modifiers": {
                modifier: {"sparsity": sparsity, "mask_structure": structure, "targets": names},
            }
        }
        for number, ((sparsity, structure), names) in enumerate(targets.items())
    }
    text: str = yaml.safe_dump(stages, sort_keys=False, width=120)
    return text
