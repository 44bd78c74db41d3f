"""The scheme file: a scheme as JSON that people can read and that is checked when it is read back.

One entry per group holds its name, the modules that lose something, and the counts:

    {"format": "autoprune-scheme", "version": 1, "granularity": "channel",
     "groups": [{"name": "conv1", "members": [{"module": "conv1", "role": "out"}, …], "original_channels": 64,
                 "kept_channels": 40, "unit": 1, "rate_kept": 0.625, "kept_indices": [0, 3, …]}, …],
     "model": …, "costs": …, "measurement": …, "latency": …, "reward": …, "provenance": …}

Where single weights are removed an entry has ``tensor``, ``original_weights`` and ``kept_weights`` in place of
channels, and no indices: the network beside it has the zeros. Under n:m its ``unit`` are the blocks of m neighbours.

``kept_channels`` is the truth, ``rate_kept`` is derived from it for the reader's eye and ignored here.
``kept_indices`` are there only if the scheme says which channels stay: channel numbers of the layer that
produces them, ascending. The sections after the groups are optional and are not needed to read the scheme: which model
it was made for (name, source, digest of the weights, shape of an example), costs before and after, what was measured,
milliseconds and the device they were taken on, the reward, and where the scheme comes from (searcher, options, seed,
versions).

:func:`schema` is the JSON Schema of the format, ``scheme.schema.json`` beside this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from autoprune.errors import UserError
from autoprune.exporters.json_text import laid_out
from autoprune.paths import existing
from autoprune.references import close
from autoprune.scheme import Scheme
from autoprune.space import Group, SearchSpace

FORMAT = "autoprune-scheme"
VERSION = 1
SECTIONS = ("model", "costs", "measurement", "latency", "reward", "provenance")
SHOWN = 3


def export(scheme: Scheme, space: SearchSpace, model: object = None, *, facts: Mapping[str, Any] | None = None) -> str:
    """The scheme file of a scheme; the same scheme and ``facts`` give the same text.

    ``facts`` are the optional sections: JSON-able values under the names in ``SECTIONS``, where a number that is
    not finite becomes null. The model is not needed.
    """
    space.check(scheme)
    facts = facts or {}
    for name in facts:
        if name not in SECTIONS:
            raise UserError(f"section {name!r} is unknown: a scheme file has {', '.join(SECTIONS)}")
    record: dict[str, Any] = {"format": FORMAT, "version": VERSION, "granularity": scheme.granularity}
    record["groups"] = [_entry(scheme, space, position) for position in range(len(space))]
    record |= {name: _finite(facts[name]) for name in SECTIONS if name in facts}
    try:
        return laid_out(record) + "\n"
    except TypeError as error:
        raise UserError(f"the sections of a scheme file must be plain JSON: {error}") from None


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the newest version of the format."""
    text = files("autoprune.exporters").joinpath("scheme.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def shapes(example: Any) -> Any:
    """The shape of an example input for the section "model": one list, or lists in the example's own structure."""
    if isinstance(example, Mapping):
        return {str(name): shapes(value) for name, value in example.items()}
    if isinstance(example, list | tuple):
        return [shapes(value) for value in example]
    shape = getattr(example, "shape", None)
    return None if shape is None else [int(size) for size in shape]


def other_weights(source: str | Path, digest: str) -> str | None:
    """What to tell somebody whose model has another ``digest`` than the file names; None where nothing differs."""
    model = parse(source).get("model")
    named = model.get("digest") if isinstance(model, Mapping) else None
    if named is None or named == digest:
        return None
    name = f" of {model['name']}" if isinstance(model, Mapping) and model.get("name") else ""
    return (
        f"the scheme was made for other weights{name} (digest {named}, here {digest}): its counts hold for any, "
        "its kept indices were chosen for those"
    )


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entry(scheme: Scheme, space: SearchSpace, position: int) -> dict[str, Any]:
    group, count = space.groups[position], scheme.kept[position]
    entry: dict[str, Any] = {
        "name": group.name,
        "members": _members(group),
        **({} if group.tensor is None else {"tensor": group.tensor}),
        f"original_{space.noun}": group.width,
        f"kept_{space.noun}": count,
        "unit": group.unit,
        "rate_kept": round(count / group.width, 6),
    }
    if scheme.indices is not None:
        entry["kept_indices"] = group.channels(scheme.indices[position])
    return entry


def _members(group: Group) -> list[dict[str, str]]:
    """Modules and what they do with the channels; "through" only for those that do nothing else."""
    if group.tensor is not None:
        return [{"module": module, "role": "entries"} for module in group.members]
    roles: dict[str, list[str]] = {module: [] for module in group.members}
    for piece in group.slices:
        if piece.role not in roles[piece.module]:
            roles[piece.module].append(piece.role)
    return [
        {"module": module, "role": role}
        for module, found in roles.items()
        for role in found
        if role != "through" or found == ["through"]
    ]


def parse(source: str | Path) -> dict[str, Any]:
    """The record in a scheme file, given as its path or its text; its groups are not looked at yet."""
    label, text = _content(source)
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(f"{label} is not JSON ({error}): a scheme file is expected") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f'{label} is not a scheme file: it lacks "format": "{FORMAT}"')
    version = record.get("version")
    if type(version) is not int or version < 1:
        raise UserError(f"{label}: version {version!r} of the scheme file is not a positive whole number")
    if version > VERSION:
        raise UserError(f"{label}: scheme file of version {version}, this autoprune reads up to {VERSION}: update it")
    groups = record.get("groups")
    if not isinstance(groups, list) or not all(isinstance(g, dict) and isinstance(g.get("name"), str) for g in groups):
        raise UserError(f'{label}: "groups" must be a list of entries with a "name"')
    return record


def _content(source: str | Path) -> tuple[str, str]:
    """How to call the source in messages, and its text."""
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return "the scheme file", source
    path = existing(source)
    try:
        return str(path), path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): a scheme file is expected") from None


def read(source: str | Path, space: SearchSpace) -> Scheme:
    """The scheme in a file, given as its path or its text, checked against the space of the model at hand."""
    record = parse(source)
    granularity = record.get("granularity")
    if granularity != space.granularity:
        raise UserError(f"the file's granularity is {granularity!r}, the search space has {space.granularity!r}")
    entries = _by_name(record["groups"], space)
    _refuse_other_widths(entries, space)
    counts = tuple(_count(entries[group.name], group, space.noun) for group in space.groups)
    indices = None
    if any("kept_indices" in entry for entry in entries.values()):
        indices = tuple(_units(entries[g.name], g, k) for g, k in zip(space.groups, counts, strict=True))
    scheme = Scheme(counts, space.granularity, indices)
    space.check(scheme)
    return scheme


def _by_name(groups: Sequence[Mapping[str, Any]], space: SearchSpace) -> dict[str, Mapping[str, Any]]:
    entries = {entry["name"]: entry for entry in groups}
    known = [group.name for group in space.groups]
    unknown = [f"no group is called {name!r} here{close(name, known)}" for name in entries if name not in known]
    if unknown:
        raise UserError(f"the file was made for another model: {_listed(unknown)}")
    missing = [name for name in known if name not in entries]
    if missing:
        raise UserError(
            f"the file says nothing about group {_listed(missing, ', ')}: list every group, uncut ones too, "
            "or narrow the space as it was when the file was made"
        )
    if len(entries) < len(groups):
        names = [entry["name"] for entry in groups]
        raise UserError(f"the file lists group {next(n for n in names if names.count(n) > 1)!r} twice: keep one entry")
    return entries


def _refuse_other_widths(entries: Mapping[str, Mapping[str, Any]], space: SearchSpace) -> None:
    differ = [
        f"group {group.name} has {group.width} {space.noun} here, {original} in the file"
        for group in space.groups
        if (original := entries[group.name].get(f"original_{space.noun}", group.width)) != group.width
    ]
    if differ:
        raise UserError(f"the file was made for another model: {_listed(differ)}")


def _listed(texts: Sequence[str], separator: str = "; ") -> str:
    rest = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return separator.join(texts[:SHOWN]) + rest


def _count(entry: Mapping[str, Any], group: Group, noun: str) -> int:
    count = entry.get(f"kept_{noun}")
    if type(count) is not int or count < 1:
        raise UserError(f"group {group.name}: kept_{noun} = {count!r} is not a whole number of at least 1")
    return count


def tensors(record: Mapping[str, Any]) -> list[str]:
    """The parameters that lose single weights, by the file; none in a file of channels."""
    return [entry["tensor"] for entry in record["groups"] if isinstance(entry.get("tensor"), str)]


def block(record: Mapping[str, Any]) -> int:
    """How many neighbours a block has in the file of an n:m scheme: the m of its first group."""
    for entry in record["groups"]:
        original, unit = entry.get("original_weights"), entry.get("unit")
        if type(original) is int and type(unit) is int and 0 < unit < original and not original % unit:
            return original // unit
    raise UserError("the scheme file is of granularity n:m and does not say what m is: original_weights and unit do")


def _units(entry: Mapping[str, Any], group: Group, count: int) -> tuple[int, ...]:
    if "kept_indices" not in entry:
        if count == group.width:
            return tuple(range(group.units))
        raise UserError(f"group {group.name}: kept_indices are missing, though other groups have them")
    channels = entry["kept_indices"]
    if not isinstance(channels, list) or not all(type(channel) is int for channel in channels):
        raise UserError(f"group {group.name}: kept_indices must be a list of channel numbers")
    if len(channels) != count:
        raise UserError(f"group {group.name}: {len(channels)} kept_indices contradict kept_channels = {count}")
    return units_of(group, channels)


def units_of(group: Group, channels: Iterable[int]) -> tuple[int, ...]:
    """The units made of the given channels of the producing layer: the inverse of ``Group.channels``.

    Channels that leave together only (in grouped convolutions) must be given together.
    """
    chosen = sorted(channels)
    owner = {int(c): unit for unit, row in enumerate(group.slices[0].positions) for c in row}
    for before, channel in zip([None, *chosen], chosen, strict=False):
        if channel == before:
            raise UserError(f"group {group.name}: channel {channel} is listed twice")
        if channel not in owner:
            raise UserError(f"group {group.name}: channel {channel} is not one of its {group.width} channels")
    units = sorted({owner[channel] for channel in chosen})
    absent = sorted(set(group.channels(units)) - set(chosen))
    if absent:
        partners = ", ".join(str(channel) for channel in group.channels([owner[absent[0]]]))
        raise UserError(f"group {group.name}: channels {partners} stay or leave together, {absent[0]} is not listed")
    return tuple(units)
