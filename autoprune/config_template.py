"""The file that ``autoprune init`` writes: every option of a command with its help, those given in force."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from autoprune.config_file import TYPED_ONLY
from autoprune.cost import LABELS, amount, costs

if TYPE_CHECKING:
    from autoprune.space import SearchSpace

WIDTH = 112
HEADER = """\
Options of `{program}`, made by `autoprune init`. Run them with

    {command}

What is behind a # is not in force: take the # away, and fill in a value where there is none. A list may hold several \
values. Options typed behind the command win over this file."""


def write(options: Iterable[Any], given: Mapping[str, Any], facts: Iterable[str], command: str) -> str:
    """A TOML file with the options of a command, in its order; ``given`` has values by argument."""
    parts = [_comment(HEADER.format(program=command.partition(" --config")[0], command=command))]
    told = [_comment(fact) for fact in facts]
    if told:
        parts.append("\n".join(told))
    known = [one for one in options if _name(one) not in (*TYPED_ONLY, None)]
    for panel, members in groupby(known, lambda one: one.rich_help_panel):
        parts.append(f"# ---- {panel} ----")
        parts += [_entry(one, given.get(one.name)) for one in members]
    return "\n\n".join(parts) + "\n"


def facts(model: str, space: SearchSpace) -> list[str]:
    """What is known of a network before anything is measured: its groups, its costs, and what can be asked of it."""
    noun = "groups of channels" if space.granularity == "channel" else "tensors of weights"
    told = [f"{model}: {noun} that can be pruned: {len(space)}; layers that stay whole: {len(space.left_out)}."]
    told.append(f"`autoprune groups {model}` lists them.")
    functions = costs(space)
    counted = ", ".join(f"{amount(cost(space.dense))} {LABELS[name]}" for name, cost in functions.items())
    told.append(f"Dense: {counted}.")
    least, most = functions["macs"](space.smallest), functions["macs"](space.dense)
    told.append(
        f"Budgets in reach: macs={100 * least / most:.1f}% to macs=100%, which is {amount(least)} to {amount(most)}."
    )
    return told


def _entry(option: Any, value: Any) -> str:
    usual = option.show_default if isinstance(option.show_default, str) else ""
    told = f"{option.help} (default: {usual})" if usual else str(option.help)
    key = _name(option)
    if value is not None:
        return f"{_comment(told)}\n{key} = {_toml(value)}"
    default = [] if option.default is None and option.multiple else option.default
    return f"{_comment(told)}\n#{key} ={'' if default is None else f' {_toml(default)}'}"


def _name(option: Any) -> str | None:
    """The long name of an option; None for what has none."""
    return next((name.removeprefix("--") for name in option.opts if name.startswith("--")), None)


def _comment(text: str) -> str:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, WIDTH, subsequent_indent="") or [""]]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False)  # a TOML string escapes as JSON does
