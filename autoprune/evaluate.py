"""The evaluator: scheme in, measurement out. Nothing else touches the model and the data."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autoprune import criteria, folding, layout, masking, recover, slicing
from autoprune.calibrated import AS_IT_IS, POWERS, divergences, least
from autoprune.cost import Cost, account, costs
from autoprune.criteria import Criterion
from autoprune.errors import UserError
from autoprune.fidelity import FULL, Fidelity
from autoprune.forward import batch_size, call, evaluating, leading, logits, to
from autoprune.hints import Hints
from autoprune.precision import FULL as FULL_PRECISION
from autoprune.precision import check, passes
from autoprune.race import Race
from autoprune.recover import Context, Recovery
from autoprune.references import stable_name
from autoprune.scheme import Granularity, Scheme
from autoprune.slicing import Kept
from autoprune.space import SearchSpace
from autoprune.statistics import Batches, Statistics, class_labels
from autoprune.threads import fixed_threads
from autoprune.trial import Measurement
from autoprune.tuning import Origin, Tuning, embed, tune

Evaluate = Callable[[nn.Module], Mapping[str, float]]

RECOVERY, CRITERION = "least_squares+recalibrate_bn", "obs"
OF_WEIGHTS = "recalibrate_bn", "magnitude"  # recovery and criterion where single weights are removed
ORIGINS = 2  # networks in memory that candidates were cut from: the present one and the one before


def usual(granularity: Granularity) -> tuple[str, str]:
    """The recovery and the criterion of those who name none."""
    return (RECOVERY, CRITERION) if granularity == "channel" else OF_WEIGHTS


def cutting(granularity: Granularity) -> Any:
    """Who makes networks of schemes: a module with these verbs for channels, and one for single weights."""
    return slicing if granularity == "channel" else masking


class Evaluator:
    """Slices, repairs and measures candidates of one model.

    ``calibration`` feeds statistics and recovery, ``validation`` gives loss, KL to the dense network and
    accuracy; both are lists of (input, label) batches. Without class labels there is only the KL. Another
    task passes ``evaluate(model) -> {name: number}``, whose ``loss`` and ``accuracy`` entries, if any, are
    used as such. The model is moved to ``device`` and otherwise left as it is.

    Everything is computed with ``threads`` threads, always the same number: ``torch.linalg`` gives
    other last bits with other numbers. ``seed`` draws the positions that Gram matrices are sampled at and the order of
    ``tuning``'s batches; a search has a seed of its own, so that searches with different ones share measurements.

    With a ``tuning`` every candidate is trained for a moment after its recovery, from the dense weights or, measured
    ``after`` other schemes, from those of the last of them, tuned likewise; then its batch norms are recalibrated. A
    fidelity that names another recovery leaves all this out. Gram matrices are always the dense network's. The
    networks that candidates started from last stay in memory; a missing one is trained again, to the same weights.

    ``precision`` is what the forward passes of recalibration and scoring compute in (:mod:`autoprune.precision`), the
    dense network's own answers among them. On other data, such as test images, networks compute in single precision.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace,
        calibration: Batches,
        validation: Batches,
        *,
        criterion: str | Criterion | None = None,
        recovery: str | Recovery | None = None,
        evaluate: Evaluate | None = None,
        tuning: Tuning | None = None,
        cost_functions: Mapping[str, Cost] | None = None,
        device: str | torch.device = "cpu",
        threads: int = 1,
        seed: int = 0,
        precision: str = FULL_PRECISION,
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
        self._parts = layout.Parts(validation)
        usual_recovery, usual_criterion = usual(space.granularity)
        self.criterion = usual_criterion if criterion is None else criterion
        self.recovery = usual_recovery if recovery is None else recovery
        self.evaluate = evaluate
        self.tuning = None if tuning is None else replace(tuning, batches=self._laid_out(tuning.batches))
        self.costs = costs(space) if cost_functions is None else cost_functions
        self.threads = threads
        self.seed = seed
        self.precision = check(precision)
        self.identity = dict(identity or {})
        self._criterion = criteria.find(self.criterion, space.granularity)
        self._recovery = recover.find(self.recovery, space.granularity)
        self.statistics = Statistics(self.model, space, self.calibration, seed=seed)
        self._dense = Origin(self.model, self._cutting.everything(space))
        self._origins: dict[tuple[Scheme, ...], Origin] = {}
        self._remembered: dict[Any, Any] = {}  # by recoveries, for all candidates

    def _laid_out(self, batches: Batches) -> Batches:
        return layout.ChannelsLast(batches) if self._channels_last else batches

    @property
    def _cutting(self) -> Any:
        return cutting(self.space.granularity)

    # -- what is known once --------------------------------------------------------------------

    @cached_property
    def scores(self) -> list[NDArray[np.float64]]:
        """The criterion's unit scores per group."""
        with fixed_threads(self.threads):
            return criteria.scores(self._criterion, self.model, self.statistics)

    @cached_property
    def _ranked(self) -> Any:
        """The units of every group in the order in which they stay."""
        return self._cutting.order(self.space, self.scores)

    def hints(self) -> Hints:
        """Scores for searchers, each group scaled to unit length so that groups compare.

        Those of single weights are left as the criterion has them: how they compare is its choice.
        """
        if self.space.granularity != "channel":
            return Hints(tuple(masking.unit_scores(self.space, self.scores)), tuning=self.tuning is not None)
        scores = tuple(score / (np.linalg.norm(score) or 1.0) for score in self.scores)
        return Hints(scores, tuning=self.tuning is not None)

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Everything that changes a measurement, as a JSON-ready record.

        A callable is known by its name alone, and model and data by their sizes: what tells two of them apart
        belongs into ``identity``.
        """
        record = {
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
        if self.precision != FULL_PRECISION:
            record["precision"] = self.precision
        if self.tuning is not None:
            options = {f.name: getattr(self.tuning, f.name) for f in fields(self.tuning) if f.name != "batches"}
            record["tuning"] = {"data": _sizes(self.tuning.batches), **options}
        return record

    @property
    def fingerprint(self) -> str:
        """Hash of the protocol: measurements with the same one may be mixed."""
        return hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _scored(self) -> Batches:
        """The validation batches in the parts that pass at a time."""
        if self.evaluate is not None:
            return self.validation
        with fixed_threads(self.threads):
            return self._laid_out(self._parts) if layout.runs_in_parts(self.model, self._parts) else self.validation

    @cached_property
    def _norms(self) -> folding.Norms:
        """The batch norms that scoring can do without."""
        if self.evaluate is not None:
            return {}
        with fixed_threads(self.threads):
            return folding.foldable(self.model, self._scored[0][0])

    def _folded(self, model: nn.Module) -> nn.Module:
        """A network that will only be scored; it is changed in place."""
        folding.fold(model, self._norms)
        return model

    @cached_property
    def _dense_answers(self) -> list[Tensor]:
        """Log-probabilities of the dense network on the validation batches; empty for other tasks."""
        if self.evaluate is not None:
            return []
        model = self._folded(copy.deepcopy(self.model))
        with self._looking(model), passes(self.precision, self.device):
            return [self._log_probabilities(model, inputs) for inputs, _ in self._scored]

    @cached_property
    def dense(self) -> Measurement:
        """The untouched network, measured the same way."""
        _ = self._dense_answers
        start = time.perf_counter()
        observed = self.observe(self._folded(copy.deepcopy(self.model)))
        return self.complete(observed, self.space.dense, {"validate": time.perf_counter() - start})

    def prepare(self) -> None:
        """Compute now what is computed once, so that copies of this evaluator have it."""
        _ = self._ranked, self.dense
        # Whatever the recovery collects, a first repair collects; what is wrong with it shows in the candidates.
        with suppress(Exception), fixed_threads(self.threads):
            kept = self.kept(self.space.smallest)
            model = self._cutting.prune(self.model, self.space, kept)
            self._recovery(model, self._context(self.model, kept))

    def to(self, device: str | torch.device) -> Self:
        """Move everything to a device, in place."""
        self.device = torch.device(device)
        self.model.to(self.device)
        if "_dense_answers" in vars(self):
            self._dense_answers = [answer.to(self.device) for answer in self._dense_answers]
        self._origins.clear()
        return self

    # -- one candidate -------------------------------------------------------------------------

    def kept(self, scheme: Scheme) -> list[NDArray[Any]]:
        """The units that stay in each group, or the mask of each tensor."""
        self.space.check(scheme)
        found: list[NDArray[Any]] = self._cutting.best(
            self.space, scheme, self._ranked if scheme.indices is None else ()
        )
        return found

    def candidate(self, scheme: Scheme, fidelity: Fidelity = FULL) -> nn.Module:
        """The pruned, repaired and perhaps tuned network of a scheme, in evaluation mode."""
        repair = self._recovery if fidelity.recovery is None else self._find_recovery(fidelity.recovery)
        origin, kept = self._origin(fidelity.after), self.kept(scheme)
        origin.check(self.space, kept)
        with fixed_threads(self.threads):
            model: nn.Module = self._cutting.prune(origin.model, self.space, kept)
            self._cutting.check_removed(model, self.space, scheme)
            context = self._context(origin.model, kept, fidelity.share)
            repair(model, context)
            if self.tuning is not None and fidelity.recovery is None:
                sparse = self.space.granularity != "channel"
                masks = masking.by_name(self.space, kept, self.device) if sparse else None
                tune(model, self.tuning, (self.seed, len(fidelity.after)), fidelity.share, masks)
                recover.recalibrate_bn(model, context)
            if self.space.granularity != "channel":  # a repair may bring weights back
                masking.check_removed(model, self.space, scheme)
        return model.eval()

    def _find_recovery(self, name: str) -> Recovery:
        return recover.find(name, self.space.granularity)

    def _context(self, model: nn.Module, kept: Kept, share: float = 1.0) -> Context:
        known = self.space.granularity == "channel" and "_ranked" in vars(self)  # schemes with indices need no ranking
        ranked = self._ranked if known else ()
        return Context(
            model, self.space, kept, self.statistics, self.calibration, share, self._remembered, ranked, self.precision
        )

    def _origin(self, after: tuple[Scheme, ...]) -> Origin:
        """What candidates are cut from that are measured after other schemes: the last of them, tuned."""
        if not after or self.tuning is None:
            return self._dense
        if after not in self._origins:
            kept = self.kept(after[-1])
            tuned = self.candidate(after[-1], Fidelity(after=after[:-1]))
            network = embed(self.model, self.space, kept, tuned) if self.space.granularity == "channel" else tuned
            self._origins[after] = Origin(network, kept)
            if len(self._origins) > ORIGINS:
                del self._origins[next(iter(self._origins))]
        return self._origins[after]

    def __call__(self, scheme: Scheme, *, fidelity: Fidelity = FULL) -> Measurement:
        """Measure a scheme. Whatever goes wrong with the candidate becomes a failed measurement.

        A task with its own ``evaluate`` is always judged by the whole of it; only its repair can be spared.
        """
        self.space.check(scheme)
        _ = self._ranked, self._dense_answers  # known once: not charged to the first candidate
        if fidelity.recovery is not None:
            self._find_recovery(fidelity.recovery)  # a wrong name is the searcher's mistake, not the candidate's
        if fidelity.after:
            self._origin(fidelity.after).check(self.space, self.kept(scheme))
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        try:
            model = self.candidate(scheme, fidelity)
            seconds["recover"] = time.perf_counter() - start
            observed = self.observe(self._folded(model), share=fidelity.share, race=fidelity.race)
            seconds["total"] = time.perf_counter() - start
            seconds["validate"] = seconds["total"] - seconds["recover"]
            return self.complete(observed, scheme, seconds)
        except Exception as error:  # noqa: BLE001 - a candidate may break in any way; the search goes on
            seconds["total"] = time.perf_counter() - start
            return Measurement(seconds=seconds, error=f"{type(error).__name__}: {error}".splitlines()[0])

    def observe(
        self, model: nn.Module, batches: Batches | None = None, *, share: float = 1.0, race: Race | None = None
    ) -> Measurement:
        """Loss, accuracy and KL of any network on ``batches`` (default: a share of the validation set's).

        There is no KL on other batches, and neither loss nor accuracy where a batch has no class labels. For a
        task with its own ``evaluate`` that function decides. A ``race`` ends it when it is lost.
        """
        if self.evaluate is not None:
            with fixed_threads(self.threads), evaluating(model):
                return _own(self.evaluate(model))
        dense = self._dense_answers if batches is None else []
        seen: list[_Sums] = []
        losses: list[float] = []
        with self._looking(model), passes(self.precision if batches is None else FULL_PRECISION, self.device):
            looked_at = leading(self._scored, share) if batches is None else self._laid_out(batches)
            for number, (inputs, labels) in enumerate(looked_at):
                log_p = self._log_probabilities(model, inputs)
                seen.append(_sums(log_p, labels, dense[number] if dense else None))
                losses.append(seen[-1].loss / max(1, seen[-1].answers))
                if race is not None and race.is_lost(losses):
                    break
        answers = sum(sums.answers for sums in seen)
        if not answers:
            raise UserError("there is no image to observe: give at least one batch")
        _, loss, accuracy, tempered = (sum(column) / answers for column in zip(*seen, strict=True))
        found = Measurement(loss, accuracy, float(tempered[AS_IT_IS]), calibrated_kl=least(tempered))
        if race is None or math.isnan(found.loss):
            return found
        found = replace(found, losses=tuple(losses), seen=len(losses) / len(self._scored))
        return replace(found, loss=race.expected(losses)) if found.stopped else found

    @contextmanager
    def _looking(self, model: nn.Module) -> Iterator[None]:
        """Forward passes that change nothing."""
        with fixed_threads(self.threads), torch.inference_mode(), evaluating(model):
            yield

    def _log_probabilities(self, model: nn.Module, inputs: Any) -> Tensor:
        answer = logits(call(model, to(inputs, self.device))).float()
        if answer.dim() < 2:
            raise UserError(
                f"the model answers with shape {tuple(answer.shape)}, which are no class scores: "
                "pass evaluate(model) -> {name: number}"
            )
        return functional.log_softmax(answer, 1)

    def complete(self, observed: Measurement, scheme: Scheme, seconds: Mapping[str, float]) -> Measurement:
        """What was observed of a network with a scheme's costs; failed if a number that the task has is not finite."""
        values = dict(observed.metrics)
        if self.evaluate is None:
            values = {"kl": observed.kl} | ({} if math.isnan(observed.accuracy) else {"loss": observed.loss})
        broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if broken:
            return Measurement(seconds=seconds, error=", ".join(broken))
        absolute, fractions = account(scheme, self.space, self.costs)
        return replace(observed, costs=absolute, fractions=fractions, seconds=seconds)


class _Sums(NamedTuple):
    """Over the answers to a batch; NaN where there is no such thing."""

    answers: int
    loss: float
    correct: float
    tempered: Tensor


def _sums(log_p: Tensor, labels: Any, dense: Tensor | None) -> _Sums:
    """What log-probabilities (images, classes, …) are worth; ``dense`` are those of the dense network."""
    loss = correct = math.nan
    tempered = math.nan * POWERS
    if dense is not None:
        tempered = divergences(log_p, dense[: len(log_p)])
    classes = class_labels(labels) if log_p.dim() == 2 else None
    if classes is not None:
        classes = classes.to(log_p.device)
        loss = float(functional.nll_loss(log_p, classes, reduction="sum"))
        correct = float((log_p.argmax(1) == classes).sum())
    return _Sums(log_p.numel() // log_p.shape[1], loss, correct, tempered)


def _own(found: Any) -> Measurement:
    """What a user's ``evaluate`` returned, as a measurement."""
    try:
        metrics = {str(name): float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"evaluate returned {found!r}: a dict from names to numbers is needed") from None
    return Measurement(metrics.get("loss", math.nan), metrics.get("accuracy", math.nan), metrics=metrics)


def _sizes(batches: Batches) -> dict[str, int]:
    return {"batches": len(batches), "samples": sum(batch_size(inputs) for inputs, _ in batches)}
