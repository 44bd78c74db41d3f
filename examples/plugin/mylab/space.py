"""What may be pruned, and how far."""

from __future__ import annotations

from torch import nn

import autoprune
from autoprune.forward import Example
from autoprune.search_spaces import named
from autoprune.space import SearchSpace


def gentle(model: nn.Module, example: Example, least: float = 0.25) -> SearchSpace:
    """Every group keeps an even number of its channels, and at least the share ``least`` of them."""
    space = autoprune.trace(model, example)
    return named.round_to(named.limit(space, {"*": (least, 1.0)}), 2)
