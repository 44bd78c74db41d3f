"""How every command that measures begins: the network, its data, its space, and how candidates are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune import arguments

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from autoprune.option_groups import Images, Narrowed, Network, Repair
    from autoprune.problem import Problem
    from autoprune.space import SearchSpace


@dataclass(frozen=True)
class Opening:
    """What is there before anything is measured."""

    network: nn.Module
    splits: Any
    example: Any
    space: SearchSpace
    candidates: Mapping[str, Any]
    """How the network becomes a candidate, as arguments of a search."""
    source: Mapping[str, Any]
    """How the network is loaded again, for a run's record."""

    def problem(self, **measured: Any) -> Problem:
        """What is searched; see :func:`autoprune.api.problem`."""
        from autoprune import api

        return api.problem(
            self.network, self.example, self.splits.calibration, self.splits.validation, space=self.space,
            name=self.source["model"], **self.candidates, **measured,
        )  # fmt: skip


def opened(
    named: Network, images: Images, narrowed: Narrowed, repair: Repair, root: Path | str, console: Console
) -> Opening:
    """Load and trace what the options name; the embedded network is trained in ``root`` on first use."""
    trained, allow_code = getattr(named, "weights_from", None), getattr(named, "allow_code", False)
    network = arguments.make_network(
        named.model, named.weights, named.num_classes, None if trained else Path(root), console
    )
    splits = images.load(named.model)
    example = splits.validation[0][0][:1]
    space = narrowed.space(network, example)
    network, candidates = arguments.read_off(trained, network, space, repair.criterion, repair.recovery, allow_code)
    candidates = {**candidates, "precision": repair.precision}
    source = narrowed.source(named, arguments.dense_weights(trained) or named.weights, example)
    return Opening(network, splits, example, space, candidates, source)
