"""How well latency tables predict whole networks on this machine.

    python benchmarks/latency_tables.py [--networks resnet18 resnet50 mobilenet_v2 resnet56] [--threads 1]
                                        [--memory-format contiguous] [--backend eager] [--folder FOLDER]

Builds a table per network, calibrates it on 20 networks, and times 24 others of random widths (a third seed, so neither
those it was fitted to nor those of its own check), in turns with the dense network: the machine's speed may drift, so
all are told at the speed at which the dense network takes what it took in the calibration. Prints per network:
signatures, points and seconds of the build, then mean and greatest relative error and Spearman's rank correlation, the
mean error without the calibration, the usual spread of a measurement, and the drift. Widths are those that the hardware
likes, as in a search under a latency cap. The last two columns are 24 networks of any width: a width that is slower
than a wider one is predicted as fast as that. Run it on a machine that does nothing else. With ``--folder`` tables are
kept and extended.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoprune import api, models
from autoprune.latency.build import build
from autoprune.latency.calibrate import agreement, measured, random_schemes
from autoprune.latency.conditions import Conditions, machine
from autoprune.latency.predict import TableLatency, liked
from autoprune.latency.table import Table
from autoprune.latency.units import units
from autoprune.operations import record

NETWORKS = {
    "resnet18": ("torchvision:resnet18", 224),
    "resnet50": ("torchvision:resnet50", 224),
    "mobilenet_v2": ("torchvision:mobilenet_v2", 224),
    "resnet56": ("autoprune:resnet56", 32),
}
CHECKED, SEED = 24, 3


def main() -> None:
    """Build, calibrate, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-format", default="contiguous")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    conditions = Conditions(
        given.device, given.batch, given.threads, memory_format=given.memory_format, backend=given.backend
    )
    folder = Path(given.folder or tempfile.mkdtemp())
    print(f"{machine(given.device)['name']}, torch {torch.__version__}, {conditions}\n")
    heads = "network, dense (ms), signatures, points, build (s), MAPE, worst, Spearman, uncorrected, spread, drift"
    heads += ", any width: MAPE, Spearman"
    print(f"| {heads.replace(', ', ' | ')} |")
    print(f"|{'---|' * 13}")
    for name in given.networks:
        spec, size = NETWORKS[name]
        network, example = models.load(spec).eval(), torch.randn(1, 3, size, size)
        space = api.trace(network, example)
        points = {"points": 0}

        def tell(event: str, facts: Any, points: dict[str, int] = points) -> None:
            points["points"] += facts["points"] if event == "points" else 0

        path = folder / f"{name}.json"
        start = time.perf_counter()
        table = build(
            network, example, space, conditions, path, known=Table.load(path) if path.is_file() else None, tell=tell
        )
        seconds = time.perf_counter() - start
        operations = record(network, example, space, given.batch)
        raw = TableLatency(operations, units(operations), table)
        corrected = raw.corrected(table.calibrations[space.fingerprint])
        schemes = random_schemes(liked(space, raw), CHECKED, SEED)
        dense = float(table.calibrations[space.fingerprint]["dense"]["median"])
        sample = measured(network, example, space, schemes, table.conditions, dense)
        found = agreement(np.array([corrected(scheme) for scheme in schemes]), sample.ms)
        plain = agreement(np.array([raw(scheme) for scheme in schemes]), sample.ms)
        anything = random_schemes(space, CHECKED, SEED)
        seen = measured(network, example, space, anything, table.conditions, dense).ms
        loose = agreement(np.array([corrected(scheme) for scheme in anything]), seen)
        print(
            f"| {name} | {table.calibrations[space.fingerprint]['dense']['median']:.2f} | {len(table.entries)} "
            f"| {points['points']} | {seconds:.0f} | {found['mape']:.1%} | {found['worst']:.1%} "
            f"| {found['spearman']:.3f} | {plain['mape']:.1%} | {sample.spread:.1%} | {sample.drift:.1%} "
            f"| {loose['mape']:.1%} | {loose['spearman']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
