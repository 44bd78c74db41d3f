"""NetAdapt (Yang et al., ECCV 2018): cut a little everywhere, keep the cut that costs least, repeat."""

from __future__ import annotations

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.fidelity import Fidelity
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.asking import in_batches
from autoprune.space import SearchSpace
from autoprune.trial import Trial


def netadapt(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    initial: float = 0.025,
    decay: float = 0.96,
    floor: float = 0.005,
    cost_aware: bool = True,
    tuned: bool | None = None,
) -> Proposals:
    """Greedy descent from the dense network to the budget; deterministic, the seed plays no part.

    Every round lowers the load by a step. Each group alone makes the step, with its mildest cut that
    does, and all these candidates are measured; the one that loses least reward per load removed is
    adopted, as in the release (``cost_aware=False``: the one with the highest reward, which the release
    keeps as a comment). The first step is ``initial`` of the dense load, each next one ``decay`` times the
    last. Such steps sum up to 62.5 % of the dense load at most, so a step is never below ``floor`` of the
    dense load. The last one is what remains to the budget, and what its rounding leaves is spent.

    With ``tuned`` (None: where the evaluator tunes) every candidate starts from the tuned weights of the scheme
    adopted before, and is tuned itself: the short-term fine-tuning of the paper. The long one, of the answer, is the
    ``finish`` of a search. A lineage only ever removes, so nothing is then spent at the end. Without ``tuned`` every
    candidate starts from the dense weights. The load is that of the budget, on any of its costs: multiply-adds,
    parameters, or a latency table of one's own.

    Differences to the release: any legal count instead of multiples of 8, the dense network is tuned like the
    candidates it is compared with, and all candidates of a round see the same images. A group that cannot make
    the step is left out of the round; when no group can, the step is halved.

    Candidates are over the budget until the last round, so a run that is stopped before has nothing to
    show: allow groups x rounds trials, about 40 rounds for half of the load.
    """
    if not (0 < floor <= initial < 1 and 0 < decay <= 1):
        raise UserError(
            f"netadapt: initial={initial}, decay={decay} and floor={floor} must satisfy "
            "0 < floor <= initial < 1 and 0 < decay <= 1"
        )
    if tuned and not hints.tuning:
        raise UserError(
            "netadapt: tuned=True, but candidates are not tuned in this search: give it data to tune on "
            "(tune=…, on the command line --tune-steps N), or leave tuned out"
        )
    tuned = hints.tuning if tuned is None else tuned
    budget.check()
    scheme = space.largest
    dense_load = budget.load(scheme)
    (trial,) = yield [scheme]
    reward, planned = trial.reward, initial * dense_load
    way: tuple[Scheme, ...] = ()
    while not budget.allows(scheme):
        step = min(max(planned, floor * dense_load), budget.load(scheme) - 1)
        candidates = _candidates(space, budget, scheme, step, spend=not tuned)
        trials = yield from in_batches(candidates, batch, Fidelity(after=way))
        trials = [trial for trial in trials if not trial.failed]
        if not trials:
            yield [budget.fit(space.rates(scheme))]
            return
        adopted = min(trials, key=lambda trial: price(trial, reward, budget.load(scheme), budget, cost_aware))
        scheme, reward = adopted.scheme, adopted.reward
        if tuned:
            way = (*way, scheme)
        planned *= decay


def _candidates(space: SearchSpace, budget: Budget, scheme: Scheme, step: float, spend: bool) -> list[Scheme]:
    """One candidate per group that can lower the load by ``step``, or by the half, the quarter, ... of it.

    What rounding leaves under the budget is spent, if ``spend`` says so, on any group. Empty when no single group
    lowers the load at all, as with two caps that share no group.
    """
    smallest_step = step * 1e-6
    while step > smallest_step:
        cuts = [budget.cut(scheme, g, step) for g in range(len(space))]
        found = [cut for cut in cuts if cut is not None]
        candidates = [budget.spend(cut) if spend and budget.allows(cut) else cut for cut in found]
        if candidates:
            return sorted(dict.fromkeys(candidates), key=budget.allows)  # a search ends with an affordable one
        step /= 2
    return []


def price(trial: Trial, reward: float, load: float, budget: Budget, cost_aware: bool) -> tuple[float, float]:
    """What is paid for a candidate, the least being adopted; ties go to the higher reward."""
    if not cost_aware:
        return -trial.reward, 0.0
    removed = load - budget.load(trial.scheme)
    return (reward - trial.reward + 1e-6) / (removed + 1e-5), -trial.reward
