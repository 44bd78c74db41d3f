"""A scheme: how much of every group is kept, as integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from autoprune.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Granularity = Literal["channel", "weight", "n:m"]
Direction = Literal["kept", "removed"]
NOUNS: Mapping[Granularity, str] = {"channel": "channels", "weight": "weights", "n:m": "weights"}
"""What is counted, in words."""

VERSION = 1


class Channels(Protocol):
    """What a scheme has to know of a group to speak of rates."""

    @property
    def name(self) -> str:
        """What messages and files call it."""

    @property
    def width(self) -> int:
        """Channels of the dense network."""

    def nearest(self, count: float) -> int:
        """The legal count nearest to ``count``."""


class Widths(Protocol):
    """What a scheme has to know of a search space to speak of rates."""

    @property
    def groups(self) -> Sequence[Channels]:
        """The groups in the order of a scheme's counts."""

    @property
    def granularity(self) -> Granularity:
        """What is removed."""


@dataclass(frozen=True)
class Scheme:
    """Kept channels, one integer per group of a search space, in the space's order.

    ``kept`` is the truth; rates are derived from it (kept / width). ``indices`` are given only when
    somebody chose the very channels: one ascending tuple per group of the *units* that stay (a unit
    is one channel, or one channel of every convolution group in a grouped convolution). Two schemes
    are the same when their counts, and their indices if supplied, are the same.
    """

    kept: tuple[int, ...]
    granularity: Granularity = "channel"
    indices: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise UserError(f"granularity {self.granularity!r} is unknown: use one of {known}")
        for position, count in enumerate(self.kept):
            if isinstance(count, bool) or int(count) != count or count < 1:
                raise UserError(f"kept[{position}] = {count!r}: every group keeps a whole number of at least 1")
        object.__setattr__(self, "kept", tuple(int(count) for count in self.kept))
        if self.indices is not None:
            self._check_indices(self.indices)

    def _check_indices(self, indices: Sequence[Sequence[int]]) -> None:
        if len(indices) != len(self.kept):
            raise UserError(f"indices are given for {len(indices)} groups, the scheme has {len(self.kept)}")
        for position, chosen in enumerate(indices):
            if list(chosen) != sorted(set(chosen)) or (len(chosen) > 0 and chosen[0] < 0):
                raise UserError(f"indices[{position}] must be ascending, distinct and not negative")
        object.__setattr__(self, "indices", tuple(tuple(int(i) for i in chosen) for chosen in indices))

    def __len__(self) -> int:
        return len(self.kept)

    def replace(self, group: int, count: int) -> Scheme:
        """The scheme with ``count`` channels kept in one group."""
        return Scheme((*self.kept[:group], count, *self.kept[group + 1 :]), self.granularity)

    @classmethod
    def from_rates(
        cls, rates: Sequence[float] | Mapping[str, float], space: Widths, direction: Direction = "kept"
    ) -> Scheme:
        """The legal counts nearest to rates, one rate per group in the space's order, or by the groups' names.

        ``direction`` says what the rates are shares of: channels kept, in (0, 1], or removed, in [0, 1). A group that
        is not named stays whole.
        """
        _check_direction(direction)
        names = [group.name for group in space.groups]
        if isinstance(rates, Mapping):
            unknown = [name for name in rates if name not in names]
            if unknown:
                raise UserError(f"no group is called {unknown[0]!r}; `autoprune groups` lists them")
        elif len(rates) != len(names):
            raise UserError(f"{len(rates)} rates are given, the search space has {len(names)} groups")
        given = dict(rates) if isinstance(rates, Mapping) else dict(zip(names, rates, strict=True))
        counts = []
        for group in space.groups:
            if group.name not in given:
                counts.append(group.width)
                continue
            rate = float(given[group.name])
            share = rate if direction == "kept" else 1 - rate
            if not 0 < share <= 1:
                valid = "above 0 and at most 1" if direction == "kept" else "at least 0 and below 1"
                raise UserError(f"group {group.name}: rate {direction} = {given[group.name]!r} is not {valid}")
            counts.append(group.nearest(share * group.width))
        return cls(tuple(counts), space.granularity)

    def rates(self, space: Widths, direction: Direction = "kept") -> dict[str, float]:
        """The share of every group's channels that is kept, or removed, by the group's name.

        For the eye and for formulas. Other tools round rates in ways of their own: hand over what the exporters write.
        """
        _check_direction(direction)
        kept = {group.name: count / group.width for group, count in self._counted(space)}
        return kept if direction == "kept" else {name: 1 - rate for name, rate in kept.items()}

    def to_frame(self, space: Widths) -> pd.DataFrame:
        """A table with a row per group, under its name: original, kept and removed channels and their rates."""
        import pandas as pd

        rows = [
            {
                "original": group.width,
                "kept": count,
                "removed": group.width - count,
                "rate_kept": count / group.width,
                "rate_removed": 1 - count / group.width,
            }
            for group, count in self._counted(space)
        ]
        return pd.DataFrame(rows, index=pd.Index([group.name for group in space.groups], name="group"))

    def _counted(self, space: Widths) -> list[tuple[Channels, int]]:
        if len(space.groups) != len(self.kept):
            raise UserError(f"the scheme has {len(self.kept)} groups, the search space {len(space.groups)}")
        return list(zip(space.groups, self.kept, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; the inverse of :meth:`from_dict`."""
        record: dict[str, Any] = {"version": VERSION, "granularity": self.granularity, "kept": list(self.kept)}
        if self.indices is not None:
            record["indices"] = [list(chosen) for chosen in self.indices]
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Scheme:
        """Read a record of :meth:`to_dict`; a newer version is refused."""
        if record.get("version") != VERSION:
            raise UserError(f"scheme version {record.get('version')!r} is not {VERSION}: update autoprune")
        indices = record.get("indices")
        return cls(
            tuple(record["kept"]),
            record["granularity"],
            None if indices is None else tuple(tuple(chosen) for chosen in indices),
        )


def _check_direction(direction: str) -> None:
    if direction not in get_args(Direction):
        raise UserError(f"direction {direction!r} is unknown: rates are of channels 'kept' or 'removed'")
