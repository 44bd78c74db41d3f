"""The pictures of a page as files of their own, for papers and slides: SVG, or PNG through resvg."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import UserError
from autoprune.page import article, beside_each_other, told_apart
from autoprune.run import Run

FORMATS = ("svg", "png")
SCALE = 3.0
"""Pixels of a PNG for each point of its SVG: some 300 an inch where a picture is as wide as a page's text."""
GROUND = re.compile(r'<rect class="ground"[^>]*/>\n?')
WORD = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><text y="15">{}</text></svg>'


def write(
    runs: Sequence[Run], folder: Path | str, form: str = "svg", *, ground: bool = True, scale: float = SCALE
) -> list[Path]:
    """Every picture of the runs' pages, into ``folder``; the paths that were written.

    Files are called by what they show, such as ``layers.svg``; with several runs the run's name stands before it, or
    "together" where it is about all of them. With
    ``ground=False`` they have no white ground. ``scale`` is for PNG.
    """
    if form not in FORMATS:
        raise UserError(f"format {form!r}: use {' or '.join(FORMATS)}")
    if not 0 < scale <= 20:
        raise UserError(f"scale = {scale}: pixels for each point of a picture, above 0 and at most 20")
    draw = renderer(scale) if form == "png" else str.encode
    articles = [article(run) for run in runs]
    pictures = {
        f"together-{figure.name}.{form}": figure.svg
        for section in beside_each_other(runs, articles)
        for figure in section.figures
    }
    for name, told in zip(told_apart(runs), articles, strict=True):
        before = f"{slug(name)}-" if len(runs) > 1 else ""
        pictures |= {f"{before}{figure.name}.{form}": figure.svg for figure in told.figures}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, svg in pictures.items():
            (folder / file).write_bytes(draw(svg if ground else GROUND.sub("", svg)))
    except OSError as error:
        raise UserError(f"figures cannot be written to {folder} ({error.strerror}): choose another folder") from error
    return [folder / file for file in pictures]


def renderer(scale: float = SCALE) -> Callable[[str], bytes]:
    """What makes PNG of a picture; refused where resvg is not installed, or would leave all words out."""
    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "PNG needs resvg, which is not installed: `pip install autoprune[figures]`, or take --format svg"
        ) from None

    def draw(svg: str, **options: Any) -> bytes:
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=scale, **options))

    if draw(WORD.format("word")) == draw(WORD.format("")):
        raise UserError("there is no font here to write with: install one (Debian: fonts-dejavu), or take --format svg")
    return draw


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^\w.+]+", "-", name).strip("-.") or "run"
