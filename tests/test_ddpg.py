"""DDPG, TD3 and SAC as searchers: AMC's schedules, what is remembered, that learning is real, agents on disk."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import toy
from autoprune import searchers, settings
from autoprune.agent import Agent
from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.ledger import Ledger
from autoprune.loop import Loop, Stop
from autoprune.reward import amc_flops
from autoprune.scheme import Scheme
from autoprune.searchers.ddpg import PRESETS, ddpg, deviation
from autoprune.searchers.ranking import starts
from autoprune.trial import Measurement, Trial

SPACE = toy.chain((24, 48, 64), pixels=(64, 16, 4))
HALF = Budget.parse("macs=50%", SPACE)
quick = partial(ddpg, SPACE, HALF, hints=Hints(), warmup=8, updates=1)


def kept(trials: list[Trial]) -> list[tuple[int, ...]]:
    return [trial.scheme.kept for trial in trials]


# --- exploration ---


@pytest.mark.parametrize("preset", ["amc_paper", "amc_release"])
def test_amcs_noise_follows_the_published_schedule(preset: str) -> None:
    # Episodes are counted from 0 and 101 of them are warm-up: sigma is 0.5 * 0.95^(episode - 100), in kept fractions.
    for episode, sigma in ((101, 0.475), (110, 0.299), (150, 0.038)):
        assert deviation(PRESETS[preset], episode - 101) / 2 == pytest.approx(sigma, abs=5e-4)


def test_an_episode_that_repeats_a_known_scheme_raises_the_noise_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Counts this small are soon rounded to the same scheme. Distinct schemes in 100 episodes, four seeds together:
    # 61, and 54 when the noise only falls.
    space = toy.chain((8, 8, 8, 8), pixels=(64, 64, 16, 4))
    budget = Budget.parse("macs=50%", space)

    def distinct(restless: bool) -> int:
        settings = replace(PRESETS["default"], restless=restless, warmup=8, updates=0, decay=0.8)
        monkeypatch.setitem(PRESETS, "default", settings)  # type: ignore[arg-type]
        played = (ddpg(space, budget, seed=seed, hints=Hints(), batch=4) for seed in range(4))
        return sum(len(set(kept(toy.play(play, toy.landscape(space, 0), 100)))) for play in played)

    assert distinct(restless=True) > distinct(restless=False)


def test_it_begins_with_the_known_good_schemes_in_order() -> None:
    hints = replace(toy.unit_scores(SPACE), starts=(Scheme((12, 12, 12)),))
    told = toy.play(ddpg(SPACE, HALF, seed=0, hints=hints), toy.landscape(SPACE, 0), 8)
    expected = starts(SPACE, HALF, hints)
    assert [trial.scheme for trial in told[: len(expected)]] == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_start_schemes_are_played_first_whatever_the_preset(preset: str) -> None:
    start = Scheme((12, 12, 16))
    play = ddpg(SPACE, HALF, seed=0, hints=Hints(starts=(start,)), preset=preset)  # type: ignore[arg-type]
    assert start in {trial.scheme for trial in toy.play(play, toy.landscape(SPACE, 0), 8)}


def test_by_default_every_episode_uses_the_budget_up() -> None:
    told = toy.play(quick(seed=0), toy.landscape(SPACE, 0), 48)
    for trial in told:
        assert HALF.allows(trial.scheme)
        assert HALF.spend(trial.scheme) == trial.scheme  # nothing more fits


def test_episodes_after_warmup_follow_the_best_one_in_all_groups_but_one_if_so_wished() -> None:
    space = toy.resnet(4)
    budget = Budget.parse("macs=100%", space)  # nothing has to be fitted
    searcher = ddpg(space, budget, seed=0, hints=Hints(), warmup=8, follow=1.0, updates=0, wall="one-sided")
    told = toy.play(searcher, lambda scheme: -float(sum(scheme.kept)), 16)
    best = max(told[:8], key=lambda trial: trial.reward)
    for trial in told[8:]:
        assert sum(a != b for a, b in zip(trial.scheme.kept, best.scheme.kept, strict=True)) <= 1


# --- rewards and memory ---


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rewards that reach the agent's memory."""
    found: list[float] = []
    monkeypatch.setattr(Agent, "remember", lambda self, episode, reward: found.append(reward))
    return found


def test_a_failed_candidate_is_remembered_with_the_worst_reward_seen(remembered: list[float]) -> None:
    proposals = quick(seed=0, batch=3)
    first = next(proposals)
    worth = dict(zip(first, (-1.0, -math.inf, -3.0), strict=True))
    proposals.send([toy.answer(scheme, worth.__getitem__) for scheme in first])
    assert remembered == [-1.0, -1.0, -3.0]


def test_failures_before_anything_worked_teach_nothing(remembered: list[float]) -> None:
    proposals = quick(seed=0, batch=2)
    schemes = next(proposals)
    schemes = proposals.send([toy.answer(scheme, lambda _: -math.inf) for scheme in schemes])
    assert remembered == []
    proposals.send([toy.answer(scheme, lambda _: -2.0) for scheme in schemes])
    assert remembered == [-2.0, -2.0]


@pytest.mark.parametrize(("preset", "executed"), [("amc_paper", True), ("amc_release", False)])
def test_the_release_stores_the_action_as_asked_the_others_as_executed(
    preset: str, executed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived = []
    monkeypatch.setattr(Agent, "remember", lambda self, episode, reward: lived.append(episode))
    toy.play(ddpg(SPACE, HALF, seed=0, hints=Hints(), preset=preset, batch=2), toy.landscape(SPACE, 0), 4)
    lows = np.array([group.counts[0] / group.width for group in SPACE.groups])
    counts = ((lived[0].actions + 1) / 2 * (1 - lows) + lows) * SPACE.widths
    assert np.allclose(counts, counts.round(), atol=1e-4) == executed


# --- learning is real ---

GOAL = np.linspace(0.3, 0.9, 6)
SLOPE = toy.chain((16, 24, 32, 32, 48, 64), pixels=(256, 256, 64, 64, 16, 16))
FREE = Budget.parse("macs=100%", SLOPE)


def distance(scheme: Scheme) -> float:
    """A landscape whose optimum, at 0, is that later groups keep more."""
    return -float(np.mean((SLOPE.rates(scheme) - GOAL) ** 2))


def means(**options: object) -> tuple[float, float]:
    """Mean reward while warming up, and of the last 50 episodes."""
    play = ddpg(SLOPE, FREE, hints=Hints(), batch=4, wall="none", **options)  # type: ignore[arg-type]
    rewards = [trial.reward for trial in toy.play(play, distance, 160)]
    return float(np.mean(rewards[:32])), float(np.mean(rewards[-50:]))


def test_the_agent_learns_where_to_keep_more() -> None:
    # Four seeds gave -0.090 to -0.104 in warm-up, -0.006 to -0.012 at the end, and -0.051 to -0.062 without learning.
    before, after = means(seed=0, follow=0.0)
    _, unlearnt = means(seed=0, follow=0.0, updates=0)
    assert after > before + 0.06
    assert after > unlearnt + 0.03


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{"follow": 0.0}, {"preset": "amc_paper", "warmup": 32}, {"preset": "amc_release", "warmup": 32}],
    ids=["default", "amc_paper", "amc_release"],
)
def test_every_preset_learns(options: dict[str, object], seed: int) -> None:
    before, after = means(seed=seed, **options)
    assert after > before + 0.03


# --- modes ---


def test_without_a_wall_and_with_a_reward_for_cost_the_agent_finds_its_own_size() -> None:
    def worth(scheme: Scheme) -> float:
        macs = FREE.costs["macs"](scheme)
        accuracy = 0.9 - 0.3 * float(np.mean((1 - SLOPE.rates(scheme)) ** 3))
        return amc_flops(Measurement(accuracy=accuracy, costs={"macs": macs}))

    told = toy.play(ddpg(SLOPE, FREE, seed=0, hints=Hints(), wall="none", follow=0.5, warmup=16), worth, 48)
    best = max(told, key=lambda trial: trial.reward)
    assert best.reward > worth(SLOPE.dense)
    assert FREE.costs["macs"](best.scheme) < FREE.costs["macs"](SLOPE.dense)


def test_where_the_budget_forbids_nothing_warmup_tries_different_schemes() -> None:
    told = toy.play(ddpg(SLOPE, FREE, seed=0, hints=Hints(), wall="none", warmup=16), distance, 16)
    assert len(set(kept(told))) == 16


@pytest.mark.parametrize("wall", ["fit", "two-sided", "one-sided"])
def test_every_wall_keeps_every_episode_within_the_budget(wall: str) -> None:
    play = partial(quick, seed=0, wall=wall)
    assert all(HALF.allows(trial.scheme) for trial in toy.play(play(), toy.landscape(SPACE, 0), 24))


def test_weights_are_searched_like_channels() -> None:
    space = replace(SPACE, granularity="weight")
    cost = {"kept": lambda scheme: float(sum(scheme.kept))}
    budget = Budget(space, {"kept": 60.0}, cost)
    told = toy.play(ddpg(space, budget, seed=0, hints=Hints(), warmup=4), lambda s: -float(s.kept[0]), 16)
    assert all(trial.scheme.granularity == "weight" and sum(trial.scheme.kept) <= 60 for trial in told)


# --- resume, agents on disk ---


def test_a_run_is_resumed_by_replay(tmp_path: Path) -> None:
    reward = toy.landscape(SPACE, 0)

    def drive(ledger: Ledger, trials: int) -> tuple[list[Trial], int]:
        loop, measured = Loop(quick(seed=3, batch=4), HALF, lambda m: -m.loss, ledger, Stop(trials)), 0
        while schemes := loop.ask():
            measured += len(schemes)
            loop.tell((scheme, Measurement(loss=-reward(scheme))) for scheme in schemes)
        return loop.trials, measured

    whole, _ = drive(Ledger(None, "p", SPACE.groups), 20)
    ledger = Ledger(tmp_path / "ledger.jsonl", "p", SPACE.groups)
    drive(ledger, 10)
    resumed, measured = drive(Ledger(tmp_path / "ledger.jsonl", "p", SPACE.groups), 20)
    assert kept(resumed) == kept(whole)
    assert measured == 10


def test_an_agent_is_saved_when_the_search_ends_and_starts_another(tmp_path: Path) -> None:
    folder = str(tmp_path / "agent")
    toy.play(quick(seed=0, save=folder), toy.landscape(SPACE, 0), 24)
    assert {path.name for path in (tmp_path / "agent").iterdir()} == {"agent.json", "agent.safetensors"}

    other = toy.resnet(2)
    budget = Budget.parse("macs=50%", other)
    begin = partial(ddpg, other, budget, hints=Hints(), follow=0.0)
    taught = toy.play(begin(seed=0, agent=folder), toy.landscape(other, 0), 8)
    untaught = toy.play(begin(seed=0, warmup=0), toy.landscape(other, 0), 8)
    assert kept(taught) != kept(untaught)


def test_an_agent_that_was_told_nothing_is_not_saved(tmp_path: Path) -> None:
    proposals = quick(seed=0, save=str(tmp_path / "agent"))
    next(proposals)
    proposals.close()
    assert not (tmp_path / "agent" / "agent.json").exists()


def test_an_agent_is_not_saved_over_the_one_it_started_from(tmp_path: Path) -> None:
    toy.play(quick(seed=0, save=str(tmp_path)), toy.landscape(SPACE, 0), 16)
    with pytest.raises(UserError, match="agent and save are both"):
        next(quick(seed=0, agent=str(tmp_path), save=f"{tmp_path}/."))


def test_the_folder_of_an_agent_may_start_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    toy.play(quick(seed=0, save="~/agent"), toy.landscape(SPACE, 0), 16)
    assert (tmp_path / "agent" / "agent.json").exists()
    next(quick(seed=0, agent="~/agent"))


def test_an_agent_of_another_state_is_refused_before_anything_is_proposed(tmp_path: Path) -> None:
    toy.play(quick(seed=0, save=str(tmp_path)), toy.landscape(SPACE, 0), 16)
    with pytest.raises(UserError, match="elements 11, this one has 10"):
        next(quick(seed=0, agent=str(tmp_path), state="release"))


def test_a_place_where_the_agent_cannot_be_saved_is_refused_before_anything_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        next(quick(seed=0, save=str(tmp_path / "file" / "agent")))


# --- bad input ---


@pytest.mark.parametrize(
    ("option", "value"),
    [("warmup", -1), ("updates", -1), ("sigma", 0.0), ("decay", 1.5), ("decay", 0.0), ("follow", 1.5), ("gamma", -0.1)],
)
def test_options_out_of_range_are_refused_by_name_and_value(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{option}={value}"):
        next(ddpg(SPACE, HALF, seed=0, hints=Hints(), **{option: value}))  # type: ignore[arg-type]


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="amc_release"):
        settings.check(searchers.find("ddpg"), searchers.KIND, {"preset": "amc_releas"})
