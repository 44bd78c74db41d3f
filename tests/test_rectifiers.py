from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune import sums
from autoprune.rectifiers import Clip
from networks import Function

RELU, RELU6 = Clip(0.0, math.inf), Clip(0.0, 6.0)


def course(forward, **layers) -> sums.Course:
    model = Function(forward, **layers).eval()
    watched = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    ends = {name: (layer, layers.get(f"bn_{name}", layer)) for name, layer in watched.items()}
    return sums.follow(model, ends, torch.randn(2, 3, 4, 4))


def conv() -> nn.Module:
    return nn.Conv2d(3, 3, 1)


RECTIFIED = {
    "a function": (lambda m, x: m.b(functional.relu(m.a(x))), RELU),
    "in place": (lambda m, x: m.b(functional.relu(m.a(x), inplace=True)), RELU),
    "a method": (lambda m, x: m.b(m.a(x).relu_()), RELU),
    "six": (lambda m, x: m.b(functional.relu6(m.a(x))), RELU6),
    "bounds": (lambda m, x: m.b(functional.hardtanh(m.a(x))), Clip(-1.0, 1.0)),
}


@pytest.mark.parametrize("how", RECTIFIED)
def test_a_rectifier_between_two_layers_makes_them_a_pair(how):
    forward, clip = RECTIFIED[how]
    found = course(forward, a=conv(), b=conv())
    assert found.clips == {"a": clip}
    assert found.pairs == {"b": "a"}


def test_a_batch_norm_belongs_to_its_layer():
    found = course(lambda m, x: m.b(m.bn_a(m.a(x)).relu()), a=conv(), bn_a=nn.BatchNorm2d(3), b=conv())
    assert (found.clips, found.pairs) == ({"a": RELU}, {"b": "a"})


def test_pairs_may_follow_each_other():
    found = course(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=conv(), b=conv(), c=conv())
    assert found.pairs == {"b": "a", "c": "b"}
    assert set(found.clips) == {"a", "b"}


def test_a_layer_that_something_else_reads_is_not_clipped():
    def also_added(m, x):
        y = m.a(x)
        return m.b(y.relu()) + y

    def answered(m, x):
        y = m.a(x)
        return m.b(y.relu()), y

    def smooth(m, x):
        return m.b(functional.silu(m.a(x)))

    def seen_through_a_view(m, x):
        return m.b(m.a(x)[:, :].relu())

    for forward in (also_added, answered, smooth, seen_through_a_view):
        found = course(forward, a=conv(), b=conv())
        assert (found.clips, found.pairs) == ({}, {}), forward.__name__


def test_several_rectifiers_leave_the_widest_bounds_and_no_pair():
    found = course(lambda m, x: m.b((y := m.a(x)).relu()) + functional.hardtanh(y), a=conv(), b=conv())
    assert found.clips == {"a": Clip(-1.0, math.inf)}
    assert found.pairs == {}


def test_what_is_hidden_is_the_second_layers_alone_in_a_pair():
    def added(m, x):
        y = m.a(x).relu()
        return m.b(y) + y

    def twice(m, x):
        y = m.a(x).relu()
        return m.b(y) + m.c(y)

    def answered(m, x):
        y = m.a(x).relu()
        return m.b(y), y

    def pooled(m, x):
        return m.b(functional.max_pool2d(m.a(x).relu(), 2))

    for forward in (added, twice, answered, pooled):
        found = course(forward, a=conv(), b=conv(), c=conv())
        assert found.clips == {"a": RELU}, forward.__name__
        assert found.pairs == {}, forward.__name__


def test_a_first_layer_whose_inputs_change_afterwards_is_in_no_pair():
    def changed(m, x):
        y = x + 1
        z = m.a(y).relu()
        y.mul_(2)
        return m.b(z) + y

    def before(m, x):
        y = (x + 1).mul_(2)
        return m.b(m.a(y).relu()) + y

    assert course(changed, a=conv(), b=conv()).pairs == {}
    assert course(before, a=conv(), b=conv()).pairs == {"b": "a"}


def test_targets_beyond_a_bound_may_be_missed_on_their_side():
    answers = torch.tensor([-3.0, -1.0, 0.5, 7.0, 9.0])
    assert RELU6.aim(answers, torch.full((5,), -2.0)).tolist() == [-3.0, -1.0, 0.0, 0.0, 0.0]
    assert RELU6.aim(answers, torch.full((5,), 8.0)).tolist() == [6.0, 6.0, 6.0, 7.0, 9.0]
    assert RELU6.aim(answers, torch.full((5,), 2.0)).tolist() == [2.0] * 5
    for targets in torch.linspace(-4, 10, 29):
        same = RELU6(RELU6.aim(answers, targets.expand(5)))
        assert torch.equal(same, RELU6(targets.expand(5)))  # wherever it aims, the next layer reads the target
    assert RELU6.slope(answers).tolist() == [False, False, True, False, False]
