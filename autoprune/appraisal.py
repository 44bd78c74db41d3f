"""Schemes that are there already, found elsewhere or by hand, measured beside the dense network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autoprune import data
from autoprune.errors import UserError
from autoprune.forward import batch_size
from autoprune.latency.conditions import Conditions
from autoprune.latency.meter import here
from autoprune.ledger import Ledger
from autoprune.outcome import SEEN, SHOWN
from autoprune.problem import Problem
from autoprune.reward import score
from autoprune.scheme import Scheme
from autoprune.trial import Measurement

if TYPE_CHECKING:
    import pandas as pd

DENSE = "dense"


@dataclass(frozen=True)
class Appraisal:
    """The dense network and some schemes of it, side by side.

    ``rows`` by name, "dense" first: what is ``kept`` of every group (``groups`` names them), validation ``loss``,
    ``accuracy`` and ``kl``, ``costs`` and ``fractions`` by name, ``metrics``, ``latency`` in seconds of a forward
    pass (``timed`` says under which conditions), and ``test_accuracy`` and ``test_loss`` where test data was shown. A
    scheme that could not be measured has an ``error`` instead.
    """

    groups: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Any]]
    timed: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return asdict(self)

    def frame(self) -> pd.DataFrame:
        """A line a network; costs are columns like ``costs.macs``."""
        import pandas as pd

        rows = pd.json_normalize([dict(row) for row in self.rows.values()])
        return rows.set_axis(pd.Index(list(self.rows), name="scheme"), axis=0)


def appraise(
    problem: Problem,
    schemes: Mapping[str, Scheme],
    *,
    ledger: Path | str | None = None,
    tell: Callable[[str], None] = lambda name: None,
) -> Appraisal:
    """Measure schemes by name, as a search of ``problem`` would measure them; its budget plays no part.

    A scheme with indices keeps those channels; the weights are always cut from the dense network and repaired,
    whoever found the widths. All schemes are checked before the first is measured. The problem's test data, if any, is
    shown each network once, after everything else: nothing is chosen here. With a ``ledger`` what was measured is
    written down, and what a search or an earlier call recorded there is not measured again. ``tell`` hears the name of
    each scheme once it is measured.
    """
    evaluator, space = problem.evaluator, problem.evaluator.space
    if DENSE in schemes:
        raise UserError(f"a scheme cannot be called {DENSE!r}, which is the network it is compared with: rename it")
    for scheme in schemes.values():
        space.check(scheme)
    problem.check_dense()
    records = Ledger(ledger, evaluator.fingerprint, space.groups)
    found = {DENSE: evaluator.dense}
    for name, scheme in schemes.items():
        known = records.find(scheme)
        found[name] = known or evaluator(scheme)
        if ledger is not None and known is None:
            reward = None if found[name].failed else score(problem.reward, found[name])
            records.append(scheme, found[name], reward)
        tell(name)
    asked = {DENSE: space.dense, **schemes}
    rows = {name: _row(asked[name], measurement) for name, measurement in found.items()}
    sound = [name for name in schemes if not found[name].failed]
    networks = {DENSE: evaluator.model, **{name: evaluator.candidate(schemes[name]) for name in sound}}
    usual = Conditions(str(evaluator.device), batch_size(problem.example), torch.get_num_threads())
    meter = problem.meter or here(usual, problem.example)
    for name, timing in meter.measure(networks).items():
        rows[name]["latency"] = timing.median / 1e3
    if problem.test is not None:
        images = data.batches(problem.test() if callable(problem.test) else problem.test, "test")
        for name, network in networks.items():
            seen = evaluator.observe(network, images)
            rows[name] |= dict(zip(SEEN, (seen.accuracy, seen.loss), strict=True))
    return Appraisal(tuple(group.name for group in space.groups), rows, meter.conditions)


def _row(scheme: Scheme, measurement: Measurement) -> dict[str, Any]:
    record = measurement.to_dict()
    told = {"error": measurement.error} if measurement.failed else {key: record[key] for key in SHOWN}
    return {"kept": list(scheme.kept), **told}
