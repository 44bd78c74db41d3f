"""File names as people write them, and the folder where unpacked archives are kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

from autoprune.errors import UserError


def expand(name: str | Path) -> Path:
    """The path with ``~`` and ``$VARIABLES`` filled in; a variable that is not set is refused."""
    filled = os.path.expandvars(Path(name).expanduser())
    unset = re.search(r"\$\{?(\w+)", filled)
    if unset and not Path(filled).exists():
        raise UserError(f"{name}: the environment variable {unset[1]} is not set; export it or write the path out")
    return Path(filled)


def existing(name: str | Path) -> Path:
    """The expanded path of a file or folder that is there."""
    path = expand(name)
    if not path.exists():
        where = "" if path.is_absolute() else f" under {Path.cwd()}"
        raise UserError(
            f"no file or folder {path}{where}: check the path "
            "(it may start with a variable, such as $AUTOPRUNE_DATA for the folder with the archives)"
        )
    return path


def cache() -> Path:
    """The user's cache folder of autoprune, made when it is missing."""
    # The XDG rule: a relative or empty XDG_CACHE_HOME is to be ignored.
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (home if home.is_absolute() else Path.home() / ".cache") / "autoprune"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
