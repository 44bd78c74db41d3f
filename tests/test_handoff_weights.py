"""Schemes of single weights in other tools' forms: each tool's own formula gives back exactly the counts."""

from __future__ import annotations

import copy
import json
import re
import warnings
from math import prod
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.utils import prune

from autoprune import exporters, masks
from autoprune.errors import UserError
from autoprune.exporters import csv, nncf, sizes, torch_prune
from autoprune.exporters.notice import HandoffNotice
from autoprune.exporters.removed import mask
from autoprune.pruned import save_pruned
from autoprune.scheme import Scheme
from autoprune.search_spaces import weights
from autoprune.space import SearchSpace

EXAMPLE = torch.zeros(1, 4, 6, 6)
CARRY = [
    "json", "csv", "torch_prune", "torch_prune_masks", "nni", "nni2", "nncf", "llm_compressor", "sparseml", "distiller",
    "spdy", "evopress",
]  # fmt: skip
quiet = pytest.mark.filterwarnings("ignore::autoprune.exporters.notice.HandoffNotice")


class Tagged(yaml.SafeLoader):
    """YAML with SparseML's tag."""


Tagged.add_constructor("!GMPruningModifier", lambda loader, node: loader.construct_mapping(node, deep=True))


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    ).eval()


def pruned(pattern: str | None = None, kept: tuple[int, ...] = (100, 96, 7)) -> tuple[SearchSpace, Scheme, nn.Module]:
    space = weights.define(make(), EXAMPLE, pattern=pattern)
    scheme = Scheme(kept, space.granularity)
    network = make()
    scores = {str(group.tensor): network.get_parameter(str(group.tensor)).abs() for group in space.groups}
    if pattern is None:
        found = {name: masks.highest(scores[name], count) for name, count in zip(scores, kept, strict=True)}
    else:
        counts = zip(space.groups, kept, strict=True)
        found = {str(g.tensor): masks.highest_of(scores[str(g.tensor)], k // g.unit, g.units) for g, k in counts}
    masks.impose(network, found)
    return space, scheme, network


@pytest.fixture(scope="module")
def case() -> tuple[SearchSpace, Scheme, nn.Module]:
    return pruned()


@quiet
@pytest.mark.parametrize("name", CARRY)
def test_every_format_that_can_carries_weights(name: str, case: tuple[SearchSpace, Scheme, nn.Module]) -> None:
    space, scheme, network = case
    text = exporters.text(name, scheme, space, network)
    assert text == exporters.text(name, scheme, space, network)
    assert not re.search(r"nan|infinity", text, re.IGNORECASE)


@pytest.mark.parametrize("name", [name for name in exporters.EXPORTERS if name not in CARRY])
def test_the_others_say_why_they_cannot(name: str, case: tuple[SearchSpace, Scheme, nn.Module]) -> None:
    with pytest.raises(UserError, match="whole channels"):
        exporters.text(name, case[1], case[0], case[2])


@pytest.mark.parametrize("pattern", [None, "any:4"])
def test_tables_and_files_are_read_back(pattern: str | None, tmp_path: Any) -> None:
    space, scheme, network = pruned(pattern, (144, 72, 15))
    assert csv.read(csv.export(scheme, space), space) == scheme
    path = exporters.write("json", scheme, space, tmp_path / "scheme.json")
    assert exporters.read(path, space) == scheme
    save_pruned(network, tmp_path)
    assert exporters.read(tmp_path / "pruned.safetensors", space) == scheme
    assert sizes.of_network(network, space) == scheme


def test_pytorch_zeroes_exactly_as_many_weights_and_masks_the_same(case: tuple[SearchSpace, Scheme, nn.Module]) -> None:
    space, scheme, network = case
    amounts = torch_prune.amounts(scheme, space)
    dense = make()
    for name, how in amounts.items():
        prune.l1_unstructured(dense.get_submodule(name), **how)
    assert list(amounts) == ["0", "5"]  # the other stays whole
    for group, count in zip(space.groups, scheme.kept, strict=True):
        assert int(dense.get_submodule(group.name).weight.count_nonzero()) == count
    exporters.check("torch_prune", scheme, space, make(), EXAMPLE)
    found = json.loads(exporters.text("torch_prune_masks", scheme, space, network))
    exporters.check("torch_prune_masks", scheme, space, network, EXAMPLE)
    masked = torch_prune.finish(torch_prune.apply(make(), found))
    assert all(torch.equal(masked.get_parameter(name), tensor) for name, tensor in network.named_parameters())


def test_masks_need_the_pruned_network(case: tuple[SearchSpace, Scheme, nn.Module]) -> None:
    space, scheme, network = case
    with pytest.raises(UserError, match="hand it over as the model"):
        torch_prune.masks(scheme, space)
    with pytest.raises(UserError, match=r"0\.weight has 288 weights that are not zero where the scheme keeps 100"):
        nncf.table(scheme, space, make())
    table = nncf.table(scheme, space, network)
    total = sum(prod(space.shapes[str(group.tensor)]) for group in space.groups)
    assert table["ratio"] == 1 - sum(scheme.kept) / total
    for path, entry in table["masks"].items():
        assert torch.equal(mask(entry["removed"], entry["shape"]).bool(), network.get_parameter(path) != 0)
    with pytest.raises(UserError, match="96 entries: there is none of number 96"):
        mask({"kept": [3, 96]}, (12, 8, 1, 1))


@pytest.mark.parametrize("kept", [1, 2, 31, 95, 96])
def test_rates_are_computed_back_with_each_tools_own_formula(kept: int) -> None:
    space = weights.define(make(), EXAMPLE)
    scheme = space.dense.replace(1, kept)
    cut = kept < 96
    for entries, key in ((exporters.find("nni")(scheme, space), "sparse_ratio"),
                         (exporters.find("nni2")(scheme, space, make()), "sparsity_per_layer")):  # fmt: skip
        assert [entry["op_names"] for entry in entries] == [["2"]] * cut
        assert all(int(96 * entry[key]) == 96 - kept for entry in entries)
    assert all(e["op_types"] == ["Conv2d"] for e in exporters.find("nni2")(scheme, space))
    (*_, distiller) = [yaml.safe_load(exporters.text("distiller", scheme, space))]
    levels = [pruner["levels"] for pruner in distiller["pruners"].values()]
    assert [int(96 * level["2.weight"]) for level in levels] == [96 - kept] * cut
    recipe = yaml.load(exporters.text("sparseml", scheme, space), Tagged)
    rates = {
        name: rate for m in recipe["pruning_modifiers"] for rate, names in m["final_sparsity"].items() for name in names
    }
    assert {name: round(96 * rate) for name, rate in rates.items()} == ({"2.weight": 96 - kept} if cut else {})


def test_databases_of_levels_get_the_nearest_and_a_warning() -> None:
    space = weights.define(make(), EXAMPLE)
    scheme = Scheme((288 - 130, 96, 60), "weight")
    with pytest.warns(HandoffNotice, match=r"0 130 -> 128 weights removed"):
        text = exporters.configure("evopress", {"sparsity": "0.5", "weights_diff": "16"})(scheme, space, None)
    assert text.splitlines() == ["0: -1", "2: -3", "5: -1"]  # a level below would add weights to the last
    with pytest.warns(HandoffNotice, match=r"0 0\.4514 -> 0\."):
        lines = exporters.text("spdy", scheme, space).splitlines()
    assert [line.split()[1] for line in lines] == ["0", "2", "5"]
    assert abs(float(lines[0].split()[0]) - 130 / 288) < 0.03 and float(lines[1].split()[0]) == 0


def test_patterns_are_mask_structures_where_a_tool_knows_them() -> None:
    space, scheme, network = pruned("any:4", (144, 72, 60))
    stages = yaml.safe_load(exporters.text("llm_compressor", scheme, space))
    modifiers = [m for stage in stages.values() for m in stage["pruning_modifiers"].values()]
    assert [(m["mask_structure"], m["sparsity"], m["targets"]) for m in modifiers] == [
        ("2:4", 0.5, ["0"]), ("3:4", 0.25, ["2"]),
    ]  # fmt: skip
    with pytest.raises(UserError, match="has no n of m neighbours; hand over the masks"):
        torch_prune.amounts(scheme, space)
    torch_prune.check_masks(scheme, space, network, EXAMPLE)
    for name in ("nni", "nni2", "sparseml", "distiller"):
        with pytest.warns(HandoffNotice, match="n of 4 neighbours -> n of all"):
            exporters.text(name, scheme, space)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exporters.text("torch_prune_masks", scheme, space, copy.deepcopy(network))


def test_a_safetensors_file_of_another_network_is_refused(tmp_path: Any) -> None:
    space = weights.define(make(), EXAMPLE)
    save_pruned(nn.Sequential(nn.Conv2d(4, 8, 1)), tmp_path)
    with pytest.raises(
        UserError, match=r"0\.weight is of shape \(8, 4, 1, 1\), where the dense network has \(8, 4, 3, 3\)"
    ):
        exporters.read(tmp_path / "pruned.safetensors", space)
