"""Fine-tuning to the end: the schedule, resume, the moving average, distillation, augmentation, the command."""

from __future__ import annotations

import copy
import json
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from autoprune import data
from autoprune.augment import AUGMENTS, crop, flip
from autoprune.checkpoint import STATE, write
from autoprune.errors import UserError
from autoprune.finetune import Method, Recipe, descent, finetune, judge


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(6 * 36, 10)
    )


@pytest.fixture(scope="module")
def splits():
    return data.load("digits", 200, 200)


@pytest.fixture(scope="module")
def train(splits):
    return list(splits.train())[:4]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_rate_rises_to_its_peak_and_falls_along_a_cosine() -> None:
    recipe = Recipe(lr=0.4, warmup=0.2)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[:20] == pytest.approx([0.4 * (step + 1) / 20 for step in range(20)])
    assert max(rates) == pytest.approx(0.4)
    assert rates[60] == pytest.approx(0.2)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert [Recipe(warmup=0).rate(step, 1) for step in range(1)] == [0.02]


def test_it_learns_and_keeps_the_best_epoch(splits, train, tmp_path) -> None:
    model = small()
    before = judge(model, splits.validation)[1]
    history = finetune(model, train, splits.validation, tmp_path, Recipe(epochs=5, lr=0.1))
    accuracies = [facts["validation_accuracy"] for facts in history]
    assert judge(model, splits.validation)[1] == pytest.approx(max(accuracies))
    assert max(accuracies) > before + 0.3  # from chance; 0.8 and more in five seeds
    assert not model.training


def test_a_stopped_training_goes_on_to_the_same_weights(splits, train, tmp_path) -> None:
    recipe = Recipe(epochs=4, lr=0.1, ema=0.9, augment="crop")
    whole, stopped = small(), small()
    expected = finetune(whole, train, splits.validation, tmp_path / "whole", recipe)

    def kill(facts) -> None:
        if facts["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(stopped, train, splits.validation, tmp_path / "stopped", recipe, tell=kill)
    fresh, heard = small(), []
    history = finetune(fresh, train, splits.validation, tmp_path / "stopped", recipe, tell=heard.append)
    assert history == expected
    assert [facts["epoch"] for facts in heard] == [3, 4]
    assert same(weights(fresh), weights(whole))
    record = json.loads((tmp_path / "stopped" / "finetune.json").read_text())
    assert record["history"] == history


def test_a_finished_training_is_read_back(splits, train, tmp_path) -> None:
    recipe = Recipe(epochs=2, lr=0.1)
    first, again = small(), small()
    finetune(first, train, splits.validation, tmp_path, recipe)
    finetune(again, train, splits.validation, tmp_path, recipe, tell=lambda facts: pytest.fail("trained again"))
    assert same(weights(first), weights(again))


def test_another_recipe_or_network_is_refused(splits, train, tmp_path) -> None:
    finetune(small(), train, splits.validation, tmp_path, Recipe(epochs=1))
    with pytest.raises(UserError, match=r"lr: 0\.02 -> 0\.5"):
        finetune(small(), train, splits.validation, tmp_path, Recipe(epochs=1, lr=0.5))
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match="another network"):
        finetune(other, train, splits.validation, tmp_path, Recipe(epochs=1))


def test_sixteen_bits_are_those_of_the_passes_alone(splits, train, tmp_path) -> None:
    def descend(precision: str) -> tuple[list[dict[str, float]], nn.Module, set[torch.dtype]]:
        network, seen = small(), set()
        network[0].register_forward_hook(lambda *facts: seen.add(facts[2].dtype))
        recipe = Recipe(epochs=2, lr=0.1, distill=0.5, precision=precision)
        history = finetune(network, train, splits.validation, tmp_path / precision, recipe, teacher=small().eval())
        return history, network, seen

    (full, _, whole), (half, network, mixed) = descend("float32"), descend("bfloat16")
    assert whole == {torch.float32}
    assert mixed == {torch.float32, torch.bfloat16}  # validation stays in single precision
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    # 0.0003 apart at most, relative, in six seeds
    assert half[-1]["validation_loss"] == pytest.approx(full[-1]["validation_loss"], rel=0.002)
    assert half[-1]["validation_loss"] != full[-1]["validation_loss"]


def test_a_training_from_before_there_were_precisions_goes_on(splits, train, tmp_path) -> None:
    recipe = Recipe(epochs=2, lr=0.1)
    whole, stopped = small(), small()
    finetune(whole, train, splits.validation, tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        finetune(stopped, train, splits.validation, tmp_path / "it", recipe, tell=interrupt)
    with safe_open(tmp_path / "it" / STATE, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    del facts["recipe"]["precision"]
    write(tmp_path / "it" / STATE, load_file(tmp_path / "it" / STATE), json.dumps(facts))
    with pytest.raises(UserError, match="precision: float32 -> bfloat16"):
        finetune(small(), train, splits.validation, tmp_path / "it", replace(recipe, precision="bfloat16"))
    fresh = small()
    finetune(fresh, train, splits.validation, tmp_path / "it", recipe)
    assert same(weights(fresh), weights(whole))


def interrupt(facts) -> None:
    raise KeyboardInterrupt


def test_steps_of_their_own_have_no_precision_to_choose(splits, train, tmp_path) -> None:
    method = Method(step=lambda *_: 0.0)
    with pytest.raises(UserError, match="precision bfloat16: this training makes steps of its own"):
        finetune(small(), train, splits.validation, tmp_path, Recipe(precision="bfloat16"), method=method)


def test_the_average_of_one_step_is_by_definition(splits, train, tmp_path) -> None:
    """One step: the average has moved by 1 - decay from the first weights toward the second."""
    images, labels = train[0]
    one = [(images[:64], labels[:64])]
    plain, averaged = small(), small()
    start = copy.deepcopy(plain[0].weight.detach())
    finetune(plain, one, splits.validation, tmp_path / "a", Recipe(epochs=1, batch=64, lr=0.1))
    finetune(averaged, one, splits.validation, tmp_path / "b", Recipe(epochs=1, batch=64, lr=0.1, ema=0.75))
    assert torch.allclose(averaged[0].weight, start + 0.25 * (plain[0].weight - start), atol=1e-7)
    assert torch.equal(averaged[1].running_mean, plain[1].running_mean)


def test_pure_distillation_does_not_look_at_labels(splits, train, tmp_path) -> None:
    teacher = small().eval()
    wrong = [(images, (labels + 1) % 10) for images, labels in train]
    results = []
    for number, batches in enumerate((train, wrong)):
        student = small()
        recipe = Recipe(epochs=1, distill=1.0)
        finetune(student, batches, splits.validation, tmp_path / str(number), recipe, teacher=teacher)
        results.append(weights(student))
    assert same(*results)
    with pytest.raises(UserError, match="needs a teacher"):
        finetune(small(), train, splits.validation, tmp_path / "x", Recipe(distill=0.5))


def test_augmented_images_are_mirrored_and_shifted() -> None:
    images = torch.arange(1.0, 200 * 64 + 1).reshape(200, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    mirrored = flip(images, generator)
    ways = [torch.equal(a, b) for a, b in zip(mirrored, images, strict=True)]
    assert 60 < sum(ways) < 140
    assert all(torch.equal(a, b if way else b.flip(-1)) for a, b, way in zip(mirrored, images, ways, strict=True))
    shifted = crop(images, generator)
    assert shifted.shape == images.shape
    seen = set()
    for one, own in zip(shifted, images, strict=True):
        for way, source in enumerate((own, own.flip(-1))):
            wide = nn.functional.pad(source, (1, 1, 1, 1))
            for down in range(3):
                for across in range(3):
                    if torch.equal(one, wide[:, down : down + 8, across : across + 8]):
                        seen.add((way, down, across))
    assert len(seen) == 18
    assert AUGMENTS["none"](images, generator) is images


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "at least 1 epoch"), ({"lr": math.nan}, "learning rate"), ({"warmup": 1.5}, "warmup = 1.5"),
        ({"precision": "float16"}, "use bfloat16"), ({"precision": "int8"}, "'int8' is unknown"),
        ({"distill": -0.1}, "distill"), ({"ema": 1.0}, "ema = 1.0"), ({"augment": "mix"}, "'mix' is unknown"),
    ],
)  # fmt: skip
def test_wrong_recipes_are_refused(given, message) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(**given)


def test_a_training_that_diverges_says_so(splits, train, tmp_path) -> None:
    with pytest.raises(UserError, match="diverged"):
        finetune(small(), train, splits.validation, tmp_path, Recipe(epochs=2, lr=1e12, warmup=0))


def test_the_command_finishes_a_run(tmp_path, command_line, with_digits, monkeypatch) -> None:
    with_digits(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    images = ["--calibration", "200", "--validation", "200"]
    status, _, err = command_line(
        "search", "--budget", "macs=20%", "--searcher", "uniform", "--trials", "1", "--run", "it", *images
    )
    assert status == 0, err
    words = ["finetune", "it", "--epochs", "2", "--distill", "0.5", "--augment", "flip", *images]
    status, out, err = command_line(*words, "--json")
    assert status == 0, err
    result = json.loads(out)
    assert result["rows"]["finetuned"]["loss"] < result["rows"]["found"]["loss"]
    assert (tmp_path / "runs" / "it" / "finetuned" / "pruned.safetensors").is_file()
    status, out, _ = command_line(*words)  # it is finished: nothing is trained again
    assert status == 0
    assert "epoch 1/2" not in out
    assert "finetuned" in out
    status, _, err = command_line("finetune", "nowhere")
    assert status == 2
    assert "no run 'nowhere'" in err


class TestMethod:
    """Another way to descend is a value, and stops and goes on like the usual one."""

    @staticmethod
    def adam(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=recipe.lr)

    def test_it_goes_on_where_it_was_stopped_to_the_same_weights(self, train, tmp_path) -> None:
        method, recipe = Method(optimizer=self.adam, keep="last", facts={"method": "adam"}), Recipe(epochs=2, lr=0.01)
        model = small()
        finetune(model, train, [], tmp_path / "whole", recipe, method=method)

        def stop(facts) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(small(), train, [], tmp_path / "part", recipe, method=method, tell=stop)
        other = small()
        finetune(other, train, [], tmp_path / "part", recipe, method=method)
        assert same(weights(model), weights(other))

    def test_a_folder_of_another_method_is_refused(self, train, tmp_path) -> None:
        finetune(small(), train, [], tmp_path, Recipe(epochs=1), method=Method(keep="last", facts={"decay": 1}))
        with pytest.raises(UserError, match="decay: 1 -> 2"):
            finetune(small(), train, [], tmp_path, Recipe(epochs=1), method=Method(keep="last", facts={"decay": 2}))

    def test_the_network_is_judged_and_kept_as_it_is_used(self, splits, train, tmp_path) -> None:
        @contextmanager
        def halved(model: nn.Module):
            with torch.no_grad():
                model[0].weight.mul_(0.5)
                yield
                model[0].weight.mul_(2)

        seen = []

        def watched(model, optimizer, inputs, labels, epoch) -> float:
            seen.append(model[0].weight.detach().clone())
            return descent(Recipe(), None)(model, optimizer, inputs, labels, epoch)

        model = small()
        before = model[0].weight.detach().clone()
        finetune(
            model, train, splits.validation, tmp_path, Recipe(epochs=1, lr=1e-9), method=Method(watched, used=halved)
        )
        assert torch.equal(seen[0], before)
        assert torch.allclose(model[0].weight, before / 2, atol=1e-6)
