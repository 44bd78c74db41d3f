"""Peak activation memory of a scheme, in bytes.

Every tensor lives from the operation that makes it until the forward pass lets it go; the peak is the operation during
which the living ones are largest together. The network's input counts, its weights do not, nor does what operators
allocate for themselves and free before they return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.operations import WEIGHT, Operations, Volumes
from autoprune.scheme import Scheme


@dataclass(frozen=True, eq=False)
class PeakMemory:
    """The peak activation memory, in bytes, of the recorded forward pass at any scheme."""

    alive: NDArray[np.bool_]  # (operations, tensors)
    itemsizes: NDArray[np.float64]
    volumes: Volumes

    @classmethod
    def of(cls, operations: Operations) -> PeakMemory:
        """From recorded operations: which tensor lives during which one."""
        storages = [storage for storage in operations.storages if storage.maker != WEIGHT]
        moments = np.arange(len(operations.calls))
        alive = np.array([(s.maker <= moments) & (moments < s.freed) for s in storages], dtype=bool)
        itemsizes = np.array([storage.itemsize for storage in storages], dtype=np.float64)
        return cls(alive.T, itemsizes, Volumes(operations, [storage.place for storage in storages]))

    def __call__(self, scheme: Scheme) -> float:
        """The cost of a scheme."""
        return float(np.rint(self.at(np.asarray(scheme.kept, dtype=np.float64))))

    def at(self, kept: NDArray[Any]) -> float:
        """The cost at counts that need not be whole."""
        return float((self.alive @ (self.volumes(kept) * self.itemsizes)).max())
