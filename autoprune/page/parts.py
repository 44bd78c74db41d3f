"""What a page is made of: articles of sections, sections of text, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row names it. ``answer`` is the column to look at first."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    answer: int | None = None


@dataclass(frozen=True)
class Figure:
    """A picture and the same as numbers, under a line that says what these are; ``name`` is that of its file.

    A ``wide`` one has text too small to be shrunk to the width of a telephone.
    """

    name: str
    svg: str
    table: Table
    says: str = "as numbers"
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what is under it: paragraphs, a table, figures, in this order."""

    title: str
    text: Sequence[str] = ()
    table: Table | None = None
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Article:
    """One run: the answer in a sentence, what else has to be said first, then section by section.

    ``command`` and ``facts`` (name and value) tell how to make the same again.
    """

    name: str
    kind: str
    answer: str
    lead: Sequence[str]
    sections: Sequence[Section]
    command: str | None = None
    facts: Sequence[tuple[str, str]] = ()

    @property
    def figures(self) -> list[Figure]:
        """All of its pictures."""
        return [figure for section in self.sections for figure in section.figures]
