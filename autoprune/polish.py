"""Polish: a repair for the best schemes of a search, more thorough than that of candidates.

What a quick repair thinks of two good schemes is not always what a thorough one makes of them: with few calibration
images wide layers look worse than they are. So several finalists may be polished, and the best of them is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.fidelity import Fidelity
from autoprune.ledger import Ledger
from autoprune.pool import Measuring
from autoprune.reward import Reward, score
from autoprune.trial import Trial


def winner(finalists: Sequence[Trial], repair: str, ledger: Ledger, pool: Measuring, reward: Reward) -> Trial:
    """The finalist with the highest ``reward`` after the repair, or without it: then it is the first that wins.

    Repairs are measured like candidates, and recorded; those that the ledger knows are not measured again.
    """
    fidelity = Fidelity(recovery=repair)
    missing = [trial.scheme for trial in finalists if ledger.find(trial.scheme, fidelity) is None]
    for scheme, measurement in pool.measure(missing, fidelity):
        ledger.append(scheme, measurement, score(reward, measurement), fidelity)
    left = {trial.scheme: ledger.find(trial.scheme, fidelity) for trial in finalists}
    worth = {scheme: score(reward, seen) for scheme, seen in left.items() if seen is not None}
    first, best = finalists[0], max(finalists, key=lambda trial: worth[trial.scheme])
    return best if worth[best.scheme] > first.reward else first
