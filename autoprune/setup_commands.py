"""``autoprune init`` and ``doctor``: a file to begin with, and whether the installation is sound."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from autoprune import arguments, config_template
from autoprune.errors import UserError
from autoprune.option_groups import Network, Removed, pick
from autoprune.options import OUTPUT, Debug, Force, Input, Json, Root, option

ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}
"""How ``init`` is registered: what it does not know are options of search."""
COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}


def init(
    ctx: typer.Context,
    out: Annotated[Path, option(OUTPUT, "file to write")] = Path("run.toml"),
    force: Force = False,
    input: Input = None,  # noqa: A002 - the option's name
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a file with every option of search, explained, for `autoprune search --config`.

    Any option of search may be given, such as --model; it is filled in, and the others are there with their defaults.
    Where the network can be loaded, the file says what can be pruned and which budgets are in reach.

    Example: autoprune init --model torchvision:resnet18 --data imagefolder:photos --out run.toml
    """
    if out.exists() and not force:
        raise UserError(f"{out} exists already: choose another file with --out, or replace it with --force")
    options, given, chosen = _search_options(ctx)
    told = _facts(chosen, input)
    command = f"autoprune search --config {shlex.quote(str(out))}"
    try:
        out.write_text(config_template.write(options, given, told, command), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): choose another file with --out") from None
    if as_json:
        print(json.dumps({"file": str(out), "command": command, "facts": told}))
        return
    print(f"{out} has every option of search, with {len(given) or 'none'} filled in. Next: {command}")


def doctor(
    ray: Annotated[bool, option(None, "start a local Ray and let it work, which takes seconds", "--ray")] = False,
    root: Root = "runs",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check the installation: versions that fit together, devices, threads, folders, plug-ins.

    The exit status is 1 if there is a problem.

    Example: autoprune doctor --ray
    """
    from autoprune.doctor import examine

    checks = examine(Path(root), ray)
    problems = sum(check.status == "problem" for check in checks)
    if as_json:
        print(json.dumps({"problems": problems, "checks": [asdict(check) for check in checks]}))
    else:
        _tell(checks)
    if problems:
        raise typer.Exit(1)


def _tell(checks: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        found = Text(check.found, overflow="fold")
        if check.cure:
            found.append(f"\n-> {check.cure}", "bold" if check.status == "problem" else "dim")
        table.add_row(Text(check.status, COLOURS[check.status]), Text(check.name), found)
    Console().print(table)


def _search_options(ctx: typer.Context) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """The options of search, those that were given, and the values of all, as search itself would read them."""
    group: Any = ctx.find_root().command
    search = group.get_command(ctx.find_root(), "search")
    read = search.make_context(ctx.info_name, list(ctx.args), parent=ctx.parent)
    given = {
        name: value
        for name, value in read.params.items()
        if getattr(read.get_parameter_source(name), "name", "") in ("COMMANDLINE", "DEFAULT_MAP")
    }
    return search.params, given, read.params


def _facts(chosen: dict[str, Any], shape: str | None) -> list[str]:
    """What the file says of the network, or why it says nothing."""
    named = pick(Network, chosen)
    try:
        network = named.load()
        space = pick(Removed, chosen).space(network, arguments.make_example(named.model, shape))
    except UserError as error:
        print(f"warning: the file says nothing of the network: {error}", file=sys.stderr)
        return [f"{named.model} could not be looked at: {error}"]
    return config_template.facts(named.model, space)
