"""From a trained model and a budget to a pruning scheme: :func:`search`.

It is a client of the small parts (`trace`, `Budget`, `Evaluator`, `Ledger`, `Loop`), which can be used by hand
just as well:

    loop = Loop(searcher, budget, reward, ledger, Stop(trials=100))
    while schemes := loop.ask():
        loop.tell((scheme, evaluator(scheme, fidelity=loop.fidelity)) for scheme in schemes)
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune import criteria, data, masking, models, outcome, recover, settings
from autoprune import reward as rewards
from autoprune.budget import Budget
from autoprune.cost import Cost, account, costs
from autoprune.criteria import Criterion
from autoprune.errors import UserError
from autoprune.evaluate import Evaluate, Evaluator, cutting, usual
from autoprune.exporters import scheme_file
from autoprune.finalists import LATENCY
from autoprune.forward import Example, evaluating, first_call, logits, to
from autoprune.latency.conditions import Conditions
from autoprune.latency.meter import here
from autoprune.latency.predict import liked
from autoprune.latency.source import Source, batch_of, predictor
from autoprune.listeners import Listener, Listeners, together
from autoprune.loop import Stop
from autoprune.memory import PeakMemory
from autoprune.operations import record
from autoprune.outcome import Finish
from autoprune.pool import Workers
from autoprune.precision import FULL
from autoprune.problem import Problem
from autoprune.pruned import save_pruned
from autoprune.recover import Recovery
from autoprune.references import stable_name
from autoprune.reward import Reward
from autoprune.run import ROOT, Run, make_folder
from autoprune.scheme import Scheme
from autoprune.searchers import Searcher
from autoprune.space import SearchSpace
from autoprune.statistics import Statistics
from autoprune.tensorboard import check_installed
from autoprune.tuning import LR, STEPS, Tuning

ON_DEVICE = ("memory", LATENCY)
"""Costs that are known only where a forward pass was followed, and so only if somebody speaks of them."""
SEARCHER, WITH_OBJECTIVES = "auto", "optuna"  # whoever says nothing gets this
TRIALS = 100
SAMPLES = 17  # counts of a group at which a cost function of the caller is sampled

Space = Callable[[nn.Module, Example], SearchSpace]
SPACES: Mapping[str, str] = {
    "traced": "autoprune.search_spaces.traced:trace",
    "weights": "autoprune.search_spaces.weights:define",
}
"""Search spaces by name: where the function ``(model, example) -> SearchSpace`` is."""
SPACE = settings.Kind("search_space", positions=2)


def trace(model: nn.Module, example: Example, **options: Any) -> SearchSpace:
    """The search space of any network; see :func:`autoprune.search_spaces.traced.trace`."""
    space: SearchSpace = resolve_name("autoprune.search_spaces.traced:trace")(model, example, **options)
    return space


def define_space(space: str | Space, model: nn.Module, example: Example) -> SearchSpace:
    """The search space that a function makes of the network, given as itself or by name.

    ``space`` may be "traced", "weights" (single weights, :mod:`autoprune.search_spaces.weights`),
    ``package.module:function`` or a name that an installed package announces, with options as in
    ``"weights,pattern=2:4"``.
    """
    chosen = settings.named(space, SPACE, SPACES) if isinstance(space, str) else space
    made = chosen(model, example)
    if not isinstance(made, SearchSpace):
        raise UserError(f"search space {stable_name(space)} is a {type(made).__name__}, not a SearchSpace")
    return made


def usual_searcher(objectives: str | Sequence[str | Reward] = ()) -> str:
    """The searcher of those who name none: one that searches every objective where there are several."""
    return WITH_OBJECTIVES if objectives else SEARCHER


def problem(
    model: nn.Module,
    example: Example,
    calibration: Any,
    validation: Any,
    *,
    budget: str | Sequence[str] | Budget,
    criterion: str | Criterion | None = None,
    recovery: str | Recovery | None = None,
    reward: str | Reward = rewards.DEFAULT,
    evaluate: Evaluate | None = None,
    test: Any = None,
    device: str = "cpu",
    precision: str = FULL,
    space: SearchSpace | Space | str | None = None,
    costs: Mapping[str, Cost] | None = None,
    also: Sequence[str] = (),
    latency: Source = None,
    conditions: Conditions | None = None,
    strict: bool = False,
    tables: Path | str = ROOT,
    tune: Any = None,
    tune_steps: int = STEPS,
    tune_lr: float = LR,
    name: str | None = None,
    source: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    listener: Listeners = None,
) -> Problem:
    """What is searched, made once for any number of searches; the arguments are those of :func:`search`.

    ``identity`` (JSON-ready) joins what measurements are recorded under. Functions are known by their names alone:
    where two of one name measure differently, such as ``evaluate`` for two data sets, it has to say which is which.
    ``tables`` is the folder for a latency table that has to be measured first.
    """
    tell: Listener = together(listener)
    if evaluate is not None and test is not None:
        raise UserError(
            "test is for class labels: with an evaluate function, measure run.model on the test data yourself"
        )
    classes = None if evaluate is not None else _classes(model, example)
    calibration = data.batches(calibration, "calibration", classes, labels=evaluate is None)
    validation = data.batches(validation, "validation", classes, labels=evaluate is None)
    space = space if isinstance(space, SearchSpace) else define_space(space or "traced", model, example)
    if not len(space):
        reasons = "; ".join(f"{left.name}: {left.reason}" for left in space.left_out[:3])
        raise UserError(f"nothing in this network can be pruned ({reasons}); see `autoprune groups`")
    tell("traced", {"space": space})
    own = dict(costs or {})
    wanted = [name for name in ON_DEVICE if name not in own and _speaks_of(name, budget, reward, also)]
    if conditions is None and device != "cpu":
        conditions = Conditions(device)
    meter = None if conditions is None else here(conditions, example)
    if latency is not None and LATENCY not in own:
        wanted.append(LATENCY)
    if wanted and space.granularity != "channel":
        raise UserError(
            f"{' and '.join(wanted)}: zeros among a network's weights make it neither faster nor smaller while it "
            "runs, so there is nothing to predict; cap weights, params, macs, bitmask or csr"
        )
    functions = _costs(space, own)
    if wanted:
        if not isinstance(budget, Budget):  # what cannot be read is refused before anything is measured for it
            Budget.parse(budget, space, {**functions, **dict.fromkeys(wanted, lambda scheme: 1.0)})
        operations = record(model, example, space, batch_of(latency, conditions))
        predicted: dict[str, Cost] = {"memory": PeakMemory.of(operations)} if "memory" in wanted else {}
        if LATENCY in wanted:
            milliseconds, meter = predictor(
                model, example, space, operations, source=latency, conditions=conditions, strict=strict, folder=tables,
                tell=tell,
            )  # fmt: skip
            predicted[LATENCY] = milliseconds
            if _speaks_of(LATENCY, budget):
                space = liked(space, milliseconds)
        functions |= _costs(space, predicted)
        own |= predicted
    caps = budget if isinstance(budget, Budget) else Budget.parse(budget, space, functions)
    score = rewards.find(reward)
    facts = {
        **(identity or {}),
        "model": models.digest(model),
        "calibration_data": data.fingerprint(calibration),
        "validation_data": data.fingerprint(validation),
    }
    if own:
        facts["costs"] = {name: _sampled(functions[name], space) for name in own}
    tuning = None
    if tune is not None:
        tuning = Tuning(data.batches(tune, "tune", classes), tune_steps, tune_lr)
        _check_apart(tuning.batches, validation)
        facts["tune_data"] = data.fingerprint(tuning.batches)
    evaluator = Evaluator(
        model,
        space,
        calibration,
        validation,
        criterion=criterion,
        recovery=recovery,
        evaluate=evaluate,
        tuning=tuning,
        cost_functions=functions,
        device=device,
        precision=precision,
        identity=facts,
    )
    made = Problem(evaluator, caps, score, example, test, name or type(model).__name__, source or {}, meter)
    tell("budget", {"budget": caps, "uniform": made.uniform})
    return made


def search(
    model: nn.Module,
    example: Example,
    calibration: Any,
    validation: Any,
    *,
    budget: str | Sequence[str] | Budget,
    searcher: str | Searcher | None = None,
    options: Mapping[str, Any] | None = None,
    trials: int | None = TRIALS,
    timeout: float | None = None,
    target: float | None = None,
    seed: int = 0,
    batch: int = 8,
    start: Sequence[Scheme] = (),
    objectives: str | Sequence[str | Reward] = (),
    finish: str | Finish | None = None,
    polish: str | None = None,
    finalists: int = 1,
    race: float | None = None,
    run: str | None = None,
    root: Path | str = ROOT,
    ledger: Path | str | None = None,
    listener: Listeners = None,
    tensorboard: bool = False,
    workers: int | Workers = 1,
    **measured: Any,
) -> Run:
    """Search the kept channels of every layer of ``model`` under ``budget``.

    ``example`` is an input of ``model``; ``calibration`` and ``validation`` are loaders, lists of
    (input, label) batches, data sets or (inputs, labels) tensors, and must not share images. ``budget`` caps what
    is kept: ``"macs=50%"``, ``"params=1.2M"``, several in a list.

    How a candidate is measured (``measured``, see :func:`problem`): ``criterion``, ``recovery`` and ``reward`` are,
    like ``searcher``, built-in names, ``package.module:function`` or functions; ``options`` go to the searcher, a
    reward has its own bound with ``functools.partial``. ``evaluate(model) -> {name: number}`` replaces the
    classification measures; without a ``loss`` among its answers a ``reward`` has to be chosen. ``test``, if given
    (data such as the others, or a function that returns it), is looked at once, at the end. ``device`` is where it
    is computed, ``precision`` ("bfloat16") what candidates' forward passes compute in (:mod:`autoprune.precision`),
    ``space`` a search space of one's own, see :func:`define_space`. ``costs`` are further cost functions
    by name, such as a table of latencies, ``Scheme -> float``: the same number for the same scheme, never less when
    more is kept; budgets and rewards may then speak of them (``"latency=70%"``). With ``tune`` (training data such as
    the others, with class labels, apart from both) every candidate is trained on it for ``tune_steps`` steps at the
    learning rate ``tune_lr`` before it is measured, see :class:`autoprune.tuning.Tuning`. ``name`` and ``source`` (how
    to load the network again) are written down.

    Once the budget, the reward, the objectives or ``also`` (names of costs) speak of "memory" (peak activation bytes)
    or "latency" (milliseconds), these are costs as well. ``latency`` is a table (:mod:`autoprune.latency`), the path of
    one, or ``function(network) -> ms`` for a device elsewhere; without it a table is measured here, under
    ``conditions``, before the search. With ``strict`` a table for another device or batch is refused. Under a latency
    cap only widths are tried that the hardware rewards, and the answer meets the cap as measured, see
    :mod:`autoprune.finalists`.

    ``trials``, ``timeout`` (seconds of measuring) and ``target`` (a reward) stop the search. ``start`` are
    schemes to begin from. ``objectives`` (``("accuracy", "macs")``, see :func:`autoprune.front.objectives`) are what
    the Pareto front of the run is about, and a searcher that can, such as optuna, searches all of them; the answer
    is still the trial with the highest reward. Without a ``searcher`` it is "auto", or "optuna" with objectives.

    ``polish`` names a repair for the answer alone, more thorough than that of candidates
    (``"sequential,sweeps=2"``). The polished network is a further row, and it is what is saved if its reward is
    higher: the last row of a summary is the network in the folder. As many ``finalists`` as are asked for, the best
    trials, are polished, by the workers, and the one that is best then is the answer (:mod:`autoprune.polish`).

    With ``race``, such as 0.01, a candidate is stopped when a paired test on the validation batches says that it cannot
    beat the best scheme before it; that is the probability of stopping a better one, see :mod:`autoprune.race`.

    ``finish``, a function or ``package.module:function``, is called with the answer's network once the search is over
    and written down, and trains it at length, in place or returning a network of the same widths. That one is measured
    as a further row, "finished", and saved instead; an error in it, raised as :class:`UserError`, loses nothing. A run
    that is continued calls it again.

    ``workers`` measure at the same time, in processes of their own through Ray; ``Workers(8, address="auto",
    timeout=600)`` says where, what each takes up, and how long a candidate may take, see
    :class:`autoprune.pool.Workers`. The result is the same with any number of them: what decides is ``batch``, the
    number of schemes proposed at a time, which is best a few times the number of workers.

    Everything goes to ``root/run``. The same name and request continue a run: what was measured is not
    measured again, and a larger ``trials`` extends it. With a ``ledger`` (a journal file, or a storage URL of Optuna)
    several runs, and the searches of other seeds and budgets, share what they measured. ``model`` is left as it is.
    Ctrl-C ends the search with the best so far.

    ``listener`` is a function ``(event, facts)``, or several, told of every step and every trial: docs/tracking.md has
    the events. One that answers "trial" with something true ends the search; one that raises is warned of.
    :class:`autoprune.progress.Watch` shows the search live, :mod:`autoprune.trackers` send it to MLflow or Weights &
    Biases, and ``tensorboard`` draws the trials as curves in the run's folder, see :mod:`autoprune.tensorboard`.
    """
    if tensorboard:
        check_installed()
    listener = together(listener)
    measured["also"] = (*_texts(measured.get("also", ())), *_texts(objectives))
    made = problem(model, example, calibration, validation, budget=budget, listener=listener, **measured)
    with made.pool(workers) as pool:
        return made.search(
            searcher or usual_searcher(objectives),
            options,
            stop=Stop(trials, timeout, target),
            seed=seed,
            batch=batch,
            start=start,
            objectives=objectives,
            finish=finish,
            polish=polish,
            finalists=finalists,
            race=race,
            run=run,
            root=root,
            ledger=ledger,
            listener=listener,
            tensorboard=tensorboard,
            pool=pool,
        )


def apply(
    model: nn.Module,
    space: SearchSpace,
    scheme: Scheme,
    folder: Path | str,
    *,
    calibration: Any = None,
    criterion: str | Criterion | None = None,
    recovery: str | Recovery | None = None,
) -> Run:
    """Prune ``model`` by ``scheme`` and save the network and its scheme in ``folder``.

    The scheme's own indices say which channels stay, else ``criterion`` does; ``recovery`` repairs the
    network. Those of a search are the default. ``calibration`` may be missing where neither needs data. The run that
    comes back has the network, the scheme with its indices and, in its summary, the costs.
    """
    batches = [] if calibration is None else data.batches(calibration, "calibration", labels=False)
    statistics = Statistics(model, space, batches)
    usual_recovery, usual_criterion = usual(space.granularity)
    repair = recover.find(usual_recovery if recovery is None else recovery, space.granularity)
    judge = criteria.find(usual_criterion if criterion is None else criterion, space.granularity)
    scores = [] if scheme.indices is not None else criteria.scores(judge, model, statistics)
    verbs = cutting(space.granularity)
    kept: Any = verbs.choose(space, scheme, scores)
    candidate = verbs.prune(model, space, kept)
    verbs.check_removed(candidate, space, scheme)
    repair(candidate, recover.Context(model, space, kept, statistics, batches))
    if space.granularity != "channel":  # a repair may bring weights back
        masking.check_removed(candidate, space, scheme)
    absolute, fractions = account(scheme, space, costs(space))
    exact = outcome.with_indices(scheme, kept)
    folder = make_folder(Path(folder).parent, Path(folder).name)
    facts = {
        "model": {"name": type(model).__name__, "digest": models.digest(model)},
        "costs": {"dense": account(space.dense, space, costs(space))[0], "kept": absolute},
    }
    save_pruned(candidate, folder, scheme_file.export(exact, space, facts=facts))
    return Run(folder, {}, {"costs": absolute, "fractions": fractions}, exact, space, candidate.eval())


def _speaks_of(cost: str, budget: Any, *others: Any) -> bool:
    """Whether a budget in words, a reward by name or a list of costs needs this one."""
    if isinstance(budget, Budget):  # it has its costs
        budget = ()
    texts = [text for given in (budget, *others) for text in _texts(given)]
    return any(re.search(rf"(^|[\s,:=-]){cost}($|[\s,:=_])", text) for text in texts)


def _texts(given: Any) -> list[str]:
    """A name, or the names among several things that may be functions as well."""
    several = given if isinstance(given, list | tuple) else [given]
    return [text for text in several if isinstance(text, str)]


def _costs(space: SearchSpace, own: Mapping[str, Cost] | None) -> dict[str, Cost]:
    """The built-in cost functions and those of the caller, which must give positive numbers."""
    known = costs(space)
    for name, function in (own or {}).items():
        if name in known:
            raise UserError(f"cost {name!r} is built in: give yours another name")
        for scheme in (space.dense, space.smallest):
            try:
                value: Any = function(scheme)
            except Exception as error:
                raise UserError(
                    f"cost {name!r} failed for {scheme.kept}: {type(error).__name__}: {error} ({stable_name(function)})"
                ) from error
            try:
                positive = math.isfinite(value) and value > 0
            except TypeError:  # it is no number
                positive = False
            if not positive:
                raise UserError(f"cost {name!r} is {value!r} for {scheme.kept}: a cost is a positive number")
    return {**known, **(own or {})}


def _sampled(cost: Cost, space: SearchSpace) -> str:
    """What tells two cost functions apart: their values with every group alone at some of its counts."""
    schemes = [space.dense, space.smallest]
    for g, group in enumerate(space.groups):
        places = np.unique(np.linspace(0, len(group.counts) - 1, SAMPLES).round().astype(int))
        schemes += [space.largest.replace(g, group.counts[place]) for place in places]
    return hashlib.sha256(repr([float(cost(scheme)) for scheme in schemes]).encode()).hexdigest()[:16]


def _check_apart(tune: Sequence[data.Batch], validation: Sequence[data.Batch]) -> None:
    """Refuse to train on what candidates are judged by, as far as whole batches show it."""
    judged = {data.fingerprint([batch]) for batch in validation}
    for number, batch in enumerate(tune):
        if data.fingerprint([batch]) in judged:
            raise UserError(
                f"batch {number} of the tune data is a batch of the validation data: tune on other images, "
                "or the candidates learn what they are measured by"
            )


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
