"""What all commands have in common: examples that parse, --json, --quiet, exit statuses, completion, a fast help."""

import inspect
import json
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer

from autoprune import arguments, cli, completion, exporters, recipes, run_commands, train_commands
from autoprune.cli import app
from autoprune.option_groups import Images, Network, Output, pick, spread
from autoprune.options import Debug, Json
from autoprune.recipes import source
from autoprune.searchers import SEARCHERS

GROUP = typer.main.get_command(app)


def all_commands():
    for name, command in GROUP.commands.items():
        for inner, sub in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", sub
        if not hasattr(command, "commands"):
            yield name, command


COMMANDS = dict(all_commands())
LONG = ["search", "compare", "sensitivity", "proxy-check", "apply", "sparsify", "train", "finetune", "latency build"]
"""What runs long and leaves its result somewhere."""
TALKS = ["dashboard"]
"""What has no result to tell a machine."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_its_own_options_parse(name):
    examples = re.findall(r"^Example: autoprune (.*)$", inspect.cleandoc(COMMANDS[name].help), re.MULTILINE)
    assert examples, f"autoprune {name} has no example"
    for example in examples:
        words = shlex.split(example)
        path, rest = words[: len(name.split())], words[len(name.split()) :]
        assert path == name.split()
        context = COMMANDS[name].make_context(name, rest, parent=typer.Context(GROUP))
        if name == "init":  # it leaves the options of search alone
            context = COMMANDS["search"].make_context("search", context.args)
        assert any(context.get_parameter_source(key).name == "COMMANDLINE" for key in context.params) or not rest


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_and_every_command_takes_debug(name):
    options = [one for one in COMMANDS[name].params if one.param_type_name == "option"]
    assert all(one.help for one in options), [one.name for one in options if not one.help]
    assert "--debug" in [opt for one in options for opt in one.opts]
    unescaped = [one.name for one in options if re.search(r"\[[a-z]", one.help)]
    assert not unescaped, "square brackets are markup, and vanish from the help"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in TALKS])
def test_every_command_that_tells_results_has_json(name):
    assert "--json" in [opt for one in COMMANDS[name].params for opt in one.opts]


def test_quiet_means_the_same_everywhere_it_is():
    quiet = {name: one.help for name, command in COMMANDS.items() for one in command.params if "--quiet" in one.opts}
    assert sorted(quiet) == sorted(LONG)
    assert len(set(quiet.values())) == 1


def test_options_of_one_name_have_one_type_in_all_commands():
    types = {}
    for name, command in COMMANDS.items():
        for one in command.params:
            for opt in one.opts if one.param_type_name == "option" else ():
                types.setdefault(opt, {})[name] = (one.type_descriptor.annotation, one.multiple)
    allowed = {"--searcher", "--seed", "--rates", "--points"}  # several in a comparison; a file for sparsify
    mixed = {opt for opt, found in types.items() if len(set(map(str, found.values()))) > 1}
    assert mixed <= allowed, {opt: types[opt] for opt in mixed - allowed}


def test_the_help_of_search_is_in_panels(command_line):
    status, out, _ = command_line("search", "--help")
    assert status == 0
    panels = [line.split("─ ")[1].split(" ─")[0] for line in out.splitlines() if line.startswith("╭─ ")]
    assert panels == [
        "Options", "Network and data", "Budget", "Search", "Repair and scoring", "Device and latency", "Workers",
        "What is pruned", "Output",
    ]  # fmt: skip
    assert "half of the multiply-adds" in " ".join(out.replace("│", " ").split())


def test_the_commands_are_grouped_in_the_help(command_line):
    _, out, _ = command_line("--help")
    panels = [line.split("─ ")[1].split(" ─")[0] for line in out.splitlines() if line.startswith("╭─ ")]
    assert panels == ["Options", cli.START, cli.SEARCH, cli.LOOK, cli.HAND_ON, cli.TRAIN]


def test_the_help_loads_no_torch():
    program = (
        "import sys; from autoprune.cli import main; sys.argv = ['autoprune', '--help']\n"
        "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (None, 0, ""),
        (arguments.UserError("no such thing: take another"), 2, "error: no such thing: take another\n"),
        (OSError("disk\nfull"), 1, "error: OSError: disk (--debug shows where)\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_statuses(raised, status, told, command_line, monkeypatch):
    def runs(root):
        if raised is not None:
            raise raised
        return []

    monkeypatch.setattr("autoprune.run.runs", runs)
    found, _, err = command_line("runs")
    assert found == status
    assert err == told


@pytest.mark.parametrize("words", [("search", "--trials", "many"), ("search", "--nope"), ("nope",), ("apply", "a.csv")])
def test_a_command_line_that_does_not_parse_is_status_2(words, command_line):
    status, out, err = command_line(*words)
    assert (status, out) == (2, "")
    assert words[1] in err or "Missing option" in err if len(words) > 1 else words[0] in err


def test_debug_lets_an_error_through(command_line, monkeypatch):
    def runs(root):
        raise OSError("disk full")

    monkeypatch.setattr("autoprune.run.runs", runs)
    with pytest.raises(OSError, match="disk full"):
        command_line("runs", "--debug")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell, command_line):
    status, out, _ = command_line("--show-completion", shell)
    assert status == 0
    assert "_AUTOPRUNE_COMPLETE=complete_" in out


@pytest.fixture
def completed(tmp_path, monkeypatch, capsys):
    """What bash is told for a line that ends where the cursor is."""
    monkeypatch.chdir(tmp_path)

    def ask(line):
        monkeypatch.setenv("_AUTOPRUNE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        with pytest.raises(SystemExit):
            app(prog_name="autoprune")
        return capsys.readouterr().out.split()

    return ask


def test_the_shell_completes_searchers_exporters_and_runs(completed, tmp_path):
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    (tmp_path / "runs" / "no-run").mkdir()
    assert completed("autoprune show ") == ["first", "second"]
    assert completed("autoprune show s") == ["second"]
    assert completed("autoprune search --searcher a") == ["auto", "autoslim", "annealing"]
    assert completed("autoprune export first --to onn") == ["onnx"]
    assert completed("autoprune doc") == ["doctor"]


def test_what_is_completed_is_what_there_is(tmp_path, monkeypatch):
    by_option = {
        ("search", "--searcher"): SEARCHERS,
        ("compare", "--searcher"): SEARCHERS,
        ("export", "--to"): {**exporters.EXPORTERS, **exporters.GRAPHS},
        ("sparsify", "--method"): recipes.METHODS,
        ("train", "--recipe"): source.TRAINED,
    }
    for (name, option), known in by_option.items():
        (found,) = [one for one in COMMANDS[name].params if option in one.opts]
        items = found.shell_complete(typer.Context(COMMANDS[name]), "")
        assert [item.value for item in items] == list(known), option
    assert set(train_commands.RECIPES) == set(source.TRAINED)
    monkeypatch.chdir(tmp_path)
    assert completion.runs(typer.Context(COMMANDS["show"]), "") == []


def test_a_group_of_options_is_spread_over_the_command_and_gathered_again():
    seen = []

    @spread
    def command(
        *, network: Network, images: Images, extra: int = 1, as_json: Json = False, debug: Debug = False
    ) -> None:
        seen.append((network, images, extra))

    names = list(inspect.signature(command).parameters)
    assert names[:3] == ["model", "weights", "num_classes"]
    assert names[-3:] == ["extra", "as_json", "debug"]
    assert set(typing.get_type_hints(command)) == set(names)
    given = {name: one.default for name, one in inspect.signature(command).parameters.items()}
    command(**{**given, "model": "a", "data_seed": 5, "extra": 2})
    assert seen == [(Network("a"), Images(data_seed=5), 2)]
    assert pick(Network, {"model": "b", "weights": None, "num_classes": 3, "other": 1}) == Network("b", None, 3)


@pytest.mark.parametrize(
    ("output", "printed"),
    [
        (Output(), ""),
        (Output(quiet=True), "runs/a\n"),
        (Output(as_json=True), '{"folder": "runs/a", "trials": 3}\n'),
        (Output(as_json=True, quiet=True), '{"folder": "runs/a", "trials": 3}\n'),
    ],
)
def test_a_result_is_told_to_a_machine_in_one_line_or_left_to_the_command(output, printed, capsys):
    assert output.told("runs/a", {"trials": 3}) is bool(printed)
    assert capsys.readouterr().out == printed


def test_a_page_is_named_to_a_machine(tmp_path, monkeypatch, command_line):
    class Found:
        folder = tmp_path

    monkeypatch.setattr("autoprune.run.Run.open", lambda run: Found())
    monkeypatch.setattr("autoprune.page.render", lambda found: "<html>")
    status, out, err = command_line("report", "mine", "--json")
    assert status == 0, err
    assert json.loads(out) == {"file": str(tmp_path / "report.html"), "figures": []}
    assert run_commands.report.__doc__


def test_the_reference_lists_every_command():
    text = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `autoprune ([a-z-]+)", text, re.MULTILINE)
    assert sorted(listed) == sorted(GROUP.commands)


def test_commands_that_can_be_configured_are_those_with_many_options():
    configured = {
        name for name, command in COMMANDS.items() if "--config" in [o for p in command.params for o in p.opts]
    }
    assert configured == {"evaluate", *LONG} - {"apply"}
