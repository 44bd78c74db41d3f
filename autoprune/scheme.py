"""A scheme: how much of every group is kept, as integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from autoprune.errors import UserError

Granularity = Literal["channel", "weight", "n:m"]

VERSION = 1


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
