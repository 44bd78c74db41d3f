"""Where a run comes from: what has to be known to find the same again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoprune.cost import amount
from autoprune.page.numbers import known
from autoprune.run import Run


def provenance(run: Run) -> list[tuple[str, str]]:
    """Name and value, of what the run's folder tells."""
    config, request = run.config, run.config.get("request") or {}
    entries = [
        ("network", config.get("name")),
        ("options file", _settings(config.get("options_file"))),
        ("weights", request.get("model")),
        ("budget", _budget(request.get("budget") or {})),
        ("searcher", _with_options(request.get("searcher"), request)),
        ("method", _with_options(request.get("method"), request)),
        ("seed", request.get("search_seed", request.get("seed"))),
        ("start schemes", len(request["start"]) if request.get("start") else None),
        ("objectives", ", ".join(request.get("objectives") or ())),
        ("criterion", request.get("criterion")),
        ("repair", request.get("recovery")),
        ("polish", config.get("polish")),
        ("reward", config.get("reward")),
        ("calibration", _images(request, "calibration")),
        ("validation", _images(request, "validation")),
        ("data", request.get("data")),
        ("timed under", run.summary.get("timed")),
        ("machine", ", ".join(f"{value}" for value in (config.get("machine") or {}).values())),
        ("Python", config.get("python")),
        ("versions", ", ".join(f"{name} {number}" for name, number in (config.get("versions") or {}).items())),
        ("commit", _commit(config.get("git") or {})),
        ("time", config.get("time")),
    ]
    return [(name, str(value)) for name, value in entries if value not in (None, "")]


def _settings(text: Any) -> str | None:
    """The lines of a TOML file that say something."""
    lines = [line.strip() for line in text.splitlines()] if isinstance(text, str) else []
    return "; ".join(line for line in lines if line and not line.startswith("#")) or None


def _budget(caps: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ≤ {amount(cap) if known(cap) else cap}" for name, cap in caps.items())


def _with_options(name: str | None, request: Mapping[str, Any]) -> str | None:
    options = request.get("options") or {}
    return name and name + "".join(f", {key}={value}" for key, value in options.items())


def _images(request: Mapping[str, Any], part: str) -> str | None:
    facts, digest = request.get(part), request.get(f"{part}_data")
    return f"{facts['samples']} images ({digest})" if isinstance(facts, Mapping) and "samples" in facts else digest


def _commit(git: Mapping[str, Any]) -> str | None:
    return f"{git['commit'][:12]}{' with changes' if git.get('changes') else ''}" if git.get("commit") else None
