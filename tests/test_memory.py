from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from autoprune.forward import call
from autoprune.latency.calibrate import sliced
from autoprune.memory import PeakMemory
from autoprune.models import load
from autoprune.operations import record
from autoprune.search_spaces.traced import trace
from autoprune.space import SearchSpace
from networks import NETWORKS, Function, conv, lively


def space_of(model: nn.Module, example: Any) -> SearchSpace:
    return trace(lively(model), example)


def peak(model: nn.Module, example: Any, batch: int | None = None) -> tuple[PeakMemory, SearchSpace]:
    space = space_of(model, example)
    size = len(example) if isinstance(example, Tensor) else 1
    return PeakMemory.of(record(model, example, space, batch or size)), space


def measured(model: nn.Module, example: Tensor, folder: Path) -> int:
    """Bytes that torch's profiler saw allocated at most, beyond what was there before, and the input."""
    with torch.inference_mode():
        model(example)
        gc.collect()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            call(model, example)
    path = folder / "trace.json"
    profiler.export_chrome_trace(str(path))
    told = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    told.sort(key=lambda event: event["ts"])
    alive, highest = 0, 0
    for event in told:
        alive += event["args"]["Bytes"]
        highest = max(highest, alive)
    return highest + example.numel() * example.itemsize


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))


def test_the_peak_of_a_chain_is_the_input_and_the_largest_two_neighbours() -> None:
    cost, space = peak(chain(), rows(4, 6))
    assert cost(space.dense) == 4 * 4 * (6 + 16 + 16)
    assert cost(space.dense.replace(0, 2)) == 4 * 4 * (6 + 5 + 5)
    assert cost(space.dense.replace(0, 4).replace(1, 1)) == 4 * 4 * (6 + 4 + 4)


def test_an_activation_in_place_takes_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Linear(16, 5), nn.ReLU(inplace=True))
    cost, space = peak(nn.Sequential(model, nn.Linear(5, 3)), rows(4, 6))
    assert cost(space.dense) == 4 * 4 * (6 + 16 + 5)


def test_the_shortcut_of_a_residual_block_lives_until_it_is_added() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.out(h + m.c(functional.relu(m.b(h))))

    model = Function(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 20), c=nn.Linear(20, 8), out=nn.Linear(8, 2))
    cost, space = peak(model, rows(3, 6))
    assert [group.name for group in space.groups] == ["a", "b"]
    assert cost(space.dense) == 4 * 3 * (6 + 8 + 20 + 20)  # during relu: input, h, what it reads and what it makes
    assert cost(space.dense.replace(1, 4)) == 4 * 3 * (6 + 8 + 8 + 8)  # during the sum: h, c's answer, their sum


def test_a_view_keeps_the_whole_of_what_it_looks_at() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)[:, :1]
        return functional.relu(functional.relu(x).sum() + torch.ones(1, 40, dtype=x.dtype, device=x.device)) + x

    model = Function(forward, a=nn.Linear(6, 64))
    space = SearchSpace((), (), {})
    cost = PeakMemory.of(record(model, rows(1, 6), space))
    assert cost(space.dense) == 4 * (6 + 64 + 1 + 40 + 40)  # while the sum is added to the ones


def test_a_slice_written_in_place_makes_no_new_storage() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        left, right = x.chunk(2, 1)
        left.add_(right)
        del x, right
        return m.out(left)

    model = Function(forward, a=nn.Linear(6, 10), out=nn.Linear(5, 3))
    space = SearchSpace((), (), {})
    cost = PeakMemory.of(record(model, rows(2, 6), space, 2))
    assert cost(space.dense) == 4 * 2 * (6 + 10 + 3)


def test_bytes_follow_the_type_of_every_tensor() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out((m.a(x).to(torch.bfloat16)).float())

    model = Function(forward, a=nn.Linear(6, 8), out=nn.Linear(8, 2))
    space = SearchSpace((), (), {})
    cost = PeakMemory.of(record(model, rows(1, 6), space))
    assert cost(space.dense) == 4 * 6 + 8 * (4 + 2)


@pytest.mark.parametrize("kept", [1.0, 0.4])
@pytest.mark.parametrize("name", ["chain", "residual", "in place", "branches"])
def test_the_peak_is_the_one_that_torch_allocates(name: str, kept: float, tmp_path: Path) -> None:
    def residual(m: Any, x: Tensor) -> Tensor:
        h = functional.relu(m.a(x))
        return m.out(h + m.c(torch.tanh(m.b(h))))

    def branches(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.out(torch.cat([torch.relu(h), torch.sigmoid(m.b(h)), h], 1).mul_(2.0))

    model = {
        "chain": chain(),
        "residual": Function(
            residual, a=nn.Linear(6, 48), b=nn.Linear(48, 96), c=nn.Linear(96, 48), out=nn.Linear(48, 5)
        ),
        "in place": nn.Sequential(nn.Linear(6, 64), nn.ReLU(True), nn.Linear(64, 32), nn.ReLU(True), nn.Linear(32, 3)),
        "branches": Function(branches, a=nn.Linear(6, 32), b=nn.Linear(32, 48), out=nn.Linear(112, 5)),
    }[name]
    example = rows(64, 6)
    cost, space = peak(model, example)
    scheme = space.floor(np.full(len(space), kept))
    assert cost(scheme) == measured(sliced(model, space, scheme), example, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoprune:resnet20", "torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_the_peak_of_a_convolutional_network_is_never_above_what_torch_allocates(name: str, tmp_path: Path) -> None:
    model = load(name).eval()
    example = torch.randn(2, 3, 64, 64)
    cost, space = peak(model, example)
    for seed in range(3):
        scheme = space.floor(np.random.default_rng(seed).uniform(0.2, 1, len(space)))
        found = measured(sliced(model, space, scheme), example, tmp_path)
        assert cost(scheme) <= found


@pytest.mark.parametrize("name", ["residual", "concatenation", "gate", "chunked_and_joined", "flattened", "shuffled"])
def test_cutting_never_costs_memory_and_counts_need_not_be_whole(name: str) -> None:
    model, example, _ = NETWORKS[name]()
    space = space_of(model.double(), example)
    cost = PeakMemory.of(record(model, example, space, 2))

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        larger = [data.draw(st.sampled_from(group.counts)) for group in space.groups]
        least = [[c for c in g.counts if c <= k] for g, k in zip(space.groups, larger, strict=True)]
        smaller = [data.draw(st.sampled_from(counts)) for counts in least]
        a, b = np.array(smaller, dtype=float), np.array(larger, dtype=float)
        assert cost.at(a) <= cost.at((a + b) / 2) <= cost.at(b)
        scheme = space.dense
        for g, count in enumerate(larger):
            scheme = scheme.replace(g, count)
        assert cost(scheme) == cost.at(b)

    check()


def test_twice_the_batch_is_twice_the_memory() -> None:
    model = nn.Sequential(conv(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), conv(8, 6, 3), nn.Flatten(), nn.Linear(54, 4))
    example = torch.randn(1, 3, 6, 6)
    space = space_of(model, example)
    one, two, five = (PeakMemory.of(record(model, example, space, batch)) for batch in (1, 2, 5))
    scheme = space.dense.replace(0, 3)
    assert (two(scheme), five(scheme)) == (2 * one(scheme), 5 * one(scheme))
