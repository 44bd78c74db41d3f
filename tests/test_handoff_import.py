"""Schemes found elsewhere: a history of Torch-Pruning, a list of AMC, and the sizes of a pruned network."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch_pruning as tp
from safetensors.torch import save_file

from autoprune import slicing
from autoprune.errors import UserError
from autoprune.exporters import amc, read, sizes
from autoprune.exporters.torch_pruning import history, ratios, read_history
from autoprune.scheme import Scheme
from handoff_networks import NETWORKS, marked, network, random_scheme
from toy import chain, mixed


def counts(scheme: Scheme) -> Scheme:
    return Scheme(scheme.kept, scheme.granularity)


def pruned(name: str, scheme: Scheme):
    model, _, space = network(name)
    return slicing.prune(model, space, [np.asarray(units) for units in scheme.indices])


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(NETWORKS, "resnet56"))
@pytest.mark.parametrize("seed", range(2))
def test_a_pruned_network_says_its_own_scheme(name, seed):
    _, _, space = network(name)
    scheme = random_scheme(space, seed)
    assert sizes.of_network(pruned(name, scheme), space) == counts(scheme)


def test_a_file_of_tensors_says_its_scheme(tmp_path):
    model, _, space = network("digits")
    scheme = random_scheme(space)
    save_file(pruned("digits", scheme).state_dict(), tmp_path / "pruned.safetensors")
    assert read(tmp_path / "pruned.safetensors", space) == counts(scheme)
    save_file(model.state_dict(), tmp_path / "dense.safetensors")
    assert read(tmp_path / "dense.safetensors", space) == space.dense
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read(tmp_path / "broken.safetensors", space)


def test_sizes_that_no_scheme_gives_are_refused_by_name():
    space = mixed()
    shapes = dict(space.shapes)
    assert sizes.of_shapes(shapes, space) == space.dense
    with pytest.raises(UserError, match=r"axis 0 of stem.weight has 5 entries, .* \(group stem\)"):
        sizes.of_shapes(shapes | {"stem.weight": (5, 3, 3, 3)}, space)
    with pytest.raises(UserError, match=r"axis 0 of side.weight has 8 entries, .* \(group stem\)"):
        sizes.of_shapes(shapes | {"stem.weight": (6, 3, 3, 3)}, space)
    with pytest.raises(UserError, match="join.weight is missing, where the dense network has"):
        sizes.of_shapes({path: shape for path, shape in shapes.items() if path != "join.weight"}, space)
    with pytest.raises(UserError, match="the sizes say nothing about group stem"):
        sizes.solve({}, space)
    with pytest.raises(UserError, match="do not tell apart what groups other, split keep"):
        sizes.solve({("join.weight", 1): 7}, space)


# --- Torch-Pruning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "resnet20", "grouped", "shared sum"])
@pytest.mark.parametrize("seed", range(3))
def test_a_history_reads_back_as_written(name, seed):
    _, _, space = network(name)
    scheme = random_scheme(space, seed)
    assert read_history(json.loads(json.dumps(history(scheme, space))), space) == scheme


@pytest.mark.parametrize("name", ["digits", "resnet20"])
def test_the_history_of_a_pruner_gives_the_very_network_that_it_made(name):
    model, example, space = network(name)
    theirs = copy.deepcopy(model)
    pruner = tp.pruner.BasePruner(
        theirs,
        (example,),
        tp.importance.MagnitudeImportance(),
        pruning_ratio=0.0,
        pruning_ratio_dict=ratios(Scheme.from_rates([0.5] * len(space), space), space, theirs),
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    scheme = read_history(pruner.pruning_history(), space)
    ours = slicing.prune(model, space, [np.asarray(units) for units in scheme.indices])
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert all(torch.equal(tensor, theirs.state_dict()[path]) for path, tensor in ours.state_dict().items())
    assert scheme.kept != space.dense.kept


def test_a_history_in_a_file_is_read_like_a_scheme(tmp_path):
    _, _, space = network("digits")
    scheme = random_scheme(space)
    (tmp_path / "history.json").write_text(json.dumps(history(scheme, space)))
    assert read(tmp_path / "history.json", space) == scheme


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([["nothing", True, [0]]], "entry 0 of the history prunes 'nothing', which no group"),
        ([["conv0", True, [0]], ["conv0", True, [7]]], "entry 1 .* removes channel 7 of conv0, which has 7 left"),
        ([["conv0", True]], "entry 0 of the history is not"),
        ([["conv0", True, list(range(8))]], "keeps a whole number of at least 1"),
    ],
)
def test_a_history_that_does_not_fit_is_refused(entries, message):
    with pytest.raises(UserError, match=message):
        read_history(entries, chain([8, 12]))


def test_a_history_that_parts_channels_is_refused():
    with pytest.raises(UserError, match="removes part of the channels of stem that leave together"):
        read_history([["stem", True, [1]]], mixed())


# --- AMC --------------------------------------------------------------------------------------------------------------


def test_a_list_of_amc_reads_back_as_written():
    model, _, space = network("mobilenet_v2")
    scheme = Scheme(tuple(max(8, width // 16 * 8) for width in space.widths.tolist()))
    text = amc.channels(scheme, space, model)
    assert amc.read(text, space, model) == scheme


def test_a_list_in_a_file_is_read_by_its_ending(tmp_path):
    space = chain([8, 16])
    (tmp_path / "channels.txt").write_text("3,8,5\n")
    assert read(tmp_path / "channels.txt", space) == Scheme((8, 5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,8", "the list has 2 numbers, the network 3 layers"),
        ("3,half,8", "is no list of channels"),
        ("3,9,16", "conv1 cannot read 9 channels: it reads 8 in the dense network"),
        ("3,0,16", "conv1 cannot read 0 channels"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        amc.read(text, chain([8, 16]))
