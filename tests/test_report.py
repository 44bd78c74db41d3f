from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

import toy
from autoprune import chart, report
from autoprune.budget import Budget
from autoprune.space import LeftOut, SearchSpace

ROWS = {
    "dense": {
        "accuracy": 0.9,
        "loss": 0.3,
        "kl": 0.0,
        "costs": {"macs": 2e6},
        "fractions": {"macs": 1.0},
        "metrics": {},
    },
    "found": {
        "accuracy": 0.85,
        "loss": 0.4,
        "kl": None,
        "costs": {"macs": 1e6},
        "fractions": {"macs": 0.5},
        "metrics": {},
    },
}


def text(*tables) -> str:
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables:
        console.print(table)
    return console.export_text()


@pytest.mark.parametrize(("value", "shown"), [(62_900_000, "62.9M"), (1.5e9, "1.5G"), (486_640, "486.6k"), (12, "12")])
def test_amounts_are_short(value, shown):
    assert report.amount(value) == shown


@pytest.mark.parametrize(("count", "shown"), [(10, "10 B"), (2048, "2.0 KiB"), (3 * 2**20, "3.0 MiB")])
def test_sizes_are_short(count, shown):
    assert report.size(count) == shown


def test_the_group_table_names_members_widths_shares_and_reasons():
    space = toy.chain([8, 16])
    space = SearchSpace(space.groups, space.layers, space.shapes, (LeftOut("head", "it is the network's output"),))
    shown = text(*report.groups(space))
    assert "conv0" in shown
    assert "bn0, conv1" in shown
    assert "1–16" in shown
    assert "it is the network's output" in shown


def test_counts_say_their_step():
    assert report.counts(toy.chain([16], step=4).groups[0]).endswith("16 by 4") or "…" in report.counts(
        toy.chain([16], step=4).groups[0]
    )


def test_the_preflight_table_shows_the_budget_between_the_extremes():
    space = toy.chain([8, 16])
    budget = Budget.parse("macs=50%", space)
    shown = text(report.preflight(budget, budget.fit(np.ones(2))))
    assert "50.0%" in shown
    assert report.amount(budget.costs["macs"](space.dense)) in shown


def test_the_comparison_leaves_out_what_nobody_measured():
    shown = text(report.comparison(ROWS))
    assert "90.00%" in shown
    assert "1M (50.0%)" in shown
    assert "test accuracy" not in shown
    assert "latency" not in shown
    assert "–" in shown  # the KL that one row lacks


def test_own_metrics_are_shown():
    rows = {name: {**row, "metrics": {"iou": 0.5}} for name, row in ROWS.items()}
    assert "iou" in text(report.comparison(rows))


def test_the_picture_is_sound_svg_with_one_bar_a_group_in_proportion():
    space = toy.chain([8, 16])
    scheme = space.smallest.replace(1, 4)
    root = ElementTree.fromstring(chart.widths(space, scheme, "a < b", ["50 %"]))
    blue = [bar for bar in root.iter("{http://www.w3.org/2000/svg}rect") if bar.get("fill") == chart.KEPT]
    lengths = [float(bar.get("width")) for bar in blue]
    assert lengths == pytest.approx([chart.BAR * 1 / 16, chart.BAR * 4 / 16], abs=0.06)
    assert "a < b" in "".join(root.itertext())
