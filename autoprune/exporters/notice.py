"""What a hand-over could not say exactly."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

SHOWN = 3


class HandoffNotice(UserWarning):
    """The tool's format has no word for a number of the scheme, and the nearest one was written."""


def tell(why: str, changes: Sequence[str]) -> None:
    """Warn once of all that was changed: ``why`` the format cannot, and what became of each layer."""
    if changes:
        rest = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        warnings.warn(f"{why}: {'; '.join(changes[:SHOWN])}{rest}", HandoffNotice, stacklevel=3)
