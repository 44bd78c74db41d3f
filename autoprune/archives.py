"""Archives of data: unpacked once, into the user's cache."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from autoprune.errors import UserError
from autoprune.paths import cache

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".zip")


def holding(root: Path, name: str) -> Path | None:
    """The folder that holds ``name``: the root, or the only folder in it, as archives often have one on top."""
    if (root / name).exists():
        return root
    inner = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return inner[0] if len(inner) == 1 and (inner[0] / name).exists() else None


def unpacked(path: Path) -> Path:
    """The folder itself, or the folder in the user's cache where the archive has been unpacked.

    It is named after the archive's name, size and time of change, and appears under this name only when
    it is complete: a process that was killed halfway, or two at once, leave nothing half unpacked.
    """
    if path.is_dir():
        return path
    if not path.name.endswith(ARCHIVES):
        raise UserError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)})")
    facts = path.stat()
    key = hashlib.sha256(f"{path.name}:{facts.st_size}:{facts.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache() / f"{path.name.partition('.')[0]}-{key}"
    if target.is_dir():
        return target
    unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(unfinished)  # noqa: S202  # zipfile drops ".." and leading slashes itself
        else:
            with tarfile.open(path) as archive:
                archive.extractall(unfinished, filter="data")
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"the archive {path} cannot be unpacked into {target.parent}: {error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target
