from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import toy
from autoprune.cost import macs
from autoprune.errors import UserError
from autoprune.search_spaces.named import define, fix, limit, round_to, select, tie
from autoprune.search_spaces.traced import trace
from autoprune.space import LeftOut, SearchSpace
from networks import NETWORKS, agrees, conv, lively, rows


def names(space: SearchSpace) -> list[str]:
    return [group.name for group in space.groups]


def counts(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    return {group.name: group.counts for group in space.groups}


def reasons(space: SearchSpace) -> dict[str, str]:
    return {left.name: left.reason for left in space.left_out}


@pytest.fixture
def chain() -> SearchSpace:
    """Groups conv0 (16), conv1 (24), conv2 (4); conv1 also reads conv0, and so on."""
    return toy.chain((16, 24, 4))


def refused(words: str, function: Any, *inputs: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=words) as caught:
        function(*inputs, **options)
    assert "\n" not in str(caught.value)


# -- select and fix ---------------------------------------------------------------------------


def test_everything_stays_unless_something_is_said(chain: SearchSpace) -> None:
    assert define(chain).fingerprint == select(chain).fingerprint == chain.fingerprint


def test_include_keeps_matches_and_says_what_was_not_included(chain: SearchSpace) -> None:
    space = select(chain, include=["conv[01]"])
    assert names(space) == ["conv0", "conv1"]
    assert reasons(space) == {"conv2": "not included by 'conv[01]'"}


def test_exclude_wins_over_include(chain: SearchSpace) -> None:
    space = select(chain, include=["conv*"], exclude=["conv1", "*2"])
    assert names(space) == ["conv0"]
    assert reasons(space) == {"conv1": "excluded by 'conv1'", "conv2": "excluded by '*2'"}


def test_a_pattern_also_matches_layers_that_carry_the_channels(chain: SearchSpace) -> None:
    assert names(select(chain, exclude=["bn1"])) == ["conv0", "conv2"]


def test_a_pattern_does_not_match_the_layer_that_only_reads(chain: SearchSpace) -> None:
    assert names(select(chain, exclude=["conv1"])) == ["conv0", "conv2"]  # conv1 reads conv0
    refused("only reads channels, those of conv2", select, chain, exclude=["head"])


def test_the_name_of_a_module_takes_in_what_lies_inside() -> None:
    space = toy.resnet(2)
    blocks = replace(space, groups=tuple(replace(g, name=g.name.replace("b", ".b"), slices=()) for g in space.groups))
    assert names(select(blocks, include=["s1"])) == ["s1.b0.conv1", "s1.b1.conv1"]
    assert names(select(blocks, include=["s1.*"])) == ["s1.b0.conv1", "s1.b1.conv1"]


def test_a_pattern_without_a_match_names_what_is_close(chain: SearchSpace) -> None:
    refused("'convo1' matches no group; close: conv", select, chain, include=["convo1"])
    refused("'layer9.*' matches no group; `autoprune groups` lists them", select, chain, exclude=["layer9.*"])


def test_a_pattern_that_names_what_is_left_out_is_told_why(chain: SearchSpace) -> None:
    known = replace(chain, left_out=(LeftOut("stem", "it is padded"),))
    refused(r"only what is left out anyway \(it is padded\)", select, known, exclude=["stem"])


def test_excluding_everything_is_refused(chain: SearchSpace) -> None:
    refused("no group stays in the search space: conv0 is out because excluded by", select, chain, exclude=["*"])


def test_fix_holds_a_layer_from_both_sides(chain: SearchSpace) -> None:
    space = fix(chain, ["conv1"])
    assert names(space) == ["conv2"]
    assert reasons(space) == dict.fromkeys(("conv0", "conv1"), "it would cut a layer that 'conv1' keeps whole")
    assert names(fix(chain, ["head"])) == ["conv0", "conv1"]
    refused("'nothing' matches no layer that a group cuts", fix, chain, ["nothing"])


def test_what_was_left_out_before_stays_listed(chain: SearchSpace) -> None:
    known = replace(chain, left_out=(LeftOut("head", "it is the network's output"),))
    assert reasons(select(known, exclude=["conv0"])) == {
        "head": "it is the network's output",
        "conv0": "excluded by 'conv0'",
    }


# -- limit ------------------------------------------------------------------------------------


def test_limits_keep_the_counts_within_their_rates(chain: SearchSpace) -> None:
    space = limit(chain, {"*": (0.25, 1.0), "conv1": (0.5, 1.0)})
    assert counts(space) == {"conv0": tuple(range(4, 17)), "conv1": tuple(range(12, 25)), "conv2": (1, 2, 3, 4)}


def test_the_last_pattern_that_matches_decides(chain: SearchSpace) -> None:
    assert counts(limit(chain, {"conv1": (0.5, 1.0), "*": (0.0, 1.0)})) == counts(chain)


def test_a_limit_from_above_forbids_the_width_and_leaves_the_dense_scheme_legal(chain: SearchSpace) -> None:
    space = limit(chain, {"conv0": (0.0, 0.5)})
    assert counts(space)["conv0"] == tuple(range(1, 9))
    assert space.largest.kept == (8, 24, 4)
    assert space.dense.kept == (16, 24, 4)
    assert space.floor([1.0, 1.0, 1.0]) == space.largest
    space.check(space.dense)
    with pytest.raises(UserError, match="9 kept channels is not a legal count"):
        space.check(space.largest.replace(0, 9))


def test_a_single_rate_fixes_the_count(chain: SearchSpace) -> None:
    assert counts(limit(chain, {"conv0": (0.5, 0.5)}))["conv0"] == (8,)


def test_a_group_that_must_stay_whole_is_left_out(chain: SearchSpace) -> None:
    space = limit(chain, {"conv0": (1.0, 1.0)})
    assert names(space) == ["conv1", "conv2"]
    assert reasons(space) == {"conv0": "its rates keep it whole"}


@pytest.mark.parametrize("rates", [(0.5, 0.25), (-0.1, 1.0), (0.5, 1.1), (0.0, 0.0), (float("nan"), 1.0)])
def test_rates_that_make_no_range_are_refused(chain: SearchSpace, rates: tuple[float, float]) -> None:
    refused("kept rates go from low to high within 0:1", limit, chain, {"*": rates})


def test_rates_between_two_counts_are_refused_with_the_numbers(chain: SearchSpace) -> None:
    refused(
        "0.3:0.4 leave group conv2 no legal count: they ask for 1.2 to 1.6 of 1..4 of 4 channels",
        limit,
        chain,
        {"conv2": (0.3, 0.4)},
    )


# -- round_to ---------------------------------------------------------------------------------


def test_multiples_keep_the_width_legal_and_leave_narrow_groups_out(chain: SearchSpace) -> None:
    space = round_to(toy.chain((16, 20, 4)), 8)
    assert counts(space) == {"conv0": (8, 16), "conv1": (8, 16, 20)}
    assert reasons(space) == {"conv2": "it has no multiple of 8 below its width 4"}


def test_multiples_per_pattern(chain: SearchSpace) -> None:
    space = round_to(chain, {"*": 2, "conv1": 12})
    assert counts(space) == {"conv0": tuple(range(2, 17, 2)), "conv1": (12, 24), "conv2": (2, 4)}


def test_multiples_respect_the_units_of_grouped_convolutions() -> None:
    space = toy.mixed()
    units = {group.name: group.unit for group in space.groups}
    assert units["stem"] == 2
    rounded = round_to(space, {"stem": 3})
    assert counts(rounded)["stem"] == (6, 8)


def test_multiples_below_one_are_refused(chain: SearchSpace) -> None:
    refused("a multiple is a whole number of at least 1", round_to, chain, 0)


def test_multiples_that_a_limit_forbids_are_refused(chain: SearchSpace) -> None:
    limited = limit(chain, {"conv1": (0.7, 0.9)})
    refused(r"group conv1 has no multiple of 16 in 17\.\.21 of 24 channels", round_to, limited, {"conv1": 16})


# -- tie --------------------------------------------------------------------------------------


def test_tied_groups_become_one_that_cuts_both() -> None:
    space = toy.chain((8, 6, 8))
    tied = tie(space, [("conv0", "conv2")])
    assert names(tied) == ["conv0", "conv1"]
    assert {piece.path for piece in tied.groups[0].slices} == {
        piece.path for group in (space.groups[0], space.groups[2]) for piece in group.slices
    }
    assert macs(tied)(tied.dense.replace(0, 3)) == macs(space)(space.dense.replace(0, 3).replace(2, 3))


def test_ties_chain() -> None:
    space = toy.chain((8, 8, 8, 8, 5))
    assert names(tie(space, [("conv0", "conv1"), ("conv1", "conv3")])) == ["conv0", "conv2", "conv4"]
    assert names(tie(space, [("conv0", "conv1"), ("conv2", "conv3"), ("conv1", "conv3")])) == ["conv0", "conv4"]
    assert names(tie(space, [("conv0", "conv1"), ("conv1", "conv0")])) == ["conv0", "conv2", "conv3", "conv4"]
    assert names(tie(space, [("conv0", "conv1", "conv2")])) == ["conv0", "conv3", "conv4"]


def test_tied_groups_of_one_layer_are_cut_at_both_places() -> None:
    space = toy.chain((8, 8))
    first, second = space.groups
    halves = [
        replace(
            first,
            name=f"conv0#{half + 1}",
            width=4,
            counts=(1, 2, 3, 4),
            slices=tuple(replace(piece, positions=piece.positions[4 * half : 4 * half + 4]) for piece in first.slices),
        )
        for half in range(2)
    ]
    tied = tie(replace(space, groups=(*halves, second)), [("conv0#1", "conv0#2")])
    group = tied.groups[0]
    assert (group.width, group.unit, group.counts) == (8, 2, (2, 4, 6, 8))
    assert group.channels([0]) == [0, 4]
    assert macs(tied)(tied.dense.replace(0, 6)) == macs(space)(space.dense.replace(0, 6))


def test_a_tied_network_computes_what_it_should() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))
    space = trace(lively(model).double(), rows(2, 6))
    assert agrees(model, rows(2, 6), tie(space, [("0", "2")]), 0)


def test_ties_that_cannot_be_are_refused() -> None:
    space = toy.chain((8, 6, 8))
    refused(
        "different widths cannot be tied: conv0 8 channels in units of 1 and conv1 6 channels in units of 1",
        tie, space, [("conv0", "conv1")],
    )  # fmt: skip
    refused("no group is called 'conv9'; close: conv", tie, space, [("conv0", "conv9")])
    refused("name two groups", tie, space, [("conv0",)])
    apart = limit(limit(space, {"conv0": (0.0, 0.4)}), {"conv2": (0.6, 1.0)})
    refused("conv0 and conv2 have no legal count in common", tie, apart, [("conv0", "conv2")])


def test_ties_keep_the_counts_that_both_allow() -> None:
    space = round_to(toy.chain((12, 12)), {"conv0": 4, "conv1": 3})
    assert counts(tie(space, [("conv0", "conv1")])) == {"conv0": (12,)}


# -- the words of the command line ------------------------------------------------------------


def test_define_does_everything_in_one_go() -> None:
    space = define(
        toy.chain((16, 24, 16, 24)),
        exclude=["conv3"],
        round_to=["4", "conv1=8"],
        rates=["25%:100%", "conv1=0.3:1"],
        ties=["conv0, conv2"],
    )
    assert counts(space) == {"conv0": (4, 8, 12, 16), "conv1": (8, 16, 24)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"round_to": ["eight"]}, "--round-to 'eight' cannot be read: write it like 8 or layer1"),
        ({"round_to": ["conv0=1.5"]}, "--round-to 'conv0=1.5' cannot be read"),
        ({"rates": ["conv0=0.5"]}, "--rates 'conv0=0.5' cannot be read: write it like 0.25:1"),
        ({"rates": ["0.5:x"]}, "--rates '0.5:x' cannot be read"),
        ({"rates": ["0.5:1", "*=0.2:1"]}, "the pattern '\\*' is given twice"),
        ({"ties": ["conv0"]}, "name two groups"),
        ({"ties": ["conv0,"]}, "no group is called ''"),
        ({"include": ["nothing"]}, "'nothing' matches no group"),
    ],
)
def test_words_that_cannot_be_read_are_refused_with_an_example(
    chain: SearchSpace, options: dict[str, list[str]], words: str
) -> None:
    refused(words, define, chain, **options)


def test_a_narrowed_space_still_agrees_with_its_network() -> None:
    torch.manual_seed(0)
    model, example, _ = NETWORKS["concatenation"]()
    space = define(trace(lively(model).double(), example), exclude=["a"], rates=["b=0.5:1"])
    assert names(space) == ["b", "join"]
    assert agrees(model, example, space, 0)


def test_an_own_space_that_cuts_the_stages_of_a_network_alike() -> None:
    """The example of the package's page, on a network small enough to check it."""
    torch.manual_seed(0)
    stages = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 6), nn.ReLU(), conv(6, 6), nn.ReLU(), conv(6, 4))
    space = trace(stages, torch.randn(1, 3, 6, 6))
    alike = tie(space, [["0", "2", "4"]])
    assert len(alike) == 1
    assert np.array_equal(alike.widths, [6])
