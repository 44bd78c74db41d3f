"""What an installation contains, what the core may import, and what an import costs."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"autoprune": "autoprune", "envs": "autoprune/envs", "search_spaces": "autoprune/search_spaces"}
NEIGHBOURS = ("envs", "search_spaces")
HEAVY = {"ray", "stable_baselines3", "torchvision", "sklearn"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    """The wheel, built from a copy so that the checkout stays as it is."""
    copy = tmp_path_factory.mktemp("source")
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (copy / "dist").glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


def modules_loaded_by(statements: str) -> set[str]:
    """Top-level names in sys.modules after the statements ran in a fresh interpreter."""
    answer = "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    script = f"import json, sys\n{statements}\n{answer}"
    # -P: the current directory is not importable, as for a user who installed the package.
    ran = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


def imported(source: str, package: str) -> set[str]:
    """Absolute dotted names that a module of ``package`` imports anywhere in its source."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def crossings(source: str, package: str) -> list[str]:
    """Those imports that name a folder beside the core, by its place or by its installed name."""
    banned = [prefix + name for name in NEIGHBOURS for prefix in ("", "autoprune.")]
    return sorted(name for name in imported(source, package) if any(f"{name}.".startswith(f"{b}.") for b in banned))


def test_the_wheel_holds_every_module_and_type_marker_under_autoprune(wheel: ZipFile) -> None:
    expected = {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in SOURCES.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert {f"{installed}/__init__.py" for installed in SOURCES.values()} <= expected
    assert {f"{installed}/py.typed" for installed in SOURCES.values()} <= expected
    assert expected <= set(wheel.namelist())


def test_the_wheel_puts_nothing_but_autoprune_into_site_packages(wheel: ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert top == {"autoprune", f"autoprune-{PROJECT['version']}.dist-info"}


def test_the_wheel_carries_the_licence_and_the_console_script(wheel: ZipFile) -> None:
    info = f"autoprune-{PROJECT['version']}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "autoprune = autoprune.cli:main" in wheel.read(f"{info}/entry_points.txt").decode().splitlines()


@pytest.mark.parametrize("path", sorted((ROOT / "autoprune").rglob("*.py")), ids=lambda path: path.stem)
def test_a_module_of_the_core_never_imports_envs_or_search_spaces(path: Path) -> None:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    assert crossings(path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize(
    "source",
    [
        "import envs",
        "import search_spaces.traced",
        "from envs import pruning",
        "import autoprune.envs.pruning as p",
        "from autoprune import search_spaces",
        "from autoprune.search_spaces.traced import trace",
        "from .. import envs",
        "from ..search_spaces import traced",
        "def late():\n    from autoprune import envs",
    ],
)
def test_a_crossing_import_is_seen_in_every_spelling(source: str) -> None:
    assert len(crossings(source, "autoprune.searchers")) == 1


def test_a_name_that_only_begins_like_a_neighbour_is_no_crossing() -> None:
    assert crossings("import envs_of_others\nfrom . import envs\nimport autoprune.space", "autoprune.searchers") == []


def test_importing_autoprune_loads_no_heavy_library() -> None:
    loaded = modules_loaded_by("import autoprune")
    assert "autoprune" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_searchers_does_not_load_torch() -> None:
    loaded = modules_loaded_by("import autoprune.searchers")
    assert "autoprune" in loaded
    assert loaded.isdisjoint(HEAVY | {"torch"})


def test_the_help_of_the_command_line_loads_no_heavy_library() -> None:
    statements = """
from autoprune.cli import main
sys.argv = ["autoprune", "--help"]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""
    assert modules_loaded_by(statements).isdisjoint(HEAVY)


def test_both_neighbours_import_under_their_installed_name_alone() -> None:
    loaded = modules_loaded_by("import autoprune.envs, autoprune.search_spaces")
    assert "autoprune" in loaded
    assert loaded.isdisjoint(NEIGHBOURS)
