"""Iterative pruning against one shot, and lottery tickets against their controls, on the digits network.

    python benchmarks/tickets.py [--parts iterative tickets] [--seeds 0 1 2] [--sparsities 90 95] [--rounds 3]
        [--ticket 95] [--share 0.53] [--rewind 0] [--folder runs/tickets]

Prints two tables, mean and range over the seeds, of the test images, which are looked at once per cell. The first
begins with a trained network for every seed and compares no retraining, one shot and rounds at equal epochs of
retraining. The second removes a share of the remaining weights a level, as many levels as the sparsity takes, and in
the last one puts a control in the ticket's place; all of a seed's rows share the levels before. Nothing is chosen by
test images. Every training has its folder and goes on where it was stopped; a finished cell is a line of cells.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune import data, masks, models
from autoprune.finetune import Method, Recipe, finetune, judge
from autoprune.lines import append_records, read_records
from autoprune.recipes.data import Data
from autoprune.recipes.initialisation import redraw
from autoprune.recipes.iterative import iterative
from autoprune.recipes.lottery import lottery

CONTROLS = ("ticket", "finetune", "random_init", "random_mask")
WAYS = ("no retraining", "one_shot", "geometric", "cubic")


def main() -> None:
    """Train what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["iterative", "tickets"], choices=["iterative", "tickets"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of the dense training, and of every level")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1, help="of the dense training, and of every level")
    parser.add_argument("--sparsities", type=int, nargs="*", default=[90, 95], help="of the first table, per cent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-epochs", type=int, default=4)
    parser.add_argument("--retrain-lr", type=float, default=0.02)
    parser.add_argument("--ticket", type=int, default=95, help="sparsity of the second table, per cent")
    parser.add_argument("--share", type=float, default=0.53, help="of the remaining weights, removed a level")
    parser.add_argument("--rewind", default="0", help="0, or steps or epochs like 100it or 2ep")
    parser.add_argument("--folder", type=Path, default=Path("runs/tickets"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    splits = data.load("digits", 256, 256)
    assert splits.train is not None
    assert splits.test is not None
    bench = Bench(given, Data(splits.calibration, list(splits.train()), splits.validation), list(splits.test()))
    print(f"digits: {bench.entries} weights, {given.epochs} epochs of batches of {given.batch}, seeds {given.seeds}")
    if "iterative" in given.parts:
        bench.iterative()
    if "tickets" in given.parts:
        bench.tickets()


class Bench:
    """The data, the cells that are known, and the two tables."""

    def __init__(self, given: argparse.Namespace, splits: Data, test: list[Any]) -> None:
        self.given, self.splits, self.test = given, splits, test
        self.network = models.load("autoprune:digits")
        self.names = list(masks.weights(self.network))
        self.entries = sum(self.network.get_parameter(name).numel() for name in self.names)
        self.shared = {key: getattr(given, key) for key in ("epochs", "batch", "lr")}

    def iterative(self) -> None:
        """Rounds against one shot, at equal epochs of retraining."""
        total = self.given.rounds * self.given.round_epochs
        print(f"\nretraining: {total} epochs at lr {self.given.retrain_lr}, in {self.given.rounds} rounds or in one")
        rows = {"dense": [self.cell({"way": "dense", "seed": seed}, partial(self.dense, seed)) for seed in self.seeds]}
        for sparsity in self.given.sparsities:
            for way in WAYS:
                key = {
                    "way": way,
                    "sparsity": sparsity,
                    "rounds": self.given.rounds,
                    "retrain_lr": self.given.retrain_lr,
                }
                key["round_epochs"] = self.given.round_epochs
                rows[f"{sparsity} % | {way}"] = [
                    self.cell({**key, "seed": seed}, partial(self.pruned, way, sparsity / 100, seed))
                    for seed in self.seeds
                ]
        show("| zero | how | test accuracy | test loss |", {"– | dense": rows.pop("dense"), **rows})

    def tickets(self) -> None:
        """The ticket against its controls."""
        given = self.given
        print(f"\ntickets: {given.ticket} % zero, {given.share:.0%} of the rest a level, rewound to {given.rewind}")
        rows = {}
        for control in CONTROLS:
            key = {"way": control, "sparsity": given.ticket, "share": given.share, "rewind": given.rewind}
            rows[f"{given.ticket} % | {control}"] = [
                self.cell({**key, "seed": seed}, partial(self.ticket, control, seed)) for seed in self.seeds
            ]
        show("| zero | last level | test accuracy | test loss |", rows)

    @property
    def seeds(self) -> list[int]:
        """What is repeated."""
        return list(self.given.seeds)

    def cell(self, key: dict[str, Any], make: Callable[[], nn.Module]) -> dict[str, Any]:
        """What is known under a key, or measured now and written down."""
        path, settings = self.given.folder / "cells.jsonl", {**self.shared, **key}
        for record in read_records(path):
            if record["settings"] == settings:
                return dict(record)
        network = make()
        loss, accuracy = judge(network, self.test)
        zero = round(masks.sparsity(network, self.names) * self.entries)
        record = {"settings": settings, "accuracy": accuracy, "loss": loss, "zero": zero}
        append_records(path, [record])
        return record

    def place(self, *words: object) -> Path:
        """The folder of a training."""
        shared = [f"{key}={value}" for key, value in self.shared.items()]
        return Path(self.given.folder, "-".join(map(str, [*words, *shared])))

    def dense(self, seed: int) -> nn.Module:
        """A seed's network, trained from scratch."""
        network = copy.deepcopy(self.network)
        redraw(network, seed)
        recipe = Recipe(**self.shared, seed=seed)
        assert self.splits.train is not None
        finetune(network, self.splits.train, [], self.place("dense", seed), recipe, method=Method(keep="last"))
        return network

    def pruned(self, way: str, sparsity: float, seed: int) -> nn.Module:
        """A seed's network, pruned and retrained."""
        network, given = self.dense(seed), self.given
        if way == "no retraining":
            sizes = {name: network.get_parameter(name).detach().abs() for name in self.names}
            masks.impose(network, masks.ranked(sizes, sparsity))
            return network
        rounds, epochs = (
            (1, given.rounds * given.round_epochs) if way == "one_shot" else (given.rounds, given.round_epochs)
        )
        folder = self.place(way, sparsity, rounds, epochs, given.retrain_lr, seed)
        return iterative(
            network, sparsity, self.splits, names=self.names, folder=folder, seed=seed, schedule=way, rounds=rounds,
            epochs=epochs, lr=given.retrain_lr, batch=given.batch,
        )  # fmt: skip

    def ticket(self, control: str, seed: int) -> nn.Module:
        """A seed's ticket, or what stands in its place."""
        given = self.given
        folder = self.place("ticket", given.ticket, given.share, given.rewind, seed)
        return lottery(
            self.network, given.ticket / 100, self.splits, names=self.names, folder=folder, seed=seed,
            share=given.share, rewind=given.rewind, control=control, **self.shared,
        )  # fmt: skip


def show(head: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """A table with mean and range of every row."""
    print(head)
    print("|---|---|---|---|")
    for name, cells in rows.items():
        accuracies, losses = ([cell[key] for cell in cells] for key in ("accuracy", "loss"))
        accuracy = f"{statistics.mean(accuracies):.1%} ({min(accuracies):.1%}–{max(accuracies):.1%})"
        print(
            f"| {name} | {accuracy} | {statistics.mean(losses):.3f} ({min(losses):.3f}–{max(losses):.3f}) |", flush=True
        )


if __name__ == "__main__":
    main()
