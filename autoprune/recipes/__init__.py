"""Recipes train networks, and may search with them: methods that make a network sparse, and networks trained once.

Networks trained once, from which the weights of any scheme are read (``autoprune train``), are in
:mod:`autoprune.recipes.source`. The rest of this page is about methods of ``autoprune sparsify``: single weights become
zero, shapes stay.

A method takes the dense network and the share of weights to remove, and gives back a new network in which exactly
that share is zero; the dense one stays as it is:

    def halves(
        model: nn.Module, sparsity: float, data: Data, *, names: Sequence[str], folder: Path, seed: int, tell: Tell,
        images: int = 256,
    ) -> nn.Module:

``names`` are the weights that count, together; ``data`` says clearly when it lacks what a method needs; ``folder`` is
where a training leaves its checkpoints, so that the same call goes on where it was stopped; ``tell`` hears JSON-ready
records for a progress bar. What follows are the method's own options, with a type and a default. Run yours with
``autoprune sparsify --method mylab.halving:halves --set images=512``.

Three families, by what they need:

- *One shot*, calibration images alone: rank the weights and zero the lowest (magnitude, global_magnitude), repair
  what is left layer by layer (pot), or solve every layer exactly (obc).
- *Post-training*, calibration images without labels and a few epochs on them: search the rates of the layers and
  train with masks that move (unipts).
- *Training*, the training set: prune and retrain in turns (iterative), rewind to early weights (lottery), or train so
  that most weights end near zero (frank_wolfe).

The rules, tested for every method listed in ``METHODS``: the asked share is exact, the dense network is left as it is,
the same seed gives the same network, and what comes back is in evaluation mode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autoprune import settings
from autoprune.references import function

if TYPE_CHECKING:
    from torch import nn

Tell = Callable[[Mapping[str, Any]], None]
Method = Callable[..., "nn.Module"]
"""``(model, sparsity, data, *, names, folder, seed, tell, **options) -> nn.Module``."""

METHODS: Mapping[str, str] = {
    "magnitude": "autoprune.recipes.one_shot:magnitude",
    "global_magnitude": "autoprune.recipes.one_shot:global_magnitude",
    "pot": "autoprune.recipes.pot:pot",
    "obc": "autoprune.recipes.obc:obc",
    "unipts": "autoprune.recipes.unipts:unipts",
    "iterative": "autoprune.recipes.iterative:iterative",
    "lottery": "autoprune.recipes.lottery:lottery",
    "frank_wolfe": "autoprune.recipes.frank_wolfe:frank_wolfe",
}
KIND = settings.Kind("method", positions=3, names=("names", "folder", "seed", "tell"))
"""Network, sparsity and data, and these by name, come from ``sparsify``; all other arguments are options."""


def find(method: str | Method) -> Method:
    """A method by its name, by ``package.module:function``, or the function itself."""
    found: Method = function(method, KIND.name, METHODS)
    return found


def options(method: Method) -> dict[str, inspect.Parameter]:
    """What ``--set`` may change about a method, with types and defaults."""
    return settings.options(method, KIND)


def read(method: Method, texts: Mapping[str, str]) -> dict[str, Any]:
    """Options given as text, each read as the type it is annotated with."""
    return settings.read(method, KIND, texts)
