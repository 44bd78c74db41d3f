import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from autoprune import api
from autoprune.errors import UserError
from autoprune.latency.conditions import Conditions


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with one finished run of the embedded default."""
    folder = tmp_path_factory.mktemp("home")
    done = run(folder, "search", "--trials", "5", "--run", "first", "--calibration", "128", "--validation", "128")
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own, as a user has it."""
    program = "import sys; from autoprune.cli import main; sys.argv = ['autoprune', *sys.argv[1:]]; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def call(home, monkeypatch, command_line):
    monkeypatch.chdir(home)
    return command_line


def test_the_default_search_prints_the_comparison_and_what_to_do_next(home):
    again = run(home, "search", "--trials", "5", "--run", "first", "--calibration", "128", "--validation", "128")
    assert again.returncode == 0
    for words in ("dense", "uniform", "found", "test accuracy", "MACs", "latency", "runs/first", "next:"):
        assert words in again.stdout
    assert "\x1b[" not in again.stdout  # no escape codes into a file
    assert "searching" not in again.stdout  # nor a progress bar


def test_json_is_one_object_on_standard_output(call):
    status, out, _ = call(
        "search", "--trials", "5", "--run", "first", "--calibration", "128", "--validation", "128", "--json"
    )
    record = json.loads(out)
    assert status == 0
    assert record["rows"]["found"]["fractions"]["macs"] <= 0.5
    assert Path(record["folder"]) == Path("runs/first")


def test_quiet_prints_the_folder_alone(call):
    _, out, _ = call(
        "search", "--trials", "5", "--run", "first", "--calibration", "128", "--validation", "128", "--quiet"
    )
    assert out == "runs/first\n"


def test_show_and_runs_tell_of_the_run(call):
    status, out, _ = call("show", "first")
    assert status == 0
    assert "blocks.0.conv1" in out
    assert "5 trials" in out
    _, out, _ = call("runs", "--json")
    assert [record["name"] for record in json.loads(out)] == ["first"]
    _, out, _ = call("show", "first", "--json")
    assert json.loads(out)["summary"]["trials"] == 5


def test_groups_lists_what_can_and_what_cannot_be_pruned(call):
    status, out, _ = call("groups", "autoprune:resnet20")
    assert status == 0
    assert "layer1.0.conv1" in out
    assert "constant" in out  # the padded shortcut
    _, out, _ = call("groups", "autoprune:resnet20", "--json", "--exclude", "layer1.*", "--round-to", "8")
    record = json.loads(out)
    assert all(not group["name"].startswith("layer1") for group in record["groups"])
    assert record["groups"][0]["counts"] == [8, 16, 24, 32]


def test_export_writes_what_other_tools_read(call, home):
    status, out, _ = call("export", "first", "--to", "csv")
    assert status == 0
    assert out.splitlines()[0].startswith("group,")
    status, out, _ = call("export", "first", "--to", "torch_pruning", "--out", "ratios.json")
    assert status == 0
    assert all(0 < ratio < 1 for ratio in json.loads((home / "ratios.json").read_text()).values())


def test_apply_prunes_by_an_edited_file(call, home):
    call("export", "first", "--to", "csv", "--out", "widths.csv")
    lines = (home / "widths.csv").read_text().splitlines()
    header = lines[0].split(",")
    cells = lines[1].split(",")
    cells[header.index("kept")] = "3"
    (home / "edited.csv").write_text("group,kept\n" + f"{cells[0]},3\n")
    status, out, err = call(
        "apply",
        "edited.csv",
        "--model",
        "autoprune:digits",
        "--weights",
        "runs/digits-network.safetensors",
        "--out",
        "pruned",
    )
    assert status == 0, err
    from safetensors.torch import load_file

    tensors = load_file(home / "pruned" / "pruned.safetensors")
    assert tensors[f"{cells[0]}.weight"].shape[0] == 3
    assert "MACs" in out or "macs" in out


def test_runs_are_removed_by_name(call, home):
    call(
        "search",
        "--trials",
        "1",
        "--run",
        "second",
        "--searcher",
        "uniform",
        "--calibration",
        "64",
        "--validation",
        "64",
    )
    assert (home / "runs" / "second").is_dir()
    status, _, _ = call("runs", "--remove", "second", "--yes")
    assert status == 0
    assert not (home / "runs" / "second").exists()


SEARCH = ("search", "--calibration", "64", "--validation", "64", "--trials", "1")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((*SEARCH, "--model", "autoprune:resnet20"), "needs --data"),
        ((*SEARCH, "--model", "autoprune:resnet20", "--data", "digits"), "cannot run on the example input"),
        ((*SEARCH, "--model", "autoprune:resnet21", "--data", "digits"), "resnet21"),
        ((*SEARCH, "--model", "nowhere.nets:make", "--data", "digits"), "nowhere"),
        ((*SEARCH, "--data", "imagefolder:missing"), "missing"),
        ((*SEARCH, "--weights", "other.safetensors"), "conv"),
        ((*SEARCH, "--budget", "macs=lots"), "macs=lots"),
        ((*SEARCH, "--budget", "macs=0.001%"), "cannot be reached"),
        ((*SEARCH, "--budget", "speed=2"), "speed"),
        ((*SEARCH, "--searcher", "swapp"), "swap"),
        ((*SEARCH, "--set", "spread=1"), "spread"),
        ((*SEARCH, "--set", "spread"), "KEY=VALUE"),
        ((*SEARCH, "--criterion", "tailor"), "taylor"),
        ((*SEARCH, "--recovery", "bn"), "recalibrate_bn"),
        ((*SEARCH, "--precision", "bf16"), "precision 'bf16' is unknown: choose float32, bfloat16, float16"),
        ((*SEARCH, "--tracker", "mlfow"), "tracker 'mlfow' is unknown"),
        ((*SEARCH, "--reward", "acuracy"), "accuracy"),
        ((*SEARCH, "--reward", "accuracy", "--reward-set", "target=0.5"), "reward accuracy has no option 'target'"),
        ((*SEARCH, "--reward", "constraint_punish", "--reward-set", "target=50"), "target = 50.0"),
        ((*SEARCH, "--reward", "constraint_punish", "--reward-set", "target=half"), "target='half': expected a number"),
        ((*SEARCH, "--reward-set", "target"), "--reward-set 'target': write KEY=VALUE"),
        ((*SEARCH, "--trials", "0"), "trials = 0"),
        ((*SEARCH, "--mean", "a,b"), "--mean"),
        ((*SEARCH, "--run", "../up"), "../up"),
        ((*SEARCH, "--root", "file.txt"), "file.txt"),
        ((*SEARCH, "--exclude", "nothing*"), "nothing*"),
        ((*SEARCH, "--run", "first", "--budget", "macs=30%"), "another request"),
        (("show", "nosuch"), "nosuch"),
        (("export", "first", "--to", "nosuch"), "nosuch"),
        (("groups", "autoprune:resnet20", "--input", "3by32"), "3by32"),
        (("apply", "nosuch.json", "--model", "autoprune:digits", "--out", "o"), "nosuch.json"),
    ],
)
def test_bad_input_is_one_line_that_names_it(call, home, words, named):
    (home / "file.txt").write_text("")
    save_file({"other": torch.zeros(1)}, home / "other.safetensors")
    status, _, err = call(*words)
    errors = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert status != 0
    assert len(errors) == 1, err
    assert errors[0].startswith("error:")
    assert named in errors[0]


def test_debug_shows_the_traceback(home):
    done = run(home, "show", "nosuch", "--debug")
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_a_ledger_cut_in_mid_line_is_repaired_and_nothing_recorded_is_lost(home):
    words = ("search", "--searcher", "random", "--run", "cut", "--calibration", "64", "--validation", "64")
    assert run(home, *words, "--trials", "6").returncode == 0
    ledger = home / "runs" / "cut" / "ledger.jsonl"
    content = ledger.read_bytes()
    ledger.write_bytes(content + content.splitlines()[-1][: len(content.splitlines()[-1]) // 2])
    done = run(home, *words, "--trials", "9")
    assert done.returncode == 0, done.stderr
    assert ledger.read_bytes().startswith(content)


def test_code_named_in_a_run_is_not_imported_without_the_users_word(call, home):
    config = home / "runs" / "first" / "config.json"
    record = json.loads(config.read_text())
    original = config.read_text()
    record["source"]["model"] = "evil:make"
    config.write_text(json.dumps(record))
    (home / "evil.py").write_text("raise SystemExit('imported')")
    try:
        status, _, err = call("export", "first", "--to", "csv")
        assert status == 2
        assert "--allow-code" in err
    finally:
        config.write_text(original)
        (home / "evil.py").unlink()


def test_a_narrowed_run_is_exported_and_applied_in_its_own_space(call, home):
    words = ("search", "--searcher", "uniform", "--run", "narrow", "--calibration", "64", "--validation", "64")
    narrow = ("--exclude", "conv", "--round-to", "4", "--tie", "blocks.1.conv2,blocks.2.conv1")
    status, _, err = call(*words, *narrow)
    assert status == 0, err
    status, out, err = call("export", "narrow", "--to", "csv")
    assert status == 0, err
    assert all(int(line.split(",")[2]) % 4 == 0 for line in out.splitlines()[1:])
    network = ("--model", "autoprune:digits", "--weights", "runs/digits-network.safetensors", "--out", "narrowed")
    status, _, err = call("apply", "runs/narrow/scheme.json", *network)
    assert status == 2
    assert "conv" in err
    status, _, err = call("apply", "runs/narrow/scheme.json", *network, *narrow)
    assert status == 0, err


def test_a_hand_over_is_tried_on_the_tool_before_it_is_written(call, monkeypatch):
    from autoprune.exporters import torch_pruning

    tried = []
    original = torch_pruning.check_history
    monkeypatch.setattr(torch_pruning, "check_history", lambda *given: (tried.append(given), original(*given)))
    status, out, err = call("export", "first", "--to", "torch_pruning_history")
    assert status == 0, err
    assert json.loads(out)
    assert len(tried) == 1


def test_apply_chooses_and_repairs_with_data(call, home):
    (home / "half.csv").write_text("group,kept_rate\nblocks.0.conv1,0.5\n")
    status, out, err = call(
        "apply", "half.csv", "--model", "autoprune:digits", "--weights", "runs/digits-network.safetensors",
        "--data", "digits", "--calibration", "64", "--out", "repaired", "--json",
    )  # fmt: skip
    assert status == 0, err
    assert json.loads(out)["fractions"]["macs"] < 1


def test_options_of_the_reward_are_taken_and_written_down(call, home):
    status, out, err = call(
        *SEARCH, "--run", "hard", "--searcher", "uniform", "--json",
        "--reward", "constraint_punish", "--reward-set", "target=0.3", "--reward-set", "cost=params",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    over = found["rows"]["found"]["fractions"]["params"] - 0.3
    assert over > 0
    assert found["reward"] == pytest.approx(-over)
    config = json.loads((home / "runs" / "hard" / "config.json").read_text())
    assert config["reward"] == "autoprune.reward:constraint_punish(cost='params', target=0.3)"


@pytest.mark.parametrize("command", ["search", "compare"])
def test_networks_are_timed_under_the_conditions_asked_for(call, monkeypatch, command):
    def problem(*_, conditions, **__):
        raise UserError(f"asked for {conditions}")

    monkeypatch.setattr(api, "problem", problem)
    asked = ("--batch-size", "4", "--threads", "2", "--dtype", "bfloat16", "--memory-format", "channels_last")
    _, _, err = call(command, *SEARCH[1:], "--run", "timed", *asked, "--backend", "compile")
    assert err == f"error: asked for {Conditions('cpu', 4, 2, 'bfloat16', 'channels_last', 'compile')}\n"


def test_candidates_are_looked_at_in_the_precision_asked_for(call, home):
    status, out, err = call(
        *SEARCH, "--run", "short-numbers", "--searcher", "uniform", "--precision", "bfloat16", "--json"
    )
    assert status == 0, err
    assert (
        json.loads((home / "runs" / "short-numbers" / "config.json").read_text())["request"]["precision"] == "bfloat16"
    )
    assert json.loads(out)["rows"]["dense"]["accuracy"] > 0.9


def test_trackers_hear_of_the_search(call, monkeypatch):
    heard = []

    def make(name: str = ""):
        return lambda event, facts: heard.append((name, event))

    monkeypatch.setitem(sys.modules, "mytrackers", SimpleNamespace(make=make))
    named = ("--tracker", "mytrackers:make,name=one", "--tracker", "mytrackers:make,name=two")
    status, _, err = call(*SEARCH, "--run", "tracked", "--searcher", "uniform", *named)
    assert status == 0, err
    assert {(name, event) for name in ("one", "two") for event in ("started", "trial", "done")} <= set(heard)


def test_tensorboard_curves_lie_in_the_folder_of_the_run(call, home):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    status, out, err = call(*SEARCH, "--run", "drawn", "--searcher", "uniform", "--tensorboard")
    assert status == 0, err
    assert "tensorboard --logdir runs/drawn" in out
    assert len(list((home / "runs" / "drawn" / "tensorboard").glob("events.out.tfevents.*"))) == 1
