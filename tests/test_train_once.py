"""Recipes leave a folder that a search reads candidates' weights from."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from autoprune import api, data, models
from autoprune.cli import app
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator
from autoprune.finetune import Recipe
from autoprune.recipes import network_slimming as built_in
from autoprune.recipes import source
from autoprune.recipes.metapruning import PruningNet, metapruning
from autoprune.recipes.narrow import draw, first, uniform
from autoprune.recipes.network_slimming import network_slimming
from autoprune.recipes.slimmable import batch_norms
from autoprune.scheme import Scheme
from autoprune.search_spaces.named import select
from autoprune.slicing import prune
from autoprune.space import SearchSpace
from networks import depthwise, flattened, residual

CHANNELS = ["slimmable", "universal", "autoslim", "network_slimming", "metapruning"]


def digits() -> tuple[nn.Module, SearchSpace]:
    torch.manual_seed(0)
    model = models.load("autoprune:digits")
    return model, api.trace(model, torch.randn(1, 1, 8, 8))


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return data.load("digits", 128, 128)


@pytest.fixture(scope="module")
def train(splits: data.Splits) -> list:
    return list(splits.train())[:4]


@pytest.fixture(scope="module")
def folders(splits: data.Splits, train: list, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One short training of each recipe."""
    found = {}
    for name in CHANNELS:
        found[name] = tmp_path_factory.mktemp(name)
        source.train(name, *digits(), train, splits.validation, found[name], recipe=Recipe(1, lr=0.05))
    return found


@pytest.mark.parametrize("name", CHANNELS)
def test_candidates_have_the_trained_weights(name: str, folders: dict[str, Path], splits: data.Splits) -> None:
    model, space = digits()
    found = source.read(folders[name], model, space)
    usual = {} if found.recovery is None else {"recovery": found.recovery}
    evaluator = Evaluator(found.model, space, splits.calibration, splits.validation, criterion=found.criterion, **usual)
    scheme = uniform(space, 0.5)
    candidate = evaluator.candidate(scheme)
    assert not evaluator(scheme).failed
    if name == "network_slimming":  # repaired as usual
        return
    assert [list(kept) for kept in evaluator.kept(scheme)] == [list(kept) for kept in first(space, scheme)]
    wanted = dict(prune(found.model, space, first(space, scheme)).named_parameters())
    if name == "metapruning":
        wanted |= found.recovery.__self__.weights(scheme)
    for path, weight in candidate.named_parameters():
        assert torch.allclose(weight, wanted[path]), path


@pytest.mark.parametrize("name", CHANNELS)
def test_the_whole_network_lies_beside_them(name: str, folders: dict[str, Path]) -> None:
    model, space = digits()
    whole = source.read(folders[name], model, space).model.eval()
    alone = models.load("autoprune:digits", folders[name] / source.DENSE).eval()
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(whole(images), alone(images))


def test_a_recipe_of_ones_own_is_read_back_with_the_users_word(
    folders: dict[str, Path], splits: data.Splits, train: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(slim=network_slimming, __name__="mine"))
    with pytest.raises(UserError, match="mine has no read"):
        source.train("mine:slim", *digits(), train, splits.validation, tmp_path, recipe=Recipe(1, lr=0.05))
    monkeypatch.setattr(sys.modules["mine"], "read", built_in.read, raising=False)
    source.train("mine:slim", *digits(), train, splits.validation, tmp_path, recipe=Recipe(1, lr=0.05))
    with pytest.raises(UserError, match="'mine:slim', which is code: say --allow-code"):
        source.read(tmp_path, *digits())
    own, known = source.read(tmp_path, *digits(), allow_code=True), source.read(folders["network_slimming"], *digits())
    assert all(torch.equal(a, b) for a, b in zip(own.model.parameters(), known.model.parameters(), strict=True))
    assert own.identity["weights_from"][0] == "mine:slim"


def test_a_folder_of_something_else_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model, space = digits()
    with pytest.raises(UserError, match="name a folder in which `autoprune train` has finished"):
        source.read(tmp_path, model, space)
    with pytest.raises(UserError, match="the model is a Sequential"):
        source.read(folders["universal"], nn.Sequential(nn.Linear(2, 2)), space)
    other = api.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    with pytest.raises(UserError, match="another search space"):
        source.read(folders["universal"], model, other)
    record = json.loads((folders["universal"] / source.RECORD).read_text())
    (tmp_path / source.RECORD).write_text(json.dumps({**record, "recipe": "os:system"}))
    with pytest.raises(UserError, match="names the recipe 'os:system', which is code"):
        source.read(tmp_path, model, space)
    (tmp_path / source.RECORD).write_text(json.dumps({**record, "recipe": "univers"}))
    with pytest.raises(UserError, match="names the recipe 'univers': known are"):
        source.read(tmp_path, model, space)
    (tmp_path / source.RECORD).write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(UserError, match="99: 'autoprune-recipe' 1 is read here"):
        source.read(tmp_path, model, space)


def test_a_folder_that_was_begun_with_something_else_is_refused(
    folders: dict[str, Path], train: list, splits: data.Splits
) -> None:
    folder, recipe = folders["universal"], Recipe(1, lr=0.05)
    record = (folder / source.RECORD).read_bytes()
    source.train("universal", *digits(), train, splits.validation, folder, recipe=recipe)  # the same goes on
    model, space = digits()
    narrow = select(space, exclude=[space.groups[0].name])
    with pytest.raises(UserError, match="a training of another search space"):
        source.train("universal", model, narrow, train, splits.validation, folder, recipe=recipe)
    with pytest.raises(UserError, match="a training of another data"):
        source.train("universal", *digits(), train[1:], splits.validation, folder, recipe=recipe)
    nn.init.zeros_(next(model.parameters()))
    with pytest.raises(UserError, match="a training of another network"):
        source.train("universal", model, space, train, splits.validation, folder, recipe=recipe)
    assert (folder / source.RECORD).read_bytes() == record


@pytest.mark.parametrize("name", ["slimmable", "universal"])
def test_labels_are_smoothed_where_the_recipe_says_so(
    name: str, train: list, splits: data.Splits, tmp_path: Path
) -> None:
    trained = []
    for smoothing in (0.0, 0.1):
        folder = tmp_path / str(smoothing)
        recipe = Recipe(1, lr=0.05, label_smoothing=smoothing)
        trained.append(source.train(name, *digits(), train[:1], splits.validation, folder, recipe=recipe))
    assert not all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in trained), strict=True))


def test_wrong_options_are_refused_before_training(train: list, splits: data.Splits, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no option 'widht'"):
        source.train("slimmable", *digits(), train, splits.validation, tmp_path, recipe=Recipe(1), options={"widht": 1})
    with pytest.raises(UserError, match="recipe 'slimable' is unknown.*slimmable"):
        source.train("slimable", *digits(), train, splits.validation, tmp_path, recipe=Recipe(1))
    assert not list(tmp_path.iterdir())


class TestPruningNet:
    @pytest.mark.parametrize("made", [residual, depthwise, flattened])
    def test_every_corner_has_weights_of_its_sizes(self, made) -> None:
        model, example, *_ = made()
        if not batch_norms(model):
            model = nn.Sequential(model, nn.Flatten(), nn.LazyBatchNorm1d())
            model(example.float())
        space = api.trace(model, example.float())
        net = PruningNet(model, space).eval()
        for corner in itertools.product(*[(g.counts[0], g.counts[-1]) for g in space.groups]):
            scheme = Scheme(corner)
            shapes = {name: p.shape for name, p in prune(model, space, first(space, scheme)).named_parameters()}
            assert all(weight.shape == shapes[name] for name, weight in net.weights(scheme).items())
            assert net(example.float(), scheme).isfinite().all()

    def test_other_schemes_get_other_weights_and_every_generator_learns(self) -> None:
        model, space = digits()
        net = PruningNet(model, space)
        one, other = net.weights(space.dense), net.weights(uniform(space, 0.5))
        for name, weight in other.items():
            cut = one[name][tuple(slice(0, n) for n in weight.shape)]
            assert not torch.allclose(cut, weight)
        net(torch.randn(8, 1, 8, 8), uniform(space, 0.5)).square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in net.generators.parameters())

    def test_the_same_seed_gives_the_same_generators(self, train, splits, tmp_path) -> None:
        nets = [
            metapruning(*digits(), train, splits.validation, tmp_path / f"{n}", recipe=Recipe(1, seed=3))
            for n in (0, 1)
        ]
        scheme = draw(digits()[1], 0.3, layerwise=True)
        weights = [net.weights(scheme) for net in nets]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_it_needs_batch_norms(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        with pytest.raises(UserError, match="'universal'"):
            PruningNet(model, api.trace(model, torch.randn(1, 1, 8, 8)))


def test_the_penalty_draws_scales_to_zero(train: list, splits: data.Splits, tmp_path: Path) -> None:
    sums = []
    for penalty in (0.0, 0.05):
        model, space = digits()
        recipe = Recipe(2, lr=0.05, weight_decay=0.0)
        network_slimming(
            model, space, train, splits.validation, tmp_path / str(penalty), recipe=recipe, penalty=penalty
        )
        sums.append(sum(float(norm.weight.abs().sum()) for _, norm in batch_norms(model)))
    assert sums[1] < 0.97 * sums[0]


def test_one_step_of_the_penalty_is_its_sign(splits: data.Splits, tmp_path: Path) -> None:
    scales = []
    for penalty in (0.0, 0.1):
        model, space = digits()
        recipe = Recipe(1, lr=0.1, batch=64, warmup=0, momentum=0, weight_decay=0)
        batch = [(splits.validation[0][0][:64], splits.validation[0][1][:64])]
        network_slimming(
            model, space, batch, splits.validation, tmp_path / str(penalty), recipe=recipe, penalty=penalty
        )
        scales.append(torch.cat([norm.weight.detach() for _, norm in batch_norms(model)]))
    assert torch.allclose(scales[0] - scales[1], torch.full_like(scales[0], recipe.rate(0, 1) * 0.1), atol=1e-6)


def test_train_and_search_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    trained = run(app, ["train", "--out", "net", "--recipe", "autoslim", "--epochs", "1", "--set", "drawn=1", "--json"])
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["options"] == {"drawn": 1}
    command = ["search", "--weights-from", "net", "--trials", "2", "--searcher", "random", "--json", "--run", "one"]
    found = run(app, command)
    assert found.exit_code == 0, found.output
    config = json.loads((tmp_path / "runs/one/config.json").read_text())
    assert config["source"]["weights"] == str(tmp_path / "net" / source.DENSE)
    dense = load_file(tmp_path / "net" / source.DENSE)
    kept = load_file(tmp_path / "runs/one/pruned.safetensors")
    name = next(name for name, tensor in dense.items() if tensor.dim() == 4)
    assert torch.equal(kept[name], dense[name][tuple(slice(0, n) for n in kept[name].shape)])
    refused = run(app, [*command[:-1], "two", "--criterion", "l1"])
    assert refused.exit_code != 0 and "which weights stay" in str(refused.exception or refused.output)
