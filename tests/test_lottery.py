"""Lottery tickets: levels, the moment that weights are put back to, bit for bit, and the controls."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from autoprune import data, masks
from autoprune.errors import UserError
from autoprune.finetune import Method, Recipe, descent, finetune
from autoprune.recipes import lottery as tickets
from autoprune.recipes.data import Data
from autoprune.recipes.initialisation import redraw
from autoprune.recipes.lottery import REWIND, Rewound, lottery, moment, saved_at, shuffled

NAMES = ["0.weight", "4.weight"]


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))


@pytest.fixture(scope="module")
def splits() -> Data:
    found = data.load("digits", 200, 200)
    return Data(found.calibration, list(found.train())[:3], found.validation)


@pytest.fixture
def placed(monkeypatch):
    """Every training's masks, the network as it was before it, and as it was after."""
    seen: list[tuple[dict, nn.Module, nn.Module]] = []
    real = tickets.retrain

    def watched(model, found, *rest, **named):
        before = copy.deepcopy(model)
        history = real(model, found, *rest, **named)
        seen.append((dict(found), before, copy.deepcopy(model)))
        return history

    monkeypatch.setattr(tickets, "retrain", watched)
    return seen


OPTIONS = {"names": NAMES, "epochs": 2, "share": 0.5, "batch": 64}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_survivors_are_put_back_bit_for_bit_and_levels_shrink(splits: Data, tmp_path, placed) -> None:
    model = small()
    found = lottery(model, 0.8, splits, folder=tmp_path, seed=3, **OPTIONS)
    drawn = copy.deepcopy(model)
    redraw(drawn, 3)
    early = load_file(tmp_path / REWIND)
    assert all(torch.equal(early[name], tensor) for name, tensor in drawn.state_dict().items())
    entries = sum(model.get_parameter(name).numel() for name in NAMES)
    assert len(placed) == 4  # the dense network, 50 %, 75 %, 80 %
    for level, (found_, before, after) in enumerate(placed):
        left = sum(int(mask.sum()) for mask in found_.values())
        assert (
            left == entries - round(max(1 - 0.5**level, 0) * entries) if level < 3 else entries - round(0.8 * entries)
        )
        for name, mask in found_.items():
            assert torch.equal(before.get_parameter(name)[mask], early[name][mask])
            assert not bool(before.get_parameter(name)[~mask].any())
            assert not bool(after.get_parameter(name)[~mask].any())
            assert level == 0 or not bool((mask & ~placed[level - 1][0][name]).any())
        assert torch.equal(before[4].bias, early["4.bias"])
        assert torch.equal(before[1].running_var, early["1.running_var"])
    assert same(found, placed[-1][2])
    assert not found.training


def test_what_goes_is_smallest_at_the_end_of_training(splits: Data, tmp_path, placed) -> None:
    lottery(small(), 0.5, splits, folder=tmp_path, **OPTIONS)
    (_, _, trained), (found, _, _) = placed
    expected = masks.ranked({name: trained.get_parameter(name).detach().abs() for name in NAMES}, 0.5)
    assert all(torch.equal(found[name], expected[name]) for name in NAMES)


@pytest.mark.parametrize("at", [0, 3, 6, 7])
def test_the_moment_is_counted_in_steps_also_after_a_stop(splits: Data, tmp_path, at: int) -> None:
    assert splits.train is not None
    recipe = Recipe(epochs=3, batch=64, lr=0.05)
    seen: list[torch.Tensor] = []

    def watched(model, optimizer, inputs, labels, epoch) -> float:
        seen.append(model[4].weight.detach().clone())
        return descent(recipe, None)(model, optimizer, inputs, labels, epoch)

    def stop(facts) -> None:
        if facts["epoch"] == 1:
            raise KeyboardInterrupt

    per_epoch = sum(len(labels) for _, labels in splits.train) // 64
    for told in (stop, lambda facts: None):
        method = Method(saved_at(at, per_epoch, tmp_path / "early.safetensors", watched), keep="last")
        try:
            finetune(small(), splits.train, [], tmp_path / "training", recipe, method=method, tell=told)
        except KeyboardInterrupt:
            assert len(seen) == per_epoch
    assert len(seen) == 3 * per_epoch
    assert torch.equal(load_file(tmp_path / "early.safetensors")["4.weight"], seen[at])


def test_the_learning_rate_goes_on_where_the_weights_come_from() -> None:
    recipe = Recipe(lr=0.3, epochs=4)
    again = Rewound(lr=0.3, epochs=3, since=10)
    assert [again.rate(step, 30) for step in range(30)] == [recipe.rate(step, 40) for step in range(10, 40)]


@pytest.mark.parametrize(("rewind", "steps"), [("0", 0), ("0ep", 0), ("7it", 7), ("2ep", 20)])
def test_moments_are_steps_or_epochs(rewind: str, steps: int) -> None:
    assert moment(rewind, 10, 4) == steps


@pytest.mark.parametrize("rewind", ["5", "-1it", "3 epochs", "4ep", "40it"])
def test_moments_that_are_none_are_refused(rewind: str) -> None:
    with pytest.raises(UserError, match=f"rewind '{rewind}'"):
        moment(rewind, 10, 4)


def test_controls_differ_from_the_ticket_in_one_thing(splits: Data, tmp_path, placed) -> None:
    model, last = small(), {}
    for control in ("ticket", "random_init", "random_mask", "finetune"):
        trained = len(placed)
        lottery(model, 0.75, splits, folder=tmp_path, control=control, rewind="1ep", **OPTIONS)
        dense, level, end = placed[trained:]
        last[control] = (*end[:2], level[2])
        early = load_file(tmp_path / REWIND)
        assert not torch.equal(early["4.weight"], dense[1][4].weight)
    ticket, before, _ = last["ticket"]
    for control, (found, network, trained_before) in last.items():
        for name, mask in found.items():
            assert int(mask.sum()) == int(ticket[name].sum())
            assert torch.equal(mask, ticket[name]) == (control != "random_mask")
            weight = network.get_parameter(name).detach() * mask
            kept_early = torch.equal(weight[mask], early[name][mask])
            assert kept_early == (control in {"ticket", "random_mask"})
            assert torch.equal(weight[mask], trained_before.get_parameter(name)[mask]) == (control == "finetune")
    assert torch.equal(before.get_parameter("4.weight")[ticket["4.weight"]], early["4.weight"][ticket["4.weight"]])


def test_a_stopped_run_goes_on_to_the_same_weights(splits: Data, tmp_path) -> None:
    model = small()
    kept = copy.deepcopy(model)
    options = {**OPTIONS, "rewind": "3it"}
    whole = lottery(model, 0.75, splits, folder=tmp_path / "whole", **options)
    assert same(model, kept)

    def stop(facts) -> None:
        if (facts["round"], facts["epoch"]) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lottery(model, 0.75, splits, folder=tmp_path / "part", tell=stop, **options)
    heard: list = []
    again = lottery(model, 0.75, splits, folder=tmp_path / "part", tell=heard.append, **options)
    assert [(facts["round"], facts["epoch"]) for facts in heard] == [(1, 2), (2, 1), (2, 2)]
    assert same(whole, again)
    with pytest.raises(UserError, match="lr: 0.1 -> 0.2"):
        lottery(model, 0.75, splits, folder=tmp_path / "part", **{**options, "lr": 0.2})


def test_it_starts_from_the_given_weights_if_asked(splits: Data, tmp_path) -> None:
    model = small()
    lottery(model, 0.5, splits, folder=tmp_path, start="weights", **OPTIONS)
    early = load_file(tmp_path / REWIND)
    assert all(torch.equal(early[name], tensor) for name, tensor in model.state_dict().items())


def test_random_masks_leave_as_many_in_every_tensor() -> None:
    found = {"a": torch.rand(30, 20) < 0.3, "b": torch.rand(50) < 0.1}
    other = shuffled(found, 0)
    for name, mask in found.items():
        assert int(other[name].sum()) == int(mask.sum())
        assert not torch.equal(other[name], mask)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"share": 0.0}, "share = 0.0"), ({"control": "luck"}, "'luck' is unknown"), ({"rewind": "9ep"}, "rewind '9ep'")],
)
def test_wrong_settings_are_refused(splits: Data, tmp_path, given, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lottery(small(), 0.5, splits, folder=tmp_path, **{**OPTIONS, **given})
    with pytest.raises(UserError, match="lottery trains the network"):
        lottery(small(), 0.5, Data(splits.calibration), folder=tmp_path, **OPTIONS)
