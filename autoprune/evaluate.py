"""The evaluator: scheme in, measurement out. Nothing else touches the model and the data."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune import criteria, recover
from autoprune.cost import Cost, costs
from autoprune.criteria import Criterion
from autoprune.errors import UserError
from autoprune.forward import call, logits, to
from autoprune.hints import Hints
from autoprune.recover import Context, Recovery
from autoprune.scheme import Scheme
from autoprune.slicing import check_removed, choose, prune
from autoprune.space import SearchSpace
from autoprune.statistics import Batches, Statistics, class_labels, evaluating
from autoprune.trial import Measurement

Evaluate = Callable[[nn.Module], Mapping[str, float]]

RECOVERY = "least_squares+recalibrate_bn"
CRITERION = "obs"


class Evaluator:
    """Slices, repairs and measures candidates of one model.

    ``calibration`` feeds statistics and recovery, ``validation`` gives loss, KL to the dense network and
    accuracy; both are lists of (input, label) batches. A task without class labels passes
    ``evaluate(model) -> {name: number}``, whose ``loss`` and ``accuracy`` entries, if any, are used as such.

    Candidates are measured with ``threads`` threads, always the same number: ``torch.linalg`` gives
    other last bits with other numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace,
        calibration: Batches,
        validation: Batches,
        *,
        criterion: str | Criterion = CRITERION,
        recovery: str | Recovery = RECOVERY,
        evaluate: Evaluate | None = None,
        cost_functions: Mapping[str, Cost] | None = None,
        device: str | torch.device = "cpu",
        threads: int = 1,
        seed: int = 0,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model.to(device)
        self.space = space
        self.calibration = calibration
        self.validation = validation
        self.criterion = criterion
        self.recovery = recovery
        self.evaluate = evaluate
        self.costs = costs(space) if cost_functions is None else cost_functions
        self.device = torch.device(device)
        self.threads = threads
        self.seed = seed
        self.identity = dict(identity or {})
        self._criterion = criteria.find(criterion)
        self._recovery = recover.find(recovery)
        self.statistics = Statistics(model, space, calibration, seed=seed)

    # -- what is known once --------------------------------------------------------------------

    @cached_property
    def scores(self) -> list[np.ndarray]:
        """The criterion's unit scores per group."""
        return criteria.scores(self._criterion, self.model, self.statistics)

    def hints(self) -> Hints:
        """Scores for searchers, each group scaled to unit length so that groups compare."""
        return Hints(scores=tuple(score / (np.linalg.norm(score) or 1.0) for score in self.scores))

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Everything that changes a measurement, as a JSON-ready record."""
        return {
            "space": self.space.fingerprint,
            "criterion": _named(self.criterion),
            "recovery": _named(self.recovery),
            "evaluate": _named(self.evaluate),
            "calibration": len(self.calibration),
            "validation": len(self.validation),
            "threads": self.threads,
            "device": self.device.type,
            "seed": self.seed,
            **self.identity,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of the protocol: measurements with the same one may be mixed."""
        return hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _dense_answers(self) -> list[Tensor]:
        """Log-probabilities of the dense network on the validation batches; empty for other tasks."""
        if self.evaluate is not None:
            return []
        with torch.inference_mode(), evaluating(self.model):
            return [F.log_softmax(logits(call(self.model, to(x, self.device))).float(), 1) for x, _ in self.validation]

    @cached_property
    def dense(self) -> Measurement:
        """The untouched network, measured the same way."""
        with single_threaded(self.threads):
            return self._finish(self.observe(self.model), self.space.dense, {})

    # -- one candidate -------------------------------------------------------------------------

    def kept(self, scheme: Scheme) -> list[np.ndarray]:
        """The units that stay in each group."""
        return choose(self.space, scheme, self.scores)

    def candidate(self, scheme: Scheme, recovery: Recovery | None = None) -> nn.Module:
        """The pruned and repaired network of a scheme, in evaluation mode."""
        kept = self.kept(scheme)
        model = prune(self.model, self.space, kept)
        check_removed(model, self.space, scheme)
        context = Context(self.model, self.space, kept, self.statistics, self.calibration)
        (recovery or self._recovery)(model, context)
        return model.eval()

    def __call__(self, scheme: Scheme, recovery: Recovery | None = None) -> Measurement:
        """Measure a scheme. Whatever goes wrong with the candidate becomes a failed measurement."""
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        self.space.check(scheme)
        with single_threaded(self.threads):
            _ = self.scores, self._dense_answers  # known once: not charged to the first candidate
            begun = time.perf_counter()
            try:
                model = self.candidate(scheme, recovery)
                seconds["recover"] = time.perf_counter() - begun
                observed = self.observe(model)
                seconds["validate"] = time.perf_counter() - begun - seconds["recover"]
                seconds["total"] = time.perf_counter() - begun
                return self._finish(observed, scheme, seconds)
            except Exception as error:  # a candidate may break in any way; the search goes on
                seconds["total"] = time.perf_counter() - max(start, begun)
                return Measurement(seconds=seconds, error=f"{type(error).__name__}: {error}".splitlines()[0])

    def observe(self, model: nn.Module, batches: Batches | None = None) -> Measurement:
        """Loss, accuracy and KL of any network on ``batches`` (default: the validation set)."""
        if self.evaluate is not None:
            metrics = {name: float(value) for name, value in self.evaluate(model).items()}
            return Measurement(metrics.get("loss", math.nan), metrics.get("accuracy", math.nan), metrics=metrics)
        dense = self._dense_answers if batches is None else None
        loss = correct = divergence = 0.0
        images = 0
        with torch.inference_mode(), evaluating(model):
            for number, (inputs, labels) in enumerate(self.validation if batches is None else batches):
                answer = logits(call(model, to(inputs, self.device))).float()
                target = class_labels(labels, answer)
                log_p = F.log_softmax(answer, 1)
                loss += float(F.nll_loss(log_p, target, reduction="sum"))
                correct += float((answer.argmax(1) == target).sum())
                if dense is not None:
                    divergence += float(F.kl_div(log_p, dense[number], reduction="sum", log_target=True))
                images += len(answer)
        if images == 0:
            raise UserError("the validation set holds no samples; give at least one batch")
        return Measurement(loss / images, correct / images, divergence / images if dense is not None else math.nan)

    def _finish(self, observed: Measurement, scheme: Scheme, seconds: Mapping[str, float]) -> Measurement:
        values = [observed.loss, *observed.metrics.values()] if not self.evaluate else list(observed.metrics.values())
        error = None if all(math.isfinite(value) for value in values) else "the measured values are not finite"
        absolute = {name: cost(scheme) for name, cost in self.costs.items()}
        fractions = {name: value / self.costs[name](self.space.dense) for name, value in absolute.items()}
        return replace(observed, costs=absolute, fractions=fractions, seconds=dict(seconds), error=error)


class single_threaded:  # noqa: N801 - a context manager reads as a verb
    """A fixed number of torch threads, restored afterwards."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _named(function: object) -> str | None:
    """A stable name for a function in the protocol."""
    if function is None or isinstance(function, str):
        return function
    if isinstance(function, partial):
        return f"{_named(function.func)}{function.args}{sorted(function.keywords.items())}"
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"
