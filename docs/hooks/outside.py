"""Brings what pages link to outside docs/ onto the site: CONTRIBUTING.md, scripts, notebooks, sources.

On the forge such links lead to the files themselves. Here each target becomes a page below ``repository/``, and links
are rewritten on their way to the browser.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".sh": "bash", ".yaml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every file that a page links to, and for those that these link to."""
    waiting = [DOCS / page.src_uri for page in files.documentation_pages()]
    while waiting:
        origin = waiting.pop()
        for match in LINK.finditer(_markdown(origin)):
            target = _target(origin, match[2])
            if target.is_file() and not target.is_relative_to(DOCS) and _place(target) not in files.src_uris:
                files.append(File.generated(config, _place(target), content=_markdown(target)))
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points every link to where its target lies on the site."""
    here = PurePosixPath(page.file.src_uri)
    origin = _origin(here)

    def moved(match: re.Match[str]) -> str:
        target = _target(origin, match[2])
        if not target.exists():
            return match[0]  # mkdocs has the better message
        return match[1] + os.path.relpath(_place(target), here.parent) + match[3]

    return LINK.sub(moved, markdown)


def _target(origin: Path, link: str) -> Path:
    found = Path(os.path.normpath(origin.parent / link))
    return found / "README.md" if (found / "README.md").is_file() else found


def _place(path: Path) -> str:
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    inside = path.relative_to(ROOT).as_posix()
    if inside == "README.md":
        return "index.md"  # the site has a front page of its own
    return f"repository/{inside}" + ("" if path.suffix == ".md" else ".md")


def _origin(uri: PurePosixPath) -> Path:
    if uri.parts[0] != "repository":
        return DOCS / uri
    found = ROOT.joinpath(*uri.parts[1:])
    return found if found.is_file() else found.with_suffix("")


def _markdown(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        return "\n\n".join(_cell(cell) for cell in json.loads(text)["cells"])
    return f"# {path.relative_to(ROOT).as_posix()}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def _cell(cell: dict[str, object]) -> str:
    source = "".join(cell["source"])  # type: ignore[arg-type]
    return source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
