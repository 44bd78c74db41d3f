"""What came out of a search, written into its folder: scheme, pruned network, picture, summary."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune import chart, data
from autoprune.cost import LABELS
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator, cutting
from autoprune.exporters import scheme_file
from autoprune.fidelity import Fidelity
from autoprune.finalists import Rounds, Settled
from autoprune.forward import Example, batch_size
from autoprune.front import Front
from autoprune.latency.conditions import Conditions
from autoprune.latency.meter import Meter, here
from autoprune.objective import Objective
from autoprune.pruned import save_pruned
from autoprune.references import stable_name
from autoprune.reward import Reward, score
from autoprune.run import HISTORY, PICTURE, SUMMARY, Run, read_json, write_json
from autoprune.scheme import Scheme
from autoprune.slicing import Kept
from autoprune.statistics import Batches
from autoprune.trial import Measurement, Trial

Finish = Callable[[nn.Module], nn.Module | None]
"""Trains the answer of a search, in place or as the network it returns."""
Seen = dict[tuple[Scheme, Fidelity] | None, dict[str, float]]
"""Test accuracy and loss by scheme and fidelity; None is the dense network."""
SEEN = ("test_accuracy", "test_loss")
SHOWN = ("accuracy", "loss", "kl", "calibrated_kl", "costs", "fractions", "metrics")


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a search ended: what measured it and what was asked for, its answer, the uniform scheme's trial, all trials.

    ``reward`` judged the trials, and judges the polish. ``ended`` says why the search ended, ``interrupted`` whether it
    was by Ctrl-C; ``objectives`` are what fronts are about. ``meter`` times the networks (None: this machine, as it
    is), ``settled`` is what it said where latency is capped. ``polish`` is a repair for the answer alone, more thorough
    than that of candidates.
    """

    evaluator: Evaluator
    config: Mapping[str, Any]
    best: Trial
    uniform: Trial
    loop: Rounds
    reward: Reward
    ended: str | None
    interrupted: bool
    objectives: tuple[Objective, ...]
    meter: Meter | None = None
    settled: Settled | None = None
    polish: str | None = None


def write(found: Outcome, folder: Path, example: Example, test: Any, seen: Seen) -> Run:
    """Prune for real, compare with the dense network and uniform rates, and write everything down.

    The last row of the summary is the network that is saved. ``seen`` is what the test set has been shown already, and
    grows by what it is shown now.
    """
    evaluator, config, best, uniform, loop = found.evaluator, found.config, found.best, found.uniform, found.loop
    space = evaluator.space
    scheme = with_indices(best.scheme, evaluator.kept(best.scheme))
    networks = {
        "dense": evaluator.model,
        "uniform": evaluator.candidate(uniform.scheme),
        "found": evaluator.candidate(best.scheme, best.fidelity),
    }
    rows = {
        "dense": _row(evaluator.dense),
        "uniform": _row(uniform.measurement),
        "found": _row(best.measurement),
    }
    schemes = {"dense": None, "uniform": (uniform.scheme, uniform.fidelity), "found": (best.scheme, best.fidelity)}
    answer, measurement = "found", best.measurement
    timed = _time(rows, networks, example, found)
    if found.polish is not None:
        fidelity = Fidelity(recovery=found.polish)
        networks["polished"] = evaluator.candidate(best.scheme, fidelity)
        observed = evaluator.observe(networks["polished"])
        polished = replace(observed, costs=best.measurement.costs, fractions=best.measurement.fractions)
        rows["polished"] = _row(polished) | {"latency": rows["found"]["latency"]}
        schemes["polished"] = (best.scheme, fidelity)
        # completed, a network whose numbers are not finite has failed and is worth -inf; the row tells what was seen
        if score(found.reward, evaluator.complete(observed, best.scheme, {})) > best.reward:
            answer, measurement = "polished", polished
        rows[answer] = rows.pop(answer)
    summary = {
        "rows": rows,
        "kept": list(best.scheme.kept),
        "uniform": list(uniform.scheme.kept),
        "widths": [int(width) for width in space.widths],
        "reward": best.reward,
        "uniform_reward": uniform.reward,
        "trials": sum(trial.fidelity.full or trial.stopped for trial in loop.trials),
        "stopped": sum(trial.stopped for trial in loop.trials),
        "looks": sum(not (trial.fidelity.full or trial.stopped) for trial in loop.trials),
        "effort": loop.effort,
        "feasible": loop.feasible,
        "failed": sum(trial.failed for trial in loop.trials),
        "seconds": loop.seconds,
        "timed": timed,
        "ended": found.ended,
        "stop": config["stop"],
        "interrupted": found.interrupted,
        "answer": _digest(scheme, best, found.polish),
    }
    if found.settled is not None:
        summary["latency"] = found.settled.facts()
    if calibration := getattr(evaluator.costs.get("latency"), "calibration", None):
        summary["calibration"] = calibration  # how well the table predicted
    if test is not None:
        _recall(folder, summary, schemes, seen)
        _look_at_test(evaluator, networks, schemes, test, seen)
        for name, row in rows.items():
            row |= seen[schemes[name]]
    _save(found, networks[answer], measurement, scheme, folder, summary)
    share = ", ".join(f"{value:.1%} of the {LABELS.get(n, n)}" for n, value in best.measurement.fractions.items())
    picture = chart.widths(space, scheme, f"{config['name']}: {space.noun} kept", [f"{share}; grey is the dense width"])
    (folder / PICTURE).write_text(picture, encoding="utf-8")
    _write_history(folder / HISTORY, found)
    front = Front.of((uniform, *loop.trials), found.objectives)
    summary["front"] = front.facts()
    front.write(folder, evaluator.kept)
    if config["request"]["objectives"]:
        front.draw(folder, f"{config['name']}: what was found")
    write_json(folder / SUMMARY, summary)
    return Run(folder, config, summary, scheme, space, networks[answer])


def finish(found: Outcome, function: Finish, run: Run, test: Any) -> Run:
    """Train the answer at length with the user's function, and let it take its place in the run.

    It is measured like the answer, a further row of the summary, and is what ``pruned.safetensors`` holds from then
    on. Nothing of the run is touched before: whatever goes wrong in the function loses only what the function did.
    """
    evaluator, answer, rows = found.evaluator, found.best.measurement, run.summary["rows"]
    scheme = with_indices(found.best.scheme, evaluator.kept(found.best.scheme))
    try:
        network = _trained(function, run.model).to(evaluator.device).eval()
        cutting(evaluator.space.granularity).check_removed(network, evaluator.space, scheme)
        seen = evaluator.observe(network)
        for name in ("loss", "accuracy", "kl"):
            if math.isfinite(getattr(answer, name)) and not math.isfinite(getattr(seen, name)):
                raise UserError(f"its {name} is {getattr(seen, name)}")
    except Exception as error:
        reason = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"finish {stable_name(function)} gave no network to keep: {reason}; what the search itself found is whole "
            f"in {run.folder}, and the same command finishes it again without measuring anything anew"
        ) from error
    measurement = replace(seen, costs=answer.costs, fractions=answer.fractions)
    row = _row(measurement) | {"latency": rows["found"]["latency"]}  # layer by layer it is as wide
    if test is not None:
        row |= _test(evaluator, network, data.batches(test() if callable(test) else test, "test"))
    _save(found, network, measurement, scheme, run.folder, run.summary)
    summary = {**run.summary, "rows": {**rows, "finished": row}}
    write_json(run.folder / SUMMARY, summary)
    return replace(run, summary=summary, model=network)


def _trained(function: Finish, network: nn.Module) -> nn.Module:
    returned: Any = function(network)
    if returned is not None and not isinstance(returned, nn.Module):
        raise UserError(f"it returned a {type(returned).__name__}, neither a network nor None")
    return network if returned is None else returned


def _save(
    found: Outcome,
    network: nn.Module,
    measurement: Measurement,
    scheme: Scheme,
    folder: Path,
    summary: Mapping[str, Any],
) -> None:
    """The pruned network, and its scheme with what is known about it."""
    evaluator, config = found.evaluator, found.config
    request, rows = config["request"], summary["rows"]
    facts = {
        "model": {
            "name": config["name"],
            "source": config["source"],
            "digest": request["model"],
            "example_shape": config["example_shape"],
        },
        "costs": {"dense": dict(evaluator.dense.costs), "kept": dict(measurement.costs)},
        "measurement": measurement.to_dict(),
        "latency": {
            "milliseconds": {"dense": 1e3 * rows["dense"]["latency"], "kept": 1e3 * rows["found"]["latency"]},
            "conditions": summary["timed"],
        },
        "reward": {"name": config["reward"], "value": found.best.reward},
        "provenance": {
            "searcher": request["searcher"],
            "options": request["options"],
            "seed": request["search_seed"],
            "budget": request["budget"],
            "time": config["time"],
            "versions": config["versions"],
            "request": request,
        },
    }
    save_pruned(network, folder, scheme_file.export(scheme, evaluator.space, facts=facts))


def with_indices(scheme: Scheme, kept: Kept) -> Scheme:
    """The scheme with the kept units written out; those of single weights the network itself has."""
    if scheme.granularity != "channel":
        return scheme
    return Scheme(scheme.kept, scheme.granularity, tuple(tuple(int(unit) for unit in units) for units in kept))


def _row(measurement: Measurement) -> dict[str, Any]:
    """One column of the comparison."""
    record = measurement.to_dict()
    return {key: record[key] for key in SHOWN}


def _time(rows: dict[str, dict[str, Any]], networks: Mapping[str, nn.Module], example: Example, found: Outcome) -> str:
    """Seconds of each network: those that decided, where latency is capped. Returns the conditions, in words."""
    usual = Conditions(str(found.evaluator.device), batch_size(example), torch.get_num_threads())
    meter = found.meter or here(usual, example)
    if found.settled is not None:
        kept = {"dense": found.evaluator.space.dense, "uniform": found.uniform.scheme, "found": found.best.scheme}
        timings = {name: found.settled.timings[scheme.kept] for name, scheme in kept.items()}
    else:
        timings = dict(meter.measure(networks))
    for name, timing in timings.items():
        rows[name]["latency"] = timing.median / 1e3
    return meter.conditions


def _digest(scheme: Scheme, best: Trial, polish: str | None) -> str:
    """What tells two answers apart: the very channels, from which weights they were tuned, how they were polished."""
    told = json.dumps([scheme.to_dict(), best.fidelity.name, *([polish] if polish else [])], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _recall(folder: Path, summary: Mapping[str, Any], schemes: Mapping[str, Any], seen: Seen) -> None:
    """A continued run whose answer is the same reads what was seen then."""
    before = read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    if all(before.get(key) == summary[key] for key in ("answer", "uniform")) and SEEN[0] in before["rows"]["found"]:
        for name, scheme in schemes.items():
            if SEEN[0] in before["rows"].get(name, {}):
                seen.setdefault(scheme, {key: before["rows"][name][key] for key in SEEN})


def _look_at_test(
    evaluator: Evaluator, networks: Mapping[str, nn.Module], schemes: Mapping[str, Any], test: Any, seen: Seen
) -> None:
    """Show the test set what it has not seen."""
    unseen = {schemes[name]: network for name, network in networks.items() if schemes[name] not in seen}
    if unseen:
        batches = data.batches(test() if callable(test) else test, "test")
        for scheme, network in unseen.items():
            seen[scheme] = _test(evaluator, network, batches)


def _test(evaluator: Evaluator, network: nn.Module, batches: Batches) -> dict[str, float]:
    found = evaluator.observe(network, batches)
    return dict(zip(SEEN, (found.accuracy, found.loss), strict=True))


def _write_history(path: Path, found: Outcome) -> None:
    """The trials in their order; row 0 is the uniform scheme, which every search measures first."""
    spent = seconds = 0.0
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("trials", "seconds", "fidelity", "reward", "loss", "accuracy", "seen", "affordable", "kept"))
        for number, trial in enumerate((found.uniform, *found.loop.trials)):
            m = trial.measurement
            if number:
                spent, seconds = spent + found.loop.price(trial.fidelity), seconds + m.seconds.get("total", 0.0)
            affordable = found.loop.budget.allows(trial.scheme)
            kept = " ".join(map(str, trial.scheme.kept))
            row = (spent, seconds, trial.fidelity.name, trial.reward, m.loss, m.accuracy, m.seen, affordable, kept)
            table.writerow(row)
