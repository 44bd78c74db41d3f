"""The trainer of the embedded network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune import data, models
from autoprune.errors import UserError
from autoprune.training import train


def blobs(images: int = 96) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two classes that differ in the sign of their mean, in batches of 32."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 2
    x = torch.randn(images, 4, generator=generator) + (2.0 * labels - 1).unsqueeze(1) * 3
    return list(zip(x.split(32), labels.split(32), strict=True))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def test_the_loss_falls_and_every_epoch_is_reported() -> None:
    told: list[tuple[int, int, float]] = []
    model = network()
    train(model, blobs(), 5, batch=16, progress=lambda *facts: told.append(facts))
    assert [(epoch, of) for epoch, of, _ in told] == [(n, 5) for n in range(1, 6)]
    assert told[-1][2] < told[0][2] / 2
    assert not model.training


def test_a_seed_decides_the_weights_and_the_global_stream_is_left_alone() -> None:
    digests = []
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for seed in (0, 0, 1):
        model = network()
        torch.random.set_rng_state(before)
        train(model, blobs(), 2, seed=seed, batch=16)
        assert torch.equal(torch.random.get_rng_state(), before)
        digests.append(models.digest(model))
    assert digests[0] == digests[1] != digests[2]


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    model = network()
    before = models.digest(model)
    train(model, blobs(10), 1, batch=64)
    assert models.digest(model) != before


def test_training_without_an_epoch_or_without_images_is_refused() -> None:
    with pytest.raises(UserError, match="epochs = 0"):
        train(network(), blobs(), 0)
    with pytest.raises(UserError, match="nothing to train on"):
        train(network(), [], 1)


def test_the_digits_network_learns_the_digits() -> None:
    splits = data.load("digits", 256, 256)
    model = models.load("autoprune:digits")
    assert splits.train is not None
    train(model, splits.train(), 6)
    with torch.inference_mode():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in splits.validation)
    assert hits / sum(len(y) for _, y in splits.validation) > 0.93
