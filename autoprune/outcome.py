"""What came out of a search, written into its folder: scheme, pruned network, picture, summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoprune import chart, data, latency
from autoprune.cost import LABELS
from autoprune.evaluate import Evaluator
from autoprune.exporters import scheme_file
from autoprune.forward import Example, evaluating, to
from autoprune.loop import Loop
from autoprune.pruned import save_pruned
from autoprune.run import PICTURE, SUMMARY, Run, read_json, write_json
from autoprune.scheme import Scheme
from autoprune.slicing import Kept
from autoprune.trial import Measurement, Trial

SHOWN = ("accuracy", "loss", "kl", "costs", "fractions", "metrics")
SEEN = ("test_accuracy", "test_loss")


def write(
    evaluator: Evaluator,
    folder: Path,
    config: Mapping[str, Any],
    best: Trial,
    uniform: Trial,
    loop: Loop,
    ended: str | None,
    example: Example,
    test: Any = None,
) -> Run:
    """Prune for real, compare with the dense network and uniform rates, and write everything down."""
    space = evaluator.space
    scheme = with_indices(best.scheme, evaluator.kept(best.scheme))
    networks = {
        "dense": evaluator.model,
        "uniform": evaluator.candidate(uniform.scheme),
        "found": evaluator.candidate(best.scheme),
    }
    rows = {
        "dense": _row(evaluator.dense),
        "uniform": _row(uniform.measurement),
        "found": _row(best.measurement),
    }
    _time(rows, networks, to(example, evaluator.device))
    summary = {
        "rows": rows,
        "kept": list(best.scheme.kept),
        "uniform": list(uniform.scheme.kept),
        "widths": [int(width) for width in space.widths],
        "reward": best.reward,
        "uniform_reward": uniform.reward,
        "trials": len(loop.trials),
        "feasible": loop.feasible,
        "failed": sum(trial.failed for trial in loop.trials),
        "seconds": loop.seconds,
        "ended": ended,
    }
    if test is not None:
        _look_at_test(summary, networks, evaluator, test, folder)
    facts = {
        "model": {"name": config["name"], "digest": config["request"]["model"]},
        "costs": {"dense": dict(evaluator.dense.costs), "kept": dict(best.measurement.costs)},
        "measurement": best.measurement.to_dict(),
        "provenance": {key: config[key] for key in ("request", "reward", "time", "versions")},
    }
    save_pruned(networks["found"], folder, scheme_file.export(scheme, space, facts=facts))
    share = ", ".join(f"{value:.1%} of the {LABELS.get(n, n)}" for n, value in best.measurement.fractions.items())
    picture = chart.widths(space, scheme, f"{config['name']}: channels kept", [f"{share}; grey is the dense width"])
    (folder / PICTURE).write_text(picture, encoding="utf-8")
    write_json(folder / SUMMARY, summary)
    return Run(folder, config, summary, scheme, space, networks["found"])


def with_indices(scheme: Scheme, kept: Kept) -> Scheme:
    """The scheme with the kept units written out."""
    return Scheme(scheme.kept, scheme.granularity, tuple(tuple(int(unit) for unit in units) for units in kept))


def _row(measurement: Measurement) -> dict[str, Any]:
    """One column of the comparison."""
    record = measurement.to_dict()
    return {key: record[key] for key in SHOWN}


def _time(rows: dict[str, dict[str, Any]], networks: Mapping[str, nn.Module], example: Example) -> None:
    with evaluating(networks["dense"]):
        for name, seconds in latency.measure(networks, example).items():
            rows[name]["latency"] = seconds


def _look_at_test(
    summary: dict[str, Any], networks: Mapping[str, nn.Module], evaluator: Evaluator, test: Any, folder: Path
) -> None:
    """Look at the test set once; a continued run whose answer is the same reads what was seen then."""
    before = read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    if all(before.get(key) == summary[key] for key in ("kept", "uniform")) and SEEN[0] in before["rows"]["found"]:
        for name, row in summary["rows"].items():
            row |= {key: before["rows"][name][key] for key in SEEN}
        return
    batches = data.batches(test() if callable(test) else test, "test")
    for name, network in networks.items():
        seen = evaluator.observe(network, batches)
        summary["rows"][name] |= dict(zip(SEEN, (seen.accuracy, seen.loss), strict=True))
