"""SparseML: a recipe with a ``GMPruningModifier``, whose ``final_sparsity`` maps rates to names of parameters.

The format has shares of single weights, so a layer gets the share of its weights that the scheme removes, of which
SparseML takes ``round(weights * rate)``. A scheme of single weights is handed over exactly; of one of channels layers
keep their size, and no channel is zeroed as a whole. SparseML ended in 2025.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import yaml
from torch import nn

from autoprune.exporters.cuts import weights, without_pattern
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

TOOL = "SparseML"


class _Modifier(dict[str, Any]):
    """What YAML writes behind the tag."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Plain YAML and the one tag."""


_Dumper.add_representer(_Modifier, lambda dumper, data: dumper.represent_mapping("!GMPruningModifier", data.items()))


def recipe(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None, *, epochs: float = 10.0) -> str:
    """The recipe as YAML: sparsity rises from 0 to that of the scheme within ``epochs``."""
    without_pattern(scheme, space, TOOL)
    names: dict[float, list[str]] = defaultdict(list)
    for one in weights(scheme, space, TOOL):
        if one.kept < one.entries:
            names[one.removed].append(one.layer.weight)
    modifiers = [
        _Modifier(
            init_sparsity=0.0,
            final_sparsity=dict(names),
            params=[],
            start_epoch=0.0,
            end_epoch=float(epochs),
            update_frequency=0.5,
            inter_func="cubic",
            mask_type="unstructured",
        )
    ]
    text: str = yaml.dump(
        {"pruning_modifiers": modifiers if names else []},
        Dumper=_Dumper,
        sort_keys=False,
        width=120,
        allow_unicode=True,
    )
    return text
