"""The trials of a search as TensorBoard curves: a listener for :func:`autoprune.search`.

    tensorboard --logdir runs

``reward/last`` and ``reward/best`` (of the affordable trials), ``fraction/<cost>`` of the dense network's cost,
``loss``, ``accuracy``, ``kl``, ``metrics/<name>`` of an own ``evaluate``, and ``kept/<group>``, the rate that a group
keeps. A step is a trial, numbered from 1. A number that a trial does not have is left out (a failed one has only its
rates).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import UserError
from autoprune.listeners import Audience, Listener, Steps, numbers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
SUFFIX = ".autoprune"  # of event files written here: only these are ever removed
FLUSH = 5  # seconds until somebody who watches sees a trial


def check_installed() -> None:
    """Refuse, with the remedy, if TensorBoard cannot be imported."""
    _writer()


@contextmanager
def drawn(run: Path, listener: Listener) -> Iterator[Audience]:
    """The listener of a search in the folder ``run``, which from now on draws what it hears as well."""
    with closing(Curves(run / FOLDER)) as curves:
        yield Audience([curves, listener])


class Curves:
    """Writes event files into ``folder``; safe to close twice.

    A continued run replays its trials, so event files of earlier sessions are removed when the first trial comes,
    or every curve would be there twice. A training that goes on begins with a later epoch, and they stay.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: SummaryWriter | None = None
        self._steps = Steps()

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Take one event; all but trials and epochs pass by, and quick looks, whose numbers are of another kind."""
        step = self._steps(event, facts)
        if step is not None:
            self._draw(step, numbers(facts))
        elif event == "epoch":
            told = {f"training/{name}": value for name, value in facts.items() if name != "epoch"}
            self._draw(int(facts["epoch"]), ((tag, value) for tag, value in told.items() if math.isfinite(value)))

    def _draw(self, step: int, told: Iterable[tuple[str, float]]) -> None:
        writer = self._writer(step)
        for tag, value in told:
            writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Write down what still waits."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _writer(self, step: int) -> SummaryWriter:
        if self._open is None:
            if step == 1:
                for path in self.folder.glob(f"events.out.tfevents.*{SUFFIX}"):
                    path.unlink()
            # The purge tells a TensorBoard that is watching to forget what was drawn of these steps before.
            self._open = _writer()(str(self.folder), purge_step=step, flush_secs=FLUSH, filename_suffix=SUFFIX)
        return self._open


def _writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"TensorBoard curves need a package that cannot be imported ({error}): pip install 'autoprune[tensorboard]'"
        ) from error
    return SummaryWriter
