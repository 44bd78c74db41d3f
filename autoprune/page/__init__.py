"""A run as one page, ``report.html``: it opens without a network and needs no other file.

What is on it is read from the run's folder alone, so that a run of anybody can be drawn again. ``facts`` gathers it,
``report.html`` lays it out, ``style.css`` and ``script.js`` are put inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoprune.page.facts import Facts
from autoprune.run import Run

REPORT = "report.html"


def render(runs: Sequence[Run]) -> str:
    """The page of one run, or of several side by side."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("autoprune", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    here = Path(__file__).parent
    return environment.get_template(REPORT).render(
        runs=[Facts(run) for run in runs],
        style=(here / "style.css").read_text(encoding="utf-8"),
        script=(here / "script.js").read_text(encoding="utf-8"),
    )


def write(run: Run) -> Path:
    """Put the page of a run into its folder."""
    path = run.folder / REPORT
    path.write_text(render([run]), encoding="utf-8")
    return path
