"""An actor and a critic of Stable-Baselines3, driven by hand: act, remember an episode, learn, save.

``learn()`` of Stable-Baselines3 wants a reward at every step, so it would wait for every measurement. Here whole
episodes are played first, measured by whoever measures, and written into the replay buffer afterwards; only public
names of Stable-Baselines3 are called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from scipy.special import ndtr, ndtri
from torch import Tensor

from autoprune import whole
from autoprune.errors import UserError
from autoprune.streams import Stream
from autoprune.threads import fixed_threads

Algorithm = Literal["ddpg", "td3", "sac"]
Shaping = Literal["baseline", "rank"]

WIDTHS = [300, 300]
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
SOFT_UPDATE = 0.01
BATCH = 64
BASELINE_STEP = 0.5
LARGEST = 1e30  # rewards beyond it would overflow in single precision
VERSION = 1
TENSORS, FACTS = "agent.safetensors", "agent.json"


@dataclass(frozen=True, eq=False)
class Episode:
    """One sweep over the groups: ``observations`` (steps + 1, elements), ``actions`` (steps,) in [-1, 1]."""

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]


class Agent:
    """The learner of AMC: DDPG, or TD3 or SAC in its place.

    Networks of 300-300 units, learning rates 1e-4 (actor) and 1e-3 (critic), soft updates of 0.01, minibatches of 64.
    The actor's output is squashed by tanh into [-1, 1], AMC's by a sigmoid into [0, 1]; the critic reads state and
    action side by side, AMC's adds their first layers' outputs, which is the same function before the first ReLU.

    Every transition of an episode carries the episode's final reward. ``shaping`` says how rewards reach the
    critic: "baseline" subtracts a moving average over minibatches (AMC); "rank" replaces each by its rank among all
    the rewards told so far, spread over [-1, 1], so that neither their scale nor an outlier matters.

    ``replay`` episodes of ``steps`` transitions are kept. ``home`` names the search space: memories are of use there
    alone. Everything is repeatable from ``seed``, whatever else draws random numbers in the process, and computed on
    the CPU with one thread.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        steps: int,
        algorithm: Algorithm = "ddpg",
        *,
        gamma: float = 1.0,
        replay: int = 100,
        shaping: Shaping = "baseline",
        home: str = "",
        seed: int = 0,
    ) -> None:
        self.algorithm: Algorithm = algorithm
        self.shaping = shaping
        self.home = home
        self._stream = Stream(seed)
        self._torch_state = torch.Generator().manual_seed(seed).get_state()
        self._noise = np.random.default_rng(seed)
        self._rewards: list[float] = []
        with self._alone():
            self._model = _model(algorithm, env, gamma, replay * steps, shaping)
        self._episode_of = np.zeros(replay * steps, dtype=np.int64)

    @property
    def episodes(self) -> int:
        """How many episodes were remembered."""
        return len(self._rewards)

    def act(self, observation: NDArray[np.float32], sigma: float = 0.0) -> float:
        """An action in [-1, 1], drawn from a normal distribution around the actor's answer, truncated to the box.

        SAC's actor draws its own actions, so that ``sigma`` plays no part; 0 asks for the mean.
        """
        if self.algorithm == "sac" and sigma > 0:
            with self._alone():
                return float(self._model.predict(observation, deterministic=False)[0].item())
        with self._alone():
            mean = float(self._model.predict(observation, deterministic=True)[0].item())
        if sigma <= 0:
            return mean
        low, high = ndtr((-1 - mean) / sigma), ndtr((1 - mean) / sigma)
        return float(np.clip(mean + sigma * ndtri(self._noise.uniform(low, high)), -1, 1))

    def remember(self, episode: Episode, reward: float) -> None:
        """Write an episode with its final reward into the replay buffer."""
        buffer, steps = self._model.replay_buffer, len(episode.actions)
        for t, action in enumerate(episode.actions):
            self._episode_of[buffer.pos] = self.episodes
            here, after = episode.observations[t : t + 1], episode.observations[t + 1 : t + 2]
            worth = np.array([np.clip(reward, -LARGEST, LARGEST)], dtype=np.float32)
            buffer.add(here, after, np.array([[action]], np.float32), worth, np.array([t == steps - 1]), [{}])
        self._rewards.append(float(reward))

    def learn(self, updates: int) -> None:
        """Take ``updates`` gradient steps on minibatches of what is remembered; none if that is nothing."""
        if updates < 1 or not self._filled:
            return
        if self.shaping == "rank":
            buffer, filled = self._model.replay_buffer, self._filled
            buffer.rewards[:filled, 0] = _ranks(np.array(self._rewards))[self._episode_of[:filled]]
        with self._alone():
            self._model.train(gradient_steps=updates, batch_size=BATCH)

    def save(self, folder: Path | str) -> None:
        """Write networks, optimizers and replay into ``folder``: safetensors, and JSON that says what they are."""
        buffer = self._model.replay_buffer
        filled = self._filled
        tensors, numbers = _flattened(self._model.get_parameters())
        for name in _REPLAY:
            tensors[f"replay/{name}"] = torch.from_numpy(getattr(buffer, name)[:filled].copy())
        tensors["replay/episode"] = torch.from_numpy(self._episode_of[:filled].copy())
        tensors["replay/told"] = torch.tensor(self._rewards, dtype=torch.float64)
        if self.algorithm == "sac":
            tensors["entropy"] = self._model.log_ent_coef.detach().clone()
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        facts = {
            "version": VERSION,
            "algorithm": self.algorithm,
            "elements": int(buffer.obs_shape[0]),
            "home": self.home,
            "episodes": self.episodes,
            "oldest": int(buffer.pos) if buffer.full else 0,
            "sha256": hashlib.sha256(content).hexdigest(),
            "numbers": numbers,
        }
        _write(Path(folder) / TENSORS, content)
        _write(Path(folder) / FACTS, (json.dumps(facts, indent=2) + "\n").encode())

    def load(self, folder: Path | str, recall: bool = False) -> None:
        """Continue from an agent that was saved, on the same search space or on another.

        States are relative to their space and have the same elements everywhere, so a policy transfers. ``recall``
        takes over what was remembered too (the latest, as far as there is room), if that was lived through on the
        same space; rewards must be of the same kind. The moving baseline and the count of updates start afresh.
        """
        facts, tensors = _read(Path(folder))
        elements = int(self._model.replay_buffer.obs_shape[0])
        for name, here, there in (
            ("algorithm", self.algorithm, facts["algorithm"]),
            ("observation elements", elements, facts["elements"]),
        ):
            if here != there:
                raise UserError(f"agent {folder} was trained with {name} {there}, this one has {here}: make them equal")
        memory = {name: tensors.pop(f"replay/{name}").numpy() for name in (*_REPLAY, "episode", "told")}
        entropy = tensors.pop("entropy", None)
        self._model.set_parameters(_nested(tensors, facts["numbers"]))
        if entropy is not None:
            self._model.log_ent_coef.data.copy_(entropy)
        if recall:
            if facts["home"] != self.home:
                raise UserError(f"agent {folder} remembers another search space: load it without its memories")
            self._recall(memory, int(facts["oldest"]))

    def _recall(self, memory: Mapping[str, NDArray[Any]], oldest: int) -> None:
        """Fill the buffer with remembered transitions, oldest first."""
        buffer = self._model.replay_buffer
        order = np.roll(np.arange(len(memory["actions"])), -oldest)[-buffer.buffer_size :]
        for name in _REPLAY:
            getattr(buffer, name)[: len(order)] = memory[name][order]
        self._episode_of[: len(order)] = memory["episode"][order]
        buffer.pos, buffer.full = len(order) % buffer.buffer_size, len(order) == buffer.buffer_size
        self._rewards = [float(reward) for reward in memory["told"]]

    @property
    def _filled(self) -> int:
        """Transitions in the buffer."""
        buffer = self._model.replay_buffer
        return int(buffer.buffer_size if buffer.full else buffer.pos)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Random streams of its own, and one thread."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._torch_state)
        try:
            with self._stream, fixed_threads(1):
                yield
        finally:
            self._torch_state = torch.get_rng_state()
            torch.set_rng_state(outside)


_REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def _model(algorithm: Algorithm, env: gymnasium.Env[Any, Any], gamma: float, size: int, shaping: Shaping) -> Any:
    """The algorithm of Stable-Baselines3 with AMC's numbers."""
    import stable_baselines3
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.logger import Logger

    algorithms = {"ddpg": stable_baselines3.DDPG, "td3": stable_baselines3.TD3, "sac": stable_baselines3.SAC}
    chosen: Any = algorithms[algorithm]

    class TwoRates(chosen):  # type: ignore[misc]
        """Stable-Baselines3 has one learning rate for both networks; the actor gets its own here."""

        def _update_learning_rate(self, optimizers: Any) -> None:
            super()._update_learning_rate(optimizers)
            for group in self.actor.optimizer.param_groups:
                group["lr"] = ACTOR_RATE

    class BaselinedReplay(ReplayBuffer):
        """Rewards less a moving average over the minibatches, which is updated first, as in AMC's release."""

        average: float | None = None

        def sample(self, *given: Any, **named: Any) -> Any:
            drawn = super().sample(*given, **named)
            mean = float(drawn.rewards.mean())
            self.average = mean if self.average is None else self.average + BASELINE_STEP * (mean - self.average)
            return drawn._replace(rewards=drawn.rewards - self.average)

    model = TwoRates(
        "MlpPolicy",
        env,
        learning_rate=CRITIC_RATE,
        buffer_size=size,
        batch_size=BATCH,
        tau=SOFT_UPDATE,
        gamma=gamma,
        policy_kwargs={"net_arch": WIDTHS},
        replay_buffer_class=BaselinedReplay if shaping == "baseline" else None,
        device="cpu",
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def _ranks(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks spread over [-1, 1]; equal rewards share their mean rank."""
    _, place, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2  # of the ranks that equal rewards take up
    ranks: NDArray[np.float64] = 2 * middle[place] / len(rewards) - 1
    return ranks


def _flattened(tree: Mapping[str, Any], path: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain values of nested state dicts, by their path."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}/{type(key).__name__}:{key}"
        if isinstance(value, Tensor):
            tensors[name] = value.clone()
        elif isinstance(value, Mapping) and value:
            below = _flattened(value, name)
            tensors |= below[0]
            numbers |= below[1]
        else:
            numbers[name] = value
    return tensors, numbers


def _nested(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_flattened`."""
    tree: dict[Any, Any] = {}
    for name, value in {**tensors, **numbers}.items():
        keys = [int(key[4:]) if key.startswith("int:") else key[4:] for key in name.split("/")[1:]]
        place = tree
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
    return tree


def check_writable(folder: Path) -> None:
    """Refuse a folder that an agent could not be saved in, before anything is learnt."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"agent folder {folder} cannot be written ({error.strerror}): choose another") from error


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write(path, content)
    except OSError as error:
        raise UserError(f"agent file {path} cannot be written ({error.strerror}): choose another folder") from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and the tensors of a saved agent; what is damaged is refused."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        content = (folder / TENSORS).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no agent can be read from {folder} ({error}): name a folder that save= has written"
        ) from error
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        raise UserError(f"agent {folder} is not of version {VERSION}: save it again with this version")
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise UserError(f"agent {folder}: {TENSORS} is not the file that {FACTS} describes: save it again")
    return facts, load(content)
