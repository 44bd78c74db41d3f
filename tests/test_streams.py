"""Global random streams that are lent."""

from __future__ import annotations

import random

import numpy as np
import pytest

from autoprune.streams import Stream


def draw() -> tuple[float, float]:
    return random.random(), float(np.random.random())


def test_a_stream_goes_on_where_it_stopped() -> None:
    with Stream(3):
        together = [draw(), draw()]
    stream = Stream(3)
    with stream:
        first = draw()
    draw()
    with stream:
        second = draw()
    assert [first, second] == together


def test_the_callers_streams_do_not_notice() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = [draw(), draw()]
    random.seed(1)
    np.random.seed(1)
    before = draw()
    with Stream(9):
        draw()
    assert [before, draw()] == expected


def test_the_callers_streams_come_back_after_an_error() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    with pytest.raises(ZeroDivisionError), Stream(9):
        _ = draw()[0] / 0
    assert random.random() == expected
