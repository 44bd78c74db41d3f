"""Narrow a search space by name: which groups, how far, in which steps, and which ones together.

Every function takes a space and returns a new one; nothing is traced again. A pattern is a shell glob
(``*``, ``?``, ``[…]``) over the names of groups and of the layers whose own channels they cut; it also
takes in what lies inside a module, so ``layer1`` is short for ``layer1.*``. Where several patterns speak
of a group the last one decides, and a pattern that matches nothing is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np

from autoprune.errors import UserError
from autoprune.references import close
from autoprune.space import Group, LeftOut, SearchSpace, Slice

Range = tuple[float, float]  # lowest and highest kept rate
Value = TypeVar("Value")


def define(
    space: SearchSpace,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    round_to: Sequence[str] = (),
    rates: Sequence[str] = (),
    ties: Sequence[str] = (),
) -> SearchSpace:
    """Everything at once, in the words of the command line.

    ``round_to`` takes "8" or "PATTERN=8", ``rates`` "0.25:1", "25%:100%" or "PATTERN=0.25:1", ``ties``
    "A,B". Groups are tied first, so that the patterns see the tied ones; then they are selected, limited
    and rounded.
    """
    space = tie(space, [tuple(name.strip() for name in text.split(",")) for text in ties])
    space = select(space, include, exclude)
    space = limit(space, _settings("rates", rates, _range))
    return _in_multiples(space, _settings("round-to", round_to, _whole))


def select(space: SearchSpace, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> SearchSpace:
    """Only groups that an ``include`` pattern matches and no ``exclude`` pattern does."""
    for pattern in (*include, *exclude):
        _check(space, pattern)

    def verdict(group: Group) -> Group | str:
        hit = next((pattern for pattern in exclude if _matches(pattern, _makers(group))), None)
        if hit is not None:
            return f"excluded by {hit!r}"
        included = any(_matches(pattern, _makers(group)) for pattern in include)
        return group if included else f"not included by {', '.join(map(repr, include))}"

    return _narrowed(space, verdict)


def fix(space: SearchSpace, patterns: Sequence[str]) -> SearchSpace:
    """Leave the matching layers exactly as they are: neither what they make nor what they read is cut.

    :func:`select` excludes by what a layer makes; the layers that read it may still lose inputs.
    """
    for pattern in patterns:
        if not any(_matches(pattern, _touched(group)) for group in space.groups):
            raise UserError(f"{pattern!r} matches no layer that a group cuts{_close(space, pattern)}")

    def verdict(group: Group) -> Group | str:
        hit = next((pattern for pattern in patterns if _matches(pattern, _touched(group))), None)
        return group if hit is None else f"it would cut a layer that {hit!r} keeps whole"

    return _narrowed(space, verdict)


def limit(space: SearchSpace, rates: Mapping[str, Range]) -> SearchSpace:
    """Kept counts within a range of kept rates (kept / width), per pattern.

    A group whose highest rate is below 1 is always cut: its width is no legal count any more. One of
    which only the whole width remains is left out.
    """
    for pattern, (low, high) in rates.items():
        if not (0 <= low <= high <= 1 and high > 0):
            raise UserError(f"rates {pattern}={low:g}:{high:g}: kept rates go from low to high within 0:1")
    chosen = _decided(space, rates)

    def verdict(group: Group) -> Group | str:
        if group.name not in chosen:
            return group
        low, high = (rate * group.width for rate in chosen[group.name])
        counts = tuple(count for count in group.counts if low - 1e-9 <= count <= high + 1e-9)
        if not counts:
            raise UserError(
                f"rates {low / group.width:g}:{high / group.width:g} leave group {group.name} no legal count: "
                f"they ask for {low:g} to {high:g} of {_listed(group)}; widen the range"
            )
        return _with(group, counts, "its rates keep it whole")

    return _narrowed(space, verdict)


def round_to(space: SearchSpace, multiple: int | Mapping[str, int]) -> SearchSpace:
    """Keep multiples of a number (8 or 16 suit most hardware), for all groups or per pattern.

    The width itself stays legal. A group without a multiple below its width is left out.
    """
    return _in_multiples(space, {"*": multiple} if isinstance(multiple, int) else multiple)


def _in_multiples(space: SearchSpace, multiples: Mapping[str, int]) -> SearchSpace:
    for pattern, multiple in multiples.items():
        if space.granularity != "channel":
            raise UserError(f"round-to {pattern}={multiple}: channels are rounded, weights have levels or a pattern")
        if multiple < 1:
            raise UserError(f"round-to {pattern}={multiple}: a multiple is a whole number of at least 1")
    chosen = _decided(space, multiples)

    def verdict(group: Group) -> Group | str:
        multiple = chosen.get(group.name, 1)
        counts = tuple(count for count in group.counts if count % multiple == 0 or count == group.width)
        if not counts:
            raise UserError(f"group {group.name} has no multiple of {multiple} in {_listed(group)}; widen its rates")
        return _with(group, counts, f"it has no multiple of {multiple} below its width {group.width}")

    return _narrowed(space, verdict)


def tie(space: SearchSpace, ties: Iterable[Sequence[str]]) -> SearchSpace:
    """Groups that are cut together, at the same positions; each tie lists two or more names.

    The tied group takes the place and the name of the first. All must have the same width and leave in
    units of the same size.
    """
    groups = {group.name: group for group in space.groups}
    now: dict[str, str] = {}  # names that went into another group
    for names in ties:
        if space.granularity != "channel":
            raise UserError(f"tie {','.join(names)!r}: weights of different tensors are not cut at the same positions")
        if len(names) < 2:
            raise UserError(f"tie {','.join(names)!r}: name two groups, as in A,B")
        for name in names:
            if name not in groups and name not in now:
                raise UserError(f"tie {','.join(names)!r}: no group is called {name!r}{_close(space, name)}")
        first, *others = dict.fromkeys(now.get(name, name) for name in names)
        for other in others:
            groups[first] = _merged(groups[first], groups.pop(other))
            now = {name: first if target == other else target for name, target in now.items()} | {other: first}
    return replace(space, groups=tuple(groups.values()))


def _merged(a: Group, b: Group) -> Group:
    if (a.units, a.unit) != (b.units, b.unit):
        widths = " and ".join(f"{g.name} {g.width} channels in units of {g.unit}" for g in (a, b))
        raise UserError(f"groups of different widths cannot be tied: {widths}")
    pieces: dict[tuple[str, int], Slice] = {}
    for piece in (*a.slices, *b.slices):
        key = piece.path, piece.axis
        known = pieces.get(key)
        positions = piece.positions if known is None else np.hstack([known.positions, piece.positions])
        pieces[key] = replace(piece, positions=positions)
    unit = pieces[a.slices[0].path, a.slices[0].axis].positions.shape[1]
    steps = sorted({count // a.unit for count in a.counts} & {count // b.unit for count in b.counts})
    if not steps:
        raise UserError(f"groups {a.name} and {b.name} have no legal count in common, so they cannot be tied")
    return Group(a.name, a.units * unit, tuple(pieces.values()), tuple(step * unit for step in steps), unit)


# -- names ------------------------------------------------------------------------------------


def _makers(group: Group) -> set[str]:
    """The group's name and the layers whose own channels it cuts."""
    return {group.name} | {piece.module for piece in group.slices if piece.role != "in"}


def _touched(group: Group) -> set[str]:
    """The group's name and every layer that loses something."""
    return {group.name, *group.members}


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for name in names)


def _check(space: SearchSpace, pattern: str) -> None:
    """Refuse a pattern without a match, with what may have been meant."""
    if pattern == "*" or any(_matches(pattern, _makers(group)) for group in space.groups):
        return
    reason = next((left.reason for left in space.left_out if _matches(pattern, [left.name])), None)
    read = [group.name for group in space.groups if _matches(pattern, group.members)]
    if read:
        raise UserError(f"{pattern!r} matches no group: it only reads channels, those of {', '.join(read[:3])}")
    if reason is not None:
        raise UserError(f"{pattern!r} matches no group, only what is left out anyway ({reason})")
    raise UserError(f"{pattern!r} matches no group{_close(space, pattern)}; `autoprune groups` lists them")


def _close(space: SearchSpace, name: str) -> str:
    known = sorted({maker for group in space.groups for maker in _makers(group)})
    return close(name.strip("*."), known)


def _decided(space: SearchSpace, settings: Mapping[str, Value]) -> dict[str, Value]:
    """What the last matching pattern says, by the name of the group."""
    for pattern in settings:
        _check(space, pattern)
    chosen = {}
    for group in space.groups:
        for pattern, value in settings.items():
            if _matches(pattern, _makers(group)):
                chosen[group.name] = value
    return chosen


# -- results ----------------------------------------------------------------------------------


def _narrowed(space: SearchSpace, verdict: Callable[[Group], Group | str]) -> SearchSpace:
    """The groups as the verdict has them; one that gets a reason instead is left out."""
    verdicts = [verdict(group) for group in space.groups]
    groups = tuple(group for group in verdicts if isinstance(group, Group))
    if space.groups and not groups:
        raise UserError(f"no group stays in the search space: {space.groups[0].name} is out because {verdicts[0]}")
    gone = [
        LeftOut(group.name, reason)
        for group, reason in zip(space.groups, verdicts, strict=True)
        if isinstance(reason, str)
    ]
    return replace(space, groups=groups, left_out=(*space.left_out, *gone))


def _with(group: Group, counts: tuple[int, ...], otherwise: str) -> Group | str:
    """The group with other legal counts, or a reason if nothing but its width is left."""
    return otherwise if counts == (group.width,) else replace(group, counts=counts)


def _listed(group: Group) -> str:
    step = f" by {group.unit}" if group.unit > 1 else ""
    noun = "channels" if group.tensor is None else "weights"
    return f"{group.counts[0]}..{group.counts[-1]}{step} of {group.width} {noun}"


# -- the words of the command line ------------------------------------------------------------


def _settings(option: str, texts: Iterable[str], read: Callable[[str], Value]) -> dict[str, Value]:
    """PATTERN=VALUE, or a value for all."""
    found: dict[str, Value] = {}
    for text in texts:
        pattern, _, value = text.strip().rpartition("=")
        pattern = pattern.strip() or "*"
        if pattern in found:
            raise UserError(f"--{option} {text!r}: the pattern {pattern!r} is given twice")
        try:
            found[pattern] = read(value)
        except ValueError:
            example = "8 or layer1.*=16" if option == "round-to" else "0.25:1 or layer1.*=0.5:0.9"
            raise UserError(f"--{option} {text!r} cannot be read: write it like {example}") from None
    return found


def _whole(text: str) -> int:
    return int(text)


def _range(text: str) -> Range:
    low, high = text.split(":")
    return _rate(low), _rate(high)


def _rate(text: str) -> float:
    text = text.strip()
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)
