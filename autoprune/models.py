"""Networks by name, their weights from files, and a digest that tells two networks apart.

A model is named ``autoprune:NAME``, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable, Container, Mapping
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.architectures import ARCHITECTURES
from autoprune.errors import UserError
from autoprune.paths import existing, expand
from autoprune.references import close, resolve

WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
SHOWN = 3


def load(spec: str, weights: str | Path | None = None, num_classes: int | None = None) -> nn.Module:
    """The network that ``spec`` names, in evaluation mode.

    ``weights`` is a file, or for torchvision and timm the name of published weights ("DEFAULT"), which
    those libraries then download. Without it the initial weights are those of a fixed seed: the same
    spec gives the same network every time. ``num_classes`` is left to the architecture when it is None.
    """
    if num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes = {num_classes}: a classifier has at least 1 class")
    source, colon, name = spec.partition(":")
    if not colon or not name:
        known = [f"autoprune:{own}" for own in ARCHITECTURES if own == spec] or ["autoprune:resnet20"]
        raise UserError(
            f"model {spec!r} does not say where it comes from: write it like {known[0]}, torchvision:NAME, "
            "timm:NAME or package.module:factory"
        )
    build = SOURCES.get(source, _from_reference)
    options = {} if num_classes is None else {"num_classes": num_classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, file = build(spec, weights, options)
    if file is not None:
        load_weights(model, file)
    return model.eval()


Built = tuple[nn.Module, str | Path | None]  # the network, and the file of weights that is still to be loaded


def _from_autoprune(spec: str, weights: str | Path | None, options: Mapping[str, Any]) -> Built:
    name = spec.partition(":")[2]
    if name not in ARCHITECTURES:
        raise UserError(f"model {spec!r} is unknown: autoprune has {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](**options), weights


def _from_torchvision(spec: str, weights: str | Path | None, options: Mapping[str, Any]) -> Built:
    from torchvision import models

    name = spec.partition(":")[2]
    if name not in models.list_models():
        raise UserError(f"model {spec!r} is unknown to torchvision{close(name, models.list_models())}")
    published = None
    if weights is not None and not expand(weights).is_file():
        members = models.get_model_weights(name).__members__
        published = members.get(str(weights).rpartition("_Weights.")[2])
        if published is None:
            known = ", ".join(members) or "none are published"
            raise UserError(f"weights {str(weights)!r}: no such file, and not a name of {spec}'s weights ({known})")
    builder = models.get_model_builder(name)
    parts: dict[str, Any] = dict(options)
    if "weights_backbone" in inspect.signature(builder).parameters and published is None:
        parts["weights_backbone"] = None  # the default would download something nobody asked for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce a change of their defaults
        try:
            model = builder(weights=published, **parts)
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"torchvision could not build {name} ({_line(error)})") from error
    return model, None if published is not None else weights


def _from_timm(spec: str, weights: str | Path | None, options: Mapping[str, Any]) -> Built:
    try:
        import timm
    except ImportError:
        raise UserError(f"model {spec!r} needs timm: pip install 'autoprune[timm]'") from None
    name = spec.partition(":")[2]
    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"model {spec!r} is unknown to timm{close(name, timm.list_models())}")
    pretrained = weights is not None and str(weights).upper() == "DEFAULT" and not expand(weights).is_file()
    try:
        model = timm.create_model(name, pretrained=pretrained, **options)
    except (OSError, RuntimeError, TypeError) as error:
        raise UserError(f"timm could not build {name} ({_line(error)})") from error
    return model, None if pretrained else weights


def _from_reference(spec: str, weights: str | Path | None, options: Mapping[str, Any]) -> Built:
    factory = resolve(spec, "model")
    model = factory
    if not isinstance(factory, nn.Module):
        if not callable(factory):
            raise UserError(f"model {spec!r} is a {type(factory).__name__}: a network or a function that makes one")
        try:
            inspect.signature(factory).bind(**options)
        except TypeError as error:
            given = ", ".join(f"{key}={value!r}" for key, value in options.items())
            raise UserError(f"model {spec!r} cannot be called with ({given}): {_line(error)}") from None
        model = factory(**options)
    if not isinstance(model, nn.Module):
        raise UserError(f"model {spec!r} returned a {type(model).__name__}, not a torch.nn.Module")
    return model, weights


SOURCES: Mapping[str, Callable[[str, str | Path | None, Mapping[str, Any]], Built]] = {
    "autoprune": _from_autoprune,
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights (.safetensors, or what ``torch.save`` wrote of a state dict) into the model.

    The state dict may lie under the key "state_dict", "model_state_dict" or "model", and its keys may
    carry the prefix of DataParallel or torch.compile. Every tensor has to fit, or the model stays as it
    was. Code in the file is never run.
    """
    path = existing(path)
    before = deepcopy(model.state_dict())
    state = _tensors(_read(path), path, before)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        model.load_state_dict(before)  # torch has loaded what did fit
        raise UserError(f"weights {path} do not fit {type(model).__name__}: {_mismatch(model, state, error)}") from None


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"weights {path} cannot be read as safetensors ({_line(error)})") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # its text advises to switch the protection off
        raise UserError(
            f"weights {path} hold Python objects other than tensors, or no weights at all, and are not unpickled: "
            "save them again with torch.save(model.state_dict(), …) or as .safetensors"
        ) from None
    except Exception as error:  # noqa: BLE001  # on damaged bytes torch's reader stumbles in any way
        raise UserError(f"weights {path} are not a file that torch.save wrote ({_line(error)})") from None


def _tensors(content: Any, path: Path, own: Container[str]) -> dict[str, Any]:
    """The state dict inside what a file holds, without wrappers and without prefixes that ``own`` names lack."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"weights {path} hold a {type(content).__name__} without tensors, not a state dict")
    state = {str(key): value for key, value in content.items()}
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if all(key.startswith(prefix) and key not in own for key in state):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
                stripped = True
    return state


def _mismatch(model: nn.Module, state: Mapping[str, Any], error: RuntimeError) -> str:
    own = model.state_dict()
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if isinstance(own[key], Tensor) and isinstance(state.get(key), Tensor) and own[key].shape != state[key].shape
    ]
    found = {
        "missing": [key for key in own if key not in state and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in state if key not in own],
        "of another shape": shapes,
    }
    parts = []
    for what, keys in found.items():
        if keys:
            rest = f", … ({len(keys)} in all)" if len(keys) > SHOWN else ""
            parts.append(f"{what}: {', '.join(keys[:SHOWN])}{rest}")
    return "; ".join(parts) or _line(error)


def _line(error: Exception) -> str:
    """The first line of a foreign error, for a message that has one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def digest(model: nn.Module) -> str:
    """A short hash of names, shapes, types and bytes of the state dict, whatever device it is on."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):  # a module's extra state: it has no canonical bytes
            sha.update(f"{name}:{type(value).__name__};".encode())
            continue
        sha.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
