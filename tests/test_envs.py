"""The environment: the contract of Gymnasium, what the agent sees, what an episode reports and is worth."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from autoprune import data, models
from autoprune.budget import Budget
from autoprune.cost import account, macs, params
from autoprune.envs.pruning import PruningEnv
from autoprune.envs.state import State
from autoprune.envs.walls import WALLS
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.scheme import Scheme
from autoprune.search_spaces.named import limit
from autoprune.search_spaces.traced import trace
from autoprune.space import Group, Layer, SearchSpace, Slice
from autoprune.trial import Measurement
from networks import NETWORKS, Function, conv, image, lively

NAME = "autoprune.envs:autoprune/Pruning-v0"
STATES = {"paper": 11, "release": 10}


def digits_space() -> SearchSpace:
    return trace(models.load("autoprune:digits"), torch.zeros(1, 1, 8, 8))


SPACES = {
    "chain": toy.chain((8, 16, 12), pixels=(64, 16, 4)),
    "one group": toy.chain((8,)),
    "limited": limit(toy.chain((8, 16, 12)), {"conv1": (0.25, 0.75)}),
    "resnet": toy.resnet(blocks=2),
    "mixed": toy.mixed(),
    "digits": digits_space(),
}
CHAIN = SPACES["chain"]


def made(space: SearchSpace, **options: Any) -> gymnasium.Env[Any, Any]:
    """The environment as anybody gets it."""
    return gymnasium.make(NAME, space=space, **options)


def walk(env: gymnasium.Env[Any, Any], actions: Sequence[float]) -> list[tuple[Any, ...]]:
    """What reset and every step returned."""
    observation, info = env.reset(seed=0)
    steps: list[tuple[Any, ...]] = [(observation, 0.0, False, False, info)]
    return steps + [env.step(np.array([action], dtype=np.float32)) for action in actions]


def scheme_of(env: gymnasium.Env[Any, Any], actions: Sequence[float]) -> Scheme:
    found: Scheme = walk(env, actions)[-1][-1]["scheme"]
    return found


# -- the contract of Gymnasium -------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("wall", WALLS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_both_checkers_accept_it_without_a_warning(space: SearchSpace, wall: str, state: str) -> None:
    for budget in ("macs=50%", None):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            env = made(space, budget=budget, state=state, wall=wall).unwrapped
            check_env(env)
            sb3.check_env(env)


def test_both_checkers_accept_an_environment_that_measures() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = made(CHAIN, budget="macs=50%", reward="neg_loss", evaluator=lambda scheme: Measurement(loss=1.0))
        check_env(env.unwrapped)
        sb3.check_env(env.unwrapped)


@pytest.mark.parametrize(("state", "elements"), STATES.items())
def test_the_spaces_are_one_action_and_the_elements_of_the_state(state: str, elements: int) -> None:
    env = made(CHAIN, state=state)
    assert env.observation_space == gymnasium.spaces.Box(0.0, 1.0, (elements,), np.float32)
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


@given(data=st.data(), space=st.sampled_from(list(SPACES.values())), state=st.sampled_from(list(STATES)))
@settings(max_examples=150, deadline=None)
def test_every_observation_lies_in_the_space_and_is_an_array_of_its_own(
    data: st.DataObject, space: SearchSpace, state: str
) -> None:
    wall = data.draw(st.sampled_from(list(WALLS)))
    budget = data.draw(st.sampled_from((None, "macs=30%", "params=60%", "macs=90%,params=40%")))
    one = st.sampled_from((-1.0, 0.0, 1.0)) | st.floats(-1, 1, width=32)
    env = PruningEnv(space, budget, wall=wall, state=state)
    seen = []
    for episode in range(2):  # the second one must not be disturbed by what became of the first one's arrays
        steps = walk(env, data.draw(st.lists(one, min_size=len(space), max_size=len(space))))
        for number, (observation, reward, terminated, truncated, _) in enumerate(steps):
            assert env.observation_space.contains(observation)
            assert type(reward) is float
            assert terminated == (number == len(space))
            assert truncated is False
            seen.append(observation)
        if episode == 0:
            first = seen[0].copy()
            for observation in seen:
                observation[:] = -1.0
        else:
            np.testing.assert_array_equal(steps[0][0], first)
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("wall", WALLS)
def test_the_same_seed_and_actions_give_the_same_episode(wall: str) -> None:
    episodes = []
    for _ in range(2):
        env = made(SPACES["mixed"], budget="macs=50%", wall=wall)
        env.reset(seed=3)
        env.action_space.seed(3)
        episodes += [walk(env, [env.action_space.sample()[0] for _ in range(4)]) for _ in range(2)]
    for one, other in ((0, 2), (1, 3)):
        for a, b in zip(episodes[one], episodes[other], strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            assert a[1:] == b[1:]


def test_many_are_driven_side_by_side() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gymnasium.make_vec(NAME, num_envs=3, vectorization_mode="sync", space=CHAIN, budget="macs=50%")
        envs.reset(seed=0)
        for last in (False, False, True):
            _, _, terminated, _, info = envs.step(np.array([[-1.0], [0.0], [1.0]], dtype=np.float32))
            assert terminated.tolist() == [last] * 3
    alone = [scheme_of(made(CHAIN, budget="macs=50%"), [action] * 3) for action in (-1.0, 0.0, 1.0)]
    assert list(info["scheme"]) == alone


# -- what the agent sees -------------------------------------------------------------------------


def hand_made() -> SearchSpace:
    """Two convolutions, pooled, and two linear layers; the last one's outputs stay."""
    shapes = {"a.weight": (4, 3, 5, 5), "b.weight": (8, 4, 3, 3), "c.weight": (6, 8), "head.weight": (10, 6)}
    layers = (
        Layer("a", "conv", "a.weight", 48, kernel=5, stride=2, input_size=(16, 12)),
        Layer("b", "conv", "b.weight", 48, kernel=3, stride=1, input_size=(8, 6)),
        Layer("c", "linear", "c.weight", 1),
        Layer("head", "linear", "head.weight", 1),
    )
    groups = tuple(
        Group(
            layer.name,
            (width := shapes[layer.weight][0]),
            (
                Slice(layer.name, "weight", 0, "out", toy.units(width)),
                Slice(after.name, "weight", 1, "in", toy.units(width)),
            ),
            toy.legal(width),
        )
        for layer, after in itertools.pairwise(layers)
    )
    return SearchSpace(groups, layers, shapes)


WORK = {"a": 48 * 4 * 3 * 25, "b": 48 * 8 * 4 * 9, "c": 8 * 6, "head": 6 * 10}
STATIC: Mapping[str, tuple[float, float, float]] = {
    "index": (0, 1, 2),
    "type": (0, 0, 1),
    "out": (4, 8, 6),
    "in": (3, 4, 8),
    "height": (16, 8, 1),
    "width": (12, 6, 1),
    "stride": (2, 1, 1),
    "release's stride": (2, 1, 0),
    "kernel": (5, 3, 1),
    "weights": (4 * 3 * 25, 8 * 4 * 9, 6 * 8),
    "cost": (WORK["a"] + WORK["b"], WORK["b"] + WORK["c"], WORK["c"] + WORK["head"]),
}
ELEMENTS = {
    "paper": ("index", "out", "in", "height", "width", "stride", "kernel", "cost"),
    "release": ("index", "type", "in", "out", "release's stride", "kernel", "weights"),
}


def observed(space: SearchSpace, kept: Sequence[int], state: str, budget: str | None = None) -> list[Any]:
    """The observations of the episode that ends in a scheme."""
    env = PruningEnv(space, budget, wall="none", state=state)
    actions = [
        2 * (count - group.counts[0]) / (group.counts[-1] - group.counts[0]) - 1
        for count, group in zip(kept, space.groups, strict=True)
    ]
    steps = walk(env, actions)
    assert steps[-1][-1]["kept"] == tuple(kept)
    return [step[0] for step in steps]


@pytest.mark.parametrize("state", STATES)
def test_elements_that_stay_are_scaled_from_the_smallest_to_the_largest_of_the_groups(state: str) -> None:
    seen = observed(hand_made(), (2, 4, 3), state)
    assert State(hand_made(), Budget.parse("macs=100%", hand_made()), state).names[:-3] == ELEMENTS[state]
    for column, name in enumerate(ELEMENTS[state]):
        low, high = min(STATIC[name]), max(STATIC[name])
        wanted = [(value - low) / (high - low) for value in STATIC[name]]
        assert [row[column] for row in seen[:3]] == pytest.approx(wanted), name
        assert seen[3][column] == pytest.approx(wanted[2]), name  # after the end: still the last group


@pytest.mark.parametrize("state", STATES)
def test_an_element_that_is_the_same_for_all_groups_is_zero(state: str) -> None:
    seen = observed(toy.chain((8, 8), pixels=16, inputs=8), (3, 5), state)
    same = {"out", "in", "height", "width", "stride", "release's stride", "kernel", "type", "weights"}
    for column, name in enumerate(ELEMENTS[state]):
        assert (seen[0][column] == seen[1][column] == 0) == (name in same), name
    alone = observed(SPACES["one group"], (3,), state)
    assert not alone[0][:-3].any()


def work_of(a: int, b: int, c: int) -> float:
    return 48 * a * 3 * 25 + 48 * b * a * 9 + b * c + c * 10


@pytest.mark.parametrize("state", STATES)
def test_reduced_rest_and_last_follow_the_episode(state: str) -> None:
    seen = np.array(observed(hand_made(), (2, 4, 3), state))
    dense = sum(WORK.values())
    assert dense == work_of(4, 8, 6)
    left = {
        "paper": [work_of(4, 8, 6), work_of(2, 8, 6), work_of(2, 4, 6), work_of(2, 4, 3)],
        "release": [work_of(1, 1, 1), work_of(2, 1, 1), work_of(2, 4, 1), work_of(2, 4, 3)],
    }[state]
    assert seen[:, -3] == pytest.approx([1 - cost / dense for cost in left])
    to_come = [WORK["c"] + WORK["head"], WORK["head"], 0, 0]
    assert seen[:, -2] == pytest.approx([work / dense for work in to_come])
    assert seen[:, -1] == pytest.approx([1, 2 / 4, 4 / 8, 3 / 6])


def test_last_is_what_was_executed_not_what_was_asked_for() -> None:
    env = PruningEnv(CHAIN, "macs=20%", wall="one-sided")
    (_, *_), (observation, *_, info), *_ = walk(env, [1.0, 1.0, 1.0])
    assert info["kept"][0] < 8
    assert observation[-1] == pytest.approx(info["kept"][0] / 8)


def test_reduced_is_of_the_cost_that_is_capped_first() -> None:
    space = hand_made()
    for text, cost in (("params=100%,macs=100%", params(space)), ("macs=100%,params=100%", macs(space))):
        seen = observed(space, (2, 4, 3), "paper", text)
        assert seen[3][-3] == pytest.approx(1 - cost(Scheme((2, 4, 3))) / cost(space.dense))


def test_the_cost_of_a_group_counts_every_layer_that_takes_part_in_it() -> None:
    space = toy.mixed()
    work = {layer.name: layer.positions * math.prod(space.shapes[layer.weight]) for layer in space.layers}
    costs = [
        work["stem"] + work["side"] + work["split"],
        work["split"] + work["join"],
        work["other"] + work["join"],
        work["join"] + work["head"],
    ]
    wanted = [(cost - min(costs)) / (max(costs) - min(costs)) for cost in costs]
    seen = observed(space, space.dense.kept, "paper")
    assert [row[7] for row in seen[:4]] == pytest.approx(wanted)
    rest = [work["other"] + work["join"] + work["head"], work["other"] + work["head"], work["head"], 0]
    assert [row[-2] for row in seen[:4]] == pytest.approx([work_left / sum(work.values()) for work_left in rest])


def test_a_layer_that_runs_twice_is_work_twice() -> None:
    once = toy.chain((4, 8), pixels=(64, 16))
    twice = replace(once, layers=(*once.layers, once.layers[2]))  # the head
    first, second, head = 64 * 4 * 3 * 9, 16 * 8 * 4 * 9, 10 * 8
    for space, heads in ((once, head), (twice, 2 * head)):
        seen = observed(space, (4, 8), "paper")
        assert seen[0][-2] == pytest.approx(heads / (first + second + heads))


def test_layers_are_found_by_their_weight_whatever_they_are_called() -> None:
    """A parametrized convolution keeps its weight under another name than its own."""
    model, example, _ = NETWORKS["weight_normed"]()
    space = trace(model.double(), example)
    first, second, last = (36 * outputs * inputs for outputs, inputs in ((5, 3 * 9), (6, 5), (4, 6)))
    seen = observed(space, space.dense.kept, "paper")
    assert first + second > second + last
    assert [row[7] for row in seen[:2]] == [1, 0]
    assert seen[0][-2] == pytest.approx(last / (first + second + last))


def test_the_inputs_of_a_transposed_convolution_are_its_inputs() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.out(torch.relu(m.up(torch.relu(m.second(torch.relu(m.first(x)))))))

    up = torch.nn.ConvTranspose2d(9, 4, 2)
    model = Function(forward, first=conv(3, 5), second=conv(5, 9), up=up, out=conv(4, 2))
    space = trace(lively(model.double()), image())
    assert [group.name for group in space.groups] == ["first", "second", "up"]
    seen = observed(space, space.dense.kept, "paper")
    assert [row[2] for row in seen[:3]] == pytest.approx([0, (5 - 3) / (9 - 3), 1])


# -- what an episode reports ---------------------------------------------------------------------


@pytest.mark.parametrize("space", [CHAIN, SPACES["limited"]], ids=["chain", "limited"])
def test_info_tells_the_decisions_and_what_they_cost(space: SearchSpace) -> None:
    budget = Budget.parse("macs=50%", space)
    steps = walk(made(space, budget=budget), [1.0, -0.2, 0.4])
    for number, (*_, info) in enumerate(steps):
        assert len(info["kept"]) == number
        scheme = Scheme((*info["kept"], *space.largest.kept[number:]))
        assert (info["costs"], info["fractions"]) == account(scheme, space, budget.costs)
        assert set(info["costs"]) == {"macs", "params"}
        assert ("scheme" in info) == (number == 3)
        assert "measurement" not in info
        if number:
            assert info["rate"] == info["kept"][-1] / space.groups[number - 1].width
    assert steps[-1][-1]["scheme"] == Scheme(steps[-1][-1]["kept"])
    assert budget.allows(steps[-1][-1]["scheme"])
    assert "rate" not in steps[0][-1]


@pytest.mark.parametrize("wall", ["two-sided", "one-sided", "none"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_executed_actions_repeat_the_episode(space: SearchSpace, wall: str) -> None:
    env = made(space, budget="macs=60%", wall=wall)
    rng = np.random.default_rng(0)
    for _ in range(5):
        steps = walk(env, list(rng.uniform(-1, 1, len(space))))
        executed = [info["action"] for *_, info in steps[1:]]
        again = walk(env, executed)
        assert again[-1][-1]["scheme"] == steps[-1][-1]["scheme"]
        assert [info["action"] for *_, info in again[1:]] == executed
        for (before, *_), (after, *_) in zip(steps, again, strict=True):
            np.testing.assert_array_equal(before, after)


def test_an_action_spans_the_rates_that_a_group_may_have() -> None:
    env = made(SPACES["limited"], budget=None)
    assert scheme_of(env, [-1, -1, -1]) == SPACES["limited"].smallest
    assert scheme_of(env, [1, 1, 1]) == SPACES["limited"].largest
    assert scheme_of(env, [1, 0, 1]).kept[1] == 8  # half way between 4 and 12 of 16


def test_a_group_without_a_choice_has_the_action_one() -> None:
    space = toy.chain((8, 6))
    fixed = replace(space, groups=(replace(space.groups[0], counts=(4,)), space.groups[1]))
    for action in (-1.0, 1.0):
        steps = walk(made(fixed), [action, 0.0])
        assert steps[1][-1]["action"] == 1.0
        assert steps[1][-1]["kept"] == (4,)


def test_the_table_shows_what_was_asked_for_and_what_is_kept() -> None:
    env = made(CHAIN, budget="macs=20%", wall="one-sided", render_mode="ansi")
    steps = walk(env, [1.0, -1.0])
    kept = steps[-1][-1]["kept"]
    shown = env.render()
    assert isinstance(shown, str)
    header, first, second, third, costs = shown.splitlines()
    assert header.split() == ["group", "width", "asked", "kept"]
    assert first.split() == ["conv0", "8", "100.0%", str(kept[0]), f"{kept[0] / 8:.1%}"]
    assert second.split() == ["conv1", "16", f"{1 / 16:.1%}", str(kept[1]), f"{kept[1] / 16:.1%}"]
    assert third.split() == ["conv2", "12", "…"]
    fractions = steps[-1][-1]["fractions"]
    assert costs == f"macs {fractions['macs']:.1%}, params {fractions['params']:.1%}"
    assert first.index("100.0%") + len("100.0%") == header.index("asked") + len("asked")


def test_nothing_is_shown_unless_asked_for() -> None:
    env = PruningEnv(CHAIN)
    env.reset()
    assert env.render() is None


# -- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wall", ["two-sided", "one-sided"])
@given(data=st.data(), space=st.sampled_from(list(SPACES.values())), cap=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_an_episode_ends_within_the_budget_whatever_the_actions(
    wall: str, data: st.DataObject, space: SearchSpace, cap: float
) -> None:
    names = data.draw(st.sampled_from((("macs",), ("params",), ("macs", "params"))))
    dense = Budget.parse([f"{name}=100%" for name in names], space)
    caps = {name: low + cap * (high - low) for name, (low, high) in dense.reachable().items()}
    actions = st.sampled_from((-1.0, 1.0)) | st.floats(-1, 1, width=32)
    budget = Budget(space, caps, dense.costs)
    env = PruningEnv(space, budget, wall=wall)
    scheme = scheme_of(env, data.draw(st.lists(actions, min_size=len(space), max_size=len(space))))
    space.check(scheme)
    assert all(budget.costs[name](scheme) <= limit * (1 + 1e-9) for name, limit in caps.items())


def test_a_budget_brings_the_two_sided_wall_and_its_absence_none() -> None:
    bounded, unbounded = made(CHAIN, budget="macs=50%"), made(CHAIN)
    assert scheme_of(unbounded, [-1, -1, -1]) == CHAIN.smallest
    assert scheme_of(unbounded, [1, 1, 1]) == CHAIN.dense
    for actions in ([-1, -1, -1], [1, 1, 1], [0.3, -0.8, 0.9]):
        named = made(CHAIN, budget="macs=50%", wall="two-sided")
        assert scheme_of(bounded, actions) == scheme_of(named, actions)
    assert bounded.unwrapped.budget.load(scheme_of(bounded, [-1, -1, -1])) > 0.8


def test_a_wall_of_ones_own_is_taken_as_a_function_or_by_its_name() -> None:
    def all_or_nothing(budget: Budget) -> Callable[[Sequence[int], float], int]:
        return lambda prefix, rate: budget.space.groups[len(prefix)].counts[-1 if rate > 0.5 else 0]

    assert scheme_of(made(CHAIN, wall=all_or_nothing), [0.5, -0.5, 1.0]).kept == (8, 1, 12)
    by_name = made(CHAIN, budget="macs=50%", wall="autoprune.envs.walls:one_sided")
    assert scheme_of(by_name, [-1, -1, -1]) == CHAIN.smallest


@pytest.mark.parametrize("count", [0, 9, 4.5])
def test_a_wall_that_answers_with_an_illegal_count_is_named(count: float) -> None:
    env = PruningEnv(CHAIN, wall=lambda budget: lambda prefix, rate: count)
    env.reset()
    with pytest.raises(UserError, match=rf"wall kept {count} of group conv0: not a legal count of it \(1..8\)"):
        env.step(np.zeros(1, dtype=np.float32))


def sparsity(*sizes: int) -> SearchSpace:
    """How many weights of every layer stay: units are single weights, and no layer gets narrower."""
    groups = tuple(
        Group(f"layer{i}", size, (Slice(f"layer{i}", "weight", 0, "out", toy.units(size)),), toy.legal(size))
        for i, size in enumerate(sizes)
    )
    layers = tuple(Layer(group.name, "linear", f"{group.name}.weight", 1) for group in groups)
    return SearchSpace(
        groups, layers, {layer.weight: (n, 1) for layer, n in zip(layers, sizes, strict=True)}, (), "weight"
    )


@pytest.mark.parametrize("budget", ["weights=10%", "weights=10%,loudest=5%"])
def test_a_walk_over_single_weights_ends_within_a_budget_of_ones_own_cost(budget: str) -> None:
    space = sparsity(100_000, 20_000, 500)
    functions = {
        "weights": lambda scheme: float(sum(scheme.kept)),
        "loudest": lambda scheme: 3.0 * scheme.kept[0] + scheme.kept[1],
    }
    bounds = Budget.parse(budget, space, functions)
    rng = np.random.default_rng(0)
    for wall, state in itertools.product(("two-sided", "one-sided"), STATES):
        env = made(space, budget=bounds, wall=wall, state=state)
        for actions in (np.ones(3), -np.ones(3), rng.uniform(-1, 1, 3)):
            observations, *_, infos = zip(*walk(env, list(actions)), strict=True)
            assert all(env.observation_space.contains(observation) for observation in observations)
            scheme = infos[-1]["scheme"]
            assert scheme.granularity == "weight"
            assert bounds.allows(scheme)
            assert set(infos[-1]["fractions"]) == set(functions)
            if wall == "two-sided" and len(bounds.caps) == 1:
                assert sum(scheme.kept) == 120_500 // 10


def test_a_group_that_no_layer_produces_can_be_decided_too() -> None:
    bare = SearchSpace((Group("tokens", 6, (), toy.legal(6)), Group("heads", 4, (), toy.legal(4))), (), {})
    budget = Budget.parse("kept=50%", bare, {"kept": lambda scheme: float(sum(scheme.kept))})
    for state in STATES:
        env = made(bare, budget=budget, state=state).unwrapped
        check_env(env)
        assert sum(scheme_of(env, [-1.0, -1.0]).kept) == 5


# -- rewards -------------------------------------------------------------------------------------


def rewards(env: gymnasium.Env[Any, Any], actions: Sequence[float]) -> list[float]:
    return [reward for _, reward, *_ in walk(env, actions)[1:]]


def total(scheme: Scheme) -> Measurement:
    """Accuracy grows with every channel."""
    costs, fractions = account(scheme, CHAIN, {"macs": macs(CHAIN)})
    return Measurement(accuracy=sum(scheme.kept) / 36, costs=costs, fractions=fractions)


def test_only_the_finished_scheme_is_measured_and_rewarded() -> None:
    asked: list[Scheme] = []

    def evaluate(scheme: Scheme) -> Measurement:
        asked.append(scheme)
        return total(scheme)

    env = made(CHAIN, budget="macs=50%", reward="accuracy", evaluator=evaluate)
    steps = walk(env, [0.1, 0.2, 0.3])
    scheme = steps[-1][-1]["scheme"]
    assert asked == [scheme]
    assert [reward for _, reward, *_ in steps[1:]] == [0.0, 0.0, sum(scheme.kept) / 36]
    assert steps[-1][-1]["measurement"] == total(scheme)
    assert not any("measurement" in info for *_, info in steps[:-1])


def test_without_reward_and_evaluator_every_reward_is_zero() -> None:
    assert rewards(made(CHAIN, budget="macs=50%"), [0.1, 0.2, 0.3]) == [0.0, 0.0, 0.0]


def test_a_reward_of_ones_own_sees_the_measurement() -> None:
    env = made(CHAIN, reward=lambda m: m.accuracy - m.fractions["macs"], evaluator=total)
    assert rewards(env, [1, 1, 1])[-1] == 1 - 1


def test_without_a_budget_a_reward_that_weighs_the_cost_decides_how_much_is_cut() -> None:
    """Accuracy-guaranteed search: all counts are open, and cheaper is better only while the errors stay rare."""
    env = made(CHAIN, reward="amc_flops", evaluator=total)
    dense, smallest = rewards(env, [1, 1, 1])[-1], rewards(env, [-1, -1, -1])[-1]
    assert dense == 0
    measured = total(CHAIN.smallest)
    assert smallest == pytest.approx(-(1 - measured.accuracy) * math.log(measured.costs["macs"]))


def failing(*accuracies: float | None) -> Callable[[Scheme], Measurement]:
    """An evaluator that gives these accuracies one after the other; None is a candidate that fails."""
    answers = iter(accuracies)

    def evaluate(scheme: Scheme) -> Measurement:
        accuracy = next(answers)
        return Measurement(error="it broke") if accuracy is None else Measurement(accuracy=accuracy)

    return evaluate


@pytest.mark.parametrize(
    ("failure", "wanted"), [(None, [0.6, 0.4, 0.8, 0.4, 0.3, 0.3]), (-2.0, [0.6, 0.4, 0.8, -2.0, 0.3, -2.0])]
)
def test_a_candidate_that_failed_is_worth_the_worst_so_far_or_what_was_said(
    failure: float | None, wanted: list[float]
) -> None:
    evaluate = failing(0.6, 0.4, 0.8, None, 0.3, None)
    env = made(CHAIN, reward="accuracy", evaluator=evaluate, failure=failure)
    assert [rewards(env, [0, 0, 0])[-1] for _ in wanted] == wanted


def test_a_first_candidate_that_fails_is_an_error_with_its_reason_and_a_remedy() -> None:
    with pytest.raises(UserError, match=r"the first candidate failed \(it broke\).*pass failure="):
        rewards(made(CHAIN, reward="accuracy", evaluator=failing(None)), [0, 0, 0])
    env = made(CHAIN, reward="accuracy", evaluator=failing(None), failure=-1)
    assert rewards(env, [0, 0, 0])[-1] == -1


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda m: "0.9", "returned '0.9'.*must be a finite number"),
        (lambda m: None, "returned None"),
        (lambda m: math.nan, "is nan: the measurement has no loss"),
        (lambda m: math.inf, "is inf: a reward must be a finite number"),
        ("neg_loss", "neg_loss is nan.*no loss"),
        ("latency_penalised", "needs 'latency'"),
    ],
)
def test_a_reward_that_is_no_number_is_refused_by_name(reward: Any, message: str) -> None:
    env = made(CHAIN, reward=reward, evaluator=total)
    with pytest.raises(UserError, match=message) as caught:
        rewards(env, [0, 0, 0])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """The real one, on an untrained digits network and few images."""
    splits = data.load("digits", calibration=64, validation=64)
    return Evaluator(models.load("autoprune:digits"), SPACES["digits"], splits.calibration, splits.validation)


@pytest.mark.parametrize(("budget", "reward"), [("macs=50%", "accuracy"), (None, "amc_flops")])
def test_both_modes_run_on_a_real_evaluator(evaluator: Evaluator, budget: str | None, reward: str) -> None:
    env = made(SPACES["digits"], budget=budget, reward=reward, evaluator=evaluator)
    steps = walk(env, [0.9, 0.4, 0.9, 0.8, 1.0, 0.5, 0.7])
    *_, info = steps[-1]
    assert info["measurement"].error is None
    again = evaluator(info["scheme"])
    assert info["costs"] == again.costs
    worth = again.accuracy if budget else -(1 - again.accuracy) * math.log(again.costs["macs"])
    assert steps[-1][1] == pytest.approx(worth)
    assert (info["fractions"]["macs"] <= 0.5) == (budget is not None)


# -- refusing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        np.array([1.001], dtype=np.float32),
        np.array([-3.0], dtype=np.float32),
        np.array([math.nan], dtype=np.float32),
        np.array([math.inf], dtype=np.float32),
        np.zeros(2, dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.zeros((3, 3), dtype=np.float32),
        "half",
        None,
    ],
    ids=str,
)
def test_an_action_that_is_not_one_number_within_bounds_is_refused_and_changes_nothing(action: Any) -> None:
    env = PruningEnv(CHAIN, "macs=50%")
    env.reset()
    with pytest.raises(UserError, match=r"^action .*: one number in \[-1, 1\] is needed$"):
        env.step(action)
    assert env.step(np.zeros(1, dtype=np.float32))[-1]["kept"] == walk(env, [0.0])[-1][-1]["kept"]


@pytest.mark.parametrize("action", [0.25, np.float32(0.25), np.array(0.25), np.array([0.25]), [0.25]], ids=repr)
def test_one_number_is_an_action_in_whatever_wrapping(action: Any) -> None:
    env = PruningEnv(CHAIN, "macs=50%")
    env.reset()
    assert env.step(action)[-1]["kept"] == walk(env, [0.25])[-1][-1]["kept"]


def test_an_episode_begins_with_reset_and_ends_with_the_last_group() -> None:
    env, still = PruningEnv(CHAIN), np.zeros(1, dtype=np.float32)
    with pytest.raises(UserError, match="before reset"):
        env.step(still)
    walk(env, [0.0, 0.0, 0.0])
    with pytest.raises(UserError, match="after the last group"):
        env.step(still)
    env.reset()
    assert len(env.step(still)[-1]["kept"]) == 1


OTHER = toy.chain((8, 16, 12), pixels=(64, 16, 4))  # equal, yet not the same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": SearchSpace((), (), {})}, "has no groups"),
        ({"budget": "macs=0.1%"}, "cannot be reached.*raise the budget"),
        ({"budget": "flops=50%"}, "cost 'flops' is unknown"),
        ({"budget": Budget.parse("macs=50%", OTHER)}, "made for another search space"),
        ({"wall": "two-side"}, "wall 'two-side' is unknown: use two-sided, one-sided, release, none"),
        ({"wall": 0.2}, "wall 0.2 is neither a name nor a function"),
        ({"state": "papers"}, "state 'papers' is unknown: use paper or release"),
        ({"render_mode": "human"}, "render_mode 'human' is unknown: use 'ansi'"),
        ({"reward": "accuracy"}, "a reward but no evaluator"),
        ({"evaluator": total}, "an evaluator but no reward"),
        ({"reward": "accuracies", "evaluator": total}, "reward 'accuracies' is unknown"),
        ({"reward": "accuracy", "evaluator": total, "failure": math.nan}, "failure = nan"),
    ],
)
def test_bad_input_is_refused_with_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        PruningEnv(**{"space": CHAIN, **options})
    assert "\n" not in str(caught.value)


def test_an_unknown_option_of_a_reward_shows_before_anything_is_measured() -> None:
    from autoprune.reward import constraint_punish

    with pytest.raises(UserError, match="target"):
        PruningEnv(CHAIN, reward=partial(constraint_punish, target=2.0), evaluator=total)
