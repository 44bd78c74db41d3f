"""Rates from which tools that round compute exactly a scheme's counts.

A tool that takes ``int(width * rate)`` cuts the rates into bins of 1/width. ``kept / width`` lies on the border of two
bins, and the last bit of a float decides on which side: for widths up to 512 about every fifth count comes out one
off. So rates point at the middle of the bin. What stays whole is exactly 0 or 1.
"""

from __future__ import annotations


def removed(width: int, kept: int) -> float:
    """The removed rate of which ``int(width * rate)`` is ``width - kept``."""
    return 0.0 if kept == width else (width - kept + 0.5) / width


def remaining(width: int, kept: int) -> float:
    """The kept rate of which ``int(width * rate)`` is ``kept``."""
    return 1.0 if kept == width else (kept + 0.5) / width
