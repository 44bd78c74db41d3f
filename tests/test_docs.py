"""The pages: their Python runs, their commands are ones of the command line, their links and figures hold."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import autoprune
from autoprune.cli import app
from autoprune.criteria import CRITERIA, OF_WEIGHTS
from autoprune.exporters import EXPORTERS, GRAPHS
from autoprune.searchers import SEARCHERS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
START = DOCS / "getting-started.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")]


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Language, text and line of every block."""
    text = page.read_text(encoding="utf-8")
    return [(block[1], block[2], text[: block.start()].count("\n") + 1) for block in BLOCK.finditer(text)]


def commands(page: Path) -> list[str]:
    """Every command of ours in the page's shell blocks, on one line each."""
    shell = "\n".join(text for language, text, _ in blocks(page) if language == "bash").replace("\\\n", " ")
    return re.findall(r"^(?:\w+=\S+ +)*(autoprune .*)$", shell, re.MULTILINE)


def run_python(page: Path, text: str, line: int, names: dict[str, Any]) -> None:
    """Runs a block; one that begins with a file's name is written to that file as well."""
    if named := re.match(r"# (\w+\.py)\n", text):
        Path(named[1]).write_text(text, encoding="utf-8")
    exec(compile("\n" * line + text, str(page), "exec"), names)


@pytest.fixture
def page_folder(tmp_path, monkeypatch, with_digits):
    """An empty folder, whose files can be imported, with the embedded network trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    with_digits(tmp_path / "runs")
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", [page for page in WITH_CODE if page != START], ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page, page_folder):
    names = {"__name__": "page"}
    for language, text, line in blocks(page):
        if language == "python":
            run_python(page, text, line, names)


def test_the_blocks_of_getting_started_run(page_folder, command_line):
    """In their order; of the commands those that the last block needs, and the search is a short one."""
    names = {"__name__": "page"}
    for language, text, line in blocks(START):
        if language == "python":
            run_python(START, text, line, names)
            continue
        for words in map(shlex.split, re.findall(r"^autoprune (.*)$", text.replace("\\\n", " "), re.MULTILINE)):
            if words[0] == "groups" or ("half" in words and "quick" not in words):
                before = ["", *words[:-1]]
                short = ["2" if last == "--trials" else word for last, word in zip(before, words, strict=True)]
                status, _, errors = command_line(*short)
                assert status == 0, errors


@pytest.mark.slow
def test_getting_started_from_an_empty_folder(tmp_path):
    """Everything on the page but the installation, as a person would type it."""
    here = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    for language, text, _ in blocks(START):
        if language == "python":
            (tmp_path / re.match(r"# (\w+\.py)\n", text)[1]).write_text(text, encoding="utf-8")
        elif "pip install" not in text:
            done = subprocess.run(
                ["bash", "-e", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    assert (tmp_path / "both.html").stat().st_size > 10_000
    assert "met" in json.loads((tmp_path / "runs" / "quick" / "summary.json").read_text())["latency"]


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(ROOT.glob("examples/**/README.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if "://" not in target:
            other = page.parent / target if target else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What headings are called in links: in small letters, hyphens for spaces, without signs."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_that_the_text_names_exist():
    gone = {"benchmarks/equal_trials.py", "autoprune/Pruning-v0"}  # named with its commit; an environment, no file
    folders = "autoprune|search_spaces|envs|benchmarks|examples|tests|docs|notebooks"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(rf"(?<![\w/.$])((?:{folders})/[\w/.-]*\w)(?![\w*])", text):
            assert name in gone or (ROOT / name).exists(), f"{page.name} names {name}"


def leaf(words: list[str]) -> tuple[Any, Any, list[str]]:
    """The command that the words name, its context, and the words left for it."""
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="autoprune")
    while hasattr(command, "commands"):
        assert words, "a group of commands alone does nothing"
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
        context = command.context_class(command, info_name=command.name, parent=context)
    return command, context, words


def without(words: list[str], command: Any) -> list[str]:
    """The words less the command's own options and their values."""
    own = {name: parameter for parameter in command.params for name in parameter.opts}
    left, waiting = [], list(words)
    while waiting:
        word = waiting.pop(0)
        if word not in own:
            left.append(word)
        elif not own[word].is_flag:
            waiting.pop(0)
    return left


def check_command(line: str) -> None:
    """Holds a command line against the command tree, without running it."""
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "…"]
    if words in (["--help"], ["--version"], []):
        return
    command, context, rest = leaf(words)
    if command.context_settings.get("ignore_unknown_options"):  # init, which takes the options of search
        check_command(" ".join(["autoprune search", *without(rest, command)]))
        return
    given, left, _ = command.make_parser(context).parse_args(list(rest))
    assert not left, f"too many arguments: {left}"
    if "--help" in rest:
        return
    for parameter in command.params:
        assert given.get(parameter.name) or not parameter.required, f"{parameter.name} is missing"
    tables = {"searcher": SEARCHERS, "criterion": {**CRITERIA, **OF_WEIGHTS}, "to": {**EXPORTERS, **GRAPHS}}
    for option, table in tables.items():
        values = given.get(option) or []
        for value in [values] if isinstance(values, str) else values:
            name = value.partition(",")[0]
            assert ":" in name or name in table or name in FROM_A_PLUGIN, f"no {option} {name!r}"


FROM_A_PLUGIN = {"one_at_a_time", "deviation", "latex"}  # docs/extend.md installs examples/plugin before it uses them
LINES = sorted({(page.name, line) for page in PAGES for line in commands(page)})


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line[:60]}" for page, line in LINES])
def test_a_command_is_one_of_the_command_line(page, line):
    check_command(line)


@pytest.mark.parametrize(
    "line", ["serach", "search --wrokers 2", "search --trials", "apply x.json", "show a b", "latency"]
)
def test_a_wrong_command_would_be_seen(line):
    with pytest.raises(BaseException, match=r"(?i)no such option|requires|missing|too many|no command|a group"):
        check_command(f"autoprune {line}")


def test_options_in_the_text_exist():
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for words in re.findall(r"`autoprune ([a-z][a-z-]*)( [^`]*)?`", text):
            command, _, _ = leaf([words[0], *(words[1].split()[:1] if words[0] == "latency" else [])])
            taken = [*command.params, *(leaf(["search"])[0].params if words[0] == "init" else ())]
            known = {option for parameter in taken for option in [*parameter.opts, *parameter.secondary_opts]}
            for option in re.findall(r"(?<= )--?[a-z][\w-]*", words[1]):
                assert option in known or option == "--help", f"{page.name}: {words[0]} has no {option}"


def test_extension_examples_are_short():
    for language, text, _ in blocks(DOCS / "extend.md")[1:]:
        assert language == "bash" or len(text.strip().splitlines()) <= 20, text


@pytest.mark.parametrize("page", ["choose-a-searcher.md", "index.md"])
def test_figures_stand_in_the_benchmarks(page):
    """What a page claims was measured, and can be found where the command is."""
    measured = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    figures = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)", BLOCK.sub("", (DOCS / page).read_text(encoding="utf-8")))
    missing = [figure for figure in figures if figure not in measured and figure != "3.11"]
    assert figures
    assert not missing


def test_the_api_pages_have_every_public_name():
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api*.md"))
    for name in autoprune.__all__:
        assert f"heading: autoprune.{name}\n" in text, name


def test_the_api_pages_name_things_that_exist():
    for page in DOCS.glob("api*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            home = re.sub(r"^(search_spaces|envs)\b", r"autoprune.\1", name)
            module, _, last = home.rpartition(".")
            found = __import__(module, fromlist=[last])
            assert hasattr(found, last) or __import__(home, fromlist=["_"]), name
