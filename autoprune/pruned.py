"""A pruned network on disk: its tensors without pickle, and the scheme they come from.

The code of the network stays where it is. :func:`load_pruned` calls it for the dense network and puts the
narrower tensors in, so nothing is traced and no code is read from the folder:

    save_pruned(pruned, "runs/mine")
    network = load_pruned(lambda: models.load("torchvision:resnet18"), "runs/mine")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.paths import existing, expand
from autoprune.slicing import named_tensors, with_tensors

TENSORS = "pruned.safetensors"
SCHEME = "scheme.json"
SHOWN = 3


def save_pruned(model: nn.Module, folder: str | Path, scheme_text: str | None = None) -> Path:
    """Write the network's parameters and buffers, and the text of its scheme file if given; returns the folder.

    A tensor that several modules share is written once. An older network in the folder is replaced.
    """
    folder = expand(folder)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in named_tensors(model)
    }
    part = folder / f"{TENSORS}.part"  # so that a kill never leaves half a network under the final name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata={"format": "pt"})
        part.replace(folder / TENSORS)
        if scheme_text is not None:
            (folder / SCHEME).write_text(scheme_text, encoding="utf-8", newline="\n")
    except (OSError, SafetensorError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the pruned network cannot be written to {folder} ({reason})") from error
    return folder


def load_pruned(model_factory: Callable[[], nn.Module], folder: str | Path) -> nn.Module:
    """The pruned network in a folder, in evaluation mode; ``model_factory`` makes the dense network it came from.

    Tensors must have the names of the dense ones and be at most as large along every axis. Tensors that the
    dense network shares stay shared; frozen parameters and devices are as the factory has them.
    """
    file = existing(folder) / TENSORS
    if not file.is_file():
        raise UserError(f"no pruned network in {folder}: it has no {TENSORS} (has the run finished?)")
    try:
        loaded = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error})") from None
    model = model_factory()
    if not isinstance(model, nn.Module):
        raise UserError(f"the model factory returned a {type(model).__name__}, not a torch.nn.Module")
    dense = dict(named_tensors(model))
    _check_names(dense, loaded, file)
    placed = {name: _placed(name, tensor, loaded[name]) for name, tensor in dense.items()}
    return with_tensors(model, placed).eval()


def _check_names(dense: Mapping[str, Tensor], loaded: Mapping[str, Tensor], file: Path) -> None:
    missing = [name for name in dense if name not in loaded]
    unexpected = [name for name in loaded if name not in dense]
    problems = [f"{word} {_list(names)}" for word, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if problems:
        raise UserError(
            f"{file} does not hold a pruned form of this network: {'; '.join(problems)}; "
            "the factory must make the dense network that was pruned"
        )


def _placed(name: str, dense: Tensor, value: Tensor) -> Tensor:
    """The loaded tensor in the place of the dense one."""
    fits = value.ndim == dense.ndim and all(0 < new <= old for new, old in zip(value.shape, dense.shape, strict=True))
    if not (fits or value.shape == dense.shape) or value.is_floating_point() != dense.is_floating_point():
        raise UserError(
            f"{name}: {_form(value)} in the file is no narrower form of {_form(dense)}; "
            "the factory must make the dense network that was pruned"
        )
    if dense.device.type != "meta":
        value = value.to(dense.device)
    return nn.Parameter(value, requires_grad=dense.requires_grad) if isinstance(dense, nn.Parameter) else value


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
