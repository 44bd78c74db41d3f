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

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import UserError
from autoprune.exporters import csv, scheme_file
from autoprune.paths import expand
from autoprune.references import function, resolve
from autoprune.scheme import Scheme
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
}


CHECKS: Mapping[str, str] = {
    "torch_pruning": "autoprune.exporters.torch_pruning:check_ratios",
    "torch_pruning_history": "autoprune.exporters.torch_pruning:check_history",
}
"""For tools that are installed with us: ``(scheme, space, model, example)`` applies the scheme to a copy."""


def check(exporter: str | Exporter, scheme: Scheme, space: SearchSpace, model: nn.Module, example: Any) -> None:
    """Refuse a hand-over that the tool, tried on a copy of ``model``, gets wrong; silent where there is no check."""
    if isinstance(exporter, str) and exporter in CHECKS:
        resolve(CHECKS[exporter], "check")(scheme, space, model, example)


def find(exporter: str | Exporter) -> Exporter:
    """An exporter by its name, by ``package.module:function``, or the function itself."""
    found: Exporter = function(exporter, "exporter", EXPORTERS)
    return found


def text(exporter: str | Exporter, scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> str:
    """What an exporter makes of a scheme: text as it is, any other object as JSON."""
    content = find(exporter)(scheme, space, model)
    if isinstance(content, str):
        return content
    try:
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"exporter {exporter!r} returned a {type(content).__name__} that a file cannot hold ({error}): "
            "call it from Python instead"
        ) from None


def write(
    exporter: str | Exporter, scheme: Scheme, space: SearchSpace, path: str | Path, model: nn.Module | None = None
) -> Path:
    """Write :func:`text` to a file; nothing is written when the exporter refuses the scheme."""
    content = text(exporter, scheme, space, model)
    target = expand(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): choose another file") from None
    return target


def read(path: str | Path, space: SearchSpace) -> Scheme:
    """The scheme in a file, a table if its name ends in .csv and a scheme file otherwise, checked against the space."""
    path = Path(path)
    return csv.read(path, space) if path.suffix.lower() == ".csv" else scheme_file.read(path, space)
