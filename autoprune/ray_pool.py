"""Worker processes on this machine or a cluster, through Ray, and what becomes of a candidate when one is lost.

The evaluator, with all that is computed once, is put into Ray's object store once; after that only integers travel.
Every worker measures one candidate at a time, and a worker that is lost is replaced:

- A candidate whose worker died, or that did not answer in time, is measured again by another. After so many retries it
  is a failed measurement with its reason, recorded like any other: the searcher was told of it, so a restart must
  tell the same.
- A worker that was lost with its whole machine is not held against its candidate.
- Where no worker can be started, or Ray itself is gone, nothing is recorded: the search ends with a
  :class:`UserError`, and the same command continues it.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from typing import Any, Self

from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.fidelity import Fidelity
from autoprune.pickling import culprit
from autoprune.pool import Workers
from autoprune.race import Race
from autoprune.ray_connection import answers, connect, first_line, gone, head, last_line, mute, target, told_in_one_line
from autoprune.scheme import Scheme
from autoprune.trial import Measurement

BEAT = 5.0  # seconds between two looks at whether Ray is still there
PATIENCE = 30.0  # seconds that Ray's head may be away; Ray ends the process of a driver that lost it for 60
START = 300.0  # seconds until the first worker must be ready
STARTS = 3  # workers in a row that may die as they start
VERDICT = 30.0  # seconds until Ray knows that a machine is lost; it misses five heartbeats first, about 15

log = logging.getLogger(__name__)


class Measurer:
    """The evaluator in a worker process. What comes in and goes out is plain data."""

    def load(self, evaluator: Evaluator, device: str, threads: int) -> str:
        """Take the evaluator; the machine this is, in Ray's terms."""
        import ray
        import torch

        torch.set_num_threads(threads)
        self.evaluator = evaluator.to(device)
        return str(ray.get_runtime_context().get_node_id())

    def measure(
        self,
        scheme: dict[str, Any],
        share: float,
        recovery: str | None,
        after: list[dict[str, Any]],
        race: tuple[float, tuple[float, ...]] | None = None,
    ) -> dict[str, Any]:
        """The measurement of a scheme, as a record."""
        rival = None if race is None else Race(*race)
        fidelity = Fidelity(share, recovery, tuple(Scheme.from_dict(earlier) for earlier in after), rival)
        return self.evaluator(Scheme.from_dict(scheme), fidelity=fidelity).to_dict()


@dataclass(eq=False)
class _Worker:
    """A worker process and the candidate that it measures; None while it starts and while it is idle."""

    actor: Any
    node: str = ""
    scheme: Scheme | None = None
    since: float = field(default_factory=time.monotonic)
    until: float = math.inf


@dataclass(frozen=True)
class _Loss:
    """An attempt at a candidate that came to nothing; it ``counts`` unless it was no fault of the candidate."""

    reason: str
    counts: bool
    seconds: float


def _failed(losses: Sequence[_Loss]) -> Measurement:
    """What is recorded of a candidate that is given up."""
    attempts = "1 attempt" if len(losses) == 1 else f"{len(losses)} attempts"
    return Measurement(
        seconds={"total": sum(loss.seconds for loss in losses)}, error=f"{losses[-1].reason}, {attempts}"
    )


class RayPool:
    """Measures on Ray; see :class:`autoprune.pool.Workers` for what can be asked for.

    Connects, or starts Ray, at once and refuses more workers than there is room for. The workers start when the
    first scheme is to be measured. A Ray that runs in this process is used as it is and left running.
    """

    def __init__(self, evaluator: Evaluator, workers: Workers) -> None:
        if (evaluator.device.type == "cuda") != (workers.gpus > 0):
            raise UserError(
                f"{workers.gpus:g} GPUs per worker, but candidates are measured on {evaluator.device.type}: "
                "say cuda with GPUs per worker (fractions share one), or neither"
            )
        self.workers = workers
        self._evaluator = evaluator
        self._reference: Any = None
        self._busy: dict[Any, _Worker] = {}  # by what they were asked last
        self._idle: list[_Worker] = []
        self._died_starting = 0
        self._looked = self._seen = time.monotonic()
        self._own = connect(workers.address)
        try:
            self._check_room()
            self._head = head()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray too if it was started here."""
        import ray

        for worker in (*self._busy.values(), *self._idle):
            with suppress(Exception):
                ray.kill(worker.actor)
        self._busy, self._idle, self._reference = {}, [], None
        if self._own and ray.is_initialized():
            ray.shutdown()
            mute(False)
        self._own = False

    # -- measuring -----------------------------------------------------------------------------

    def measure(self, schemes: Iterable[Scheme], fidelity: Fidelity) -> Iterator[tuple[Scheme, Measurement]]:
        """Each scheme with its measurement, in the order of arrival.

        A worker gets its next scheme before its last measurement is given out, so that it does not wait while that is
        recorded. What a worker raises that is not a candidate's failure is raised here.
        """
        with told_in_one_line(self.workers.address):
            self._prepare()
        coming, again = iter(schemes), deque[Scheme]()
        lost: defaultdict[Scheme, list[_Loss]] = defaultdict(list)
        race = None if fidelity.race is None else astuple(fidelity.race)
        how = (fidelity.share, fidelity.recovery, [scheme.to_dict() for scheme in fidelity.after], race)
        try:
            while True:
                with told_in_one_line(self.workers.address):
                    self._hand_out(again, coming, how)
                    if self._idle and not any(worker.scheme for worker in self._busy.values()):
                        return
                    reference, worker = self._next()
                    scheme = worker.scheme
                    if scheme is None:
                        self._started(reference, worker)
                        continue
                    found = self._answer(reference, worker)
                    if isinstance(found, _Loss):
                        lost[scheme].append(found)
                        if sum(loss.counts for loss in lost[scheme]) <= self.workers.retries:
                            log.warning("scheme %s: %s; measured again", scheme.kept, found.reason)
                            again.append(scheme)
                            continue
                        found = _failed(lost[scheme])
                    self._hand_out(again, coming, how)
                yield scheme, found
        finally:
            self._give_up()

    def _hand_out(self, again: deque[Scheme], coming: Iterator[Scheme], how: tuple[Any, ...]) -> None:
        """Give every idle worker a scheme, as long as there are some."""
        while self._idle:
            scheme = again.popleft() if again else next(coming, None)
            if scheme is None:
                return
            worker = self._idle.pop()
            worker.scheme, worker.since = scheme, time.monotonic()
            worker.until = math.inf if self.workers.timeout is None else worker.since + self.workers.timeout
            self._busy[worker.actor.measure.remote(scheme.to_dict(), *how)] = worker

    def _next(self) -> tuple[Any, _Worker]:
        """The next worker that answered, died or ran out of time, and what it was asked."""
        import ray

        while True:
            now = time.monotonic()
            if now - self._looked >= BEAT:
                self._check_head(now)
            first = min(self._busy, key=lambda reference: self._busy[reference].until)
            left = self._busy[first].until - now
            ready, _ = ray.wait(list(self._busy), timeout=max(0.0, min(BEAT, left)))
            if ready or left <= 0:
                reference = ready[0] if ready else first
                return reference, self._busy.pop(reference)

    def _answer(self, reference: Any, worker: _Worker) -> Measurement | _Loss:
        """What became of a candidate; its worker is idle afterwards, or replaced."""
        import ray
        from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError

        try:
            record = ray.get(reference, timeout=0)
        except TimeoutError:
            reason, counts = f"no answer within {self.workers.timeout:g} s", True
        except RayTaskError as error:
            self._rest(worker)
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except OutOfMemoryError:
            reason, counts = "its worker was killed, as its machine ran out of memory", True
        except RayActorError as error:
            kind = re.search(r"exit type: (\w+)", str(error))
            counts = not self._is_lost(worker.node, VERDICT if isinstance(error, ActorUnavailableError) else 0)
            reason = f"its worker died ({kind[1]})" if kind else "its worker died"
            reason = reason if counts else "its machine was lost"
        else:
            self._rest(worker)
            return Measurement.from_dict(record)
        self._drop(worker)
        self._start_one()
        return _Loss(reason, counts, time.monotonic() - worker.since)

    def _is_lost(self, node: str, patience: float) -> bool:
        """Whether a machine is gone. Ray may say first that a worker does not answer, and why only later."""
        import ray

        end = time.monotonic() + patience
        while True:
            self._check_head(time.monotonic())
            if not any(other["NodeID"] == node and other["Alive"] for other in ray.nodes()):
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(min(0.5, patience))

    # -- workers -------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Put the evaluator where workers find it, once, and have as many workers as were asked for."""
        import ray

        if self._reference is None:
            self._evaluator.prepare()
            device = self._evaluator.device
            self._evaluator.to("cpu")  # a worker may not see the GPU of the same number
            try:
                self._reference = ray.put(self._evaluator)
            except (TypeError, AttributeError, ValueError, RuntimeError) as error:
                place, thing = culprit(self._evaluator)
                raise UserError(
                    f"{place} (of type {type(thing).__name__}) cannot be pickled, so workers cannot have it: create "
                    "it where it is used, or measure with one worker"
                ) from error
            finally:
                self._evaluator.to(device)
        while len(self._busy) + len(self._idle) < self.workers.count:
            self._start_one()

    def _start_one(self) -> None:
        import ray

        # Ray itself sets OMP_NUM_THREADS, and an environment of ours would keep it from using processes it has ready.
        given = {} if self.workers.runtime_env is None else {"runtime_env": dict(self.workers.runtime_env)}
        share = {"num_cpus": self.workers.cpus, "num_gpus": self.workers.gpus}
        actor: Any = ray.remote(Measurer).options(**share, **given, max_restarts=0).remote()
        loading = actor.load.remote(self._reference, self._evaluator.device.type, self._evaluator.threads)
        self._busy[loading] = _Worker(actor, until=time.monotonic() + START)

    def _started(self, reference: Any, worker: _Worker) -> None:
        """A worker that was starting is ready, or is not to be."""
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

        try:
            worker.node = ray.get(reference, timeout=0)
        except TimeoutError:
            worker.until = math.inf
            self._busy[reference] = worker
            if not self._idle and not any(other.node for other in self._busy.values()):
                free = {name: f"{ray.available_resources().get(name, 0):g}" for name in ("CPU", "GPU")}
                raise UserError(
                    f"no worker was ready within {START:g} s: {self._asked()}, and Ray has {free['CPU']} CPUs and "
                    f"{free['GPU']} GPUs free at the moment; wait until there is room, or ask for less"
                ) from None
        except RayTaskError as error:
            self._drop(worker)
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise UserError(
                f"a worker cannot start: {type(cause).__name__}: {first_line(cause)}; what the network and its data "
                "are made of must be importable there (installed, or in the runtime environment)"
            ) from error
        except (RayActorError, OutOfMemoryError) as error:
            self._drop(worker)
            self._died_starting += 1
            if self._died_starting == STARTS:
                raise UserError(
                    f"{STARTS} workers in a row died as they started ({last_line(error)}): the machine may be short "
                    "of memory, or Ray is ending; everything measured is in the ledger, the same command continues"
                ) from error
            self._start_one()
        else:
            self._died_starting = 0
            self._rest(worker)

    def _rest(self, worker: _Worker) -> None:
        worker.scheme, worker.until = None, math.inf
        self._idle.append(worker)

    def _drop(self, worker: _Worker) -> None:
        import ray

        with suppress(Exception):
            ray.kill(worker.actor)

    def _give_up(self) -> None:
        """Drop the workers that still measure: nobody waits for them any more."""
        for reference, worker in list(self._busy.items()):
            if worker.scheme is not None:
                self._drop(self._busy.pop(reference))

    # -- Ray itself ----------------------------------------------------------------------------

    def _asked(self) -> str:
        several = "s" if self.workers.count > 1 else ""
        gpus = f" and {self.workers.gpus:g} GPUs" if self.workers.gpus else ""
        return f"{self.workers.count} worker{several} of {self.workers.cpus:g} CPUs{gpus} asked for"

    def _check_room(self) -> None:
        """Refuse more workers than the machines can hold at once."""
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.workers.cpus, "GPU": self.workers.gpus}
        room = sum(
            min((int(there.get(name, 0) / share + 1e-9) for name, share in wanted.items() if share), default=10**9)
            for there in machines
        )
        if room < self.workers.count:
            has = "; ".join(f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs" for there in machines[:8])
            raise UserError(
                f"{self._asked()}, there is room for {room} (machines: {has}): ask for fewer workers, or for a "
                "fraction of a CPU or GPU each"
            )

    def _check_head(self, now: float) -> None:
        """End the search with a word before Ray ends the process of a driver whose cluster is gone."""
        self._looked = now
        if self._head is None or answers(*self._head):
            self._seen = now
        elif self._own_instance or now - self._seen >= PATIENCE:
            raise UserError(gone(self.workers.address, "its head does not answer"))

    @property
    def _own_instance(self) -> bool:
        """Whether Ray was started here, so that nobody will start its head again."""
        return self._own and target(self.workers.address) == "local"
