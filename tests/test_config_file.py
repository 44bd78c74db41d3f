"""``--config run.toml`` is the same as typing, and ``autoprune init`` writes one."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
import typer

from autoprune import config_file, cost, models, searchers, settings
from autoprune.cli import app
from autoprune.errors import UserError
from autoprune.search_spaces import traced

TYPED_ONLY = ("config", "debug")
GROUP = typer.main.get_command(app)
CONFIGURED = [
    "search", "compare", "sensitivity", "proxy-check", "evaluate", "sparsify", "train", "finetune", "latency build"
]  # fmt: skip
REQUIRED = {"finetune": ["my-run"], "evaluate": ["my-run"]}
VALUES = {int: 7, float: 0.25, str: "text", Path: "some/folder", bool: True}


def command(name):
    found = GROUP
    for word in name.split():
        found = found.commands[word]
    return found


def parsed(name, words):
    return command(name).make_context(name, [*REQUIRED.get(name, []), *words]).params


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_option_may_stand_in_the_file_and_means_what_it_means_typed(name, tmp_path):
    context = typer.Context(command(name), info_name=name)
    lines, words = [], []
    for key, (_, annotation) in config_file.options(context).items():
        kind, repeatable = config_file._kind(annotation)
        value = VALUES[kind]
        lines.append(f"{key.replace('-', '_')} = {json.dumps([value] * 2 if repeatable else value)}")
        words += [f"--{key}"] if kind is bool else [f"--{key}", str(value)] * (2 if repeatable else 1)
    from_file = parsed(name, ["--config", str(write(tmp_path, "\n".join(lines)))])
    typed = parsed(name, words)
    assert {**from_file, "config": None} == typed
    assert all(value not in (None, (), []) for key, value in typed.items() if key not in TYPED_ONLY)


def test_what_is_typed_wins_over_the_file_and_replaces_a_list_as_a_whole(tmp_path):
    file = write(tmp_path, 'trials = 3\nseed = 4\nbudget = ["macs=50%", "params=50%"]\n')
    found = parsed("search", ["--config", str(file), "--trials", "9", "--budget", "macs=30%"])
    assert (found["trials"], found["seed"], list(found["budget"])) == (9, 4, ["macs=30%"])
    before = parsed("search", ["--trials", "9", "--config", str(file)])
    assert before["trials"] == 9


def test_tables_are_key_value_options_and_numbers_are_text_where_text_is_meant(tmp_path):
    file = write(
        tmp_path,
        'sparsity = 0.9\nround-to = [8]\n[set]\nspread = 0.5\nelitist = true\nmode = "swap"\n[budget]\nmacs = "50%"\n',
    )
    found = parsed("search", ["--config", str(file)])
    assert found["sparsity"] == "0.9"
    assert list(found["round_to"]) == ["8"]
    assert list(found["settings"]) == ["spread=0.5", "elitist=true", "mode=swap"]
    assert list(found["budget"]) == ["macs=50%"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\ntrails = 3", "run.toml:2: search has no option 'trails'; close: trials"),
        ("data_sed = 3", "no option 'data_sed'; close: data-seed"),
        ("[sett]\na = 1", "run.toml:1: search has no option 'sett'; close: set"),
        ("zzz = 3", "no option 'zzz'; see its --help"),
        ('config = "other.toml"', "no option 'config'"),
        ("debug = true", "no option 'debug'"),
        ("data_seed = 1\ndata-seed = 2", "run.toml:2: 'data-seed' is there twice"),
        ('seed = 1\n\ntrials = "many"', "run.toml:3: trials = 'many': expected a whole number"),
        ("trials = 1.5", "trials = 1.5: expected a whole number"),
        ("trials = true", "trials = True: expected a whole number"),
        ('timeout = "long"', "timeout = 'long': expected a number"),
        ("quiet = 1", "quiet = 1: expected true or false"),
        ("model = true", "model = true: expected text"),
        ('model = ["a"]', "model = ['a']: expected text"),
        ('budget = "macs=50%"', "budget = 'macs=50%': expected a list, such as [\"macs=50%\"]"),
        ("budget = [[1]]", "budget = [1]: expected text"),
        ("[set]\nsteps = [1, 2]", "set.steps = [1, 2]: expected text or a number"),
        ("set = 2020-01-01", "set = datetime.date(2020, 1, 1): expected a list"),
        ("trials = 3\nseed = 'a\n", "run.toml is no TOML: "),
        ("trials = 3\nseed = 'a\n", "(at the end, line 2)"),
        ("a = 1\na = 2\n", "(at line 2, column"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_that_says_where(text, told, tmp_path):
    with pytest.raises(UserError) as caught:
        parsed("search", ["--config", str(write(tmp_path, text))])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.toml.*`autoprune init` writes"):
        parsed("search", ["--config", str(tmp_path / "nowhere.toml")])
    (tmp_path / "image.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"image\.toml cannot be read"):
        parsed("search", ["--config", str(tmp_path / "image.toml")])


def test_an_option_of_another_type_is_refused_before_anything_is_loaded(tmp_path, command_line):
    status, out, err = command_line("search", "--config", str(write(tmp_path, "trials = []")))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_the_file_on_the_page_is_read(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "command-line.md"
    (block,) = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = parsed("search", ["--config", str(write(tmp_path, block))])
    assert found["data_seed"] == 1
    assert list(found["settings"]) == ["step=0.2"]
    chosen = searchers.find(found["searcher"])
    settings.read(chosen, searchers.KIND, dict(pair.split("=") for pair in found["settings"]))


def test_the_page_names_every_command_that_takes_a_file():
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^(.*) take `--config`", page, re.MULTILINE)
    assert re.findall(r"`([a-z -]+)`", told) == CONFIGURED


NETWORK = ("--calibration", "64", "--validation", "64", "--searcher", "random", "--set", "low=0.3", "--trials", "2")


def test_a_file_of_init_searches_as_the_typed_options_do(tmp_path, monkeypatch, command_line, with_digits):
    with_digits(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    words = (*NETWORK, "--budget", "macs=60%", "--round-to", "2")
    status, _, err = command_line("search", *words, "--run", "typed", "--quiet")
    assert status == 0, err
    status, out, err = command_line("init", *words, "--run", "written", "--out", "my.toml")
    assert status == 0, err
    assert "autoprune search --config my.toml" in out
    status, out, err = command_line("search", "--config", "my.toml", "--quiet")
    assert (status, out) == (0, "runs/written\n"), err
    records = [json.loads((tmp_path / "runs" / run / "config.json").read_text()) for run in ("typed", "written")]
    assert records[0]["request"] == records[1]["request"]
    assert records[0]["source"] == records[1]["source"]
    assert records[0]["stop"] == records[1]["stop"]
    assert records[1]["options_file"] == (tmp_path / "my.toml").read_text()
    assert "options_file" not in records[0]
    schemes = [
        json.loads((tmp_path / "runs" / run / "scheme.json").read_text())["groups"] for run in ("typed", "written")
    ]
    assert schemes[0] == schemes[1]


def test_init_writes_every_option_and_what_is_known_of_the_network(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    words = (
        "--model",
        "autoprune:resnet20",
        "--data",
        'imagefolder:my "photos"',
        "--exclude",
        "layer1.*",
        "--seed",
        "3",
    )
    status, out, err = command_line("init", *words)
    assert status == 0, err
    assert "4 filled in" in out
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text) == {
        "model": "autoprune:resnet20", "data": 'imagefolder:my "photos"', "exclude": ["layer1.*"], "seed": 3,
    }  # fmt: skip
    known = config_file.options(typer.Context(command("search"), info_name="search"))
    keys = {line.lstrip("#").partition(" =")[0] for line in text.splitlines() if " =" in line and line[:2] != "# "}
    assert keys == set(known)
    space = traced.trace(models.load("autoprune:resnet20"), torch.zeros(1, 3, 32, 32))
    narrowed = [group for group in space.groups if not group.name.startswith("layer1.")]
    assert f"groups of channels that can be pruned: {len(narrowed)};" in text
    assert f"{cost.amount(cost.macs(space)(space.dense))} MACs" in text


def test_every_line_of_a_template_with_a_value_is_the_default(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    assert command_line("init", "--json")[0] == 0
    lines = (tmp_path / "run.toml").read_text(encoding="utf-8").splitlines()
    uncommented = [line[1:] for line in lines if line[:1] == "#" and line[1:2] not in (" ", "") and line[-1] != "="]
    assert len(uncommented) > 20
    file = write(tmp_path, "\n".join(uncommented))
    found = parsed("search", ["--config", str(file)])
    assert {name: value or None for name, value in found.items() if name != "config"} == {
        name: value or None for name, value in parsed("search", []).items() if name != "config"
    }


def test_init_replaces_a_file_only_when_told_to(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("mine", encoding="utf-8")
    status, _, err = command_line("init")
    assert status == 2
    assert "--force" in err
    assert (tmp_path / "run.toml").read_text(encoding="utf-8") == "mine"
    assert command_line("init", "--force")[0] == 0
    assert tomllib.loads((tmp_path / "run.toml").read_text(encoding="utf-8")) == {}


def test_init_goes_on_from_another_file(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.toml").write_text("trials = 5\nseed = 2\n", encoding="utf-8")
    assert command_line("init", "--config", "old.toml", "--seed", "3", "--out", "new.toml")[0] == 0
    assert tomllib.loads((tmp_path / "new.toml").read_text(encoding="utf-8")) == {"trials": 5, "seed": 3}


def test_init_without_a_network_to_look_at_says_why(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    status, _, err = command_line("init", "--model", "nowhere.nets:make")
    assert status == 0
    assert "says nothing of the network" in err
    assert "nowhere.nets:make could not be looked at" in (tmp_path / "run.toml").read_text(encoding="utf-8")


def test_init_refuses_options_that_search_does_not_have(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    status, _, err = command_line("init", "--modle", "autoprune:digits")
    assert status == 2
    assert "--model" in err
    assert not (tmp_path / "run.toml").exists()
