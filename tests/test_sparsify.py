"""Sparsifying from Python and the command line: every method keeps the contract, runs go on, wrong input is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune import data, demo, load_pruned, masks, recipes
from autoprune.errors import UserError
from autoprune.exporters import scheme_file
from autoprune.finetune import judge
from autoprune.recipes.data import Data, Deferred
from autoprune.sparsify import read_rates, sparsify, weights

QUICK = {
    "magnitude": {},
    "global_magnitude": {},
    "pot": {"rounds": 2, "steps": 2},
    "obc": {},
    "unipts": {"epochs": 1, "search": False},
    "iterative": {"rounds": 2, "epochs": 1},
    "lottery": {"share": 0.6, "epochs": 1},
    "frank_wolfe": {"epochs": 1},
}


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def splits():
    return data.load("digits", 128, 128)


def quiet(facts) -> None:
    pass


class TestEveryMethod:
    @pytest.mark.parametrize("name", recipes.METHODS)
    @pytest.mark.parametrize("sparsity", [0.5, 0.9])
    def test_the_share_is_exact_and_the_dense_network_stays(self, name, sparsity, splits, tmp_path) -> None:
        model = small()
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        names = ["0.weight", "4.weight"]
        seen = Data(splits.calibration, list(splits.train())[:2], splits.validation)
        sparse = [
            recipes.find(name)(
                model, sparsity, seen, names=names, folder=tmp_path / turn, seed=3, tell=quiet, **QUICK[name]
            )
            for turn in "ab"
        ]
        total = 54 + 2160
        zeros = sum(int((sparse[0].get_parameter(key) == 0).sum()) for key in names)
        assert zeros == round(sparsity * total)
        assert not any(module.training for module in sparse[0].modules())
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert not model.training
        assert list(sparse[0].state_dict()) == list(before)
        one, other = (network.state_dict().values() for network in sparse)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def test_all_are_tried(self) -> None:
        assert set(QUICK) == set(recipes.METHODS)


class TestSparsify:
    def test_a_run_has_everything_and_the_network_reloads(self, splits, tmp_path) -> None:
        model = small()
        looked = []

        def test():
            looked.append("test")
            return splits.test()

        run = sparsify(
            model, splits.calibration, sparsity=0.8, method="magnitude", validation=splits.validation, test=test,
            train=lambda: pytest.fail("magnitude trains nothing"), run="it", root=tmp_path,
        )  # fmt: skip
        again = load_pruned(small, run.folder)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), run.model.parameters(), strict=True))
        assert looked == ["test"]
        rows = run.summary["rows"]
        assert rows["sparse"]["accuracy"] == pytest.approx(judge(again, splits.validation)[1])
        assert rows["dense"]["test_accuracy"] == pytest.approx(judge(model, list(splits.test()))[1])
        kept, total = masks.kept(54 + 2160, 0.8), 54 + 2160
        assert sum(run.summary["kept"]) == rows["sparse"]["costs"]["weights"] == kept
        assert run.summary["sparsity"] == pytest.approx(1 - kept / total)
        bits = sum(4 * count + -(-width // 8) for count, width in zip(run.summary["kept"], (54, 2160), strict=True))
        assert rows["sparse"]["costs"]["bitmask"] == bits
        record = scheme_file.parse(run.folder / "scheme.json")
        assert [group["kept_weights"] for group in record["groups"]] == run.summary["kept"]

    def test_a_finished_run_is_read_back(self, splits, tmp_path) -> None:
        given = {"sparsity": 0.8, "method": "magnitude", "run": "it", "root": tmp_path}
        first = sparsify(small(), splits.calibration, **given)
        again = sparsify(small(), splits.calibration, tell=lambda facts: pytest.fail("made again"), **given)
        assert again.summary == first.summary
        assert torch.equal(again.model[4].weight, first.model[4].weight)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"sparsity": 0.7}, r"sparsity: 0\.8 -> 0\.7"), ({"method": "obc"}, "method: magnitude -> obc"),
            ({"seed": 1}, "seed: 0 -> 1"), ({"exclude": ["0"]}, "weights"),
            ({"options": {"recalibrate": False}}, "recalibrate"),
        ],
    )  # fmt: skip
    def test_a_run_with_other_settings_is_refused_by_name(self, changed, message, splits, tmp_path) -> None:
        given = {"sparsity": 0.8, "method": "magnitude", "run": "it", "root": tmp_path}
        sparsify(small(), splits.calibration, **given)
        with pytest.raises(UserError, match=message):
            sparsify(small(), splits.calibration, **{**given, **changed})
        with pytest.raises(UserError, match="data"):
            sparsify(small(), splits.validation, **given)

    def test_a_stopped_run_goes_on_to_the_same_network(self, splits, tmp_path) -> None:
        given = {"sparsity": 0.8, "options": {"epochs": 3, "search": False}, "root": tmp_path}
        whole = sparsify(small(), splits.calibration, run="whole", **given)

        def stop(facts) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sparsify(small(), splits.calibration, run="part", tell=stop, **given)
        heard: list[int] = []
        part = sparsify(small(), splits.calibration, run="part", tell=lambda f: heard.append(f["epoch"]), **given)
        assert heard == [2, 3]
        assert all(torch.equal(a, b) for a, b in zip(part.model.parameters(), whole.model.parameters(), strict=True))

    def test_left_out_layers_stay_whole(self, splits, tmp_path) -> None:
        model = small()
        run = sparsify(
            model, splits.calibration, sparsity=0.9, method="magnitude", exclude=["0"], run="it", root=tmp_path
        )
        assert torch.equal(run.model[0].weight, model[0].weight)
        assert masks.sparsity(run.model, ["4.weight"]) == pytest.approx(0.9)

    def test_rates_are_per_layer_by_either_name(self, splits, tmp_path) -> None:
        rates = {"0": 0.0, "4.weight": 0.82}
        run = sparsify(
            small(), splits.calibration, sparsity=0.8, method="magnitude", rates=rates, run="it", root=tmp_path
        )
        assert run.summary["kept"][0] == 54
        with pytest.raises(UserError, match="decides itself"):
            sparsify(small(), splits.calibration, sparsity=0.8, method="global_magnitude", rates=rates, root=tmp_path)

    def test_a_method_that_removes_too_little_is_caught(self, splits, tmp_path) -> None:
        def lazy(model, sparsity, data, *, names, folder, seed, tell):
            return model

        with pytest.raises(UserError, match="left 2214 weights where 221 were asked for"):
            sparsify(small(), splits.calibration, sparsity=0.9, method=lazy, run="it", root=tmp_path)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"sparsity": 1.0}, r"sparsity = 1\.0"), ({"sparsity": -0.1}, r"sparsity = -0\.1"),
            ({"sparsity": 0.5, "method": "unipst"}, "'unipst' is unknown.*close: unipts"),
            ({"sparsity": 0.5, "options": {"epoch": 3}}, "no option 'epoch'.*close: epochs"),
            ({"sparsity": 0.5, "options": {"objective": "ce"}}, "base_decayed or kl or mse"),
            ({"sparsity": 0.5, "include": ["9"]}, "'9'"),
            ({"sparsity": 0.5, "method": "iterative"}, "needs training batches"),
        ],
    )  # fmt: skip
    def test_wrong_requests_are_refused(self, given, message, splits, tmp_path) -> None:
        with pytest.raises(UserError, match=message):
            sparsify(small(), splits.calibration, root=tmp_path, **given)

    def test_missing_and_small_calibration_data_are_refused(self, splits, tmp_path) -> None:
        with pytest.raises(UserError, match="calibration data yields no batch"):
            sparsify(small(), [], sparsity=0.5, root=tmp_path)
        inputs, labels = splits.calibration[0]
        with pytest.raises(UserError, match="8 calibration images are too few, at least 16 are needed"):
            sparsify(small(), [(inputs[:8], labels[:8])], sparsity=0.5, root=tmp_path)


class TestData:
    def test_it_says_what_is_missing(self, splits) -> None:
        bare = Data([(inputs, None) for inputs, _ in splits.calibration])
        assert bare.images == 128
        with pytest.raises(UserError, match="method x trains the network and needs training batches"):
            bare.training("x")
        with pytest.raises(UserError, match="method x chooses by validation images"):
            bare.judging("x")
        with pytest.raises(UserError, match="method x needs the labels"):
            bare.labelled("x")
        with pytest.raises(UserError, match="one tensor each"):
            Data([({"x": torch.zeros(2, 3)}, None)]).inputs("x")

    def test_batches_are_read_when_looked_at_and_once(self) -> None:
        reads = []

        def read():
            reads.append(1)
            return [(torch.zeros(2, 3), torch.zeros(2))] * 3

        later = Deferred(read)
        assert not reads
        assert len(later) == 3
        assert later[0][0].shape == (2, 3)
        assert len(later[1:]) == 2
        assert len(list(later)) == 3
        assert reads == [1]


class TestRatesFiles:
    @pytest.fixture
    def space(self):
        return weights(small(), torch.zeros(1, 1, 8, 8), ("*",), ())

    def test_json_csv_and_scheme_files_are_read(self, space, splits, tmp_path) -> None:
        (tmp_path / "rates.json").write_text('{"0": 0.25, "4": 0.75}')
        assert read_rates(tmp_path / "rates.json", space) == {"0": 0.25, "4": 0.75}
        (tmp_path / "rates.csv").write_text("group,removed_rate\n0,0.5\n4,0.75\n")
        assert read_rates(tmp_path / "rates.csv", space) == pytest.approx({"0": 0.5, "4": 0.75}, abs=0.01)
        run = sparsify(small(), splits.calibration, sparsity=0.8, method="magnitude", run="it", root=tmp_path)
        found = read_rates(run.folder / "scheme.json", space)
        assert found == pytest.approx({"0": 1 - run.summary["kept"][0] / 54, "4": 1 - run.summary["kept"][1] / 2160})

    def test_other_files_are_refused(self, space, tmp_path) -> None:
        (tmp_path / "words.json").write_text('{"0": "half", "4": 0.5}')
        with pytest.raises(UserError, match="share to remove of 0 is 'half', not a number"):
            read_rates(tmp_path / "words.json", space)
        scheme = '{"format": "autoprune-scheme", "version": 1, "granularity": "channel", "groups": []}'
        (tmp_path / "channels.json").write_text(scheme)
        with pytest.raises(UserError, match="granularity is 'channel'"):
            read_rates(tmp_path / "channels.json", space)
        (tmp_path / "no.json").write_text("{")
        with pytest.raises(UserError, match="is not JSON"):
            read_rates(tmp_path / "no.json", space)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with the digits network."""
    root = tmp_path_factory.mktemp("digits")
    demo.digits(root)
    return root


class TestCommand:
    @pytest.fixture
    def here(self, tmp_path, monkeypatch, digits) -> Path:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        shutil.copy(digits / demo.WEIGHTS, tmp_path / "runs")
        return tmp_path

    def test_from_the_command_to_a_network(self, here, command_line) -> None:
        words = [
            "sparsify", "--sparsity", "90%", "--set", "epochs=1", "--set", "population=2", "--set", "generations=1",
            "--set", "search_images=64", "--images", "64", "--validation", "64", "--run", "it",
        ]  # fmt: skip
        status, out, err = command_line(*words, "--json")
        assert status == 0, err
        result = json.loads(out)
        total = sum(result["widths"])
        assert result["sparsity"] == pytest.approx(0.9, abs=1 / total)
        sparse = load_pruned(lambda: demo.digits(here / "runs"), here / "runs" / "it")
        names = list(masks.weights(sparse))
        assert masks.sparsity(sparse, names) == pytest.approx(result["sparsity"])
        status, out, err = command_line(*words)
        assert status == 0, err
        assert "90.00% of" in out
        status, out, err = command_line("show", "it")
        assert status == 0, err
        assert "sparse" in out
        status, _, err = command_line(*[word.replace("90%", "80%") for word in words])
        assert status == 2
        assert "sparsity: 0.9 -> 0.8" in err

    def test_rates_from_a_file(self, here, command_line) -> None:
        status, out, err = command_line(
            "sparsify", "--sparsity", "0.5", "--method", "magnitude", "--run", "a", "--json"
        )
        assert status == 0, err
        kept = json.loads(out)["kept"]
        words = ["sparsify", "--sparsity", "0.5", "--method", "magnitude", "--run", "b", "--json"]
        status, out, err = command_line(*words, "--rates", "runs/a/scheme.json")
        assert status == 0, err
        assert json.loads(out)["kept"] == kept

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--sparsity", "100%"], "--sparsity 100%"), (["--sparsity", "-5%"], "--sparsity -5%"),
            (["--sparsity", "many"], "--sparsity many"), (["--sparsity", "90%", "--method", "pott"], "close: pot"),
            (["--sparsity", "90%", "--set", "epochs=many"], "epochs='many'"),
            (["--sparsity", "90%", "--rates", "none.json"], "none.json"),
        ],
    )  # fmt: skip
    def test_wrong_words_end_with_one_line(self, words, message, here, command_line) -> None:
        status, _, err = command_line("sparsify", *words)
        assert status == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1
