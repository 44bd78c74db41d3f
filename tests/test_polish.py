"""A more thorough repair for the answer of a search."""

from __future__ import annotations

import pytest
import torch

import autoprune
from autoprune import data, demo, problem
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import FULL, Fidelity
from autoprune.ledger import Ledger
from autoprune.polish import winner
from autoprune.pruned import load_pruned
from autoprune.reward import neg_loss
from autoprune.scheme import Scheme
from autoprune.trial import Measurement, Trial

REPAIR = "least_squares+recalibrate_bn"


@pytest.fixture(scope="module")
def digits(tmp_path_factory, with_digits):
    return demo.digits(with_digits(tmp_path_factory.mktemp("digits"))), data.load("digits", 200, 200)


def search(digits, root, **given):
    network, splits = digits
    usual = {"budget": "macs=15%", "searcher": "uniform", "trials": 1, "run": "it", "root": root, "test": splits.test}
    return autoprune.search(
        network, splits.validation[0][0][:1], splits.calibration, splits.validation, **{**usual, **given}
    )


def test_a_better_repair_is_kept_and_told_beside_the_candidate(digits, tmp_path) -> None:
    run = search(digits, tmp_path, recovery="none", polish=REPAIR)
    rows = run.summary["rows"]
    assert rows["polished"]["loss"] < rows["found"]["loss"]
    assert rows["polished"]["costs"] == rows["found"]["costs"]
    assert rows["polished"]["test_accuracy"] > rows["found"]["test_accuracy"]
    saved = load_pruned(lambda: digits[0], run.folder)
    inputs = digits[1].validation[0][0]
    assert (saved(inputs) == run.model(inputs)).all()
    again = search(digits, tmp_path, recovery="none", polish=REPAIR)
    assert again.summary["rows"]["polished"]["test_accuracy"] == rows["polished"]["test_accuracy"]


def small(m: Measurement) -> float:
    """Rewards a loss, as nobody would."""
    return m.loss


def test_the_reward_decides_what_is_kept(digits, tmp_path) -> None:
    given = {"reward": small, "recovery": "none"}
    run, plain = search(digits, tmp_path, **given, polish=REPAIR), search(digits, tmp_path, **given, run="plain")
    rows = run.summary["rows"]
    assert rows["polished"]["loss"] < rows["found"]["loss"]
    assert list(rows)[-1] == "found"
    assert run.summary["reward"] == rows["found"]["loss"]
    inputs = digits[1].validation[0][0]
    assert (run.model(inputs) == plain.model(inputs)).all()


def certainty(model) -> dict[str, float]:
    """A task of its own: it has neither loss nor class labels."""
    with torch.inference_mode():
        return {"certainty": float(model(torch.ones(4, 1, 8, 8)).softmax(1).max(1).values.mean())}


def certain(m: Measurement) -> float:
    return m.metrics["certainty"]


def test_a_task_of_its_own_may_keep_a_polish(digits, tmp_path) -> None:
    run = search(digits, tmp_path, evaluate=certainty, reward=certain, recovery="none", polish=REPAIR, test=None)
    rows = run.summary["rows"]
    better = max(("found", "polished"), key=lambda name: rows[name]["metrics"]["certainty"])
    assert list(rows)[-1] == better
    assert certainty(run.model)["certainty"] == pytest.approx(rows[better]["metrics"]["certainty"])


def test_a_worse_repair_is_told_but_not_kept(digits, tmp_path) -> None:
    run = search(digits, tmp_path, polish="none")
    plain = search(digits, tmp_path, run="plain")
    assert run.summary["rows"]["polished"]["loss"] > run.summary["rows"]["found"]["loss"]
    assert list(run.summary["rows"])[-1] == "found"
    inputs = digits[1].validation[0][0]
    assert (run.model(inputs) == plain.model(inputs)).all()
    assert "polished" not in plain.summary["rows"]


def test_a_repair_that_does_not_exist_is_refused_before_any_work(digits, tmp_path) -> None:
    with pytest.raises(UserError, match="recovery 'sequentail' is unknown"):
        search(digits, tmp_path, polish="sequentail", run="typo")
    assert not (tmp_path / "typo").exists()


def test_options_follow_the_name(digits, tmp_path) -> None:
    run = search(digits, tmp_path, polish="sequential,images=100", run="options")
    assert run.config["polish"] == "sequential,images=100"
    with pytest.raises(UserError, match="has no option 'image'"):
        search(digits, tmp_path, polish="sequential,image=100", run="wrong")


SEVERAL = {"searcher": "random", "trials": 12, "recovery": "none", "polish": REPAIR, "finalists": 5}


@pytest.fixture
def measured(monkeypatch):
    """The fidelities of what is measured, as it is measured."""
    seen: list[Fidelity] = []
    measure = Evaluator.__call__

    def noting(self, scheme, *, fidelity=FULL):
        seen.append(fidelity)
        return measure(self, scheme, fidelity=fidelity)

    monkeypatch.setattr(Evaluator, "__call__", noting)
    return seen


def test_the_finalist_that_a_polish_leaves_best_is_the_answer(digits, tmp_path, measured) -> None:
    run = search(digits, tmp_path, **SEVERAL)
    trials = run.trials()
    tried = trials[trials.fidelity == f"recovery={REPAIR}"]
    assert (tried.state == "PRUNED").all()
    assert (tried.reward == -tried.loss).all()
    assert len(tried) == measured.count(Fidelity(recovery=REPAIR)) == 5
    rows = run.summary["rows"]
    assert rows["polished"]["loss"] == pytest.approx(tried.loss.min())
    assert rows["found"]["loss"] > trials[trials.fidelity == "full"].loss.min()  # another one was ahead before it
    assert list(run.scheme.kept) == run.summary["kept"]
    once = len(measured)
    again = search(digits, tmp_path, **SEVERAL)
    assert again.summary["kept"] == run.summary["kept"]
    assert len(measured) == once + 1  # the check of the dense network


class Backwards:
    """Gives the last first, as workers may; the scheme that keeps 2 is repaired best."""

    def __init__(self):
        self.asked = []

    def measure(self, schemes, fidelity):
        for scheme in reversed(list(schemes)):
            self.asked.append(scheme.kept)
            yield scheme, Measurement(loss=abs(scheme.kept[0] - 2) + 0.1)


def trials(*losses):
    return [Trial(Scheme((kept,)), Measurement(loss=loss), -loss) for kept, loss in enumerate(losses, 1)]


def test_what_is_recorded_is_not_polished_again_and_the_order_of_arrival_does_not_count() -> None:
    pool, ledger = Backwards(), Ledger(None, "protocol", ["group"])
    finalists = trials(0.4, 0.5, 0.6)
    assert winner(finalists[:2], REPAIR, ledger, pool, neg_loss) is finalists[1]
    assert winner(finalists, REPAIR, ledger, pool, neg_loss) is finalists[1]
    assert pool.asked == [(2,), (1,), (3,)]


def test_a_first_that_is_better_unpolished_stays_first() -> None:
    finalists = trials(0.05, 0.5)
    assert winner(finalists, REPAIR, Ledger(None, "protocol", ["group"]), Backwards(), neg_loss) is finalists[0]


def test_a_polish_that_repairs_none_of_the_finalists_changes_nothing(digits, tmp_path) -> None:
    given = {"searcher": "random", "trials": 4}
    plain = search(digits, tmp_path, run="plain", **given)
    run = search(digits, tmp_path, polish="none", finalists=3, **given)
    assert run.summary["kept"] == plain.summary["kept"]


def test_after_a_break_the_best_so_far_is_the_answer(digits, tmp_path, monkeypatch) -> None:
    def broken(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(problem, "winner", broken)
    run = search(digits, tmp_path, **SEVERAL)
    assert run.summary["interrupted"] and "continues" in run.summary["ended"]
    trials = run.trials()
    assert run.summary["rows"]["found"]["loss"] == trials.loss[trials.fidelity == "full"].min()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"finalists": 0, "polish": "none"}, "finalists = 0: 1 or more"),
        ({"finalists": 3}, "finalists = 3: only a polish can tell .* such as polish = sequential"),
    ],
)
def test_finalists_are_a_few_and_have_a_polish(digits, tmp_path, given, message) -> None:
    with pytest.raises(UserError, match=message):
        search(digits, tmp_path, run="refused", **given)
    assert not (tmp_path / "refused").exists()
