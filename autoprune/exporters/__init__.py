r'''Exporters: a scheme in the form another program reads, one program per file.

An exporter is a function of a scheme and its search space that returns text, or an object that JSON can
hold. The model comes along for tools that need to see it, and may be missing:

    def markdown(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> str:
        """A table for a report."""
        rows = [f"| {g.name} | {g.width} | {kept} |" for g, kept in zip(space.groups, scheme.kept, strict=True)]
        return "\n".join(["| group | channels | kept |", "|---|---|---|", *rows])

Use it as ``autoprune export my-run --to mylab.tables:markdown``, or pass the function.

A scheme holds counts. An exporter alone knows whether its tool speaks of channels kept or removed and how it
rounds, and writes the number from which that tool computes exactly the scheme's counts. What the tool could
not do right is refused with a :class:`UserError`.
'''

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune import settings
from autoprune.errors import UserError
from autoprune.exporters import csv, scheme_file
from autoprune.exporters.json_text import laid_out
from autoprune.paths import existing, expand
from autoprune.references import function, resolve
from autoprune.scheme import Scheme
from autoprune.settings import Kind
from autoprune.space import SearchSpace

if TYPE_CHECKING:
    from torch import nn

Exporter = Callable[..., Any]
"""``(scheme, space, model=None) -> text or object``."""

EXPORTERS: Mapping[str, str] = {
    "json": "autoprune.exporters.scheme_file:export",
    "csv": "autoprune.exporters.csv:export",
    "torch_pruning": "autoprune.exporters.torch_pruning:ratios_by_name",
    "torch_pruning_history": "autoprune.exporters.torch_pruning:history",
    "torch_prune": "autoprune.exporters.torch_prune:amounts",
    "torch_prune_masks": "autoprune.exporters.torch_prune:masks",
    "torch_ao": "autoprune.exporters.torch_ao:config",
    "modelopt": "autoprune.exporters.modelopt:export",
    "nni": "autoprune.exporters.nni:config_list",
    "nni2": "autoprune.exporters.nni:config_list_2",
    "nncf": "autoprune.exporters.nncf:table",
    "llm_compressor": "autoprune.exporters.llm_compressor:recipe",
    "sparseml": "autoprune.exporters.sparseml:recipe",
    "mmrazor": "autoprune.exporters.mmrazor:units",
    "aimet": "autoprune.exporters.aimet:ratios",
    "distiller": "autoprune.exporters.distiller:schedule",
    "amc": "autoprune.exporters.amc:channels",
    "spdy": "autoprune.exporters.spdy:profile",
    "evopress": "autoprune.exporters.evopress:levels",
}
"""Where each exporter is; ``docs/handoff.md`` has a section on every one of them."""

CHECKS: Mapping[str, str] = {
    "torch_pruning": "autoprune.exporters.torch_pruning:check_ratios",
    "torch_pruning_history": "autoprune.exporters.torch_pruning:check_history",
    "torch_prune": "autoprune.exporters.torch_prune:check_amounts",
    "torch_prune_masks": "autoprune.exporters.torch_prune:check_masks",
    "torch_ao": "autoprune.exporters.torch_ao:check",
    "modelopt": "autoprune.exporters.modelopt:check",
}
"""For tools that can be at hand: ``(scheme, space, model, example)`` applies the scheme to a copy of the model."""

READERS: Mapping[str, str] = {
    ".safetensors": "autoprune.exporters.sizes:of_file",
    ".txt": "autoprune.exporters.amc:read_file",
    "[]": "autoprune.exporters.torch_pruning:read_file",
}
"""Who reads a scheme that another tool wrote, by the file's ending; ``[]`` is any JSON that holds a list."""

GRAPHS: Mapping[str, str] = {
    "onnx": "autoprune.exporters.graphs:onnx",
    "torch_export": "autoprune.exporters.graphs:torch_export",
}
"""Files of the pruned network itself, ``(network, example, path, force=False) -> largest difference of outputs``."""

KIND = Kind("exporter", 3, ("kept", "facts"))
"""An exporter gets scheme, space and model; other arguments are its options."""
GRAPH = Kind("exporter", 3, ("force",))


def check(exporter: str | Exporter, scheme: Scheme, space: SearchSpace, model: nn.Module, example: Any) -> None:
    """Refuse a hand-over that the tool, tried on a copy of ``model``, gets wrong; silent where there is no check."""
    if isinstance(exporter, str) and exporter in CHECKS:
        resolve(CHECKS[exporter], "check")(scheme, space, model, example)


def find(exporter: str | Exporter) -> Exporter:
    """An exporter by its name, by ``package.module:function``, or the function itself."""
    found: Exporter = function(exporter, "exporter", EXPORTERS)
    return found


def configure(exporter: str | Exporter, options: Mapping[str, str]) -> Exporter:
    """An exporter with options given as text, such as ``{"prefix": "backbone."}``; see :mod:`autoprune.settings`."""
    found = find(exporter)
    return partial(found, **settings.read(found, KIND, options)) if options else found


def text(exporter: str | Exporter, scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> str:
    """What an exporter makes of a scheme: text as it is, any other object as JSON."""
    content = find(exporter)(scheme, space, model)
    if isinstance(content, str):
        return content
    try:
        return laid_out(content) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"exporter {exporter!r} returned a {type(content).__name__} that a file cannot hold ({error}): "
            "call it from Python instead"
        ) from None


def write_graph(
    kind: str, network: nn.Module, example: Any, path: str | Path, options: Mapping[str, str], *, force: bool = False
) -> float:
    """Write the network as one of ``GRAPHS``; returns how far its outputs are from PyTorch's at most."""
    save = resolve(GRAPHS[kind], "exporter")
    difference: float = save(network, example, path, force=force, **settings.read(save, GRAPH, options))
    return difference


def write(
    exporter: str | Exporter,
    scheme: Scheme,
    space: SearchSpace,
    path: str | Path,
    model: nn.Module | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write :func:`text` to a file; nothing is written when the exporter refuses the scheme.

    A file that is there is replaced with ``force`` only.
    """
    return write_text(text(exporter, scheme, space, model), path, force=force)


def write_text(content: str, path: str | Path, *, force: bool = False) -> Path:
    """Write what an exporter made to a file, which must be new unless ``force`` is given; returns its path."""
    target = expand(path)
    if target.exists() and not force:
        raise UserError(f"{target} exists already: choose another file, or replace it with force (--force)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): choose another file") from None
    return target


def read(path: str | Path, space: SearchSpace) -> Scheme:
    """The scheme in a file, checked against the space; how it is read its ending says.

    ``.csv`` is a table, ``.safetensors`` a pruned network whose sizes tell, ``.txt`` AMC's list of channels, and
    anything else JSON: a scheme file, or a history of Torch-Pruning.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".csv":
        return csv.read(path, space)
    if ending not in READERS and _is_list(path):
        ending = "[]"
    if ending in READERS:
        found: Scheme = resolve(READERS[ending], "reader")(path, space)
        return found
    return scheme_file.read(path, space)


def _is_list(path: Path) -> bool:
    """Whether the file is JSON with a list in it."""
    with existing(path).open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
