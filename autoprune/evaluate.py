"""The evaluator: scheme in, measurement out. Nothing else touches the model and the data."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autoprune import criteria, layout, recover
from autoprune.cost import Cost, account, costs
from autoprune.criteria import Criterion
from autoprune.errors import UserError
from autoprune.forward import batch_size, call, evaluating, logits, to
from autoprune.hints import Hints
from autoprune.recover import Context, Recovery
from autoprune.references import stable_name
from autoprune.scheme import Scheme
from autoprune.slicing import check_removed, choose, prune
from autoprune.space import SearchSpace
from autoprune.statistics import Batches, Statistics, class_labels
from autoprune.threads import fixed_threads
from autoprune.trial import Measurement

Evaluate = Callable[[nn.Module], Mapping[str, float]]

RECOVERY = "least_squares+recalibrate_bn"
CRITERION = "obs"


class Evaluator:
    """Slices, repairs and measures candidates of one model.

    ``calibration`` feeds statistics and recovery, ``validation`` gives loss, KL to the dense network and
    accuracy; both are lists of (input, label) batches. Without class labels there is only the KL. Another
    task passes ``evaluate(model) -> {name: number}``, whose ``loss`` and ``accuracy`` entries, if any, are
    used as such. The model is moved to ``device`` and otherwise left as it is.

    Everything is computed with ``threads`` threads, always the same number: ``torch.linalg`` gives
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
        if not len(calibration):
            raise UserError("the calibration set holds no batch: statistics and recovery need at least one")
        if evaluate is None and not len(validation):
            raise UserError("the validation set holds no batch: give at least one, or an evaluate function")
        if threads < 1:
            raise UserError(f"threads = {threads}: at least 1 is needed")
        self.device = torch.device(device)
        there = next(model.parameters()).device == self.device
        self.model = model if there else copy.deepcopy(model).to(self.device)  # the caller's stays where it is
        self.space = space
        self._channels_last = layout.runs_channels_last(self.model, calibration[0][0])
        self.calibration = self._laid_out(calibration)
        self.validation = self._laid_out(validation)
        self.criterion = criterion
        self.recovery = recovery
        self.evaluate = evaluate
        self.costs = costs(space) if cost_functions is None else cost_functions
        self.threads = threads
        self.seed = seed
        self.identity = dict(identity or {})
        self._criterion = criteria.find(criterion)
        self._recovery = recover.find(recovery)
        self.statistics = Statistics(self.model, space, self.calibration, seed=seed)

    def _laid_out(self, batches: Batches) -> Batches:
        return layout.ChannelsLast(batches) if self._channels_last else batches

    # -- what is known once --------------------------------------------------------------------

    @cached_property
    def scores(self) -> list[NDArray[np.float64]]:
        """The criterion's unit scores per group."""
        with fixed_threads(self.threads):
            return criteria.scores(self._criterion, self.model, self.statistics)

    def hints(self) -> Hints:
        """Scores for searchers, each group scaled to unit length so that groups compare."""
        return Hints(scores=tuple(score / (np.linalg.norm(score) or 1.0) for score in self.scores))

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Everything that changes a measurement, as a JSON-ready record.

        A callable is known by its name alone, and model and data by their sizes: what tells two of them apart
        belongs into ``identity``.
        """
        return {
            "space": self.space.fingerprint,
            "criterion": stable_name(self.criterion),
            "recovery": stable_name(self.recovery),
            "evaluate": stable_name(self.evaluate),
            "calibration": _sizes(self.calibration),
            "validation": _sizes(self.validation),
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
        with fixed_threads(self.threads), torch.inference_mode(), evaluating(self.model):
            return [self._log_probabilities(self.model, inputs) for inputs, _ in self.validation]

    @cached_property
    def dense(self) -> Measurement:
        """The untouched network, measured the same way."""
        _ = self._dense_answers
        start = time.perf_counter()
        observed = self.observe(self.model)
        return self._finish(observed, self.space.dense, {"validate": time.perf_counter() - start})

    # -- one candidate -------------------------------------------------------------------------

    def kept(self, scheme: Scheme) -> list[NDArray[np.int64]]:
        """The units that stay in each group."""
        return choose(self.space, scheme, self.scores if scheme.indices is None else ())

    def candidate(self, scheme: Scheme, recovery: str | Recovery | None = None) -> nn.Module:
        """The pruned and repaired network of a scheme, in evaluation mode."""
        repair = self._recovery if recovery is None else recover.find(recovery)
        with fixed_threads(self.threads):
            kept = self.kept(scheme)
            model = prune(self.model, self.space, kept)
            check_removed(model, self.space, scheme)
            repair(model, Context(self.model, self.space, kept, self.statistics, self.calibration))
        return model.eval()

    def __call__(self, scheme: Scheme, recovery: str | Recovery | None = None) -> Measurement:
        """Measure a scheme. Whatever goes wrong with the candidate becomes a failed measurement."""
        self.space.check(scheme)
        _ = self.scores, self._dense_answers  # known once: not charged to the first candidate
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        try:
            model = self.candidate(scheme, recovery)
            seconds["recover"] = time.perf_counter() - start
            observed = self.observe(model)
            seconds["total"] = time.perf_counter() - start
            seconds["validate"] = seconds["total"] - seconds["recover"]
            return self._finish(observed, scheme, seconds)
        except Exception as error:  # noqa: BLE001 - a candidate may break in any way; the search goes on
            seconds["total"] = time.perf_counter() - start
            return Measurement(seconds=seconds, error=f"{type(error).__name__}: {error}".splitlines()[0])

    def observe(self, model: nn.Module, batches: Batches | None = None) -> Measurement:
        """Loss, accuracy and KL of any network on ``batches`` (default: the validation set).

        There is no KL on other batches, and neither loss nor accuracy where a batch has no class labels. For a
        task with its own ``evaluate`` that function decides.
        """
        if self.evaluate is not None:
            with fixed_threads(self.threads), evaluating(model):
                return _own(self.evaluate(model))
        dense = self._dense_answers if batches is None else []
        loss = correct = divergence = 0.0
        answers = 0
        with fixed_threads(self.threads), torch.inference_mode(), evaluating(model):
            for number, (inputs, labels) in enumerate(self.validation if batches is None else self._laid_out(batches)):
                log_p = self._log_probabilities(model, inputs)
                answers += log_p.numel() // log_p.shape[1]
                if dense:
                    divergence += float(functional.kl_div(log_p, dense[number], reduction="sum", log_target=True))
                target = class_labels(labels) if log_p.dim() == 2 else None
                if target is None:
                    loss = correct = math.nan
                else:
                    target = target.to(self.device)
                    loss += float(functional.nll_loss(log_p, target, reduction="sum"))
                    correct += float((log_p.argmax(1) == target).sum())
        if not answers:
            raise UserError("there is no image to observe: give at least one batch")
        return Measurement(loss / answers, correct / answers, divergence / answers if dense else math.nan)

    def _log_probabilities(self, model: nn.Module, inputs: Any) -> Tensor:
        answer = logits(call(model, to(inputs, self.device))).float()
        if answer.dim() < 2:
            raise UserError(
                f"the model answers with shape {tuple(answer.shape)}, which are no class scores: "
                "pass evaluate(model) -> {name: number}"
            )
        return functional.log_softmax(answer, 1)

    def _finish(self, observed: Measurement, scheme: Scheme, seconds: Mapping[str, float]) -> Measurement:
        """With its costs; failed if a number that the task has is not finite."""
        values = dict(observed.metrics)
        if self.evaluate is None:
            values = {"kl": observed.kl} | ({} if math.isnan(observed.accuracy) else {"loss": observed.loss})
        broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if broken:
            return Measurement(seconds=seconds, error=", ".join(broken))
        absolute, fractions = account(scheme, self.space, self.costs)
        return replace(observed, costs=absolute, fractions=fractions, seconds=seconds)


def _own(found: Any) -> Measurement:
    """What a user's ``evaluate`` returned, as a measurement."""
    try:
        metrics = {str(name): float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"evaluate returned {found!r}: a dict from names to numbers is needed") from None
    return Measurement(metrics.get("loss", math.nan), metrics.get("accuracy", math.nan), metrics=metrics)


def _sizes(batches: Batches) -> dict[str, int]:
    return {"batches": len(batches), "samples": sum(batch_size(inputs) for inputs, _ in batches)}
