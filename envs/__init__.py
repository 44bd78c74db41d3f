"""Reinforcement learning's view of the task: ``autoprune/Pruning-v0``, a Gymnasium environment.

    env = gymnasium.make("autoprune.envs:autoprune/Pruning-v0", space=space, budget="macs=50%")

An episode walks over the groups of a search space in forward order, one action per group says what fraction is
kept, and a wall sees to it that the whole scheme fits the budget. Only the finished scheme can be measured; so the
environment is arithmetic over the space and its costs, and asks an evaluator, if it has one, at the last step.

:mod:`~autoprune.envs.pruning` is the environment, :mod:`~autoprune.envs.state` what the agent sees,
:mod:`~autoprune.envs.walls` how its wishes are clipped.

Any library for Gymnasium environments can train on it (``examples/``). The searchers ``ddpg``, ``td3`` and ``sac``
play it without an evaluator and leave the measuring to the search, which parallelises, records and resumes it.
"""

import gymnasium

gymnasium.register(id="autoprune/Pruning-v0", entry_point="autoprune.envs.pruning:PruningEnv")
