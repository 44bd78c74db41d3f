"""The agent: acts, remembers, learns, and can be saved; repeatable whatever else happens in the process."""

from __future__ import annotations

import json
import random
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import toy
from autoprune.agent import Agent, Episode, check_writable
from autoprune.errors import UserError
from autoprune.space import SearchSpace

SPACE = toy.chain((8, 16, 12, 8))
EVERY = pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac"])


def made(algorithm: str = "ddpg", space: SearchSpace = SPACE, state: str = "paper", **given: object) -> Agent:
    env = gymnasium.make("autoprune.envs:autoprune/Pruning-v0", space=space, budget="macs=60%", state=state)
    return Agent(env, len(space), algorithm, **given)  # type: ignore[arg-type]


def episode(seed: int, steps: int = len(SPACE), elements: int = 11) -> Episode:
    rng = np.random.default_rng(seed)
    observations = rng.uniform(0, 1, (steps + 1, elements)).astype(np.float32)
    return Episode(observations, rng.uniform(-1, 1, steps).astype(np.float32))


def lived(agent: Agent, episodes: int = 6, updates: int = 8) -> Agent:
    for number in range(episodes):
        agent.remember(episode(number), float(number))
        agent.learn(updates)
    return agent


def answers(agent: Agent, sigma: float = 0.0) -> list[float]:
    return [agent.act(row, sigma) for row in episode(99).observations]


@EVERY
def test_the_same_seed_gives_the_same_agent_whatever_else_draws(algorithm: str) -> None:
    one = answers(lived(made(algorithm, seed=4)), 0.5)
    other = made(algorithm, seed=4)
    for number in range(6):
        random.random(), np.random.random(), torch.rand(3)
        other.remember(episode(number), float(number))
        torch.manual_seed(number)
        other.learn(8)
    assert answers(other, 0.5) == one
    assert answers(lived(made(algorithm, seed=5)), 0.5) != one


@EVERY
def test_nobody_elses_random_numbers_change(algorithm: str) -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    answers(lived(made(algorithm)), 0.5)
    assert drawn() == expected


@EVERY
def test_actions_stay_in_the_box_and_noise_spreads_them(algorithm: str) -> None:
    agent = lived(made(algorithm))
    observation = episode(5).observations[0]
    drawn = [agent.act(observation, 1.0) for _ in range(200)]
    assert min(drawn) >= -1
    assert max(drawn) <= 1
    assert np.std(drawn) > 0.1
    assert len({agent.act(observation) for _ in range(3)}) == 1


def test_noise_is_a_truncated_normal_around_the_actors_answer() -> None:
    from scipy.stats import kstest, truncnorm

    agent = made()
    observation = episode(5).observations[0]
    mean, sigma = agent.act(observation), 0.6
    drawn = [agent.act(observation, sigma) for _ in range(1000)]
    expected = truncnorm((-1 - mean) / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
    assert kstest(drawn, expected.cdf).pvalue > 1e-3


def test_actor_and_critic_learn_at_their_own_rates() -> None:
    agent = lived(made())
    rates = [agent._model.actor.optimizer.param_groups[0]["lr"], agent._model.critic.optimizer.param_groups[0]["lr"]]
    assert rates == [1e-4, 1e-3]


def test_every_transition_carries_the_final_reward_and_only_the_last_is_done() -> None:
    agent = made()
    agent.remember(episode(1), 0.7)
    buffer, steps = agent._model.replay_buffer, len(SPACE)
    assert buffer.rewards[:steps, 0] == pytest.approx([0.7] * steps)
    assert buffer.dones[:steps, 0].tolist() == [0] * (steps - 1) + [1]
    assert (buffer.next_observations[: steps - 1] == buffer.observations[1:steps]).all()


def test_the_baseline_is_a_moving_average_that_is_updated_before_use() -> None:
    agent = made(shaping="baseline")
    for number in range(4):
        agent.remember(episode(number), 10.0 + number)
    buffer = agent._model.replay_buffer
    with agent._alone():
        first, second = buffer.sample(64).rewards, buffer.sample(64).rewards
    assert float(first.mean()) == pytest.approx(0, abs=1e-4)
    # b + (m - b) / 2 is subtracted, so half of what the mean moved remains.
    assert abs(float(second.mean())) <= 1.5
    assert float(second.mean()) != pytest.approx(0, abs=1e-7)


def test_ranks_do_not_depend_on_the_scale_of_rewards() -> None:
    def stored(scale: float) -> list[float]:
        agent = made(shaping="rank")
        for number, reward in enumerate([3.0, 1.0, 2.0, 2.0]):
            agent.remember(episode(number), reward * scale)
        agent.learn(1)
        return agent._model.replay_buffer.rewards[: 4 * len(SPACE) : len(SPACE), 0].tolist()

    assert stored(1.0) == stored(1e40) == [0.75, -0.75, 0.0, 0.0]


def test_old_episodes_make_room_for_new_ones() -> None:
    agent = made(replay=2, shaping="rank")
    for number in range(5):
        agent.remember(episode(number), float(number))
    agent.learn(1)
    buffer = agent._model.replay_buffer
    assert buffer.full
    assert sorted({round(float(reward), 6) for reward in buffer.rewards[:, 0]}) == [0.4, 0.8]  # ranks 4 and 5 of 5


def test_with_nothing_remembered_nothing_is_learnt() -> None:
    agent = made()
    before = answers(agent)
    agent.learn(10)
    assert answers(agent) == before


# --- saved and loaded ---


@EVERY
@pytest.mark.parametrize("trained", [True, False])
def test_a_loaded_agent_acts_and_learns_like_the_one_that_was_saved(
    algorithm: str, trained: bool, tmp_path: Path
) -> None:
    agent = made(algorithm, shaping="rank")
    if trained:
        lived(agent)
    agent.save(tmp_path / "agent")
    other = made(algorithm, shaping="rank", seed=1)
    other.load(tmp_path / "agent", recall=True)
    assert answers(other) == answers(agent)
    assert other.episodes == agent.episodes
    for one in (agent, other):  # the same minibatches
        one._stream, one._torch_state = type(one._stream)(7), torch.Generator().manual_seed(7).get_state()
        one.remember(episode(50), 2.5)
        one.learn(5)
    assert answers(other) == answers(agent)


def test_a_policy_transfers_to_another_space_without_its_memories(tmp_path: Path) -> None:
    agent = lived(made(home="here"))
    agent.save(tmp_path)
    space = toy.resnet(2)
    env = gymnasium.make("autoprune.envs:autoprune/Pruning-v0", space=space, budget="macs=60%")
    other = Agent(env, len(space), home="there")
    other.load(tmp_path)
    assert answers(other) == answers(agent)
    assert other.episodes == 0
    with pytest.raises(UserError, match="remembers another search space"):
        other.load(tmp_path, recall=True)


def test_a_full_memory_comes_back_oldest_first(tmp_path: Path) -> None:
    agent = made(replay=3)
    for number in range(5):
        agent.remember(episode(number), float(number))
    agent.save(tmp_path)
    other = made(replay=2)
    other.load(tmp_path, recall=True)
    rewards = other._model.replay_buffer.rewards[:, 0].tolist()
    assert rewards == [3.0] * len(SPACE) + [4.0] * len(SPACE)


def test_saving_again_replaces_the_agent_and_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    made(seed=0).save(tmp_path)
    agent = lived(made(seed=1))
    agent.save(tmp_path)
    other = made(seed=2)
    other.load(tmp_path)
    assert answers(other) == answers(agent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.json", "agent.safetensors", "notes.txt"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "agent.json").unlink(), "no agent can be read"),
        (lambda f: (f / "agent.json").write_text("{"), "no agent can be read"),
        (lambda f: (f / "agent.json").write_text("[]"), "not of version"),
        (lambda f: (f / "agent.safetensors").write_bytes(b"cut"), "is not the file that agent.json describes"),
    ],
)
def test_a_damaged_agent_is_refused(spoil, reason: str, tmp_path: Path) -> None:
    made().save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=reason):
        made().load(tmp_path)


def test_an_agent_of_another_kind_is_refused(tmp_path: Path) -> None:
    made().save(tmp_path)
    with pytest.raises(UserError, match="algorithm ddpg, this one has td3"):
        made("td3").load(tmp_path)
    with pytest.raises(UserError, match="elements 11, this one has 10"):
        made(state="release").load(tmp_path)


def test_what_is_saved_is_readable_json_and_no_pickle(tmp_path: Path) -> None:
    lived(made()).save(tmp_path)
    facts = json.loads((tmp_path / "agent.json").read_text())
    assert facts["algorithm"] == "ddpg"
    assert facts["episodes"] == 6
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_looking_whether_a_folder_can_be_written_leaves_it_as_it_was(tmp_path: Path) -> None:
    (tmp_path / ".probe").write_text("mine")
    check_writable(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        made().save(tmp_path / "file" / "agent")
