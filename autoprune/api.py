"""From a trained model and a budget to a pruning scheme: :func:`search`.

It is a client of the small parts (`trace`, `Budget`, `Evaluator`, `Ledger`, `Loop`), which can be used by hand
just as well:

    loop = Loop(searcher, budget, reward, ledger, Stop(trials=100))
    while schemes := loop.ask():
        loop.tell((scheme, evaluator(scheme)) for scheme in schemes)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune import criteria, data, models, outcome, recover, searchers, settings
from autoprune import reward as rewards
from autoprune.budget import Budget
from autoprune.claim import claim
from autoprune.cost import account, costs
from autoprune.criteria import Criterion
from autoprune.errors import UserError
from autoprune.evaluate import CRITERION, RECOVERY, Evaluate, Evaluator
from autoprune.exporters import scheme_file
from autoprune.forward import Example, evaluating, first_call, logits, to
from autoprune.hints import Hints
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.pruned import save_pruned
from autoprune.recover import Recovery
from autoprune.references import stable_name
from autoprune.reward import Reward
from autoprune.run import LEDGER, ROOT, Run, make_folder, new_name, prepare, surroundings
from autoprune.scheme import Scheme
from autoprune.searchers import Searcher
from autoprune.slicing import check_removed, choose, prune
from autoprune.space import SearchSpace
from autoprune.statistics import Statistics
from autoprune.tensorboard import Listener, check_installed, drawn
from autoprune.trial import Measurement, Trial

SEARCHER = "swap"
TRIALS = 100
AGREEMENT = 1e-4  # of the dense loss: how far a candidate with nothing cut may be from the dense network


def trace(model: nn.Module, example: Example, **options: Any) -> SearchSpace:
    """The search space of any network; see :func:`autoprune.search_spaces.traced.trace`."""
    space: SearchSpace = resolve_name("autoprune.search_spaces.traced:trace")(model, example, **options)
    return space


def search(
    model: nn.Module,
    example: Example,
    calibration: Any,
    validation: Any,
    *,
    budget: str | Sequence[str] | Budget,
    searcher: str | Searcher = SEARCHER,
    options: Mapping[str, Any] | None = None,
    criterion: str | Criterion = CRITERION,
    recovery: str | Recovery = RECOVERY,
    reward: str | Reward = rewards.DEFAULT,
    evaluate: Evaluate | None = None,
    test: Any = None,
    trials: int | None = TRIALS,
    timeout: float | None = None,
    target: float | None = None,
    seed: int = 0,
    batch: int = 8,
    device: str = "cpu",
    space: SearchSpace | None = None,
    start: Sequence[Scheme] = (),
    run: str | None = None,
    root: Path | str = ROOT,
    name: str | None = None,
    source: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    tensorboard: bool = False,
) -> Run:
    """Search the kept channels of every layer of ``model`` under ``budget``.

    ``example`` is an input of ``model``; ``calibration`` and ``validation`` are loaders, lists of
    (input, label) batches, data sets or (inputs, labels) tensors, and must not share images. ``test``,
    if given (such data, or a function that returns it), is looked at once, at the end. ``budget`` caps what
    is kept: ``"macs=50%"``, ``"params=1.2M"``, several in a list.

    ``searcher``, ``criterion``, ``recovery`` and ``reward`` are built-in names, ``package.module:function``
    or functions; ``options`` go to the searcher, a reward has its own bound with ``functools.partial``.
    ``evaluate(model) -> {name: number}`` replaces the classification measures; without a ``loss`` among its
    answers a ``reward`` has to be chosen.
    ``trials``, ``timeout`` (seconds of measuring) and ``target`` (a reward) stop the search. ``start`` are
    schemes to begin from. ``name`` and ``source`` (how to load the network again) are written down.

    Everything goes to ``root/run``. The same name and request continue a run: what was measured is not
    measured again, and a larger ``trials`` extends it. ``model`` is left as it is. Ctrl-C ends the search
    with the best so far. ``listener(event, facts)`` is told "traced", "budget", "dense", "uniform", "trial",
    "done"; ``tensorboard`` draws the trials as curves in the run's folder, see :mod:`autoprune.tensorboard`.
    """
    tell = listener or (lambda event, facts: None)
    if tensorboard:
        check_installed()
    if evaluate is not None and test is not None:
        raise UserError(
            "test is for class labels: with an evaluate function, measure run.model on the test data yourself"
        )
    classes = None if evaluate is not None else _classes(model, example)
    calibration = data.batches(calibration, "calibration", classes, labels=evaluate is None)
    validation = data.batches(validation, "validation", classes, labels=evaluate is None)
    space = trace(model, example) if space is None else space
    if not len(space):
        reasons = "; ".join(f"{left.name}: {left.reason}" for left in space.left_out[:3])
        raise UserError(f"nothing in this network can be pruned ({reasons}); see `autoprune groups`")
    tell("traced", {"space": space})
    caps = budget if isinstance(budget, Budget) else Budget.parse(budget, space)
    uniform = _uniform(caps)
    tell("budget", {"budget": caps, "uniform": uniform})
    propose = partial(_searcher(searcher, options or {}), space, caps, seed=seed, batch=batch)
    _try_out(propose, start)
    score = rewards.find(reward)
    evaluator = Evaluator(
        model,
        space,
        calibration,
        validation,
        criterion=criterion,
        recovery=recovery,
        evaluate=evaluate,
        device=device,
        seed=seed,
        identity={
            "model": models.digest(model),
            "calibration_data": data.fingerprint(calibration),
            "validation_data": data.fingerprint(validation),
        },
    )
    shown = name or type(model).__name__
    config = {
        "name": shown,
        "request": {
            **evaluator.protocol,
            "budget": {cost: round(cap, 6) for cost, cap in caps.caps.items()},
            "searcher": stable_name(searcher),
            "options": {key: str(value) for key, value in (options or {}).items()},
            "batch": batch,
            "start": [list(scheme.kept) for scheme in start],
        },
        "fingerprint": evaluator.fingerprint,
        "groups": [group.name for group in space.groups],
        "reward": stable_name(reward),
        "source": dict(source or {}),
        "stop": {"trials": trials, "timeout": timeout, "target": target},
        **surroundings(),
    }
    folder = make_folder(root, run or new_name(root, shown, "-".join(caps.caps)))
    with claim(folder), drawn(folder, tell) if tensorboard else nullcontext(tell) as tell:
        prepare(folder, config)
        ledger = Ledger(folder / LEDGER, evaluator.fingerprint, space.groups)
        _check_dense(evaluator)
        tell("dense", {"measurement": evaluator.dense})
        baseline = _baseline(evaluator, uniform, score, ledger)
        tell("uniform", {"trial": baseline})
        stop = Stop(trials, timeout, target, lambda trial, loop: bool(tell("trial", {"trial": trial, "loop": loop})))
        loop = Loop(propose(hints=Hints(evaluator.hints().scores, tuple(start))), caps, score, ledger, stop)
        interrupted = _drive(loop, evaluator)
        best = max((t for t in (baseline, loop.best) if t is not None and not t.failed), key=_reward, default=None)
        if best is None:
            raise UserError(
                f"no candidate could be measured: {baseline.measurement.error}; see the run's ledger in {folder}"
            )
        ended = "interrupted; the same command continues" if interrupted else loop.reason
        result = outcome.write(evaluator, folder, config, best, baseline, loop, ended, example, test)
    tell("done", {"run": result})
    return result


def apply(
    model: nn.Module,
    space: SearchSpace,
    scheme: Scheme,
    folder: Path | str,
    *,
    calibration: Any = None,
    criterion: str | Criterion = CRITERION,
    recovery: str | Recovery = RECOVERY,
) -> Run:
    """Prune ``model`` by ``scheme`` and save the network and its scheme in ``folder``.

    The scheme's own indices say which channels stay, else ``criterion`` does; ``recovery`` repairs the
    network. ``calibration`` may be missing where neither needs data. The run that comes back has the
    network, the scheme with its indices and, in its summary, the costs.
    """
    batches = [] if calibration is None else data.batches(calibration, "calibration", labels=False)
    statistics = Statistics(model, space, batches)
    scores = [] if scheme.indices is not None else criteria.scores(criteria.find(criterion), model, statistics)
    kept = choose(space, scheme, scores)
    candidate = prune(model, space, kept)
    check_removed(candidate, space, scheme)
    recover.find(recovery)(candidate, recover.Context(model, space, kept, statistics, batches))
    absolute, fractions = account(scheme, space, costs(space))
    exact = outcome.with_indices(scheme, kept)
    folder = make_folder(Path(folder).parent, Path(folder).name)
    facts = {"model": {"digest": models.digest(model)}, "costs": {"kept": absolute}}
    save_pruned(candidate, folder, scheme_file.export(exact, space, facts=facts))
    return Run(folder, {}, {"costs": absolute, "fractions": fractions}, exact, space, candidate.eval())


def _searcher(searcher: str | Searcher, options: Mapping[str, Any]) -> Searcher:
    """The searcher with its options, which must be its own."""
    found = searchers.find(searcher)
    settings.check(found, searchers.KIND, options)
    return partial(found, **options)


def _try_out(propose: Searcher, start: Sequence[Scheme]) -> None:
    """Let a searcher refuse its options and start schemes now, not after the dense network was measured."""
    proposals = propose(hints=Hints(starts=tuple(start)))
    next(proposals, None)
    proposals.close()


def _reward(trial: Trial) -> float:
    return trial.reward


def _drive(loop: Loop, evaluator: Evaluator) -> bool:
    """Run the loop to its end; whether Ctrl-C ended it."""

    def measured(schemes: Sequence[Scheme]) -> Iterator[tuple[Scheme, Measurement]]:
        for scheme in schemes:
            yield scheme, evaluator(scheme)
            if loop.finished:
                return

    try:
        while schemes := loop.ask():
            loop.tell(measured(schemes))
    except KeyboardInterrupt:
        return True
    finally:
        loop.close()
    return False


def _classes(model: nn.Module, example: Example) -> int | None:
    """The number of classes that the network tells apart."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), evaluating(model):
        answer = logits(first_call(model, to(example, device)))
    if answer.dim() != 2:
        raise UserError(
            f"the network's output has shape {tuple(answer.shape)}, which is not (batch, classes): "
            "pass evaluate(model) -> {'loss': …} for a task of its own"
        )
    return int(answer.shape[1])


def _uniform(budget: Budget) -> Scheme:
    """Equal rates in all groups; refuses a budget out of reach."""
    return budget.fit(np.ones(len(budget.space)))


def _check_dense(evaluator: Evaluator) -> None:
    """A candidate with nothing cut and nothing repaired must be the dense network."""
    dense = evaluator.dense
    if dense.failed:
        raise UserError(f"the dense network cannot be measured: {dense.error}; check the data and its normalisation")
    whole = evaluator(evaluator.space.dense, recovery=recover.none)
    if whole.failed:
        raise UserError(f"a candidate with nothing cut fails: {whole.error}")
    for name, value in (("loss", dense.loss), ("accuracy", dense.accuracy)):
        other = getattr(whole, name)
        if math.isfinite(value) and abs(other - value) > AGREEMENT * max(1.0, abs(value)):
            raise UserError(
                f"a candidate with nothing cut has {name} {other:.6g}, the dense network {value:.6g}: "
                "the network's forward pass is not repeatable, or it shares state that copies lose"
            )


def _baseline(evaluator: Evaluator, uniform: Scheme, reward: Reward, ledger: Ledger) -> Trial:
    """The uniform scheme, measured like every candidate."""
    measurement = ledger.find(uniform) or evaluator(uniform)
    try:
        trial = Trial(uniform, measurement, rewards.score(reward, measurement))
    except UserError:
        ledger.append(uniform, measurement, None)  # sound, whatever the reward: the next attempt finds it
        raise
    ledger.append(uniform, measurement, trial.reward)
    return trial
