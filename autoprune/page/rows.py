"""The networks of a run side by side: dense, uniform, found, polished, after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.chart import Axis, Dots, Series, Trace, plot
from autoprune.cost import LABELS
from autoprune.page.numbers import NONE, cost, known, number, percent, size
from autoprune.page.parts import Figure, Section, Table
from autoprune.pruned import TENSORS
from autoprune.run import SUMMARY, Run, read_json

NAMES = {
    "dense": "dense",
    "uniform": "uniform rates",
    "found": "found",
    "polished": "polished",
    "finished": "finished",
    "finetuned": "fine-tuned",
    "sparse": "sparse",
}
TUNED = "finetuned"
"""The folder that ``autoprune finetune`` makes in a run, and its row there."""
EPOCHS = "finetune.json"
MEASURES = {
    "test_accuracy": "test accuracy",
    "accuracy": "validation accuracy",
    "loss": "validation loss",
    "kl": "divergence from dense",
}

Rows = Mapping[str, Mapping[str, Any]]


def rows(run: Run) -> dict[str, dict[str, Any]]:
    """The rows of the summary, with the bytes of the network's tensors, and that of a fine-tuning in the folder."""
    found = {key: dict(row) for key, row in run.summary["rows"].items()}
    last = list(found.values())[-1]
    last.setdefault("bytes", _bytes(run.folder))  # it is what lies in the folder
    tuned = _tuned(run.folder / TUNED)
    if tuned is not None:  # it is as wide as what was found, so it costs the same
        same = {key: last[key] for key in ("costs", "fractions", "latency", "bytes") if key in last}
        found[TUNED] = {**same, **tuned}
    return found


def answer(found: Rows) -> Mapping[str, Any]:
    """The network that a run is for: the last row."""
    return list(found.values())[-1]


def measure(row: Mapping[str, Any]) -> tuple[str, str]:
    """What networks are compared by, and the word for it: test accuracy where there is one."""
    return next(((key, word) for key, word in MEASURES.items() if known(row.get(key))), ("loss", MEASURES["loss"]))


def value(row: Mapping[str, Any], key: str) -> str:
    """A measure in its usual form."""
    return percent(row.get(key)) if "accuracy" in key else number(row.get(key))


def table(found: Rows) -> Table:
    """One line a quantity, one column a network; what nobody knows is left out."""
    every = list(found.values())
    lines = [(label, [value(row, key) for row in every]) for key, label in MEASURES.items()]
    own = dict.fromkeys(name for row in every for name in row.get("metrics") or {})
    lines += [(name, [number((row.get("metrics") or {}).get(name), "{:.4g}") for row in every]) for name in own]
    costs = dict.fromkeys(name for row in every for name in row.get("costs") or {})
    lines += [(LABELS.get(name, name), [cost(name, row) for row in every]) for name in costs]
    lines += [
        ("measured latency (ms)", [number(row.get("latency"), "{:.3f}", 1e3) for row in every]),
        ("size of the weights", [size(row.get("bytes")) for row in every]),
    ]
    head = ("", *(NAMES.get(key, key) for key in found))
    shown = [(label, *cells) for label, cells in lines if any(cell != NONE for cell in cells)]
    return Table(head, shown, answer=len(found))


def training(run: Run) -> Section | None:
    """Accuracy epoch by epoch, where the run's network was fine-tuned in its folder."""
    path = run.folder / TUNED / EPOCHS
    record = read_json(path) if path.is_file() else {}
    epochs = [facts for facts in record.get("history") or () if known(facts.get("validation_accuracy"))]
    if not epochs:
        return None
    points = [(float(facts["epoch"]), float(facts["validation_accuracy"])) for facts in epochs]
    says = [f"epoch {at:g}: validation accuracy {accuracy:.2%}" for at, accuracy in points]
    lines = [
        (f"{facts['epoch']:g}", number(facts.get("loss")), number(facts.get("validation_loss")), percent(up))
        for facts, (_, up) in zip(epochs, points, strict=True)
    ]
    across = Axis("epoch", 0.0, max(points)[0])
    up = Axis.around("validation accuracy", [up for _, up in points], percent=True)
    svg = plot(
        "Validation accuracy while fine-tuning", across, up, [Series("accuracy", [Trace(points), Dots(points, says)])]
    )
    recipe = ", ".join(f"{name} {setting}" for name, setting in (record.get("recipe") or {}).items())
    head = ("epoch", "training loss", "validation loss", "validation accuracy")
    return Section("Fine-tuning", [f"Recipe: {recipe}."], figures=[Figure("finetuning", svg, Table(head, lines))])


def _tuned(folder: Path) -> dict[str, Any] | None:
    """How good a network is that was trained to the end: by its summary, else by its best epoch."""
    if not (folder / TENSORS).is_file():
        return None
    if (folder / SUMMARY).is_file():
        return dict(read_json(folder / SUMMARY)["rows"][TUNED])
    if not (folder / EPOCHS).is_file():
        return None
    record = read_json(folder / EPOCHS)
    best = record["history"][record["best"]]
    return {"accuracy": best.get("validation_accuracy"), "loss": best.get("validation_loss")}


def _bytes(folder: Path) -> int | None:
    """Those of the tensors in the folder's network: the file less its header, whose length it begins with."""
    path = folder / TENSORS
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
