"""Is the fast score any good? Its rank correlation with accuracy after fine-tuning, over schemes of equal cost.

A search believes a score that costs seconds. Here some schemes of the same cost are scored so, by each repair in
question, and then trained for a moment and judged on images that neither the score nor the training has seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autoprune import masking, page
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import Fidelity
from autoprune.finetune import Batches, Method, Recipe, finetune, holding, judge
from autoprune.lines import append_records, read_records
from autoprune.run import SUMMARY, Run, prepare, surroundings, write_json
from autoprune.scheme import Scheme

KIND, ROWS, RECORD = "proxy-check", "proxy.jsonl", "proxy.json"
BOOTSTRAPS = 2000
RECOVERIES = ("none", "recalibrate_bn", "least_squares+recalibrate_bn", "sequential")
ONCE = Recipe(epochs=1)

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Agreement:
    """Spearman's and Kendall's rank correlation, and the middle 90 % of Spearman's over bootstrapped schemes."""

    spearman: float
    kendall: float
    low: float
    high: float


def agreement(scores: ArrayLike, truth: ArrayLike, seed: int = 0) -> Agreement:
    """How well scores rank what truth ranks, both the higher the better. NaN where one of them is constant."""
    from scipy.stats import kendalltau, spearmanr

    a, b = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if len(a) != len(b) or len(a) < 3:
        raise UserError(f"{len(a)} scores and {len(b)} accuracies: a rank correlation needs at least 3 pairs")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(BOOTSTRAPS):
        rows = rng.integers(len(a), size=len(a))
        if len(set(a[rows])) > 1 and len(set(b[rows])) > 1:
            drawn.append(float(spearmanr(a[rows], b[rows])[0]))
    low, high = np.quantile(drawn, (0.05, 0.95)) if drawn else (np.nan, np.nan)
    constant = len(set(a)) == 1 or len(set(b)) == 1
    rank = (np.nan, np.nan) if constant else (float(spearmanr(a, b)[0]), float(kendalltau(a, b)[0]))
    return Agreement(*rank, float(low), float(high))


def schemes(budget: Budget, number: int, seed: int) -> list[Scheme]:
    """Distinct schemes that use the budget up: uniform rates, and random ones of which half are near uniform."""
    rng = np.random.default_rng(seed)
    found = {budget.fit(np.ones(len(budget.space))): None}
    for draw in range(100 * number):
        if len(found) == number:
            break
        low = 0.6 if draw % 2 else 0.1
        found[budget.fit(rng.uniform(low, 1.0, len(budget.space)))] = None
    if len(found) < number:
        raise UserError(f"only {len(found)} schemes fit this budget exactly: ask for fewer than {number}")
    return list(found)


def proxy_check(  # noqa: PLR0913 - what a check says
    evaluator: Evaluator,
    budget: Budget,
    train: Batches,
    held_out: Batches,
    folder: Path | str,
    *,
    recoveries: Sequence[str] = RECOVERIES,
    number: int = 12,
    recipe: Recipe = ONCE,
    seed: int = 0,
    name: str = "network",
    tell: Tell = lambda facts: None,
) -> dict[str, Any]:
    """Score ``number`` schemes by every repair, train each, and correlate; all is written to ``folder``.

    A score is the negative validation loss of the candidate after the repair. Every candidate is trained from the
    same start, the evaluator's own repair, by ``recipe`` on ``train``, and judged on ``held_out``; neither may share
    images with the validation set. Called again, it goes on where it was stopped. ``name`` is the network's. The record
    has ``schemes`` (kept, scores, tuned_accuracy, tuned_loss) and, by repair, ``agreement`` with accuracy and negative
    loss after training.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "kind": KIND,
        "fingerprint": evaluator.fingerprint,
        "budget": budget.record,
        "recipe": vars(recipe),
        "seed": seed,
        "recoveries": list(recoveries),
    }
    prepare(folder, {"name": name, "request": request, **surroundings()})
    known = {tuple(row["kept"]): row for row in read_records(folder / ROWS)}
    rows = []
    for at, scheme in enumerate(schemes(budget, number, seed)):
        row = known.get(scheme.kept)
        if row is None:
            scores = {}
            for recovery in recoveries:
                seen = evaluator(scheme, fidelity=Fidelity(recovery=recovery))
                scores[recovery] = None if seen.failed else -seen.loss
            network = evaluator.candidate(scheme)
            sparse = scheme.granularity != "channel"
            stays = masking.by_name(evaluator.space, evaluator.kept(scheme), evaluator.device) if sparse else None
            method = Method() if stays is None else holding(stays)
            finetune(network, train, evaluator.validation[:1], folder / f"scheme{at}", recipe, method=method)
            loss, accuracy = judge(network, held_out)
            row = {"kept": list(scheme.kept), "scores": scores, "tuned_loss": loss, "tuned_accuracy": accuracy}
            append_records(folder / ROWS, [row])
            shutil.rmtree(folder / f"scheme{at}")
        rows.append(row)
        tell(row)
    record: dict[str, Any] = {"request": request, "schemes": rows, "agreement": {}}
    for recovery in recoveries:
        usable = [row for row in rows if row["scores"][recovery] is not None]
        values = [row["scores"][recovery] for row in usable]
        record["agreement"][recovery] = {
            "accuracy": vars(agreement(values, [row["tuned_accuracy"] for row in usable])),
            "loss": vars(agreement(values, [-row["tuned_loss"] for row in usable])),
        }
    write_json(folder / RECORD, record)
    ranks = {recovery: facts["accuracy"]["spearman"] for recovery, facts in record["agreement"].items()}
    write_json(folder / SUMMARY, {"schemes": len(rows), "spearman": ranks})
    page.leave(Run.open(folder))
    return record
