"""The analysis of single groups: what it measures, remembers, draws, and what it refuses to call robust."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

import toy
from autoprune import report, searchers
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.fidelity import FULL
from autoprune.hints import Hints
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.problem import Problem
from autoprune.reward import neg_loss
from autoprune.run import LEDGER, Run, runs
from autoprune.searchers.sensitivity import sampled
from autoprune.sensitivity import PICTURE, RECORD, ROWS, Sensitivity, sensitivity
from autoprune.space import Slice
from autoprune.trial import Measurement

SPACE = toy.chain((8, 16, 12), pixels=(64, 16, 4))
WEIGHTS = (0.5, 4.0, 0.0)  # what a group adds to the loss when all of it goes: the second is the sensitive one
SMALLEST = 1


class Evaluator:
    """Losses by formula; it counts what it is asked, and breaks where it is told to."""

    fingerprint = "toy"

    def __init__(self, space=SPACE, weights=WEIGHTS, breaks=lambda scheme: False, stop_after=math.inf):
        self.space, self.weights, self.breaks, self.stop_after = space, weights, breaks, stop_after
        self.protocol = {"network": "toy"}
        self.asked = []

    @property
    def dense(self):
        return self.measure(self.space.dense)

    def measure(self, scheme):
        removed = 1 - self.space.rates(scheme)
        loss = 0.3 + sum(weight * cut**2 for weight, cut in zip(self.weights, removed, strict=True))
        return Measurement(loss=loss, accuracy=1 / (1 + loss), costs={"macs": 1.0}, seconds={"total": 1.0})

    def __call__(self, scheme, *, fidelity=FULL):
        if not fidelity.full:  # the check of the dense network
            return self.measure(scheme)
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(scheme)
        return Measurement(error="told to fail") if self.breaks(scheme) else self.measure(scheme)


def problem(evaluator):
    return Problem(evaluator, Budget.parse("macs=100%", evaluator.space), neg_loss, example=None, name="toy")


@pytest.fixture
def analyse(tmp_path):
    def go(evaluator=None, **choices):
        return sensitivity(problem(evaluator or Evaluator()), **{"root": tmp_path, "run": "one", **choices})

    return go


def curve(found, name):
    return next(curve for curve in found.curves if curve.group == name)


def nothing_but_numbers(word):
    raise AssertionError(f"{word} is not JSON")


# -- what is measured ------------------------------------------------------------------------------


def test_the_sensitive_layer_comes_first_with_what_it_loses_at_every_count(analyse):
    found = analyse()
    assert [curve.group for curve in found.ranking()] == ["conv1", "conv0", "conv2"]
    assert found.value == -found.uncut.loss == pytest.approx(-0.3)
    cuts = curve(found, "conv1").cuts
    assert [cut.kept for cut in cuts] == sampled(SPACE.groups[1], 5)
    for cut in cuts:
        assert cut.drop == pytest.approx(4.0 * (1 - cut.kept / 16) ** 2)
        assert cut.measurement.accuracy == pytest.approx(1 / (1.3 + cut.drop))


def test_saved_costs_are_those_of_the_one_group(analyse):
    found = analyse()
    budget = Budget.parse("macs=100%", SPACE)
    cut = curve(found, "conv1").cuts[0]
    scheme = SPACE.dense.replace(1, cut.kept)
    for name, cost in budget.costs.items():
        assert cut.saved[name] == pytest.approx(1 - cost(scheme) / cost(SPACE.dense))


def test_a_group_that_loses_nothing_is_measured_once_and_the_rest_says_why_not(analyse):
    evaluator = Evaluator()
    free = curve(analyse(evaluator), "conv2")
    assert sum(scheme.kept[2] < 12 for scheme in evaluator.asked) == 1
    assert [cut.status for cut in free.cuts] == ["measured", *["not measured"] * 4]
    assert {cut.note for cut in free.cuts[1:]} == {"already free below"}
    assert all(cut.drop == 0 for cut in free.cuts)


def test_luck_at_a_smaller_count_does_not_make_a_larger_one_look_worse(analyse):
    lucky = Evaluator()
    lucky.measure = lambda scheme: Measurement(loss={1: 1.0, 3: 0.5, 6: 0.7}.get(scheme.kept[0], 0.3), accuracy=0.5)
    cuts = curve(analyse(lucky, points=3), "conv0").cuts
    assert [cut.kept for cut in cuts] == [1, 3, 6]
    assert [cut.drop for cut in cuts] == pytest.approx([0.7, 0.4, 0.4])
    assert cuts[1].reward == -0.5


def test_half_is_half_of_what_a_limited_group_keeps(analyse):
    first, *others = SPACE.groups
    space = replace(SPACE, groups=(replace(first, counts=(1, 2, 3, 4)), *others))
    found = curve(analyse(Evaluator(space)), "conv0")
    assert (found.largest, found.half, found.width) == (4, 2, 8)
    assert found.lost > 0


# -- what is remembered ----------------------------------------------------------------------------


def test_an_interrupted_analysis_goes_on_where_it_stopped_and_measures_nothing_twice(analyse):
    first = Evaluator(stop_after=6)
    with pytest.raises(KeyboardInterrupt):
        analyse(first, batch=4)
    second = Evaluator()
    found = analyse(second, batch=3)
    undisturbed = Evaluator()
    assert found.to_dict() == analyse(undisturbed, run="two").to_dict()
    assert len(first.asked) == 6
    assert sorted(s.kept for s in first.asked + second.asked) == sorted(s.kept for s in undisturbed.asked)


def test_the_same_call_measures_nothing_again(analyse):
    found = analyse()
    idle = Evaluator()
    assert analyse(idle).to_dict() == found.to_dict()
    assert idle.asked == []


@pytest.mark.parametrize("name", ["sensitivity", "fastnas", "spdy"])
@pytest.mark.parametrize("cap", ["macs=50%", "macs=70%"])
def test_a_search_with_the_same_ledger_has_the_table_for_nothing(analyse, tmp_path, name, cap):
    shared, evaluator = tmp_path / "shared.jsonl", Evaluator()
    analyse(evaluator, points=3, ledger=shared)
    assert not (tmp_path / "one" / LEDGER).exists()
    budget = Budget.parse(cap, SPACE)
    proposals = searchers.find(name)(SPACE, budget, seed=0, hints=Hints(), points=3)
    ledger = Ledger(shared, evaluator.fingerprint, SPACE.groups)
    loop = Loop(proposals, budget, neg_loss, ledger, Stop(trials=len(evaluator.asked) + 2))
    while schemes := loop.ask():
        # Only affordable schemes are new: the table's own entries come from the ledger.
        assert all(budget.allows(scheme) for scheme in schemes)
        assert not set(schemes) & set(evaluator.asked)
        loop.tell((scheme, evaluator.measure(scheme)) for scheme in schemes)
    assert len(loop.trials) > len(evaluator.asked)


def test_another_number_of_points_is_another_run_but_shares_the_ledger(analyse, tmp_path):
    shared = tmp_path / "shared.jsonl"
    analyse(points=1, ledger=shared)
    with pytest.raises(UserError, match="points: 1 -> 2"):
        analyse(points=2, ledger=shared)
    more = Evaluator()
    analyse(more, points=2, run="two", ledger=shared)
    added = [SPACE.dense.replace(g, sampled(group, 2)[1]) for g, group in enumerate(SPACE.groups)]
    assert more.asked == added[:2]  # the third group is free at its smallest count


def test_the_record_is_read_back_as_it_was_written(analyse, tmp_path):
    found = analyse(Evaluator(breaks=lambda scheme: scheme.kept[0] < 8))
    text = (tmp_path / "one" / RECORD).read_text()
    assert json.loads(text, parse_constant=nothing_but_numbers) == found.to_dict()
    for place in (tmp_path / "one", tmp_path / "one" / RECORD):
        again = Sensitivity.read(place)
        assert again.to_dict() == found.to_dict()
        assert again.frame().equals(found.frame())


@pytest.mark.parametrize("text", ["{}", '{"name": 1, "curves": [{}]}', '{"name": '])
def test_a_file_that_holds_something_else_is_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match=r"other\.json"):
        Sensitivity.read(tmp_path / "other.json")


def test_a_run_of_the_analysis_is_listed_and_has_its_measurements(analyse, tmp_path):
    evaluator = Evaluator()
    analyse(evaluator)
    (run,) = runs(tmp_path)
    assert run.config["request"]["kind"] == "sensitivity"
    assert len(run.trials()) == run.summary["trials"] == len(evaluator.asked)
    assert report.runs([run]).row_count == 1


# -- what is not robust ----------------------------------------------------------------------------


def test_a_group_without_a_choice_is_not_called_robust(analyse):
    space = toy.one_count()
    found = analyse(Evaluator(space))
    stuck = curve(found, "conv1")
    assert (stuck.cuts, stuck.lost) == ((), None)
    assert found.ranking()[-1] is stuck
    (row,) = found.frame().query("group == 'conv1'").to_dict("records")
    assert row["status"] == "cannot be cut"
    assert row["note"] == "12 is its only legal count"
    assert math.isnan(row["drop"])


def test_a_group_whose_removal_saves_nothing_is_not_called_robust(analyse):
    first, *others = SPACE.groups
    elsewhere = Slice("buffers", "scale", 0, "out", toy.units(8))
    space = replace(SPACE, groups=(replace(first, slices=(elsewhere,)), *others))
    hollow = curve(analyse(Evaluator(space, (0.0, 4.0, 1.0))), "conv0")
    assert (hollow.cuts, hollow.lost) == ((), None)
    assert "no cost falls" in hollow.reason


def test_a_count_that_failed_is_shown_as_failed_with_its_reason(analyse):
    found = analyse(Evaluator(breaks=lambda scheme: scheme.kept[0] in (SMALLEST, 4)))
    cuts = {cut.kept: cut for cut in curve(found, "conv0").cuts}
    assert cuts[SMALLEST].status == cuts[4].status == "failed"
    assert cuts[SMALLEST].note == "told to fail"
    assert cuts[SMALLEST].drop is cuts[SMALLEST].reward is None  # nothing below it is known either
    assert cuts[4].drop == cuts[2].drop  # as bad as the next smaller one that did not
    frame = found.frame().set_index(["group", "kept"])
    assert frame.loc[("conv0", SMALLEST), "status"] == "failed"
    assert frame.loc[("conv0", SMALLEST), "note"] == "told to fail"


def test_a_group_that_always_fails_is_the_most_sensitive_and_its_curve_has_crosses_alone(analyse, tmp_path):
    found = analyse(Evaluator(breaks=lambda scheme: scheme.kept[0] < 8))
    worst = found.ranking()[0]
    assert (worst.group, worst.lost) == ("conv0", math.inf)
    crosses = ElementTree.parse(tmp_path / "one" / PICTURE).findall(".//{*}path")
    assert len(crosses) == len(worst.cuts)
    shown = text_of(report.sensitivity(found.to_dict()))
    assert "fails" in shown
    assert "conv0 at 1 failed: told to fail" in shown


def test_without_the_uncut_network_there_is_no_analysis_and_nothing_more_is_measured(analyse):
    evaluator = Evaluator(breaks=lambda scheme: True)
    with pytest.raises(UserError, match="nothing is cut cannot be measured: told to fail"):
        analyse(evaluator)
    assert len(evaluator.asked) == 1


# -- what is shown ---------------------------------------------------------------------------------


def text_of(table):
    from rich.console import Console

    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_picture_is_xml_with_one_curve_per_group_that_can_be_cut(analyse, tmp_path):
    first, *others = toy.one_count().groups
    space = replace(SPACE, groups=(replace(first, name="a<b&c"), *others))
    analyse(Evaluator(space))
    root = ElementTree.parse(tmp_path / "one" / PICTURE).getroot()
    assert len(root.findall("{*}polyline")) == 2
    texts = [text.text for text in root.findall(".//{*}text")]
    assert {"a<b&c", "conv1", "conv2"} <= set(texts)
    assert "cannot be cut" in texts


def test_all_curves_stay_inside_their_picture(analyse, tmp_path):
    wide = toy.chain(tuple(range(8, 22)))
    analyse(Evaluator(wide, [10.0 ** (g - 7) for g in range(14)]), points=2)
    root = ElementTree.parse(tmp_path / "one" / PICTURE).getroot()
    lines = root.findall("{*}polyline")
    assert len(lines) == 14
    for line in lines:
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 < x < float(root.get("width"))
            assert 0 < y < float(root.get("height"))


def test_the_table_tells_the_lost_from_the_free_and_the_uncuttable(analyse):
    shown = text_of(report.sensitivity(analyse(Evaluator(toy.one_count())).to_dict()))
    lines = [line for line in shown.splitlines() if "conv" in line]
    assert [line.split()[1] for line in lines] == ["conv0", "conv2", "conv1"]
    assert "free" in lines[1]
    assert "cannot be cut" in lines[2]
    assert "how far neg_loss falls from -0.55 (nothing cut" in " ".join(shown.split())


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("choice", "value"), [("points", 0), ("points", -2), ("batch", 0)])
def test_numbers_out_of_range_are_refused_before_there_is_a_folder(analyse, tmp_path, choice, value):
    with pytest.raises(UserError, match=f"{choice}={value}"):
        analyse(**{choice: value})
    assert not list(tmp_path.iterdir())


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path, monkeypatch, with_digits, command_line):
    with_digits(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return command_line


def test_the_command_analyses_the_digits_and_its_ledger_serves_a_search(call, tmp_path):
    few = ("--calibration", "64", "--validation", "64", "--ledger", "shared.jsonl")
    status, out, err = call("sensitivity", *few, "--points", "2", "--run", "alone")
    assert status == 0, err
    assert "blocks.0.conv1" in out
    folder = tmp_path / "runs" / "alone"
    assert {RECORD, ROWS, PICTURE} <= {path.name for path in folder.iterdir()}
    found = Sensitivity.read(folder)
    assert len(ElementTree.parse(folder / PICTURE).findall("{*}polyline")) == len(found.curves)
    before = len(Run.open(folder).trials())

    status, again, err = call("sensitivity", *few, "--points", "2", "--run", "alone", "--json")
    assert status == 0, err
    assert json.loads(again) == {"folder": "runs/alone", **found.to_dict()}
    assert len(Run.open(folder).trials()) == before

    assert "blocks.0.conv1" in call("show", "alone")[1]
    assert "sensitivity" in call("runs")[1]
    searched = (
        "search",
        *few,
        "--searcher",
        "sensitivity",
        "--set",
        "points=2",
        "--trials",
        str(before + 1),
        "--quiet",
    )
    status, _, err = call(*searched, "--run", "after")
    assert status == 0, err
    assert len(Run.open(folder).trials()) == before + 2  # the uniform scheme, and the allocation

    status, _, err = call("sensitivity", *few, "--run", "after")
    assert status == 2
    assert "kind: None -> sensitivity" in err
    status, _, err = call(*searched, "--run", "alone")
    assert status == 2
    assert "kind: sensitivity -> None" in err
    status, _, err = call("sensitivity", *few, "--points", "0")
    assert status == 2
    assert "points=0" in err
