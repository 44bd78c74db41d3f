"""The words of every format, on networks with coupled layers, and what a format cannot say."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from autoprune import exporters, slicing
from autoprune.errors import UserError
from autoprune.exporters import aimet, amc, distiller, llm_compressor, mmrazor, modelopt, nncf, nni, spdy
from autoprune.exporters.notice import HandoffNotice
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.space import SearchSpace
from handoff_networks import network, random_scheme, sequence
from toy import chain, mixed

ABOUT_CHANNELS = ["torch_pruning", "torch_pruning_history", "torch_ao", "modelopt", "mmrazor", "aimet", "amc"]
quiet = pytest.mark.filterwarnings("ignore::autoprune.exporters.notice.HandoffNotice")


def made(build, *shape):
    torch.manual_seed(0)
    model, example = build().eval(), torch.randn(2, *shape)
    return model, example, trace(model, example)


def makers(group):
    return [piece.module for piece in group.slices if piece.role == "out"]


@quiet
@pytest.mark.parametrize("name", ABOUT_CHANNELS)
def test_only_channels_are_handed_over(name):
    space = chain([8, 12])
    weights = SearchSpace(space.groups, space.layers, space.shapes, granularity="weight")
    with pytest.raises(UserError, match="granularity 'weight'"):
        exporters.text(name, weights.smallest, weights)


@quiet
@pytest.mark.parametrize("name", exporters.EXPORTERS)
def test_what_is_written_is_the_same_every_time(name):
    space = chain([8, 12])
    space = replace(space, layers=tuple(replace(layer, kernel=1) for layer in space.layers))
    scheme = Scheme((5, 12), indices=((0, 1, 2, 5, 7), tuple(range(12))))
    text = exporters.text(name, scheme, space)
    assert text == exporters.text(name, scheme, space)
    assert not re.search(r"nan|infinity", text, re.IGNORECASE)


# --- NNI --------------------------------------------------------------------------------------------------------------

LEGAL_3 = {"op_names", "sparse_ratio", "granularity", "dependency_group_id", "internal_metric_block"}
LEGAL_2 = {"op_types", "op_names", "sparsity_per_layer"}


def test_nni_gets_one_entry_per_group_with_one_ratio_and_an_identity_where_layers_are_coupled():
    model, _, space = network("digits")
    scheme = random_scheme(space)
    entries = nni.config_list(scheme, space, model)
    cut = [(g, k) for g, k in zip(space.groups, scheme.kept, strict=True) if k < g.width]
    assert len(entries) == len(cut)
    for entry, (group, kept) in zip(entries, cut, strict=True):
        assert set(entry) <= LEGAL_3 and entry["granularity"] == "out_channel"
        assert type(entry["sparse_ratio"]) is float and int(group.width * entry["sparse_ratio"]) == group.width - kept
        assert entry["op_names"] == makers(group)
        assert ("dependency_group_id" in entry) == (len(makers(group)) > 1)
    named = [name for entry in entries for name in entry["op_names"]]
    assert len(named) == len(set(named))
    assert json.loads(json.dumps(entries)) == entries


def test_nni_is_told_the_blocks_of_grouped_convolutions():
    _, _, space = network("grouped")
    entries = nni.config_list(space.smallest, space)
    units = {group.name: group.unit for group in space.groups}
    for entry in entries:
        unit = units[entry["op_names"][0]]
        assert entry.get("internal_metric_block", 1) == unit
        width = next(group.width for group in space.groups if group.name == entry["op_names"][0])
        removed = int(width * entry["sparse_ratio"])
        assert removed % unit == 0 and int(width // unit * entry["sparse_ratio"]) == removed // unit


def test_nni_2_names_the_kinds_of_layers():
    torch.manual_seed(0)
    _, _, space = made(sequence(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 6)
    expected = [{"op_types": ["Linear"], "op_names": ["0"], "sparsity_per_layer": (8 - 3 + 0.5) / 8}]
    assert nni.config_list_2(Scheme((3,)), space) == expected
    layers = nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 3, 1)
    model, _, space = made(sequence(*layers), 3, 5, 5)
    (entry,) = nni.config_list_2(Scheme((3,)), space, model)
    assert entry["op_types"] == ["ConvTranspose2d"] and set(entry) == LEGAL_2
    model, _, space = network("digits")
    entries = nni.config_list_2(space.smallest, space, model)
    assert all(set(entry) == LEGAL_2 and entry["op_types"] == ["Conv2d"] for entry in entries)


# --- ModelOpt ---------------------------------------------------------------------------------------------------------


def test_modelopt_gets_counts_by_the_first_layer_and_rules_for_every_kind_of_module():
    model, _, space = network("digits")
    scheme = space.dense.replace(0, 5).replace(1, 7)
    found = modelopt.export(scheme, space, model)
    assert found["select"] == {"conv.out_channels": 5, "blocks.0.conv1.out_channels": 7}
    assert len(found["rules"]) == 16
    for kind, rule in found["rules"].items():
        (ratios, divisor) = (value for key, value in rule["*"].items() if key != "kernel_size")
        assert ratios == sorted({5 / 16, 7 / space.groups[1].width}) and divisor == 1, kind
    linear = made(sequence(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 6)[2]
    assert modelopt.export(Scheme((3,)), linear)["select"] == {"0.out_features": 3}


def test_channels_of_a_grouped_convolution_are_refused_for_modelopt():
    _, _, space = network("grouped")
    group = next(group for group in space.groups if group.unit > 1 and group.slices[0].module == "4")
    with pytest.raises(UserError, match="made by the grouped convolution 4, which NVIDIA ModelOpt keeps whole"):
        modelopt.export(space.dense.replace(space.index(group.name), group.counts[0]), space)


# --- NNCF -------------------------------------------------------------------------------------------------------------


def test_nncf_gets_a_mask_for_every_weight_that_loses_something():
    model, _, space = network("digits")
    scheme = random_scheme(space)
    table = nncf.table(scheme, space, model)
    pruned = slicing.prune(model, space, [np.asarray(units) for units in scheme.indices])
    dense, left = dict(model.named_parameters()), dict(pruned.named_parameters())
    for path, entry in table["masks"].items():
        assert entry["shape"] == list(dense[path].shape)
        assert entry["ratio"] == pytest.approx(1 - left[path].numel() / dense[path].numel(), abs=1e-12)
    weights = [layer.weight for layer in space.layers]
    assert set(table["masks"]) == {path for path in weights if left[path].numel() < dense[path].numel()}
    total, kept = sum(dense[path].numel() for path in weights), sum(left[path].numel() for path in weights)
    assert table["ratio"] == pytest.approx(1 - kept / total)


def test_masks_are_written_where_nncf_keeps_them():
    model, example, space = network("digits")
    scheme = random_scheme(space)
    table = json.loads(json.dumps(nncf.table(scheme, space)))
    modules = {
        layer.weight: SimpleNamespace(binary_mask=torch.zeros(space.shapes[layer.weight], dtype=torch.bool))
        for layer in space.layers
    }
    nncf.write_masks(modules, table)
    masked = copy.deepcopy(model)
    for path, module in modules.items():
        masked.get_parameter(path).data.mul_(module.binary_mask)
        assert module.binary_mask.all() == (path not in table["masks"])
    with torch.no_grad():
        pruned = slicing.prune(model, space, [np.asarray(units) for units in scheme.indices])
        torch.testing.assert_close(masked(example), pruned(example), rtol=1e-5, atol=1e-5)
    del modules[space.layers[1].weight]
    with pytest.raises(UserError, match="NNCF masks no weight blocks.0.conv1.weight"):
        nncf.write_masks(modules, nncf.table(scheme, space))


# --- recipes ----------------------------------------------------------------------------------------------------------


@quiet
def test_a_recipe_of_llm_compressor_has_one_stage_per_sparsity():
    _, _, space = network("digits")
    stages = yaml.safe_load(llm_compressor.recipe(random_scheme(space), space))
    sparsities, targets = [], []
    for name, stage in stages.items():
        assert re.fullmatch(r"sparsity_\d+_stage", name) and list(stage) == ["pruning_modifiers"]
        ((kind, modifier),) = stage["pruning_modifiers"].items()
        assert kind == "WandaPruningModifier" and set(modifier) == {"sparsity", "mask_structure", "targets"}
        assert 0 < modifier["sparsity"] < 1 and modifier["mask_structure"] == "0:0"
        sparsities.append(modifier["sparsity"])
        targets += modifier["targets"]
    assert len(sparsities) == len(set(sparsities)) and len(targets) == len(set(targets))
    assert set(targets) <= {layer.name for layer in space.layers}
    assert "SparseGPTModifier" in exporters.configure("llm_compressor", {"modifier": "SparseGPTModifier"})(
        random_scheme(space), space
    )


def test_a_recipe_of_sparseml_has_one_modifier_with_rates_as_keys():
    _, _, space = network("digits")
    text = exporters.text("sparseml", random_scheme(space), space)
    assert text.startswith("pruning_modifiers:\n- !GMPruningModifier\n  init_sparsity: 0.0\n  final_sparsity:\n")
    assert exporters.text("sparseml", space.dense, space) == "pruning_modifiers: []\n"


def test_a_schedule_of_distiller_has_one_pruner_per_group_with_its_leader_first():
    model, _, space = network("digits")
    scheme = random_scheme(space)
    found = yaml.safe_load(distiller.schedule(scheme, space, model, prefix="module."))
    cut = [(g, k) for g, k in zip(space.groups, scheme.kept, strict=True) if k < g.width]
    for pruner, (group, kept) in zip(found["pruners"].values(), cut, strict=True):
        assert pruner["class"] == "L1RankedStructureParameterPruner" and pruner["group_type"] == "Filters"
        assert pruner["weights"] == [f"module.{name}.weight" for name in makers(group)]
        assert pruner.get("group_dependency") == ("Leader" if len(makers(group)) > 1 else None)
        assert int(group.width * pruner["desired_sparsity"]) == group.width - kept
    assert [policy["pruner"]["instance_name"] for policy in found["policies"]] == list(found["pruners"])


# --- mmrazor, AIMET, AMC ----------------------------------------------------------------------------------------------

UNIT = re.compile(r"(?P<module>[\w.]+)_\((?P<start>\d+), (?P<end>\d+)\)_(?P<width>\d+)")


@pytest.mark.parametrize("name", ["digits", "resnet20", "shared sum"])
def test_a_unit_of_mmrazor_names_its_first_layer_and_its_channels(name):
    _, _, space = network(name)
    scheme = random_scheme(space)
    found = mmrazor.units(scheme, space, prefix="backbone.")
    assert len(found) == len(space)
    for (key, kept), group, wanted in zip(found.items(), space.groups, scheme.kept, strict=True):
        parts = UNIT.fullmatch(key)
        assert parts["module"] == f"backbone.{group.slices[0].module}" and int(parts["width"]) == group.width
        assert int(parts["end"]) - int(parts["start"]) == group.width and kept == wanted


def test_aimet_gets_the_convolutions_that_read_a_group():
    _, _, space = network("mobilenet_v2")
    position = space.index("features.2.conv.2")
    found = aimet.ratios(space.dense.replace(position, 7), space)
    readers = [piece.module for piece in space.groups[position].slices if piece.role == "in"]
    assert [name for name, _ in found] == readers and len(readers) > 1
    width = space.groups[position].width
    assert {max(1, int(width * ratio)) for _, ratio in found} == {7}


def test_amc_gets_one_number_per_layer_in_the_order_of_the_modules():
    model, _, space = network("mobilenet_v2")
    scheme = Scheme(tuple(max(8, width // 16 * 8) for width in space.widths.tolist()))
    numbers = [int(number) for number in amc.channels(scheme, space, model).split(",")]
    pruned = slicing.prune(model, space, [np.arange(k) for k in scheme.kept])
    layers = [m for m in pruned.modules() if isinstance(m, nn.Linear | nn.Conv2d) and not is_depthwise(m)]
    assert numbers == [m.in_features if isinstance(m, nn.Linear) else m.in_channels for m in layers]


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels


# --- what formats cannot say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch_prune", r"4 of the 10 channels of whole, and torch.nn.utils.prune has one rate per layer; keep"),
        ("torch_ao", "4 of the 10 channels of whole"),
        ("nni", "4 of the 10 channels of whole, and NNI has one rate per layer; keep this group whole"),
        ("nni2", "4 of the 10 channels of whole"),
        ("distiller", "4 of the 10 channels of whole"),
        ("modelopt", "4 of the 10 channels of whole"),
        ("aimet", "4 of the 10 channels that join reads, and AIMET has one ratio for all of them"),
        ("amc", "AMC prunes what linear layers and 1x1 convolutions read"),
    ],
)
def test_groups_that_share_a_layer_are_refused_by_name(name, message):
    _, _, space = network("shared sum")
    kept = list(space.dense.kept)
    kept[0] = 2
    with pytest.raises(UserError, match=message):
        exporters.text(name, Scheme(tuple(kept)), space)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch_ao", "stem are made by 2 layers"),
        ("mmrazor", "stem leave 2 at a time because of a grouped convolution, and mmrazor takes them one by one"),
        ("distiller", "stem leave 2 at a time"),
        ("aimet", "stem are read by split, and AIMET prunes what ordinary convolutions read"),
    ],
)
def test_channels_that_leave_several_at_a_time_are_refused_by_name(name, message):
    space = mixed()
    with pytest.raises(UserError, match=message):
        exporters.text(name, space.dense.replace(0, 4), space)


def test_linear_layers_are_refused_by_tools_for_convolutions():
    _, _, space = made(sequence(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 6)
    with pytest.raises(UserError, match="made by 0, and Distiller ranks filters of convolutions"):
        distiller.schedule(Scheme((3,)), space)
    with pytest.raises(UserError, match="read by 2, and AIMET prunes what ordinary convolutions read"):
        aimet.ratios(Scheme((3,)), space)


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Parameter(torch.randn(8, 6)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(nn.functional.linear(x, self.mix))


@pytest.mark.parametrize("name", ["torch_prune", "torch_ao", "modelopt", "nni", "nni2", "distiller"])
def test_channels_made_by_a_bare_parameter_are_refused_by_name(name):
    _, _, space = made(OwnParameter, 6)
    with pytest.raises(UserError, match="made by mix, no convolution or linear layer that"):
        exporters.text(name, Scheme((3,)), space)


def test_a_warning_of_what_was_changed_names_three_layers_and_counts_the_rest():
    space = chain([16] * 6)
    with pytest.warns(HandoffNotice, match=r"no other sparsities: conv0 .*; conv1 .*; conv2 .* and 4 more") as caught:
        spdy.profile(Scheme((5,) * 6), space)
    assert len(caught) == 1 and caught[0].filename == __file__
