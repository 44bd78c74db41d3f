"""Exact layer-wise reconstruction: each layer's masks and weights solved from second moments of what it reads.

The layers are solved side by side, from what the dense network feeds them (:mod:`autoprune.obc`), or one after the
other in one walk through the network, from what its sparse part feeds them by then (:mod:`autoprune.sequential`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from autoprune import masks
from autoprune import obc as surgeon
from autoprune.errors import UserError
from autoprune.obc import RIDGE, Keep, Neighbours, Solver
from autoprune.recipes import Tell
from autoprune.recipes.data import Data
from autoprune.recipes.one_shot import Ranking, kept, recalibrated, unpruned
from autoprune.sequential import walk
from autoprune.targets import Sampling


def obc(
    model: nn.Module,
    sparsity: float,
    data: Data,
    *,
    names: Sequence[str],
    folder: Path,
    seed: int,
    tell: Tell,
    solver: Solver | Literal["magnitude"] = "sparsegpt",
    ranking: Ranking | None = None,
    rates: Mapping[str, float] | None = None,
    pattern: str | None = None,
    sequential: bool = True,
    ridge: float = RIDGE,
    images: int = 1024,
    positions: int = 16,
    recalibrate: bool = True,
) -> nn.Module:
    """Masks by a ``solver``, and the best weights for them.

    "magnitude" keeps the largest weights, "sparsegpt" and "obc" weigh what their loss costs after repair
    (:mod:`autoprune.obc`; "obc" is for layers of up to a thousand columns). How many weights a layer keeps is what one
    ranking of all magnitudes leaves it ("global", the default, or "normalised" by the layers' norms), the same share
    everywhere ("uniform"), or 1 - ``rates`` by name; a ``pattern`` such as "2:4" keeps so many of all neighbours along
    the inputs instead.

    ``sequential`` solves each layer from what the sparse network feeds it toward what the dense one gives there,
    residual sums included; otherwise inputs and targets are the dense network's. Least squares sees ``positions`` of
    the output for each of ``images`` calibration images.
    """
    if pattern is None:
        chosen = kept(model, names, sparsity, ranking or ("uniform" if rates else "global"), rates)
        keep: dict[str, Keep] = {name: int(mask.sum()) for name, mask in chosen.items()}
    else:
        of = neighbours(pattern, sparsity, rates)
        for name in names:
            if (inputs := model.get_parameter(name).shape[1]) % of.m:
                raise UserError(
                    f"{of.n}:{of.m} sparsity: {of.m} does not divide the {inputs} inputs of {name}; leave it "
                    f"out (exclude {name.removesuffix('.weight')})"
                )
        chosen = {name: masks.highest_of(model.get_parameter(name).detach().abs(), *of) for name in names}
        keep = dict.fromkeys(names, of)
    sparse = copy.deepcopy(model).eval()
    done: list[str] = []

    def solved(name: str, weight: Tensor, square: Tensor) -> Tensor:
        """A layer's weights, sparse."""
        dense, matrix = weight.cpu(), square.cpu()
        if solver == "magnitude":
            answer = surgeon.solve_given(dense, matrix, chosen[name].cpu())
        else:
            answer = surgeon.solve(dense, matrix, keep[name], solver)
        done.append(name)
        tell({"layer": name, "done": len(done), "of": len(names)})
        return answer.to(weight.device)

    if sequential:
        settle = {name: partial(solved, name) for name in names}
        walk(
            sparse, unpruned(model, data.calibration, seed), ridge, Sampling(images, positions * images), settle=settle
        )
    else:
        for name, found in surgeon.collect(model, names, data.calibration, positions, seed):
            dense = model.get_parameter(name).detach().cpu().double()
            surgeon.place(sparse, name, dense, solved(name, dense, surgeon.damped(name, found, ridge)), found)
    masks.impose(sparse, {name: mask for name, mask in chosen.items() if name not in done})
    return recalibrated(sparse, data.calibration) if recalibrate else sparse


def neighbours(pattern: str, sparsity: float, rates: Mapping[str, float] | None = None) -> Neighbours:
    """A pattern such as "2:4" in numbers, if it is of this sparsity."""
    parts = pattern.split(":")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"pattern {pattern!r}: write how many weights stay of how many neighbours, such as 2:4")
    n, m = map(int, parts)
    if not 1 <= n <= m:
        raise UserError(f"pattern {pattern!r}: n of m weights stay, with n from 1 to m")
    if rates is not None:
        raise UserError(f"pattern {pattern!r} and rates both say how many weights stay: give one of them")
    if abs(sparsity - (1 - n / m)) > 1e-6:
        raise UserError(f"pattern {pattern!r} removes {1 - n / m:.2%} of the weights, and {sparsity:.2%} was asked for")
    return Neighbours(n, m)
