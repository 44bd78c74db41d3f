"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Put ``content`` (text in UTF-8) at ``path``: a kill in the middle leaves the file that was there before."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    temporary.replace(path)
