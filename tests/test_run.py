import json

import pytest

from autoprune.errors import UserError
from autoprune.run import CONFIG, SUMMARY, Run, make_folder, new_name, prepare, read_json, runs, write_json

CONFIGURATION = {
    "name": "toy",
    "request": {"budget": {"macs": 5.0}, "searcher": "swap"},
    "fingerprint": "f",
    "groups": ["a"],
}


def test_the_same_request_continues_and_the_newest_surroundings_are_written(tmp_path):
    prepare(tmp_path, {**CONFIGURATION, "reward": "neg_loss"})
    prepare(tmp_path, {**CONFIGURATION, "reward": "accuracy"})
    assert read_json(tmp_path / CONFIG)["reward"] == "accuracy"


def test_another_request_is_refused_with_the_difference_and_nothing_changes(tmp_path):
    prepare(tmp_path, CONFIGURATION)
    other = {**CONFIGURATION, "request": {"budget": {"macs": 4.0}, "searcher": "swap"}}
    with pytest.raises(UserError, match=r"budget: \{'macs': 5.0\} -> \{'macs': 4.0\}"):
        prepare(tmp_path, other)
    assert read_json(tmp_path / CONFIG) == CONFIGURATION


def test_a_run_is_opened_by_folder_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_folder("runs", "one")
    prepare(folder, CONFIGURATION)
    write_json(folder / SUMMARY, {"trials": 3})
    assert Run.open(folder).summary == {"trials": 3}
    assert Run.open("one").config == CONFIGURATION
    with pytest.raises(UserError, match="no run 'two'.*one"):
        Run.open("two")


def test_runs_are_listed_with_their_size_and_removed(tmp_path):
    for name in ("one", "two"):
        prepare(make_folder(tmp_path, name), CONFIGURATION)
    assert [run.name for run in runs(tmp_path)] == ["one", "two"]
    one = runs(tmp_path)[0]
    assert one.size == (one.folder / CONFIG).stat().st_size
    one.remove()
    assert [run.name for run in runs(tmp_path)] == ["two"]


def test_a_run_that_is_driven_is_not_removed(tmp_path):
    prepare(tmp_path, CONFIGURATION)
    (tmp_path / "driver.json").write_text("{}")
    with pytest.raises(UserError, match="in use"):
        Run.open(tmp_path).remove()
    assert (tmp_path / CONFIG).is_file()


@pytest.mark.parametrize("name", ["../up", ".hidden", "a b", "a/b", ""])
def test_names_that_are_no_plain_folder_name_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="run name"):
        make_folder(tmp_path, name)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make_folder(tmp_path / "file", "one")


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / CONFIG).write_text('{"name": ')
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        Run.open(tmp_path)


def test_new_names_are_plain_folder_names_and_never_taken(tmp_path):
    names = [make_folder(tmp_path, new_name(tmp_path, "torchvision:resnet18", "macs-params")).name for _ in range(3)]
    assert len(set(names)) == 3
    assert all(name.startswith("torchvision-resnet18-macs-params-") for name in names)
