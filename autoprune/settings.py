"""Options of a function, given as values or as text.

A searcher and a reward are functions; what the loop does not supply are their options: keyword arguments with a type
and a default. ``--set spread=0.2`` reads the text as the type that the function's own signature states.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from autoprune import references
from autoprune.errors import UserError
from autoprune.references import close

Options = dict[str, inspect.Parameter]

TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "none",
}
SCALARS: Mapping[Any, type] = {bool: bool, int: Integral, float: Real, str: str, types.NoneType: types.NoneType}


@dataclass(frozen=True)
class Kind:
    """A kind of function: how messages call it, and which arguments its caller supplies.

    ``positions`` is the number of leading positional arguments, ``names`` are arguments passed by name. All others
    are options.
    """

    name: str
    positions: int
    names: tuple[str, ...] = ()


def options(function: Callable[..., Any], kind: Kind) -> Options:
    """The options of a function, with their types and defaults.

    Those that a ``functools.partial`` has bound by name stay options, and what it bound is their default.
    """
    inner, taken, bound = _unwrap(function)
    try:
        parameters = list(_signature(inner).parameters.values())
    except (ValueError, TypeError, NameError, AttributeError, SyntaxError) as error:
        raise UserError(f"the signature of {kind.name} {_name(inner)} cannot be read: {error}") from error
    return {
        parameter.name: parameter.replace(default=bound.get(parameter.name, parameter.default))
        for position, parameter in enumerate(parameters)
        if parameter.kind is parameter.KEYWORD_ONLY
        or (parameter.kind is parameter.POSITIONAL_OR_KEYWORD and position >= taken + kind.positions)
        if parameter.name not in kind.names
    }


def read(function: Callable[..., Any], kind: Kind, texts: Mapping[str, str]) -> dict[str, Any]:
    """Options given as text, each read as the type it is annotated with, or else as the type of its default."""
    known = options(function, kind) if texts else {}
    for name in texts:
        _check_name(name, function, kind, known)
    return {name: _read(text, known[name], f"{kind.name} {_name(function)}") for name, text in texts.items()}


def check(function: Callable[..., Any], kind: Kind, values: Mapping[str, Any]) -> None:
    """Refuse options that the function does not have, or whose value is not of the annotated type.

    What a ``functools.partial`` has bound by name is checked as well. A function that takes any keyword
    (``**rest``) answers for them itself; so do annotations other than numbers, text, none and choices.
    """
    inner, _, bound = _unwrap(function)
    given = {name: value for name, value in bound.items() if name not in kind.names} | dict(values)
    if not given:
        return
    known = options(function, kind)
    for name, value in given.items():
        if name not in known and _takes_any(inner):
            continue
        _check_name(name, function, kind, known)
        kinds = _kinds(known[name].annotation)
        if kinds and not any(_fits(value, one) for one in kinds):
            raise UserError(f"{kind.name} {_name(inner)}: {_expected(name, value, kinds)}")


def named(text: str, kind: Kind, known: Mapping[str, Any]) -> Any:
    """A function with its options, ``NAME,option=value,…``; NAME is as in :func:`autoprune.references.function`."""
    name, *items = [part.strip() for part in text.split(",")]
    found = references.function(name, kind.name, known)
    for item in items:
        if "=" not in item:
            raise UserError(f"{kind.name} {text!r}: write its options like {name},option=value")
    return functools.partial(found, **read(found, kind, dict(item.split("=", 1) for item in items))) if items else found


def _check_name(name: str, function: Callable[..., Any], kind: Kind, known: Options) -> None:
    if name not in known:
        listed = f"its options are {', '.join(known)}" if known else "it has no options"
        raise UserError(f"{kind.name} {_name(function)} has no option {name!r}: {listed}{close(name, list(known))}")


def _read(text: str, parameter: inspect.Parameter, where: str) -> Any:
    """One value. Choices are tried first, then the types, the narrower before the wider."""
    implied = str if parameter.default is parameter.empty else type(parameter.default)
    kinds = _kinds(parameter.annotation) or (implied,)
    for choice in _choices(kinds):
        if text == str(choice) or (not isinstance(choice, str) and text.lower() == str(choice).lower()):
            return choice
    if types.NoneType in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in TRUTH:
        return TRUTH[text.lower()]
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                continue
    if str in kinds:
        return text
    raise UserError(f"{where}: {_expected(parameter.name, text, kinds)}")


def _expected(name: str, value: object, kinds: tuple[Any, ...]) -> str:
    """What an option would have taken."""
    choices = [str(choice) for choice in _choices(kinds)]
    words = choices + [WORDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds if not _choices((kind,))]
    return f"option {name}={value!r}: expected {' or '.join(words)}{close(str(value), choices)}"


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation; none where it does not say."""
    if annotation is inspect.Parameter.empty or annotation is Any:
        return ()
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(annotation) for kind in _kinds(part))
    return (annotation,)


def _choices(kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values that the ``Literal`` alternatives list."""
    return tuple(
        value for kind in kinds if typing.get_origin(kind) is typing.Literal for value in typing.get_args(kind)
    )


def _fits(value: object, kind: Any) -> bool:
    """Whether a value may be meant; True for a type that is not ours to judge."""
    if typing.get_origin(kind) is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(kind))
    if kind not in SCALARS:
        return True
    return isinstance(value, SCALARS[kind]) and (kind is bool or not isinstance(value, bool))


def _unwrap(function: Callable[..., Any]) -> tuple[Callable[..., Any], int, dict[str, Any]]:
    """The function inside ``functools.partial``, how many positions are taken, and what is bound by name."""
    taken = 0
    bound: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        taken += len(function.args)
        bound = {**function.keywords, **bound}
        function = function.func
    return function, taken, bound


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with annotations evaluated; a name imported for type checkers alone says nothing."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return inspect.signature(function, locals=unknown, eval_str=True)
        except NameError as error:
            if error.name is None or error.name in unknown:
                raise
            unknown[error.name] = Any


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _name(function: Callable[..., Any]) -> str:
    inner, _, _ = _unwrap(function)
    return getattr(inner, "__name__", type(inner).__name__)
