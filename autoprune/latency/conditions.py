"""Under which conditions a network is timed."""

from __future__ import annotations

import copy
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from autoprune.errors import UserError
from autoprune.forward import Example, repeated, to
from autoprune.latency import backends, stopwatch
from autoprune.latency.stopwatch import Run, Timing
from autoprune.threads import fixed_threads

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Conditions:
    """Where and how a network runs when it is timed.

    ``batch`` samples at a time, ``threads`` of torch, weights and input in ``dtype`` and ``memory_format``, by
    ``backend``: "eager", "compile" (``torch.compile``) or "onnxruntime".
    """

    device: str = "cpu"
    batch: int = 1
    threads: int = 1
    dtype: str = "float32"
    memory_format: str = "contiguous"
    backend: str = "eager"

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("memory_format", FORMATS), ("backend", backends.BACKENDS)):
            if getattr(self, name) not in list(known):
                raise UserError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(known)}")
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"{name} = {value!r}: a whole number of at least 1 is needed")
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise UserError(f"device {self.device!r} is unknown: use cpu, cuda, cuda:1 or mps") from None
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device {self.device!r}: torch sees no CUDA device here")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; the inverse of :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Conditions:
        """Read a record of :meth:`to_dict`."""
        known = {field.name for field in fields(cls)}
        for key in record:
            if key not in known:
                raise UserError(f"condition {key!r} is unknown: known are {', '.join(sorted(known))}")
        return cls(**record)

    def run(self, network: nn.Module, inputs: Example, *, own: bool = False) -> Run:
        """A call that runs a copy of the network, in evaluation mode, on input that is in its place.

        With ``own`` it is the network itself, which is moved and converted.
        """
        dtype, layout = DTYPES[self.dtype], FORMATS[self.memory_format]
        placed = (network if own else copy.deepcopy(network)).eval().to(self.device, dtype)
        placed = placed.to(memory_format=layout)
        run = backends.BACKENDS[self.backend](placed, inputs, self.threads)
        try:
            with torch.inference_mode(), fixed_threads(self.threads):
                run()
        except UserError:
            raise
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"the network does not run under {self}: {type(error).__name__}: {line}; try other conditions"
            ) from error
        return run

    def place(self, example: Example) -> Any:
        """The example on this device, in this type and layout."""
        placed = to(example, self.device, DTYPES[self.dtype])
        if self.memory_format == "contiguous":
            return placed
        return tree_map_only(
            torch.Tensor, lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t, placed
        )

    def measure(
        self,
        networks: Mapping[str, nn.Module],
        example: Example,
        repeats: int = stopwatch.REPEATS,
        *,
        until: float | None = None,
        own: bool = False,
    ) -> dict[str, Timing]:
        """How long one forward pass of each network takes, on the example's samples.

        ``until`` is as in :func:`autoprune.latency.stopwatch.measure`, ``own`` as in :meth:`run`.
        """
        with self.held():
            inputs = self.place(repeated(example, self.batch))
            runs = {name: self.run(network, inputs, own=own) for name, network in networks.items()}
            return stopwatch.measure(runs, self.clock, repeats, until=until)

    @property
    def clock(self) -> stopwatch.Clock:
        """What seconds are read from."""
        return stopwatch.clock(torch.device(self.device))

    @contextmanager
    def held(self) -> Iterator[None]:
        """As many threads as the conditions say, restored afterwards."""
        with fixed_threads(self.threads):
            yield

    def __str__(self) -> str:
        return (
            f"{self.device}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}, "
            f"{self.dtype}, {self.memory_format}, {self.backend}"
        )


def machine(device: str) -> dict[str, str]:
    """What a device calls itself, and the software that runs on it."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else _processor()
    return {"name": name, "system": platform.system(), "torch": torch.__version__}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
