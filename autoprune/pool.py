"""Who measures: a pool takes schemes and gives their measurements back as they arrive.

Nothing else of a search knows where candidates are measured. The loop tells the searcher in the order of its
proposals, so the result depends neither on the pool nor on the order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import Fidelity
from autoprune.scheme import Scheme
from autoprune.trial import Measurement

RETRIES = 2


class Measuring(Protocol):
    """Measures schemes."""

    def measure(self, schemes: Iterable[Scheme], fidelity: Fidelity) -> Iterator[tuple[Scheme, Measurement]]:
        """Each scheme with its measurement, in the order of arrival.

        A scheme is drawn from ``schemes`` when somebody is free to measure it: an iterator that ends early leaves
        the rest unmeasured.
        """
        ...


class Pool(Measuring, Protocol):
    """Measures schemes; close it, or use it as a context, when nothing more is to be measured."""

    def close(self) -> None:
        """Give everything back; what is still being measured is lost."""
        ...

    def __enter__(self) -> Self:
        """The pool itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Close it."""
        ...


class InProcess:
    """Measures one scheme after the other, here."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def measure(self, schemes: Iterable[Scheme], fidelity: Fidelity) -> Iterator[tuple[Scheme, Measurement]]:
        """Each scheme with its measurement, in their order."""
        for scheme in schemes:
            yield scheme, self._evaluator(scheme, fidelity=fidelity)

    def close(self) -> None:
        """There is nothing to give back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Workers:
    """The worker processes that are asked for. One, and nothing else said, means this process.

    ``address`` is the Ray they run on: "auto" (a cluster that this machine belongs to), "host:port",
    "ray://host:10001" (from outside), or "local" for an instance of our own on this machine. None means a Ray that
    runs in this process already, else the cluster that the variable RAY_ADDRESS names, else "local".

    ``cpus`` and ``gpus`` are what a worker takes up of a machine, as Ray counts it; fractions share a core or a GPU.
    ``timeout`` is the seconds that a candidate may take, ``retries`` how often it is measured again after that or
    after its worker died, before it is recorded as failed. ``runtime_env`` is Ray's, for workers on other machines.
    """

    count: int = 1
    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    timeout: float | None = None
    retries: int = RETRIES
    runtime_env: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"workers = {self.count}: at least 1 is needed")
        for name, value in (("CPUs", self.cpus), ("GPUs", self.gpus)):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} per worker = {value}: a number, 0 or more")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UserError(f"GPUs per worker = {self.gpus}: a fraction of one GPU, or whole ones")
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"candidate timeout = {self.timeout}: must be positive seconds")
        if self.retries < 0:
            raise UserError(f"retries = {self.retries}: 0 or more")

    @property
    def here(self) -> bool:
        """Whether this process is enough."""
        return self == Workers()
