from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import UserError
from autoprune.latency import build as building
from autoprune.latency import source
from autoprune.latency.build import build
from autoprune.latency.calibrate import (
    CHECKS,
    FEATURES,
    NETWORKS,
    UNCORRECTED,
    agreement,
    fit,
    random_schemes,
    refined,
    sliced,
)
from autoprune.latency.check import check
from autoprune.latency.conditions import Conditions
from autoprune.latency.predict import TableLatency, liked
from autoprune.latency.source import predictor
from autoprune.latency.table import Entry, Table
from autoprune.latency.units import units
from autoprune.operations import record
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.space import SearchSpace
from networks import Function, conv
from virtual import STAIR, Machine


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def mixed() -> nn.Module:
    """A depthwise and a grouped convolution, a shortcut, a concatenation and a flatten."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = functional.relu(m.norm(m.stem(x)))
        x = functional.relu(m.deep(x))
        x = x + m.split(functional.relu(m.wide(x)))
        x = functional.max_pool2d(torch.cat([x, m.side(x)], 1), 4)
        return m.head(x.flatten(1))

    torch.manual_seed(0)
    return Function(
        forward, stem=conv(3, 32, 3), norm=nn.BatchNorm2d(32), deep=conv(32, 32, 3, groups=32), wide=conv(32, 48),
        split=conv(48, 32, 3, groups=2), side=conv(32, 20, 3), head=nn.Linear(52 * 4, 10),
    ).eval()  # fmt: skip


def plain(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width in zip((3, *widths), widths, strict=False):
        layers += [conv(before, width, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)).eval()


EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Told = list[tuple[str, Mapping[str, Any]]]


def built(model: nn.Module, path: Path, told: Told | None = None, **options: Any) -> tuple[Table, SearchSpace]:
    space = trace(model, EXAMPLE)
    conditions = options.pop("conditions", Conditions())
    tell = (lambda event, facts: told.append((event, facts))) if told is not None else (lambda event, facts: None)
    return build(model, EXAMPLE, space, conditions, path, tell=tell, **options), space


def latency(model: nn.Module, space: SearchSpace, table: Table, corrected: bool = True) -> TableLatency:
    operations = record(model, EXAMPLE, space)
    weights = table.calibrations[space.fingerprint]["weights"] if corrected else UNCORRECTED
    return TableLatency(operations, units(operations), table, weights)


def judged(model: nn.Module, space: SearchSpace, predicted: TableLatency, virtual: Machine) -> tuple[float, float]:
    """Worst relative error and rank correlation over random schemes that nothing was fitted to."""
    schemes = random_schemes(space, 25, seed=77)
    real = np.array([1e3 * virtual.seconds(sliced(model, space, scheme), EXAMPLE) for scheme in schemes])
    guesses = np.array([predicted(scheme) for scheme in schemes])
    return float((np.abs(guesses - real) / real).max()), float(spearmanr(guesses, real)[0])


def test_the_stairs_are_found_and_other_networks_are_predicted(virtual: Machine, tmp_path: Path) -> None:
    virtual.write = 1e-11
    model = mixed()
    table, space = built(model, tmp_path / "table.json")
    stairs = {
        signature.partition(",")[0]: entry.stairs for signature, entry in table.entries.items() if "conv" in signature
    }
    assert stairs["conv2d(input=1x3x8x8"] == (STAIR,)  # reads the image, so its only letter is what it makes
    assert all(steps[-1] == STAIR for steps in stairs.values()), stairs
    worst, correlation = judged(model, space, latency(model, space, table, corrected=False), virtual)
    assert worst < 0.02 and correlation > 0.99
    worst, correlation = judged(model, space, latency(model, space, table), virtual)
    assert worst < 0.02 and correlation > 0.99
    assert Table.load(tmp_path / "table.json").calibrations.keys() == {space.fingerprint}


def test_calibration_corrects_what_whole_networks_take_beyond_their_pieces(virtual: Machine, tmp_path: Path) -> None:
    virtual.write, virtual.strange, virtual.extra = 1e-11, 1.3, 2e-5
    model = mixed()
    table, space = built(model, tmp_path / "table.json")
    raw, _ = judged(model, space, latency(model, space, table, corrected=False), virtual)
    worst, correlation = judged(model, space, latency(model, space, table), virtual)
    assert raw > 0.2
    assert worst < 0.05 and correlation > 0.99
    facts = table.calibrations[space.fingerprint]
    assert facts["mape"] < 0.03 < facts["uncorrected"]["mape"]
    assert facts["dense"]["median"] == pytest.approx(1e3 * virtual.seconds(model, EXAMPLE))
    assert len(facts["checked"]) == CHECKS and len(facts["fitted"]) == NETWORKS


def test_the_prediction_never_falls_when_more_is_kept(virtual: Machine, tmp_path: Path) -> None:
    virtual.noise = 0.03
    model = mixed()
    table, space = built(model, tmp_path / "table.json")
    predicted = latency(model, space, table)
    for scheme in random_schemes(space, 10, seed=3):
        for g, group in enumerate(space.groups):
            times = [predicted(scheme.replace(g, count)) for count in group.counts]
            assert all(a <= b * (1 + 1e-12) for a, b in pairwise(times))
        counts = np.array(scheme.kept, dtype=float)
        assert predicted.at(counts) == pytest.approx(predicted(scheme))


@pytest.mark.parametrize("seed", range(2))
def test_noise_leaves_predictions_useful(seed: int, virtual: Machine, tmp_path: Path) -> None:
    virtual.write, virtual.noise = 1e-11, 0.02
    virtual._chance = np.random.default_rng(seed)
    model = mixed()
    table, space = built(model, tmp_path / "table.json")
    worst, correlation = judged(model, space, latency(model, space, table), virtual)
    assert worst < 0.15 and correlation > 0.95


def test_noise_is_not_followed_to_every_length(virtual: Machine, tmp_path: Path) -> None:
    virtual.noise = 0.3
    table, _ = built(plain(256, 200), tmp_path / "table.json")
    lines = [len(axis) for entry in table.entries.values() for axis in entry.axes]
    assert building.FINEST / 2 < max(lines) <= 2 * building.FINEST + 1


def test_the_estimate_comes_after_one_point_of_each_signature(virtual: Machine, tmp_path: Path) -> None:
    told: Told = []
    table, _ = built(plain(16, 12), tmp_path / "table.json", told)
    at = [event for event, _ in told].index("estimate")
    assert sum(facts["points"] for _, facts in told[:at]) == len(table.entries)
    estimate = told[at][1]
    assert estimate["signatures"] == len(table.entries)
    measured = len(set(virtual.pieces))
    assert measured / 3 < estimate["points"] < 3 * measured
    assert [event for event, _ in told[at:]].count("calibrated") == 1


def test_no_point_is_measured_twice_not_even_after_an_interruption(virtual: Machine, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    model = mixed()
    whole, _ = built(model, tmp_path / "other.json")
    total = len(virtual.pieces)
    assert len(set(virtual.pieces)) == total
    virtual.pieces.clear()
    virtual.networks = 0
    for share in (0.3, 0.7):
        virtual.patience = share * total
        with pytest.raises(KeyboardInterrupt):
            built(model, path)
    virtual.patience = float("inf")
    table, _ = built(model, path)
    again = sum(Counter(virtual.pieces).values()) - len(set(virtual.pieces))
    assert again <= 2 * building.NEIGHBOURS  # what was in the air when it ended, twice
    assert len(set(virtual.pieces)) == total
    assert points(table) == points(whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.json", "table.json"]


def points(table: Table) -> dict[str, Any]:
    return {signature: entry.to_dict() for signature, entry in table.entries.items()}


def test_a_build_that_ends_while_it_calibrates_keeps_all_its_points(virtual: Machine, tmp_path: Path) -> None:
    model, path = plain(16, 12), tmp_path / "table.json"
    built(model, tmp_path / "other.json")
    points = len(virtual.pieces)
    virtual.pieces.clear()
    virtual.networks, virtual.patience = 0, points + 3
    with pytest.raises(KeyboardInterrupt):
        built(model, path)
    virtual.patience = float("inf")
    table, space = built(model, path, known=Table.load(path))
    assert len(virtual.pieces) == points
    assert space.fingerprint in table.calibrations


def test_a_build_that_was_killed_while_it_wrote_goes_on(virtual: Machine, tmp_path: Path) -> None:
    model, path = plain(16, 12), tmp_path / "table.json"
    virtual.patience = 30
    with pytest.raises(KeyboardInterrupt):
        built(model, path)
    journal = tmp_path / "table.points.jsonl"
    text = journal.read_text()
    journal.write_text(text[:-9])
    virtual.patience = float("inf")
    table, _ = built(model, path)
    assert points(table) == points(built(model, tmp_path / "other.json")[0])


def test_points_of_a_build_under_other_conditions_are_not_taken(virtual: Machine, tmp_path: Path) -> None:
    model, path = plain(16, 12), tmp_path / "table.json"
    virtual.patience = 20
    with pytest.raises(KeyboardInterrupt):
        built(model, path)
    virtual.patience = float("inf")
    with pytest.raises(UserError, match="table.points.jsonl is of a build that was stopped, under other conditions"):
        built(model, path, conditions=Conditions(threads=2))


def test_a_second_network_measures_only_what_is_missing(virtual: Machine, tmp_path: Path) -> None:
    virtual.noise = 0.03  # what is measured again is another number
    path = tmp_path / "table.json"
    first, first_space = built(plain(16, 12), path)
    virtual.pieces.clear()
    narrow, _ = built(plain(14, 9), path, known=first)
    assert not virtual.pieces
    assert points(narrow) == points(first)
    wide, space = built(plain(24, 40), path, known=narrow)
    assert {first_space.fingerprint, space.fingerprint} <= wide.calibrations.keys()
    both = [
        (ms, wide.entries[signature].points[lengths])
        for signature, entry in first.entries.items()
        for lengths, ms in entry.points.items()
        if lengths in wide.entries[signature].points
    ]
    assert len(both) >= 5 and all(before == after for before, after in both)
    for signature, entry in first.entries.items():
        for before, after in zip(entry.axes, wide.entries[signature].axes, strict=True):
            assert after[-1] > before[-1]


def test_an_entry_that_begins_too_late_is_extended_downwards(virtual: Machine, tmp_path: Path) -> None:
    model = plain(64, 12)
    space = trace(model, EXAMPLE)
    groups = tuple(replace(g, counts=tuple(c for c in g.counts if c > g.width // 2)) for g in space.groups)
    upper = build(model, EXAMPLE, replace(space, groups=groups), Conditions(), tmp_path / "table.json")
    whole = build(model, EXAMPLE, space, Conditions(), tmp_path / "table.json", known=upper)
    predicted = latency(model, space, whole, corrected=False)
    real = 1e3 * virtual.seconds(sliced(model, space, space.smallest), EXAMPLE)
    assert predicted(space.smallest) == pytest.approx(real, rel=0.1)


def test_a_table_that_lacks_nothing_is_left_as_it_is(virtual: Machine, tmp_path: Path) -> None:
    virtual.noise = 0.02
    model, path = plain(16, 12), tmp_path / "table.json"
    table, space = built(model, path)
    text, pieces, networks = path.read_text(), len(virtual.pieces), virtual.networks
    again, _ = built(model, path, known=Table.load(path))
    assert (path.read_text(), len(virtual.pieces), virtual.networks) == (text, pieces, networks)
    assert again.calibrations == Table.load(path).calibrations
    assert space.fingerprint in table.calibrations


@pytest.mark.parametrize("other", [{"conditions": Conditions(batch=2)}, {"machine": {"name": "a phone"}}])
def test_a_table_of_something_else_is_not_built_on(other: Any, virtual: Machine, tmp_path: Path) -> None:
    table, _ = built(plain(16, 12), tmp_path / "table.json")
    with pytest.raises(UserError, match="was made for .*; build another table|build another table"):
        built(plain(16, 20), tmp_path / "table.json", known=replace(table, **other))


def test_a_table_of_something_else_gives_a_warning_or_with_strict_an_error(virtual: Machine, tmp_path: Path) -> None:
    model = plain(16, 12)
    table, space = built(model, tmp_path / "table.json")
    operations = record(model, EXAMPLE, space)
    phone = replace(table, machine={"name": "a phone"})
    with pytest.warns(UserWarning, match="made for a phone, not .*: the answer is predicted to meet"):
        predictor(model, EXAMPLE, space, operations, source=phone)
    with pytest.raises(UserError, match="made for a phone"):
        predictor(model, EXAMPLE, space, operations, source=phone, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(model, EXAMPLE, space, operations, source=table, strict=True)


def test_a_table_with_holes_is_told_with_the_first_of_them(virtual: Machine, tmp_path: Path) -> None:
    model = plain(16, 12)
    table, space = built(model, tmp_path / "table.json")
    gone = next(iter(table.entries))
    holes = replace(table, entries={s: entry for s, entry in table.entries.items() if s != gone})
    with pytest.raises(UserError) as error:
        latency(model, space, holes)
    assert "lacks 1 signatures" in str(error.value) and gone in str(error.value)
    other = plain(40, 12)
    with pytest.raises(UserError, match="it ends at 16, the network needs 40"):
        latency(other, trace(other, EXAMPLE), table, corrected=False)(trace(other, EXAMPLE).dense)


def test_without_a_table_one_is_built_and_found_again(
    virtual: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain(16, 12)
    space = trace(model, EXAMPLE)
    operations = record(model, EXAMPLE, space)
    monkeypatch.delattr(building, "record")  # it takes seconds for a large network, and is known
    first, _ = predictor(model, EXAMPLE, space, operations, folder=tmp_path)
    measured = len(virtual.pieces), virtual.networks
    again, _ = predictor(model, EXAMPLE, space, operations, folder=tmp_path)
    assert (len(virtual.pieces), virtual.networks) == measured
    schemes = random_schemes(space, 5, 0)
    assert [again(scheme) for scheme in schemes] == [first(scheme) for scheme in schemes]
    assert [path.name for path in tmp_path.iterdir()] == [source.default_name(Conditions())]


def test_a_check_measures_networks_of_its_own(virtual: Machine, tmp_path: Path) -> None:
    virtual.write = 1e-11
    model = plain(16, 12)
    table, space = built(model, tmp_path / "table.json")
    facts = check(table, model, EXAMPLE, space, networks=6, seed=9)
    assert len(facts["checked"]) == 6 and facts["mape"] < 0.02 and facts["spearman"] > 0.9
    with pytest.raises(UserError, match="2 networks: a rank correlation needs at least 3"):
        check(table, model, EXAMPLE, space, networks=2, seed=9)
    other = plain(16, 8)
    with pytest.raises(UserError, match="not calibrated for this network and space"):
        check(table, other, EXAMPLE, trace(other, EXAMPLE), networks=6, seed=9)


def test_liked_widths_are_the_ends_of_stairs_and_the_whole_width(virtual: Machine, tmp_path: Path) -> None:
    """Where only the stairs cost anything: each layer's outputs, but not its inputs or what is written."""
    model = plain(30, 24)
    space = trace(model, EXAMPLE)
    operations = record(model, EXAMPLE, space)
    found = units(operations)
    entries = {}
    for unit in found:
        letters = len(unit.letters)
        points = {(): 1.0} if not letters else {(1,): 1.0, (30,): 1.0}
        entries[unit.signature] = Entry(unit.signature, points)
        if unit.signature.startswith("conv2d(input=1x3x"):
            entries[unit.signature] = Entry(unit.signature, {(8,): 1.0, (16,): 2.0, (24,): 3.0, (30,): 4.0}, (8,))
        elif letters == 2:
            entries[unit.signature] = Entry(
                unit.signature, {(1, 16): 1.0, (30, 16): 1.0, (1, 24): 2.0, (30, 24): 2.0}, (1, 8)
            )
    table = Table(Conditions(), {}, entries)
    predicted = TableLatency(operations, found, table)
    narrowed = liked(space, predicted)
    assert [group.counts for group in narrowed.groups] == [(8, 16, 24, 30), (16, 24)]
    assert [group.width for group in narrowed.groups] == [30, 24]
    for scheme in random_schemes(space, 20, 0):
        wider = Scheme(
            tuple(min(c for c in g.counts if c >= k) for g, k in zip(narrowed.groups, scheme.kept, strict=True))
        )
        assert predicted(wider) == predicted(scheme)  # what was left out is reached for nothing


def test_widths_between_stairs_are_left_out_though_the_next_layer_is_quicker_with_them(
    virtual: Machine, tmp_path: Path
) -> None:
    virtual.write = 1e-11
    model = plain(64, 40)
    table, space = built(model, tmp_path / "table.json")
    narrowed = liked(space, latency(model, space, table))
    first, last = narrowed.groups
    assert {8, 16, 24, 32, 40, 48, 56, 64} <= set(
        first.counts
    )  # what reads it takes most of its time, and has no stairs
    assert [count for count in last.counts if count > STAIR] == [16, 24, 32, 40]
    assert last.counts[0] == 1


def test_a_space_whose_latency_always_grows_keeps_every_width(virtual: Machine, tmp_path: Path) -> None:
    virtual.stair = 1
    model = plain(16, 12)
    table, space = built(model, tmp_path / "table.json")
    narrowed = liked(space, latency(model, space, table))
    assert [group.counts for group in narrowed.groups] == [group.counts for group in space.groups]


@pytest.mark.parametrize("seed", range(5))
def test_the_correction_recovers_weights_and_is_never_negative(seed: int) -> None:
    chance = np.random.default_rng(seed)
    features = np.column_stack([chance.uniform(size=(8, 3)) * (10, 3, 20), np.ones(8)])
    true = np.array([1.1, 0.9, 0.02, 0.1])
    found = fit(features, features @ true)
    assert tuple(found) == FEATURES
    predicted = features @ np.array(list(found.values()))
    assert agreement(predicted, features @ true)["mape"] < 0.02
    assert found["layers"] == pytest.approx(1.1, abs=0.1)
    other = fit(features, np.abs(chance.normal(1, 0.5, 8)) + 0.1)
    assert min(other.values()) >= 0


def test_a_kernel_that_the_table_has_wrong_is_corrected_by_itself(virtual: Machine, tmp_path: Path) -> None:
    """One signature takes twice what was measured of it alone; the others are right."""
    model = mixed()
    table, space = built(model, tmp_path / "table.json")
    raw = latency(model, space, table, corrected=False)
    wrong = int(raw.details(np.array(space.dense.kept, float))[:-2].argsort()[-2])
    truth = raw.vector(UNCORRECTED)
    truth[wrong] = 2.0
    fitted, others = random_schemes(space, 20, seed=0), random_schemes(space, 20, seed=1)
    known, unseen = (
        np.array([raw.details(np.array(scheme.kept, float)) for scheme in schemes]) for schemes in (fitted, others)
    )
    shared = fit(np.array([raw.features(np.array(scheme.kept, float)) for scheme in fitted]), known @ truth)
    weights = refined(shared, raw, known, known @ truth)
    assert min(weights[signature] for signature in raw.signatures) > 0
    one, many = (agreement(unseen @ raw.vector(found), unseen @ truth)["mape"] for found in (shared, weights))
    assert many < 0.5 * one
    assert raw.corrected({"weights": weights})(others[0]) == pytest.approx(float(unseen[0] @ raw.vector(weights)))
    assert refined(dict(UNCORRECTED), raw, known, known @ raw.vector(UNCORRECTED)) == pytest.approx(
        {**UNCORRECTED, **dict.fromkeys(raw.signatures, 1.0)}, abs=1e-9
    )


def test_the_correction_of_a_table_that_is_right_is_none() -> None:
    features = np.column_stack([np.random.default_rng(0).uniform(1, 9, size=(8, 3)), np.ones(8)])
    weights = fit(features, features @ np.array(list(UNCORRECTED.values())))
    assert weights == pytest.approx(dict(UNCORRECTED), abs=1e-9)


def test_agreement_is_the_mean_and_worst_error_and_the_rank_correlation() -> None:
    facts = agreement(np.array([1.1, 2.0, 2.4]), np.array([1.0, 2.0, 3.0]))
    assert facts == pytest.approx({"mape": 0.1, "worst": 0.2, "spearman": 1.0})


def test_random_schemes_are_legal_and_spread_over_all_sizes() -> None:
    space = trace(plain(64, 48, 32), EXAMPLE)
    schemes = random_schemes(space, 40, seed=1)
    for scheme in schemes:
        space.check(scheme)
    means = sorted(float(space.rates(scheme).mean()) for scheme in schemes)
    assert means[0] < 0.3 and means[-1] > 0.85
    assert random_schemes(space, 3, 1) == schemes[:3] and random_schemes(space, 3, 2) != schemes[:3]
