"""Initial weights: drawn anew, and how large they are on average. Layers know themselves how to be drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from torch import nn

from autoprune.errors import UserError


def redraw(model: nn.Module, seed: int) -> None:
    """Draw all parameters and statistics anew, in place, as their layers' ``reset_parameters`` does.

    The same seed gives the same weights on every device.
    """
    for path, module in model.named_modules():
        if _draw(module) is None and any(True for _ in module.parameters(recurse=False)):
            raise UserError(
                f"{path or 'the network'} is a {type(module).__name__} without reset_parameters: its parameters cannot "
                "be drawn anew; give the class that method, or start from the weights as they are"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            twin = copy.deepcopy(module).cpu()
            if draw := _draw(twin):
                draw()
                module.load_state_dict(twin.state_dict())


def norms(model: nn.Module, names: Collection[str], draws: int = 100, seed: int = 0) -> dict[str, float]:
    """The expected Euclidean norm of each named parameter at its initialisation, over so many draws of a copy.

    A parameter of a layer that cannot be drawn counts as it is; one that is always zero has norm 1.
    """
    if draws < 1:
        raise UserError(f"draws = {draws}: at least 1 initialisation has to be drawn")
    found: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            own = {f"{path}.{key}" if path else key: key for key, _ in module.named_parameters(recurse=False)}
            own = {name: key for name, key in own.items() if name in names}
            if not own:
                continue
            twin = copy.deepcopy(module).cpu()
            draw = _draw(twin) or (lambda: None)
            totals = dict.fromkeys(own, 0.0)
            for _ in range(draws):
                draw()
                for name, key in own.items():
                    totals[name] += float(twin.get_parameter(key).detach().norm()) / draws
            found.update(totals)
    if missing := [name for name in names if name not in found]:
        raise UserError(f"the network has no parameter {', '.join(missing)}")
    return {name: norm or 1.0 for name, norm in found.items()}


def _draw(module: nn.Module) -> Callable[[], None] | None:
    found: Callable[[], None] | None = getattr(module, "reset_parameters", None)
    return found
