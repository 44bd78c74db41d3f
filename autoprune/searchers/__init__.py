'''Search algorithms, one per file, each a generator that reads like its paper.

A searcher proposes schemes and learns what they were worth. It is a generator function: ``yield`` asks
for a batch of schemes to be measured, and the value that comes back from ``yield`` are their trials, in
the order proposed. ``return`` says that nothing is left to try; a searcher may also go on for ever, the
loop stops it. Between two yields its state is local variables, so it reads from top to bottom:

    def climb(
        space: SearchSpace, budget: Budget, *, seed: int, hints: Hints, batch: int = 8, spread: float = 0.1
    ) -> Proposals:
        """Draws around the best scheme so far; ``spread`` is the deviation of the kept rates."""
        rng = np.random.default_rng(seed)
        best = None
        centre = np.ones(len(space))
        while True:
            noise = rng.normal(0, spread, (batch, len(space)))
            trials = yield [budget.fit(np.clip(centre + n, 0.05, 1)) for n in noise]
            for trial in trials:
                if not trial.failed and (best is None or trial.reward > best.reward):
                    best, centre = trial, space.rates(trial.scheme)

Run it with ``autoprune search --searcher mylab.climbing:climb --set spread=0.2``, or pass the function.

The rules, all of them tested for every searcher listed in ``SEARCHERS``:

- The same arguments and the same answers give the same proposals: randomness comes from a generator made
  from ``seed``. A run is resumed by replaying it, so no searcher saves or loads anything.
- Options out of range are refused at the first ``next``, before anything is proposed. A search starts a searcher
  once for that alone, without scores, and closes it again; so starting must leave nothing behind.
- ``yield Batch(schemes, Fidelity(share=0.25))`` asks for a quick look, here on a quarter of the images. It costs
  that share of a trial, its rewards compare among themselves alone, and it never wins.
- A proposal is legal in ``space``, and a batch holds at most ``batch`` schemes. ``budget`` turns rates into
  affordable schemes (``fit``, ``spend``, ``cut``, ``ceiling``); nothing is drawn until it fits.
- A higher reward is better. A failed trial has reward -inf and ``failed`` set, and teaches nothing; a whole
  batch may fail.
- ``hints`` is what is known before measuring: unit scores and start schemes, either of which may be missing.
- Options follow as keyword arguments with a type and a default, explained in the docstring.
- Models, data and torch are out of reach: a searcher sees schemes and numbers.
'''

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping

from autoprune import settings
from autoprune.fidelity import Batch
from autoprune.references import function
from autoprune.scheme import Scheme
from autoprune.trial import Trial

Proposals = Generator[list[Scheme] | Batch, list[Trial], None]
Searcher = Callable[..., Proposals]
"""``(space, budget, *, seed, hints, batch, **options) -> Proposals``."""

SEARCHERS: Mapping[str, str] = {
    "auto": "autoprune.searchers.auto:auto",
    "uniform": "autoprune.searchers.uniform:uniform",
    "random": "autoprune.searchers.random_rates:random_rates",
    "hand": "autoprune.searchers.hand:hand",
    "global_threshold": "autoprune.searchers.global_threshold:global_threshold",
    "knapsack": "autoprune.searchers.knapsack:knapsack",
    "netadapt": "autoprune.searchers.netadapt:netadapt",
    "swap": "autoprune.searchers.swap:swap",
    "autoslim": "autoprune.searchers.autoslim:autoslim",
    "annealing": "autoprune.searchers.annealing:annealing",
    "levels": "autoprune.searchers.levels:levels",
    "sensitivity": "autoprune.searchers.sensitivity:sensitivity",
    "fastnas": "autoprune.searchers.fastnas:fastnas",
    "spdy": "autoprune.searchers.spdy:spdy",
    "optuna": "autoprune.searchers.samplers:optuna_search",
    "evolution": "autoprune.searchers.evolution:evolution",
    "ddpg": "autoprune.searchers.ddpg:ddpg",
    "td3": "autoprune.searchers.ddpg:td3",
    "sac": "autoprune.searchers.ddpg:sac",
}
KIND = settings.Kind("searcher", positions=2, names=("seed", "hints", "batch"))
"""Space and budget, and these by name, come from the loop; all other arguments are the searcher's options."""


def find(searcher: str | Searcher) -> Searcher:
    """A searcher by its name, by ``package.module:function``, or the function itself."""
    found: Searcher = function(searcher, "searcher", SEARCHERS)
    return found


def options(searcher: Searcher) -> dict[str, inspect.Parameter]:
    """What ``--set`` may change about a searcher, with types and defaults."""
    return settings.options(searcher, KIND)


def configure(searcher: Searcher, texts: Mapping[str, str]) -> Searcher:
    """The searcher with options given as text, each read as the type it is annotated with."""
    return functools.partial(searcher, **settings.read(searcher, KIND, texts))
