"""A run as one page, ``report.html``: it opens without a network and needs no other file.

What is on it is read from the run's folder alone (and, where it is about the same network, from a sensitivity analysis
or a proxy check beside it), so that a run of anybody can be drawn again. There is a module for each kind of run, which
makes an :class:`~autoprune.page.parts.Article`; ``report.html`` lays articles out, ``style.css`` and ``script.js`` are
put inside. Nothing from a folder becomes markup, and the page itself forbids browsers all scripts but its own.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autoprune.errors import UserError
from autoprune.page import comparison, proxy, search, sensitivity, sparsity, together
from autoprune.page.parts import Article, Section
from autoprune.run import Run

log = logging.getLogger(__name__)

REPORT = "report.html"
KINDS: Mapping[str, Callable[[Run], Article]] = {
    search.KIND: search.article,
    comparison.KIND: comparison.article,
    sensitivity.KIND: sensitivity.article,
    sparsity.KIND: sparsity.article,
    proxy.KIND: proxy.article,
}


def article(run: Run) -> Article:
    """What there is to tell of a run."""
    kind = (run.config.get("request") or {}).get("kind", search.KIND)
    if kind not in KINDS:
        raise UserError(f"run {run.name} is of kind {kind!r}: reports are there for {', '.join(KINDS)}")
    if not run.summary:
        raise UserError(f"run {run.name} has no result yet: let it finish first")
    try:
        return KINDS[kind](run)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"run {run.name} cannot be drawn ({reason}): a file of its folder is not as it was written"
        ) from error


def render(runs: Sequence[Run]) -> str:
    """The page of one run, or of several side by side."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("autoprune", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = (_own(name) for name in ("style.css", "script.js"))
    articles = [article(run) for run in runs]
    return environment.get_template(REPORT).render(
        articles=articles, together=beside_each_other(runs, articles), style=style, script=script,
        digest=_digest(script),
    )  # fmt: skip


def write(run: Run) -> Path:
    """Put the page of a run into its folder."""
    path = run.folder / REPORT
    path.write_text(render([run]), encoding="utf-8")
    return path


def leave(run: Run) -> None:
    """The same at the end of a run, which is whole without its page: what goes wrong is warned of."""
    try:
        write(run)
    except (OSError, UserError) as error:
        log.warning("no %s for run %s: %s", REPORT, run.name, error)


def beside_each_other(runs: Sequence[Run], articles: Sequence[Article]) -> list[Section]:
    """What searches among the runs have in common, where there are several."""
    searches = [run for run, told in zip(runs, articles, strict=True) if told.kind == search.KIND]
    return together.sections(searches, told_apart(searches)) if len(searches) > 1 else []


def told_apart(runs: Sequence[Run]) -> list[str]:
    """Names of runs; of those that are called the same, with the folder that each lies in."""
    times = Counter(run.name for run in runs)
    return [run.name if times[run.name] == 1 else str(run.folder) for run in runs]


def _own(name: str) -> str:
    return "\n" + (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """What the page's policy calls its script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
