"""What a report tells of a run, from the files in its folder."""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import Any

from autoprune import chart
from autoprune.cost import LABELS, amount
from autoprune.difference import Difference, Row
from autoprune.errors import UserError
from autoprune.run import FRONT, SCHEME, SUMMARY, Run, read_json

NAMES = {
    "dense": "dense",
    "uniform": "uniform rates",
    "found": "found",
    "polished": "polished",
    "finished": "fine-tuned",
}


class Facts:
    """One run; every attribute is ready to be printed."""

    def __init__(self, run: Run) -> None:
        if "rows" not in run.summary:
            raise UserError(f"run {run.name} has no result yet: let it finish first")
        if "found" not in run.summary["rows"]:
            raise UserError(f"run {run.name} is no search, and a report is about one: its {SUMMARY} has the comparison")
        self.run = run
        self.name = run.name
        self.summary, self.config = run.summary, run.config
        self.rows: dict[str, dict[str, Any]] = {NAMES[key]: row for key, row in self.summary["rows"].items()}

    # -- the answer ------------------------------------------------------------------------------

    @property
    def answer(self) -> dict[str, Any]:
        """The row of what the run is for: fine-tuned, polished or found, the last there is."""
        return list(self.rows.values())[-1]

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        capped = self.config["request"]["budget"]
        shares = " and ".join(
            f"{self.answer['fractions'][name]:.0%} of the {LABELS.get(name, name)}" for name in capped
        )
        measure, better = self._measure
        dense, uniform = self.rows["dense"].get(measure), self.rows["uniform rates"].get(measure)
        if dense is None or not math.isfinite(self.answer[measure]):
            return f"With {shares}."
        form = ".2%" if better == "accuracy" else ".4f"
        return (
            f"With {shares} the network has {better} {self.answer[measure]:{form}}; dense it has {dense:{form}}, "
            f"cut by one rate everywhere {uniform:{form}}."
        )

    @property
    def _measure(self) -> tuple[str, str]:
        """What networks are compared by: test accuracy where there is one."""
        for key, word in (
            ("test_accuracy", "accuracy"),
            ("accuracy", "accuracy"),
            ("loss", "loss"),
            ("kl", "divergence"),
        ):
            value = self.answer.get(key)
            if value is not None and math.isfinite(value):
                return key, word
        return "loss", "loss"

    @cached_property
    def table(self) -> list[tuple[str, list[str]]]:
        """Lines of the comparison: what, and its value per network."""
        lines = [
            self._line("test accuracy", "test_accuracy", "{:.2%}"),
            self._line("validation accuracy", "accuracy", "{:.2%}"),
            self._line("validation loss", "loss", "{:.4f}"),
            self._line("divergence from dense", "kl", "{:.4f}"),
        ]
        for name in self.answer["metrics"]:
            cells = [row["metrics"].get(name) for row in self.rows.values()]
            lines.append((name, [self._number(value, "{:.4g}") for value in cells]))
        lines += [
            (LABELS.get(name, name), [self._cost(name, row) for row in self.rows.values()])
            for name in self.answer["costs"]
        ]
        lines.append(self._line("latency, measured", "latency", "{:.3f} ms", 1e3))
        return [line for line in lines if any(cell != "–" for cell in line[1])]

    def _line(self, label: str, key: str, form: str, scale: float = 1.0) -> tuple[str, list[str]]:
        return label, [self._number(row.get(key), form, scale) for row in self.rows.values()]

    @staticmethod
    def _number(value: float | None, form: str, scale: float = 1.0) -> str:
        return form.format(scale * value) if value is not None and math.isfinite(value) else "–"

    @staticmethod
    def _cost(name: str, row: dict[str, Any]) -> str:
        return f"{amount(row['costs'][name])} ({row['fractions'][name]:.1%})"

    @property
    def latency(self) -> str | None:
        """Whether a latency cap holds, as it was measured."""
        facts = self.summary.get("latency")
        if facts is None:
            return None
        held = "holds" if facts["met"] else "does not hold"
        faster = facts["dense"] / facts["measured"]
        return (
            f"The cap of {facts['limit']:.3f} ms {held}: {facts['measured']:.3f} ms measured, "
            f"{facts['predicted']:.3f} ms predicted, {facts['dense']:.3f} ms dense ({faster:.2f} times as fast)."
        )

    # -- pictures --------------------------------------------------------------------------------

    @cached_property
    def kept(self) -> Difference:
        """What every layer keeps, as it was found and by uniform rates."""
        path = self.run.folder / SCHEME
        if not path.is_file():
            raise UserError(f"run {self.name} has no {SCHEME}: its folder is not whole")
        scheme = read_json(path)
        names = [group["name"] for group in scheme["groups"]]
        counts = (self.summary[key] for key in ("widths", "kept", "uniform"))
        rows = tuple(Row(*row) for row in zip(names, *counts, strict=True))
        noun = "channels" if scheme["granularity"] == "channel" else "weights"
        return Difference(("found", "uniform rates"), rows, {}, noun)

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """The trials in their order: number, reward, loss, accuracy, whether affordable, fidelity, kept counts."""
        frame = self.run.history()
        frame = frame.astype(object).where(frame.notna() & ~frame.isin([math.inf, -math.inf]), None)
        found: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
        return found

    @property
    def history(self) -> str:
        """Rewards over the trials, and the best so far."""
        points = [
            (trial["trials"], trial["reward"], bool(trial["affordable"]) and trial["fidelity"] == "full")
            for trial in self.trials
            if trial["reward"] is not None
        ]
        return chart.history(points, "Reward of every trial, and the best so far") if points else ""

    @property
    def front(self) -> str:
        """The picture of a Pareto front, where several objectives were asked for."""
        path = self.run.folder / FRONT.replace(".json", ".svg")
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    # -- where it comes from -----------------------------------------------------------------------

    @property
    def counts(self) -> str:
        """How many trials there were, and what they cost."""
        s = self.summary
        looks = f", {s['looks']} quick looks" if s.get("looks") else ""
        return (
            f"{s['trials']} trials{looks}, {s['feasible']} affordable, {s['failed']} failed, {s['seconds']:.0f} s of "
            f"measuring; ended because {s['ended']}."
        )

    @property
    def provenance(self) -> list[tuple[str, str]]:
        """What has to be known to find the same again."""
        config, request = self.config, self.config["request"]
        machine = config.get("machine", {})
        git = config.get("git") or {}
        budget = ", ".join(f"{name} ≤ {amount(cap)}" for name, cap in request["budget"].items())
        searcher = request["searcher"] + "".join(f", {key}={value}" for key, value in request["options"].items())
        entries = [
            ("network", config["name"]),
            ("budget", budget),
            ("searcher", f"{searcher}, seed {request['search_seed']}"),
            ("criterion", request["criterion"]),
            ("repair", request["recovery"]),
            ("reward", config["reward"]),
            ("calibration", f"{request['calibration']['samples']} images ({request['calibration_data']})"),
            ("validation", f"{request['validation']['samples']} images ({request['validation_data']})"),
            ("weights", request["model"]),
            ("timed under", self.summary["timed"]),
            ("machine", ", ".join(str(value) for value in machine.values())),
            ("versions", ", ".join(f"{name} {number}" for name, number in config["versions"].items())),
            ("commit", f"{git['commit'][:12]}{' with changes' if git.get('changes') else ''}" if git else "–"),
            ("time", config["time"]),
        ]
        return [(name, str(value)) for name, value in entries]

    @property
    def command(self) -> str | None:
        """The command line that made the run."""
        found: str | None = self.config.get("command")
        return found
