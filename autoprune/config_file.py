"""``--config run.toml``: the options of a command from a file, as if they had been typed.

A key is the long name of an option, with ``-`` or ``_``; an option that may be repeated takes a list, or a table where
it is about KEY=VALUE::

    model = "autoprune:resnet56"
    budget = ["macs=50%", "params=60%"]
    trials = 200

    [set]
    step = 0.1
"""

from __future__ import annotations

import inspect
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from autoprune import paths
from autoprune.errors import UserError
from autoprune.references import close
from autoprune.settings import WORDS

TYPED_ONLY = ("config", "debug", "help")
"""Options that are about the command line itself."""


def take(ctx: typer.Context, value: Path | None) -> Path | None:
    """Make what the file says the default of the options that follow; the callback of ``--config``."""
    if value is not None and not ctx.resilient_parsing:
        ctx.default_map = {**(ctx.default_map or {}), **read(value, ctx)}
    return value


def read(path: Path, ctx: typer.Context) -> dict[str, Any]:
    """The values in the file by argument of the command, checked against its options."""
    file = paths.expand(path)
    if not file.is_file():
        where = "" if file.is_absolute() else f" under {Path.cwd()}"
        raise UserError(f"there is no file {file}{where}: check the path; `autoprune init` writes such a file")
    try:
        text = file.read_text(encoding="utf-8").rstrip() + "\n"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): name a TOML file") from error
    try:
        record = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        end = f"at the end, line {text.count(chr(10))}"
        raise UserError(f"{file} is no TOML: {str(error).replace('at end of document', end)}") from None
    known = options(ctx)
    found: dict[str, Any] = {}
    for key, value in record.items():
        where = f"{file}:{_line(key, text)}"
        name = key.replace("_", "-")
        if name not in known:
            raise UserError(f"{where}: {ctx.info_name} has no option {key!r}{_close(name, list(known))}")
        argument, annotation = known[name]
        if argument in found:
            raise UserError(f"{where}: {key!r} is there twice, with - and with _: keep one")
        found[argument] = _read(value, annotation, f"{where}: {key}")
    return found


def options(ctx: typer.Context) -> dict[str, tuple[str, Any]]:
    """The command's options by long name: the argument that takes each, and its annotation."""
    command = ctx.command
    arguments = inspect.signature(typing.cast(Any, command.callback), eval_str=True).parameters
    return {
        name.removeprefix("--"): (argument.name, arguments[argument.name].annotation)
        for argument in command.params
        if argument.param_type_name == "option" and argument.name in arguments
        for name in argument.opts
        if name.startswith("--") and name.removeprefix("--") not in TYPED_ONLY
    }


def _read(value: Any, annotation: Any, where: str) -> Any:
    """The value as the option takes it."""
    kind, repeatable = _kind(annotation)
    if not repeatable:
        return _single(value, kind, where)
    if isinstance(value, Mapping):
        return [f"{key}={_text(one, f'{where}.{key}')}" for key, one in value.items()]
    if not isinstance(value, list):
        raise UserError(f'{where} = {value!r}: expected a list, such as ["{_plain(value)}"]')
    return [_single(one, kind, where) for one in value]


def _kind(annotation: Any) -> tuple[type, bool]:
    """What one value of the option is, and whether there may be several."""
    while typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    repeatable = typing.get_origin(annotation) is list
    return typing.get_args(annotation)[0] if repeatable else annotation, repeatable


def _single(value: Any, kind: type, where: str) -> Any:
    if kind in (str, Path):  # numbers are text on a command line: sparsity = 0.9, round-to = [8]
        return _text(value, where, truth=False)
    fits = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise UserError(f"{where} = {value!r}: expected {WORDS[kind]}")
    return value


def _text(value: Any, where: str, truth: bool = True) -> str:
    if isinstance(value, bool) and not truth:
        raise UserError(f"{where} = {_plain(value)}: expected {WORDS[str]}")
    if isinstance(value, str | int | float):
        return _plain(value)
    raise UserError(f"{where} = {value!r}: expected {WORDS[str]}{' or a number' if truth else ''}")


def _plain(value: Any) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _close(name: str, known: list[str]) -> str:
    return close(name, known) or "; see its --help"


def _line(key: str, text: str) -> int:
    """Where the key is, from 1; TOML's parser keeps no lines."""
    there = re.compile(rf"""\s*(\[\s*)?["']?{re.escape(key)}["']?\s*[\].=]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if there.match(line)), 1)
