"""Every count up to 512 channels survives the rounding of every tool; formats with gaps say what they changed."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import yaml

from autoprune.exporters import (
    aimet,
    amc,
    bins,
    csv,
    evopress,
    find,
    llm_compressor,
    mmrazor,
    modelopt,
    nni,
    sparseml,
    spdy,
)
from autoprune.exporters.notice import HandoffNotice
from autoprune.scheme import Scheme
from toy import chain

LARGEST = 512
PAIRS = [(width, kept) for width in range(1, LARGEST + 1) for kept in range(1, width + 1)]


def floor_removed(width: int, rate: float) -> int:
    """NNI, torch.ao, Distiller: channels that stay when the floor of a removed rate goes."""
    return width - int(width * rate)


def torch_pruning(width: int, ratio: float) -> int:
    return int(width * (1 - ratio))


def aimet_keeps(width: int, ratio: float) -> int:
    return max(1, int(width * ratio))


def modelopt_choice(width: int, ratio: float, divisor: int = 1) -> int:
    wanted = width * ratio
    found = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return found + divisor if found < 0.9 * wanted else found


def amc_keeps(width: int, channels: int, step: int = 8) -> int:
    """What ``--channels`` becomes: a ratio first, then a multiple of ``step``."""
    ratio = channels / width
    if ratio == 1:
        return width
    count = math.ceil(max(round(width * ratio), 1) / step) * step
    return width // step * step if count > width else count


def test_all_pairs_are_tried():
    assert len(PAIRS) == LARGEST * (LARGEST + 1) // 2


def test_the_middle_of_a_bin_gives_every_count_back():
    for width, kept in PAIRS:
        removed = bins.removed(width, kept)
        assert floor_removed(width, removed) == kept
        assert aimet_keeps(width, bins.remaining(width, kept)) == kept
        if kept < width:
            assert torch_pruning(width, 1 - bins.remaining(width, kept)) == kept


def test_plain_rates_would_miss_many_counts():
    """Why rates are not simply 1 - kept / width: this is what the bins are for."""
    missed = sum(floor_removed(width, 1 - kept / width) != kept for width, kept in PAIRS)
    rounded = sum(floor_removed(width, round(1 - kept / width, 4)) != kept for width, kept in PAIRS)
    assert missed > 0.15 * len(PAIRS) and rounded > 0.4 * len(PAIRS)


def test_whole_layers_are_exactly_whole():
    assert {bins.removed(width, width) for width in range(1, LARGEST + 1)} == {0.0}
    assert {bins.remaining(width, width) for width in range(1, LARGEST + 1)} == {1.0}


def test_every_count_is_a_choice_of_modelopt_under_the_rules_we_write():
    assert all(modelopt_choice(width, kept / width) == kept for width, kept in PAIRS)


def test_sparseml_gets_every_number_of_weights():
    assert all(round(width * ((width - kept) / width)) == width - kept for width, kept in PAIRS)


# --- the exporters themselves, on networks with one layer per pair ----------------------------------------------------


def networks(number: int = 3, layers: int = 150):
    rng = np.random.default_rng(0)
    for _ in range(number):
        widths = rng.integers(2, LARGEST + 1, layers).tolist()
        kept = tuple(int(rng.integers(1, width + 1)) for width in widths)
        yield chain(widths), Scheme(kept)


def pairs(space, scheme):
    return {group.name: (group.width, kept) for group, kept in zip(space.groups, scheme.kept, strict=True)}


@pytest.mark.parametrize("name", ["torch_pruning", "torch_prune", "torch_ao", "modelopt", "nni", "nni2", "distiller"])
def test_layers_get_exactly_the_schemes_counts(name):
    for space, scheme in networks():
        found = find(name)(scheme, space)
        if name == "torch_pruning":
            kept = {layer: torch_pruning(pairs(space, scheme)[layer][0], ratio) for layer, ratio in found.items()}
        elif name == "torch_prune":
            kept = {layer: pairs(space, scheme)[layer][0] - how["amount"] for layer, how in found.items()}
        elif name == "modelopt":
            kept = {key.removesuffix(".out_channels"): count for key, count in found["select"].items()}
            ratios = found["rules"]["nn.Conv2d"]["*"]["channels_ratio"]
            for layer, count in kept.items():
                assert count in {modelopt_choice(pairs(space, scheme)[layer][0], ratio) for ratio in ratios}
        else:
            rates = removed_rates(name, found)
            kept = {layer: floor_removed(pairs(space, scheme)[layer][0], rate) for layer, rate in rates.items()}
        wanted = {layer: count for layer, (width, count) in pairs(space, scheme).items() if count < width}
        assert kept == wanted


def removed_rates(name, found):
    """The removed rate of every layer in the words of a tool that takes its floor."""
    if name == "torch_ao":
        return {entry["tensor_fqn"].removesuffix(".weight"): entry["sparsity_level"] for entry in found}
    if name == "distiller":
        pruners = yaml.safe_load(found)["pruners"].values()
        return {pruner["weights"][0].removesuffix(".weight"): pruner["desired_sparsity"] for pruner in pruners}
    key = {"nni": "sparse_ratio", "nni2": "sparsity_per_layer"}[name]
    return {entry["op_names"][0]: entry[key] for entry in found}


def test_mmrazor_gets_the_counts_as_they_are():
    for space, scheme in networks():
        assert list(mmrazor.units(scheme, space).values()) == list(scheme.kept)


def test_aimet_gets_the_counts_at_the_layers_that_read_them():
    for space, scheme in networks():
        kept = list(scheme.kept)
        kept[-1] = space.groups[-1].width  # the last is read by a linear layer
        found = dict(aimet.ratios(Scheme(tuple(kept)), space))
        readers = {f"conv{i + 1}": (g.width, k) for i, (g, k) in enumerate(zip(space.groups, kept, strict=True))}
        for reader, ratio in found.items():
            width, wanted = readers[reader]
            assert aimet_keeps(width, ratio) == wanted
        assert len(found) == sum(k < g.width for g, k in zip(space.groups, kept, strict=True))


def test_the_table_reads_its_own_rates_back():
    for space, scheme in networks():
        assert csv.read(csv.export(scheme, space), space) == scheme


def test_one_rate_serves_layers_of_several_widths():
    """A layer that makes pairs of channels is twice as wide as the group; both must be cut right by one number."""
    for units, per_unit in itertools.product(range(1, 65), (1, 2, 3, 4)):
        for kept in range(1, units):
            rate = bins.removed(units * per_unit, kept * per_unit)
            assert floor_removed(units, rate) == kept
            assert floor_removed(units * per_unit, rate) == kept * per_unit


# --- formats with gaps ------------------------------------------------------------------------------------------------


def test_amc_gets_the_nearest_count_that_it_leaves_alone():
    for width in range(1, LARGEST + 1):
        reachable = sorted({width, *(amc_keeps(width, wanted) for wanted in range(1, width) if width >= 8)} - {0})
        for wanted in range(1, width + 1):
            found = amc.nearest(width, wanted)
            assert amc_keeps(width, found) == found
            assert abs(found - wanted) == min(abs(count - wanted) for count in reachable)


def test_wanda_zeroes_the_written_number_of_weights_in_every_row():
    for columns, kept in PAIRS[: LARGEST * 40]:
        assert int(columns * bins.removed(columns, kept)) == columns - kept


def told(export, *given, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = export(*given, **options)
    return text, [str(one.message) for one in caught if one.category is HandoffNotice]


def test_amc_says_what_it_changes():
    space = chain([16, 24, 32])
    space = replace(space, layers=tuple(replace(layer, kernel=1) for layer in space.layers))
    text, notices = told(amc.channels, Scheme((8, 24, 20)), space)
    assert text == "3,8,24,16\n"
    assert notices == ["AMC keeps multiples of 8: head 20 -> 16"]
    assert told(amc.channels, Scheme((8, 24, 24)), space)[1] == []
    assert told(amc.channels, Scheme((8, 24, 20)), space, step=4) == ("3,8,24,20\n", [])


def test_spdy_has_the_sparsities_of_its_own_generator():
    sparsities = spdy.database()
    assert len(sparsities) == 42 and sparsities[:2] == ["0.0000", "0.4000"] and sparsities[-1] == "0.9900"
    density = [1 - float(text) for text in sparsities[1:]]
    assert np.allclose(np.diff(np.log(density)), math.log(0.01 / 0.6) / 40, atol=5e-3)


def test_spdy_gets_the_nearest_sparsity_and_says_what_it_changes():
    for space, scheme in networks(1, 30):
        text, (notice,) = told(spdy.profile, scheme, space)
        lines = [line.split(" ") for line in text.splitlines(keepends=True)]
        assert [name[:-1] for _, name in lines] == [layer.name for layer in space.layers]
        exact = shares(scheme, space)
        for sparsity, name in lines:
            others = [abs(float(other) - exact[name[:-1]]) for other in spdy.database()]
            assert abs(float(sparsity) - exact[name[:-1]]) == min(others)
        assert notice.startswith("SPDY's database has no other sparsities: conv0 ") and notice.endswith(" more")
    space = chain([10])
    assert told(spdy.profile, Scheme((6,)), space) == ("0.4000 conv0\n0.4000 head\n", [])
    assert told(spdy.profile, Scheme((6,)), space, skip="head") == (
        "0.4000 conv0\n",
        ["SPDY's database has no other sparsities: head 0.4000 -> left out"],
    )


def shares(scheme, space):
    """Removed share of every layer of a chain, from its widths alone."""
    rates = [1.0, *(kept / group.width for group, kept in zip(space.groups, scheme.kept, strict=True)), 1.0]
    return {
        layer.name: 1 - before * after for layer, before, after in zip(space.layers, rates, rates[1:], strict=False)
    }


def test_evopress_gets_the_nearest_level_and_says_what_it_changes():
    space, scheme = chain([64, 32]), Scheme((32, 31))
    options = {"sparsity": 0.5, "weights_diff": 100, "num_levels": 8}
    text, (notice,) = told(evopress.levels, scheme, space, **options)
    levels = {name: int(level) for name, level in (line.split(":") for line in text.splitlines())}
    assert list(levels) == [layer.name for layer in space.layers]
    exact = shares(scheme, space)
    for name, level in levels.items():
        entries = math.prod(space.shapes[f"{name}.weight"])
        wanted = round(exact[name] * entries)
        reachable = [round(entries * 0.5) + step * 100 for step in range(-8, 9)]
        reachable = [count for count in reachable if 0 <= count < entries]
        assert abs(round(entries * 0.5) + level * 100 - wanted) == min(abs(count - wanted) for count in reachable)
    assert notice.startswith("EvoPress knows levels only: conv1 ")
    half = told(evopress.levels, Scheme((32, 32)), chain([64, 32], classes=2), sparsity=0.5, weights_diff=1)
    assert half[0].splitlines()[0] == "conv0: 0"


@pytest.mark.parametrize("wrong", [{"sparsity": 0.0}, {"sparsity": 1.0}, {"weights_diff": 0}, {"num_levels": -1}])
def test_impossible_levels_are_refused(wrong):
    space = chain([8])
    with pytest.raises(Exception, match="give a sparsity between 0 and 1"):
        evopress.levels(space.dense, space, **wrong)


@pytest.mark.parametrize("wrong", [{"smallest": 0.9, "largest": 0.4}, {"largest": 1.0}, {"steps": 0}])
def test_an_impossible_database_is_refused(wrong):
    space = chain([8])
    with pytest.raises(Exception, match="sparsities rise between 0 and 1"):
        spdy.profile(space.dense, space, **wrong)
    with pytest.raises(Exception, match="no convolution or linear layer of that name"):
        spdy.profile(space.dense, space, skip="fc")


def test_llm_compressor_says_what_it_changes_and_sparseml_is_exact():
    space, scheme = chain([8, 12]), Scheme((4, 7))
    text, (notice,) = told(llm_compressor.recipe, scheme, space)
    exact = shares(scheme, space)
    for stage in yaml.safe_load(text).values():
        (modifier,) = stage["pruning_modifiers"].values()
        for name in modifier["targets"]:
            columns = math.prod(space.shapes[f"{name}.weight"][1:])
            assert abs(int(columns * modifier["sparsity"]) / columns - exact[name]) <= 0.5 / columns + 1e-12
    assert notice.startswith("llm-compressor zeroes the same number of weights in every row: conv0 0.5000 -> ")
    text, notices = told(sparseml.recipe, scheme, space)
    assert not notices
    for rate, names in read_sparseml(text)[0]["final_sparsity"].items():
        for name in names:
            entries = math.prod(space.shapes[name])
            assert round(entries * rate) == round(entries * exact[name.removesuffix(".weight")])


def read_sparseml(text: str):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!GMPruningModifier", lambda loader, node: loader.construct_mapping(node, deep=True))
    return yaml.load(text, Loader)["pruning_modifiers"]


def test_nothing_is_told_where_nothing_is_changed():
    space = chain([8, 12])
    for export in (spdy.profile, llm_compressor.recipe, nni.config_list, modelopt.export):
        assert told(export, space.dense, space)[1] == []
