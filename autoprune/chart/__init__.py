"""Pictures as SVG, without any library: kept channels, curves over trials, dots against each other.

A picture stands alone: white ground, fonts that exist everywhere, ``<title>`` on all that stands for a number, so that
whoever points at it in a browser reads it. The colours are Okabe and Ito's, which colour-blind eyes tell apart, and no
series is told by its colour alone: dashes and shapes differ too. The page of a run moves and hides what is drawn here
by the classes and ``data-`` attributes that :mod:`autoprune.chart.plot` writes.
"""

from autoprune.chart.bars import BAR, GAP, LABEL, ROW, Bar, bars, widths
from autoprune.chart.ink import COLOURS, CUT, DASHES, GROUND, INK, KEPT, MARGIN, QUIET, opening, short
from autoprune.chart.plot import Axis, Dots, Series, Trace, plot
from autoprune.chart.trials import Line, Seen, curves, history, scatter

__all__ = [
    "BAR",
    "COLOURS",
    "CUT",
    "DASHES",
    "GAP",
    "GROUND",
    "INK",
    "KEPT",
    "LABEL",
    "MARGIN",
    "QUIET",
    "ROW",
    "Axis",
    "Bar",
    "Dots",
    "Line",
    "Seen",
    "Series",
    "Trace",
    "bars",
    "curves",
    "history",
    "opening",
    "plot",
    "scatter",
    "short",
    "widths",
]
