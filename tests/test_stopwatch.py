from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import UserError
from autoprune.latency import stopwatch
from autoprune.latency.conditions import Conditions, machine
from autoprune.latency.stopwatch import SHORTEST, Timing, measure, too_noisy
from autoprune.latency.units import Replay, units
from autoprune.operations import record
from autoprune.space import SearchSpace


class Clock:
    """Time passes only where a run says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.readings = 0

    def run(self, name: str, *seconds: float) -> Callable[[], None]:
        """A run that takes these times in turn, then the last one again and again."""
        left = list(seconds)

        def step() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return step

    def __call__(self, run: Callable[[], None]) -> float:
        start = self.now
        run()
        self.readings += 1
        return self.now - start


def test_runs_take_turns() -> None:
    clock = Clock()
    measure({"a": clock.run("a", 1.0), "b": clock.run("b", 2.0)}, clock, repeats=4, warm_up=1)
    assert clock.calls == ["a", "b"] * 5


def test_warming_up_does_not_count() -> None:
    clock = Clock()
    timing = measure({"a": clock.run("a", 90.0, 50.0, 1.0)}, clock, repeats=5, warm_up=2)["a"]
    assert (timing.median, timing.low, timing.high, timing.repeats) == (1e3, 1e3, 1e3, 5)


def test_a_timing_has_the_median_and_the_quartiles_in_milliseconds() -> None:
    clock = Clock()
    timing = measure({"a": clock.run("a", 5.0, 1.0, 4.0, 2.0, 3.0)}, clock, repeats=5, warm_up=0)["a"]
    assert (timing.low, timing.median, timing.high) == (2000, 3000, 4000)
    assert timing.spread == pytest.approx(2 / 3)


def test_the_error_of_a_median_shrinks_with_the_root_of_the_repeats() -> None:
    chance = np.random.default_rng(0)
    medians = [Timing.of(chance.normal(1, 0.1, 21)) for _ in range(400)]
    assert np.std([timing.median for timing in medians]) / 1e3 == pytest.approx(
        np.mean([timing.error for timing in medians]), rel=0.15
    )


def test_what_is_short_is_called_several_times_between_two_readings() -> None:
    clock = Clock()
    short = SHORTEST / 49.5
    timings = measure({"a": clock.run("a", short), "b": clock.run("b", 10 * SHORTEST)}, clock, repeats=6, warm_up=2)
    assert timings["a"].median == pytest.approx(1e3 * short)
    assert timings["b"].median == pytest.approx(1e4 * SHORTEST)
    assert clock.readings == 16
    assert clock.calls.count("b") == 8
    assert clock.calls.count("a") == 1 + 7 * 50


def test_a_first_call_that_is_slow_does_not_hide_that_others_are_short() -> None:
    clock = Clock()
    short = SHORTEST / 19.5
    measure({"a": clock.run("a", 1.0, short)}, clock, repeats=3, warm_up=2)
    assert clock.calls.count("a") == 2 + 3 * 20


def test_a_restless_machine_is_named_with_its_worst_network() -> None:
    calm, restless = Timing(10.0, 9.9, 10.2, 21), Timing(10.0, 8.0, 12.0, 21)
    assert too_noisy({"a": calm}) is None
    told = too_noisy({"calm": calm, "wild": restless})
    assert told is not None and "too noisy" in told and "of wild lie 40% apart" in told and "--repeats" in told


def test_no_repeats_are_refused() -> None:
    with pytest.raises(UserError, match="0 repeats"):
        measure({}, Clock(), repeats=0)


def test_a_device_without_a_clock_is_refused() -> None:
    with pytest.raises(UserError, match="'meta' has no clock here: use cpu, cuda or mps"):
        stopwatch.clock(torch.device("meta"))


def test_on_cuda_a_run_stands_between_two_events_of_the_devices_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.done = False

        def record(self, stream: Any) -> None:
            told.append(("record", stream))

        def synchronize(self) -> None:
            told.append("synchronize")
            self.done = True

        def elapsed_time(self, end: Event) -> float:
            assert end.done, "the clock was read before the work was done"
            told.append("read")
            return 7.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = stopwatch.clock(torch.device("cuda:1"))
    assert clock(lambda: told.append("run")) == 7.5e-3
    stream = ("record", "stream of cuda:1")
    assert told == [stream, "run", stream, "synchronize", "read"]
    assert measure({"a": lambda: None}, clock, repeats=3)["a"].median == 7.5


def test_on_mps_the_device_is_waited_for_before_both_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: told.append("wait"))
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: told.append("read") or len(told)))
    assert stopwatch.clock(torch.device("mps"))(lambda: told.append("run")) == 3
    assert told == ["wait", "read", "run", "wait", "read"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown: use one of float32"),
        ({"memory_format": "nhwc"}, "memory_format 'nhwc' is unknown"),
        ({"backend": "tvm"}, "backend 'tvm' is unknown: use one of eager, compile, onnxruntime"),
        ({"backend": ["eager"]}, "is unknown"),
        ({"batch": 0}, "batch = 0: a whole number of at least 1"),
        ({"threads": -1}, "threads = -1"),
        ({"threads": "2"}, "threads = '2'"),
        ({"batch": 1.5}, "batch = 1.5"),
        ({"device": "gpu"}, "device 'gpu' is unknown: use cpu, cuda, cuda:1 or mps"),
        ({"device": 3.5}, "device 3.5 is unknown"),
    ],
)
def test_conditions_that_are_none_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Conditions(**given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="torch sees no CUDA device here"):
        Conditions(device="cuda")


def test_conditions_survive_a_record_and_refuse_what_they_do_not_know() -> None:
    conditions = Conditions("cpu", 4, 2, "bfloat16", "channels_last", "compile")
    assert Conditions.from_dict(conditions.to_dict()) == conditions
    assert str(conditions) == "cpu, batch 4, 2 threads, bfloat16, channels_last, compile"
    with pytest.raises(UserError, match="condition 'bach' is unknown: known are backend, batch"):
        Conditions.from_dict({"bach": 2})


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


class Witness(nn.Module):
    """Writes down what it is given; its copies write into the same list."""

    told: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 1, 1))

    def forward(self, x: Any, y: Any) -> Any:
        tensors = [(t.dtype, t.is_contiguous(memory_format=torch.channels_last), len(t)) for t in (x, y, self.weight)]
        self.told.append([*tensors, self.training, torch.get_num_threads(), torch.is_inference_mode_enabled()])
        return x


def test_networks_are_timed_as_copies_in_evaluation_mode_under_the_conditions() -> None:
    Witness.told.clear()
    model = Witness().double().train()
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    before, threads = model.weight.clone(), torch.get_num_threads()
    conditions = Conditions(batch=5, threads=2, dtype="bfloat16", memory_format="channels_last")
    timings = conditions.measure({"a": model}, (x, x.long()), repeats=3)
    assert timings["a"].repeats == 3
    half = torch.bfloat16
    expected = [(half, True, 5), (torch.int64, True, 5), (half, True, 4), False, 2, True]
    assert len(Witness.told) > 3 and all(told == expected for told in Witness.told)
    assert model.training and model.weight.dtype == torch.float64 and torch.equal(model.weight, before)
    assert torch.get_num_threads() == threads


def test_a_network_that_does_not_run_is_told_with_the_conditions() -> None:
    with pytest.raises(UserError, match="does not run under cpu, batch 1, .*RuntimeError: .*; try other conditions"):
        Conditions().run(net(), torch.rand(1, 5, 8, 8))


def test_the_machine_says_what_it_is() -> None:
    told = machine("cpu")
    assert told["torch"] == torch.__version__ and told["name"] and told["system"]


def test_onnxruntime_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs more packages"):
        Conditions(backend="onnxruntime").run(net(), torch.rand(1, 3, 8, 8))


BACKENDS = [
    pytest.param(
        "onnxruntime",
        marks=pytest.mark.skipif(not find_spec("onnxruntime"), reason="no onnxruntime"),
    ),
    pytest.param("compile", marks=pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_backends_answer_as_torch_does(backend: str) -> None:
    model, example = net().eval(), torch.rand(2, 3, 8, 8)
    answer = Conditions(batch=2, backend=backend).run(model, example)()
    with torch.no_grad():
        expected = model(example)
    assert torch.allclose(torch.as_tensor(answer[0] if isinstance(answer, list) else answer), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_backends_run_pieces_of_several_inputs(backend: str) -> None:
    class Sum(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.relu(torch.add(x, x * 2))

    operations = record(nn.Sequential(net(), Sum()), torch.rand(1, 3, 8, 8), SearchSpace((), (), {}))
    unit = next(unit for unit in units(operations) if unit.operations[0].name == "add")
    replay = Replay(unit, operations.sizes(()))
    answer = Conditions(backend=backend).run(replay, replay.example)()
    found = torch.as_tensor(answer[0] if isinstance(answer, list) else answer)
    assert torch.allclose(found, torch.relu(replay.example[0] + replay.example[1]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_many_compiled_networks_are_each_compiled_once_and_none_falls_back() -> None:
    """One code object, many widths: torch.compile gives up on the ninth unless they are kept apart."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    number = torch._dynamo.config.recompile_limit + 2
    conditions = Conditions(backend="compile")
    runs = [conditions.run(nn.Linear(3, width), torch.rand(1, 3)) for width in range(1, number + 1)]
    with torch.inference_mode():
        for run in runs:
            run()
    assert counters["stats"]["unique_graphs"] == number
