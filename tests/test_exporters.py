from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

from autoprune import exporters, slicing
from autoprune.errors import UserError
from autoprune.exporters import csv
from autoprune.exporters.torch_pruning import check_history, check_ratios, history, ratios, ratios_by_name
from autoprune.scheme import Scheme
from autoprune.search_spaces.named import tie
from autoprune.search_spaces.traced import trace
from autoprune.space import SearchSpace
from handoff_networks import NETWORKS, from_torchvision, marked, network, random_scheme, sequence
from networks import SharedWeight
from toy import chain, mixed

SPACES = {"chain": chain([8, 12, 16]), "mixed": mixed()}
POINTWISE = replace(SPACES["chain"], layers=tuple(replace(layer, kernel=1) for layer in SPACES["chain"].layers))


# --- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::autoprune.exporters.notice.HandoffNotice")
@pytest.mark.parametrize("name", exporters.EXPORTERS)
def test_every_exporter_is_found_and_writes_text(name, tmp_path):
    space = POINTWISE  # AMC prunes what convolutions of 1x1 read, AIMET what convolutions read
    scheme = Scheme((3, 7, 16), indices=((1, 2, 5), tuple(range(7)), tuple(range(16))))
    path = exporters.write(name, scheme, space, tmp_path / "new" / "file")
    assert path.read_text(encoding="utf-8") == exporters.text(name, scheme, space)
    assert path.read_text(encoding="utf-8").endswith("\n")


@pytest.mark.parametrize("name", exporters.EXPORTERS)
def test_every_exporter_has_a_docstring_and_refuses_a_scheme_of_another_space(name):
    exporter = exporters.find(name)
    assert exporter.__doc__
    with pytest.raises(UserError):
        exporter(random_scheme(SPACES["mixed"]), SPACES["chain"], None)


def as_lines(scheme, space, model=None):
    return "".join(f"{group.name} {kept}\n" for group, kept in zip(space.groups, scheme.kept, strict=True))


def test_an_exporter_of_ones_own_is_passed_or_named(monkeypatch, tmp_path):
    space = SPACES["chain"]
    (tmp_path / "mylab_tables.py").write_text(
        "def total(scheme, space, model=None):\n    return {'kept': sum(scheme.kept)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert exporters.text(as_lines, space.dense, space) == "conv0 8\nconv1 12\nconv2 16\n"
    assert json.loads(exporters.text("mylab_tables:total", space.dense, space)) == {"kept": 8 + 12 + 16}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch_prunning", "'torch_prunning' is unknown"),
        ("torch_prunning", "close: torch_pruning"),
        ("nowhere:at_all", "no module 'nowhere'"),
        ("autoprune.exporters:EXPORTERS", "not a function"),
        (3, "neither a name nor a function"),
    ],
)
def test_an_unknown_exporter_is_refused(name, message):
    with pytest.raises(UserError) as caught:
        exporters.find(name)
    assert message in str(caught.value)


def test_what_a_file_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    space = SPACES["chain"]
    with pytest.raises(UserError, match="call it from Python"):
        exporters.write(lambda *_: {nn.ReLU(): 1}, space.dense, space, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    with pytest.raises(UserError, match="cannot be written"):
        exporters.write("csv", space.dense, space, tmp_path, force=True)


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path):
    space = SPACES["chain"]
    path = exporters.write("csv", space.dense, space, tmp_path / "widths.csv")
    with pytest.raises(UserError, match=r"widths.csv exists already: .*--force"):
        exporters.write("csv", space.smallest, space, path)
    assert csv.read(path, space) == space.dense
    assert csv.read(exporters.write("csv", space.smallest, space, path, force=True), space) == space.smallest


def test_options_of_an_exporter_are_read_from_text():
    space = SPACES["chain"]
    named = exporters.configure("mmrazor", {"prefix": "backbone."})(space.dense, space)
    assert next(iter(named)) == "backbone.conv0_(0, 8)_8"
    with pytest.raises(UserError, match="no option 'prefx': its options are prefix; close: prefix"):
        exporters.configure("mmrazor", {"prefx": "backbone."})
    with pytest.raises(UserError, match="it has no options"):
        exporters.configure("csv", {"separator": ";"})


def test_a_number_that_json_does_not_have_is_refused():
    space = SPACES["chain"]
    with pytest.raises(UserError, match="a file cannot hold"):
        exporters.text(lambda *_: {"loss": float("nan")}, space.dense, space)


@pytest.mark.parametrize(("name", "file"), [("json", "scheme.json"), ("csv", "Scheme.CSV")])
def test_scheme_files_and_tables_are_read_back_by_their_ending(name, file, tmp_path):
    space = SPACES["mixed"]
    path = exporters.write(name, space.smallest, space, tmp_path / file)
    assert exporters.read(path, space) == space.smallest


# --- CSV ------------------------------------------------------------------------------------------------------------


def test_a_table_has_one_line_per_group():
    space = SPACES["chain"]
    lines = csv.export(Scheme((2, 12, 5)), space).splitlines()
    assert lines == [
        "group,original,kept,kept_rate",
        f"conv0,8,2,{2 / 8:.4f}",
        "conv1,12,12,1.0000",
        f"conv2,16,5,{5 / 16:.4f}",
    ]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", range(5))
def test_a_table_reads_back_as_written(name, seed):
    space = SPACES[name]
    scheme = Scheme(random_scheme(space, seed).kept)
    assert csv.read(csv.export(scheme, space), space) == scheme


def test_rates_with_four_decimals_give_the_count_they_came_from():
    widths = [*range(2, 120), 768, 2048]
    space = chain(widths)
    rng = np.random.default_rng(0)
    kept = tuple(int(rng.integers(1, width + 1)) for width in widths)
    for column, fraction in (("kept_rate", lambda k, w: k / w), ("removed_rate", lambda k, w: 1 - k / w)):
        rows = [f"{g.name},{fraction(k, g.width):.4f}" for g, k in zip(space.groups, kept, strict=True)]
        assert csv.read("\n".join([f"group,{column}", *rows]), space) == Scheme(kept)


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        ("group,kept\nconv1,7\n", (8, 7, 16)),
        ("group,removed\nconv1,7\nconv0,0\n", (8, 5, 16)),
        ("group,removed_rate\nconv2,0.75\n", (8, 12, 4)),
        ("kept_rate, group\n 0.5, conv0\n\n", (4, 12, 16)),
        ("group,note,kept,kept_rate\r\nconv0,first,3,0.9\r\n", (3, 12, 16)),
        ("group,kept\n", (8, 12, 16)),
    ],
)
def test_a_handwritten_table_is_read_and_the_rest_stays_whole(table, kept):
    assert csv.read(table, SPACES["chain"]) == Scheme(kept)


def test_a_table_from_a_spreadsheet_may_start_with_a_mark(tmp_path):
    path = tmp_path / "widths.csv"
    path.write_text("group,kept\nconv0,3\n", encoding="utf-8-sig")
    assert csv.read(path, SPACES["chain"]) == Scheme((3, 12, 16))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("group,keep\nconv0,3\n", "needs group and one of kept, removed"),
        ("name,kept\nconv0,3\n", "needs group"),
        ("group;kept\nconv0;3\n", "header is 'group;kept'"),
        ("group,kept,removed\nconv0,3,5\n", "both kept and removed"),
        ("group,kept\nconv7,3\n", "line 2: no group is called 'conv7'; close: conv"),
        ("group,kept\nconv0,3\nconv0,3\n", "line 3: group conv0 is listed a second time"),
        ("group,kept\nconv0,0.5\n", "kept = '0.5' is not a number of channels"),
        ("group,kept\nconv0\n", "kept = '' is not a number of channels"),
        ("group,kept\nconv0,-3\n", "kept = '-3'"),
        ("group,kept\nconv0,0\n", "group conv0: 0 channels would be left of 8"),
        ("group,kept\nconv0,9\n", "group conv0: 9 kept channels is not a legal count"),
        ("group,removed\nconv0,8\n", "group conv0: 0 channels would be left of 8"),
        ("group,removed\nconv0,9\n", "group conv0: -1 channels would be left of 8"),
        ("group,kept_rate\nconv0,50\n", "kept_rate = '50' is not a fraction above 0 and at most 1"),
        ("group,kept_rate\nconv0,50%\n", "kept_rate = '50%'"),
        ("group,kept_rate\nconv0,0\n", "kept_rate = '0'"),
        ("group,kept_rate\nconv0,nan\n", "kept_rate = 'nan'"),
        ("group,removed_rate\nconv0,1\n", "removed_rate = '1' is not a fraction at least 0 and below 1"),
        ("group,removed_rate\nconv0,half\n", "removed_rate = 'half'"),
        ("group,original,kept\nconv0,32,3\n", "group conv0 has 8 channels here, 32 in the table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, message):
    with pytest.raises(UserError) as caught:
        csv.read(table, SPACES["chain"])
    assert message in str(caught.value)


# --- Torch-Pruning: numbers -----------------------------------------------------------------------------------------


def test_torch_prunings_own_formula_gives_every_count_back():
    for width in range(2, 257):
        space = chain([width])
        for kept in range(1, width):
            ratio = ratios_by_name(Scheme((kept,)), space)["conv0"]
            assert int(width * (1 - ratio)) == kept


def test_layers_that_stay_whole_are_left_out():
    space = SPACES["chain"]
    assert ratios_by_name(space.dense, space) == {}
    assert list(ratios_by_name(Scheme((8, 3, 16)), space)) == ["conv1"]
    assert history(Scheme(space.dense.kept, indices=tuple(tuple(range(g.units)) for g in space.groups)), space) == []


def test_a_history_lists_removed_channels_of_the_producing_layer():
    space = SPACES["mixed"]
    everything = tuple(tuple(range(group.units)) for group in space.groups)
    scheme = Scheme((4, *space.dense.kept[1:]), indices=((1, 3), *everything[1:]))
    assert history(scheme, space) == [["stem", True, [0, 2, 4, 6]]]
    assert history(Scheme(scheme.kept), space, kept=scheme.indices) == history(scheme, space)
    assert json.loads(json.dumps(history(scheme, space))) == history(scheme, space)


def test_a_history_needs_to_know_which_channels_stay():
    with pytest.raises(UserError, match=r"not which: export a scheme with kept indices"):
        history(SPACES["chain"].smallest, SPACES["chain"])


def test_only_channels_are_handed_over():
    space = SPACES["chain"]
    weights = SearchSpace(space.groups, space.layers, space.shapes, granularity="weight")
    with pytest.raises(UserError, match="granularity 'weight'"):
        ratios_by_name(weights.smallest, weights)


# --- Torch-Pruning: real networks -----------------------------------------------------------------------------------


BY_LAYER = [name for name in NETWORKS if name != "shared sum"]


def units(scheme: Scheme):
    return [np.asarray(chosen) for chosen in scheme.indices]


def shapes(model: nn.Module):
    return {path: tuple(tensor.shape) for path, tensor in slicing.named_tensors(model)}


def applied(model, example, wanted, importance=None):
    """A copy pruned by Torch-Pruning, the way the documentation says."""
    candidate = copy.deepcopy(model)
    modules = dict(candidate.named_modules())
    pruner = tp.pruner.BasePruner(
        candidate,
        (example,),
        importance or tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict={modules[name]: ratio for name, ratio in wanted.items()},
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    return candidate


def replayed(model, example, entries):
    candidate = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tp.DependencyGraph().build_dependency(candidate, (example,)).load_pruning_history(entries)
    return candidate


@pytest.mark.parametrize("name", marked(BY_LAYER))
def test_torch_pruning_makes_every_layer_as_wide_as_we_do(name):
    model, example, space = network(name)
    scheme = random_scheme(space, seed=0)
    ours = slicing.prune(model, space, units(scheme))
    assert shapes(ours) != shapes(model)
    assert shapes(applied(model, example, ratios_by_name(scheme, space, model))) == shapes(ours)


@pytest.mark.parametrize("name", marked(NETWORKS))
def test_a_replayed_history_gives_the_same_network(name):
    model, example, space = network(name)
    scheme = random_scheme(space, seed=1)
    ours = slicing.prune(model, space, units(scheme))
    theirs = replayed(model, example, json.loads(json.dumps(history(scheme, space, model))))
    assert shapes(theirs) == shapes(ours) != shapes(model)
    with torch.no_grad():
        torch.testing.assert_close(theirs(example), ours(example), rtol=1e-5, atol=1e-5)


def test_ratios_are_keyed_by_the_modules_of_the_given_model():
    model, _, space = network("digits")
    twin = copy.deepcopy(model)
    scheme = random_scheme(space)
    assert set(ratios(scheme, space, twin)) <= set(twin.modules())
    assert list(ratios(scheme, space, twin).values()) == list(ratios_by_name(scheme, space).values())


def test_every_layer_that_makes_the_channels_has_the_same_ratio():
    model, _, space = network("digits")
    group = space.groups[0]
    makers = {piece.module for piece in group.slices if piece.role == "out"}
    wanted = ratios_by_name(space.dense.replace(0, 5), space, model)
    assert len(makers) > 1 and makers == set(wanted)
    assert len(set(wanted.values())) == 1


def test_groups_tied_by_the_user_are_handed_over_as_ratios():
    model, example, space = network("resnet20")
    tied = tie(space, [("layer1.0.conv1", "layer1.2.conv1")])
    scheme = Scheme((5, *tied.smallest.kept[1:]), indices=((0, 3, 4, 7, 9), *((0,) for _ in tied.groups[1:])))
    check_ratios(scheme, tied, model, example)
    with pytest.raises(UserError, match="sees other groups"):
        check_history(scheme, tied, model, example)


def test_only_inner_convolutions_are_cut_where_the_shortcut_pads():
    _, _, space = network("resnet20")
    assert all(name.endswith("conv1") and name.startswith("layer") for name in ratios_by_name(space.smallest, space))


def test_indices_count_what_earlier_entries_have_left():
    model, example, space = network("shared sum")
    first, second = space.groups[:2]
    assert first.slices[0].path == second.slices[0].path == "whole.weight"
    everything = [tuple(range(group.units)) for group in space.groups]
    kept = ((0, 2), (1, 2, 3), *everything[2:])  # channels 1 and 3 leave, then 4, 8 and 9
    scheme = Scheme((2, 3, *space.dense.kept[2:]), indices=kept)
    assert history(scheme, space) == [["whole", True, [1, 3]], ["whole", True, [4 - 2, 8 - 2, 9 - 2]]]
    check_history(scheme, space, model, example)


@pytest.mark.parametrize("name", ["digits", "grouped"])
def test_both_checks_accept_what_torch_pruning_does_right(name):
    model, example, space = network(name)
    before = {path: tensor.clone() for path, tensor in slicing.named_tensors(model)}
    scheme = random_scheme(space)
    check_ratios(scheme, space, model, example)
    check_history(scheme, space, model, (example,))
    assert all(torch.equal(tensor, before[path]) for path, tensor in slicing.named_tensors(model))


# --- Torch-Pruning: what it cannot do -------------------------------------------------------------------------------


def test_ratios_of_groups_that_share_a_layer_are_refused_with_a_remedy():
    model, _, space = network("shared sum")
    with pytest.raises(UserError, match=r"4 of the 10 channels of whole.*hand over the history"):
        ratios(space.smallest, space, model)


def small(build, *shape):
    torch.manual_seed(0)
    model, example = build().eval(), torch.randn(2, *shape)
    return model, example, trace(model, example)


def test_units_that_torch_pruning_sees_otherwise_are_refused_for_ratios_only():
    convolutions = (
        nn.Conv2d(3, 12, 3),
        nn.Conv2d(12, 12, 3, groups=2),
        nn.Conv2d(12, 12, 1, groups=3),
        nn.Conv2d(12, 4, 1),
    )
    model, example, space = small(sequence(*convolutions), 3, 8, 8)
    position = space.index("1")  # its channels leave by 6: two groups make them, three groups read them
    scheme = space.dense.replace(position, 6)
    with pytest.raises(UserError, match=r"leave 6 at a time, with ratios Torch-Pruning takes 3.*history"):
        ratios(scheme, space, model)
    naive = {"1": 1 - (1 + 0.5) / space.groups[position].units}
    assert applied(model, example, naive)[1].out_channels != 6
    kept = [tuple(range(count // group.unit)) for group, count in zip(space.groups, scheme.kept, strict=True)]
    check_history(Scheme(scheme.kept, indices=tuple(kept)), space, model, example)


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 12), (12, 6)])
def test_a_convolution_that_is_depthwise_on_one_side_is_refused(inputs, outputs):
    layers = nn.Conv2d(3, inputs, 3), nn.Conv2d(inputs, outputs, 3, groups=6), nn.Conv2d(outputs, 4, 1)
    model, example, space = small(sequence(*layers), 3, 8, 8)
    group = space.groups[0]
    kept = [np.arange(other.units)[: other.units // 2 if other is group else None] for other in space.groups]
    counts = tuple(len(chosen) * other.unit for chosen, other in zip(kept, space.groups, strict=True))
    scheme = Scheme(counts, indices=tuple(tuple(chosen.tolist()) for chosen in kept))
    for exporter in (ratios, history):
        with pytest.raises(UserError, match="group 0 meet 1, which is depthwise on one side only"):
            exporter(scheme, space, model)
    entries = [["0", True, group.channels(range(group.units // 2, group.units))]]
    ours = slicing.prune(model, space, kept)
    assert shapes(replayed(model, example, entries)) != shapes(ours)  # the refusal is still needed


def test_a_parameter_shared_by_modules_is_refused():
    model, _, space = small(SharedWeight, 6)
    with pytest.raises(UserError, match="a parameter shared by several modules"):
        ratios(random_scheme(space), space, model)


def test_a_frozen_layer_is_refused_because_torch_pruning_would_not_see_it():
    model, example, space = network("digits")
    frozen = copy.deepcopy(model).requires_grad_(requires_grad=False)
    scheme = space.smallest
    with pytest.raises(UserError, match=r"frozen layer conv, .*requires_grad_"):
        ratios(scheme, space, frozen)
    assert shapes(applied(frozen, example, ratios_by_name(scheme, space))) == shapes(model)  # silently nothing


def test_the_dense_network_is_asked_for_when_a_pruned_one_is_given():
    model, _, space = network("digits")
    scheme = random_scheme(space)
    with pytest.raises(UserError, match="give the dense network"):
        ratios(scheme, space, slicing.prune(model, space, units(scheme)))
    with pytest.raises(UserError, match="missing; give the dense network"):
        history(scheme, space, nn.Linear(2, 2))


def test_layers_that_inference_does_not_use_are_refused_because_torch_pruning_traces_inference():
    space = SPACES["chain"]
    auxiliary = SearchSpace(space.groups, tuple(layer for layer in space.layers if layer.name != "conv2"), space.shapes)
    for group in ("conv1", "conv2"):  # read by, and made by, a layer that costs do not count
        with pytest.raises(UserError, match=f"group {group} meet conv2, which inference does not use"):
            ratios_by_name(space.dense.replace(space.index(group), 2), auxiliary)
    assert list(ratios_by_name(space.dense.replace(0, 2), auxiliary)) == ["conv0"]


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Parameter(torch.randn(8, 6)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(nn.functional.linear(x, self.mix))


def test_channels_made_by_a_bare_parameter_are_refused():
    model, _, space = small(OwnParameter, 6)
    with pytest.raises(UserError, match="made by mix, a parameter that Torch-Pruning cannot name"):
        ratios(space.smallest, space, model)


def test_a_group_that_torch_pruning_gets_wrong_is_found_by_trying():
    layers = nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 8, 9), nn.ReLU(), nn.Linear(9, 4)
    model, example, space = small(sequence(*layers), 5, 6)  # the flattened axes are (5 places, 8 channels)
    scheme = random_scheme(space)
    assert scheme.kept[0] < 8
    for check in (check_ratios, check_history):
        with pytest.raises(UserError, match=r"sees other groups than the search space: 3.weight would be"):
            check(scheme, space, model, example)


def test_a_network_that_torch_pruning_cannot_trace_is_found_by_trying():
    model, example, space = small(from_torchvision("shufflenet_v2_x0_5"), 3, 32, 32)
    with pytest.raises(UserError, match=r"cannot prune this network \(ZeroDivisionError"):
        check_ratios(space.dense.replace(space.index("conv1.0"), 5), space, model, example)
