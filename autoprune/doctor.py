"""What an installation needs, looked at one by one: what is there, and for every problem its cause and its cure."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from autoprune import paths

Status = Literal["ok", "note", "problem"]

ROOM = 2 * 2**30
"""Free bytes below which it is said: an archive of small images and some runs with their networks."""
LITTLE = 200 * 2**20
"""Free bytes below which a run would soon end: pruned networks and ledgers take tens of megabytes."""
SECONDS = 60
"""How long Ray may take to answer the first time."""
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    cure: str = ""
    """What to do about it, where there is something to do."""


def examine(root: Path, ray: bool = False) -> list[Check]:
    """All checks; with ``ray``, a local Ray is started and asked to work, which takes seconds."""
    found = [python(), *requirements(), torch(), torchvision(), fit(), *devices(), threads()]
    return [*found, ray_works() if ray else ray_there(), extras(), writable("runs folder", root), caches(), *plugins()]


def python() -> Check:
    """The interpreter, and what is said to run on it."""
    named = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    try:
        return Check("python", "ok", f"{named}, autoprune {metadata.version('autoprune')}")
    except metadata.PackageNotFoundError:
        return Check(
            "python", "note", f"{named}, autoprune is not installed but found as a folder", "pip install --editable ."
        )


def requirements() -> Iterator[Check]:
    """Packages that autoprune cannot do without: those that are missing or too old, else one word on all of them."""
    from packaging.requirements import Requirement

    with suppress(metadata.PackageNotFoundError):
        named = [Requirement(text) for text in metadata.requires("autoprune") or []]
        needed = [one for one in named if one.marker is None or one.marker.evaluate({"extra": ""})]
        wrong = [check for check in map(_missing, needed) if check is not None]
        yield from wrong or [Check("required packages", "ok", f"all {len(needed)} are there, and new enough")]


def torch() -> Check:
    """Whether PyTorch can be loaded."""
    try:
        loaded = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001 - a broken installation raises what it likes
        return Check("torch", "problem", f"cannot be imported: {_line(error)}", "pip install --force-reinstall torch")
    return Check("torch", "ok", str(loaded.__version__))


def torchvision() -> Check:
    """Whether torchvision can be loaded: the first to break when it was built for another PyTorch."""
    try:
        loaded = importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001 - the same
        line = _line(error)
        if "operator torchvision::" in line and "does not exist" in line:
            line += (
                " (its compiled part did not load, because it was built for another PyTorch than the "
                f"{_version('torch')} here)"
            )
        return Check("torchvision", "problem", f"cannot be imported: {line}", _together())
    return Check("torchvision", "ok", str(loaded.__version__))


def fit() -> Check:
    """Whether the two were made for each other: by what torchvision asks for, and by CPU and CUDA builds."""
    from packaging.requirements import Requirement

    name = "torch and torchvision"
    ours, theirs = _version("torch"), _version("torchvision")
    if ours is None or theirs is None:
        missing = "torch" if ours is None else "torchvision"
        return Check(name, "problem", f"{missing} is not installed", _together())
    for wanted in map(Requirement, metadata.requires("torchvision") or []):
        if wanted.name == "torch" and not wanted.specifier.contains(ours, prereleases=True):
            found = f"torchvision {theirs} asks for torch {wanted.specifier}, and there is torch {ours}"
            return Check(name, "problem", found, _together())
    built = _build(ours), _build(theirs)
    if built[0] == "cpu" and built[1].startswith("cu"):
        found = f"torch {ours} is a build for the CPU, torchvision {theirs} one for CUDA, whose libraries it misses"
        return Check(name, "problem", found, _together())
    if built[0].startswith("cu") and built[1] == "cpu":
        found = f"torch {ours} is a build for CUDA, torchvision {theirs} one for the CPU: its operators fail on a GPU"
        return Check(name, "note", found, _together())
    return Check(name, "ok", f"{ours} and {theirs} go together")


def devices() -> Iterator[Check]:
    """What --device may name."""
    try:
        found = importlib.import_module("torch")
    except Exception:  # noqa: BLE001 - said above
        return
    if found.cuda.is_available():
        names = ", ".join(found.cuda.get_device_name(one) for one in range(found.cuda.device_count()))
        yield Check("device cuda", "ok", names)
    elif found.version.cuda is not None:
        cure = "on a machine with an NVIDIA GPU, see that `nvidia-smi` works; otherwise nothing is wrong"
        yield Check("device cuda", "note", f"built for CUDA {found.version.cuda}, but no GPU answers", cure)
    else:
        yield Check("device cuda", "ok", "not in this build of torch")
    if found.backends.mps.is_available():
        yield Check("device mps", "ok", "Apple GPU")


def threads() -> Check:
    """Threads of this process against the cores that it may use."""
    cores, why = _cores()
    named = f"{cores} cores{f' ({why})' if why else ''}"
    asked = os.environ.get("OMP_NUM_THREADS")
    try:
        used = int(importlib.import_module("torch").get_num_threads())
    except Exception:  # noqa: BLE001 - said above
        return Check("threads", "ok", named)
    found = f"{used} threads on {named}{f', OMP_NUM_THREADS={asked}' if asked else ''}"
    if used > max(1, int(cores)):
        return Check(
            "threads", "note", f"{found}: they wait for each other", f"export OMP_NUM_THREADS={max(1, int(cores))}"
        )
    if asked and cores // used > 1:
        return Check("threads", "note", f"{found}: cores are left over", f"--workers {cores // used:.0f} uses them")
    return Check("threads", "ok", found)


def ray_there() -> Check:
    """Ray, as it is installed."""
    version = _version("ray")
    found = f"{version}, not started (`autoprune doctor --ray` starts it)" if version else "not installed"
    return Check("ray", "ok" if version else "problem", found, "" if version else "pip install ray")


def ray_works() -> Check:
    """Whether Ray starts on this machine and does a piece of work."""
    try:
        ray = importlib.import_module("ray")
        ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        try:
            answer = ray.get(ray.remote(_answer).remote(), timeout=SECONDS)
        finally:
            ray.shutdown()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        cure = "search with one worker, or see that /tmp has room and that local ports may be opened"
        return Check("ray", "problem", f"does not start: {type(error).__name__}: {_line(error)}", cure)
    return Check("ray", "ok", f"{ray.__version__}, a local worker answered from process {answer}")


def extras() -> Check:
    """Optional packages; each is asked for by the feature that needs it."""
    from packaging.requirements import Requirement

    try:
        told = metadata.metadata("autoprune").get_all("Provides-Extra") or []
        wanted = [Requirement(text) for text in metadata.requires("autoprune") or []]
    except metadata.PackageNotFoundError:
        return Check("extras", "note", "unknown, because autoprune is not installed")
    missing = [
        extra
        for extra in told
        if extra != "dev"
        and any(
            one.marker is not None and one.marker.evaluate({"extra": extra}) and _version(one.name) is None
            for one in wanted
            if one.marker is None or not one.marker.evaluate({"extra": ""})
        )
    ]
    there = [extra for extra in told if extra != "dev" and extra not in missing]
    if missing:
        found = f"not installed: {', '.join(missing)}; there: {', '.join(there) or 'none'}"
        return Check("extras", "note", found, f"where you need them: pip install 'autoprune[{','.join(missing)}]'")
    return Check("extras", "ok", ", ".join(there) or "none offered")


def writable(name: str, folder: Path) -> Check:
    """Whether files can be made in a folder, which may have to be made first, and how much room there is."""
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        cure = "choose another folder (--root), or take back the rights to this one"
        return Check(name, "problem", f"{folder} cannot be written: {error.strerror or error}", cure)
    found = f"{folder.absolute()}, {free / 2**30:.1f} GiB free"
    if free < LITTLE:
        return Check(name, "problem", found, "make room: `autoprune runs --remove` deletes runs")
    return Check(name, "note" if free < ROOM else "ok", found, "make room soon" if free < ROOM else "")


def caches() -> Check:
    """The folder where archives are unpacked."""
    try:
        folder = paths.cache()
    except (OSError, RuntimeError) as error:  # there may be no home
        cure = "name a folder of yours with XDG_CACHE_HOME"
        return Check("cache folder", "problem", f"cannot be made: {getattr(error, 'strerror', None) or error}", cure)
    return writable("cache folder", folder)


def plugins() -> Iterator[Check]:
    """What other packages announce to autoprune, loaded as a search would load it."""
    announced = {
        (point.group.removeprefix("autoprune."), point.name): (point, package.name)
        for package in metadata.distributions()
        for point in package.entry_points
        if point.group.startswith("autoprune.")
    }
    if not announced:
        yield Check("plug-ins", "ok", "none")
    for (kind, name), (point, package) in sorted(announced.items(), key=lambda one: one[0]):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001 - other people's code
            found = f"{point.value} of {package} does not load: {type(error).__name__}: {_line(error)}"
            cure = f"upgrade {package}, or pip uninstall {package}"
            yield Check(f"{kind} {name}", "problem", found, cure)
        else:
            yield Check(f"{kind} {name}", "ok", f"of {package}")


def _answer() -> int:
    return os.getpid()


def _cores() -> tuple[float, str]:
    """The cores that this process may use, and what keeps it from the others."""
    total = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    found, why = float(allowed), f"of {total}, by affinity" if allowed < total else ""
    with suppress(OSError, ValueError):
        quota, period = CPU_MAX.read_text(encoding="ascii").split()
        if quota != "max" and int(quota) / int(period) < found:
            found, why = max(1.0, int(quota) / int(period)), f"of {total}, by the container's limit"
    return (int(found) if found == int(found) else found), why


def _version(package: str) -> str | None:
    """The version, from the module where it is loaded: an installer may have dropped ``+cpu`` or ``+cu126``."""
    with suppress(AttributeError, KeyError):
        return str(sys.modules[package].__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _build(version: str) -> str:
    """``cpu`` or ``cu126``, where the version says so."""
    return version.partition("+")[2]


def _missing(wanted: Any) -> Check | None:
    """What is wrong with a required package, if anything is."""
    there = _version(wanted.name)
    if there is not None and wanted.specifier.contains(there, prereleases=True):
        return None
    found = "not installed" if there is None else f"{there} is too old"
    return Check(wanted.name, "problem", found, f"pip install '{_plain(wanted)}'")


def _plain(wanted: Any) -> str:
    return f"{wanted.name}{wanted.specifier}"


def _together() -> str:
    return "install both at once, from one index: pip install --force-reinstall torch torchvision"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
