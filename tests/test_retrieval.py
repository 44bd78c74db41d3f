"""Retrieval: features, rankings, mAP and recall against brute force, self- and cross-test."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune import retrieval
from autoprune.architectures import digits
from autoprune.errors import UserError
from autoprune.retrieval import Features, asymmetric, features, last_linear, retrieve


def brute_force(query: Features, gallery: Features, same: bool, recalls) -> tuple[float, dict[int, float], int]:
    """One query, one neighbour at a time."""
    precisions, firsts = [], []
    for number, (vector, label) in enumerate(zip(query.vectors.double(), query.labels.tolist(), strict=True)):
        ranked = []
        for at, (other, its) in enumerate(zip(gallery.vectors.double(), gallery.labels.tolist(), strict=True)):
            if not (same and at == number):
                length = float(vector.norm() * other.norm())
                ranked.append((-(float(vector @ other) / length if length else 0.0), at, its == label))
        right = [hit for _, _, hit in sorted(ranked)]
        if not any(right):
            continue
        precisions.append(sum(sum(right[: k + 1]) / (k + 1) for k in range(len(right)) if right[k]) / sum(right))
        firsts.append(right.index(True))
    recall = {k: sum(first < k for first in firsts) / len(firsts) for k in recalls}
    return sum(precisions) / len(precisions), recall, len(precisions)


def random(count: int, classes: int, seed: int, width: int = 6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    return Features(centres[labels] + 1.5 * torch.randn(count, width, generator=generator), labels)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [7, 256])
def test_rankings_of_the_same_images_agree_with_brute_force(seed, block, monkeypatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    images = random(60, 5, seed)
    other = Features(images.vectors + torch.randn(60, 6, generator=torch.Generator().manual_seed(9)), images.labels)
    for gallery in (images, other):
        expected = brute_force(images, gallery, True, (1, 3, 10))
        found = retrieve(images, gallery, same=True, recalls=(1, 3, 10))
        assert found.mean_average_precision == pytest.approx(expected[0], abs=1e-12)
        assert found.recall == expected[1]
        assert found.queries == expected[2]


@pytest.mark.parametrize("seed", range(4))
def test_a_gallery_of_other_images_agrees_with_brute_force(seed) -> None:
    query, gallery = random(20, 8, seed), random(35, 4, seed + 100)  # some classes have no image in the gallery
    expected = brute_force(query, gallery, False, (1, 5))
    found = retrieve(query, gallery, same=False, recalls=(1, 5))
    assert found.mean_average_precision == pytest.approx(expected[0], abs=1e-12)
    assert (found.recall, found.queries) == expected[1:]
    assert found.queries < 20


def test_a_ranking_by_hand() -> None:
    """Right, wrong, right, wrong: AP = (1/1 + 2/3) / 2."""
    query = Features(torch.tensor([[1.0, 0.0]]), torch.tensor([3]))
    angles = torch.tensor([0.3, 0.1, 0.4, 0.2])
    gallery = Features(torch.stack([angles.cos(), angles.sin()], 1) * 7, torch.tensor([3, 3, 0, 1]))
    found = retrieve(query, gallery, same=False, recalls=(1, 2))
    assert found.mean_average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert found.recall == {1: 1.0, 2: 1.0}
    turned = Features(gallery.vectors, torch.tensor([3, 0, 1, 3]))  # wrong, right, right, wrong
    found = retrieve(query, turned, same=False, recalls=(1, 2))
    assert found.mean_average_precision == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.recall == {1: 0.0, 2: 1.0}


def test_equal_similarities_keep_the_order_of_the_gallery_and_a_zero_vector_is_like_nothing() -> None:
    one, zero = [1.0, 0.0], [0.0, 0.0]
    query = Features(torch.tensor([one]), torch.tensor([0]))
    for labels, expected in (([0, 1, 1], 1.0), ([1, 0, 1], 1 / 2), ([1, 1, 0], 1 / 3)):
        for vectors in ([one, one, one], [zero, zero, zero]):
            found = retrieve(query, Features(torch.tensor(vectors), torch.tensor(labels)), same=False, recalls=(1,))
            assert found.mean_average_precision == pytest.approx(expected)


def test_an_image_is_not_in_its_own_gallery() -> None:
    """Each is its own nearest, and its nearest other is of the other class."""
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    images = Features(vectors, torch.tensor([0, 1, 0, 1]))
    assert retrieve(images, images, same=True, recalls=(1,)).recall == {1: 0.0}
    assert retrieve(images, images, same=False, recalls=(1,)).recall == {1: 1.0}


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return digits()


def images(seed: int = 0, count: int = 24):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 1, 8, 8, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    return list(zip(inputs.split(10), labels.split(10), strict=True))


class TestFeatures:
    def test_by_default_they_are_what_the_classifier_takes(self) -> None:
        network = small(0).train()
        found = features(network, images())
        assert found.vectors.shape == (24, 48)
        assert network.training
        with torch.no_grad():
            logits = network.eval()(torch.cat([x for x, _ in images()]))
            torch.testing.assert_close(network.linear(found.vectors), logits)

    def test_any_module_gives_its_output(self) -> None:
        network = small(0)
        assert last_linear(network) == "linear"
        with torch.no_grad():
            logits = network.eval()(torch.cat([x for x, _ in images()]))
        torch.testing.assert_close(features(network, images(), "linear").vectors, logits)
        assert features(network, images(), "blocks.1").vectors.shape == (24, 32 * 4 * 4)
        assert not network.linear._forward_pre_hooks
        assert not network.linear._forward_hooks

    def test_what_cannot_be_heard_is_refused(self) -> None:
        network = small(0)
        with pytest.raises(UserError, match="no module 'head'"):
            features(network, images(), "head")
        with pytest.raises(UserError, match="no linear layer"):
            features(nn.Sequential(nn.Conv2d(1, 2, 3)), images())
        with pytest.raises(UserError, match="no images"):
            features(network, [])
        relu = nn.ReLU()
        with pytest.raises(UserError, match="'1' ran 2 times"):
            features(nn.Sequential(nn.Flatten(), relu, nn.Linear(64, 64), relu), images(), "1")
        with pytest.raises(UserError, match="'1' ran 0 times"):
            features(Skips(), images(), "1")


class Skips(nn.Sequential):
    """Has a layer that it does not run."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[0](x) + 0 * self[1].bias.sum()


def test_the_two_tests_are_of_the_query_network_and_of_both() -> None:
    query, gallery = small(1), small(2)
    found = asymmetric(query, gallery, images(), recalls=(1, 5))
    own, dense = features(query, images()), features(gallery, images())
    assert found == {
        "self": retrieve(own, own, same=True, recalls=(1, 5)),
        "cross": retrieve(own, dense, same=True, recalls=(1, 5)),
    }
    assert found["self"] != found["cross"]
    same = asymmetric(query, query, images(), recalls=(1, 5))
    assert same["self"] == same["cross"]


def test_what_cannot_be_ranked_is_refused() -> None:
    images = random(10, 2, 0)
    with pytest.raises(UserError, match="features of 6 and 5 numbers"):
        retrieve(images, random(10, 2, 0, width=5), same=False)
    with pytest.raises(UserError, match="their labels differ"):
        retrieve(images, Features(images.vectors, 1 - images.labels), same=True)
    with pytest.raises(UserError, match="recall@10 of a gallery of 9 images"):
        retrieve(images, images, same=True)
    with pytest.raises(UserError, match="recall@0"):
        retrieve(images, images, same=True, recalls=(0,))
    with pytest.raises(UserError, match="nothing to find"):
        retrieve(images, Features(images.vectors, images.labels + 5), same=False, recalls=(1,))
    with pytest.raises(UserError, match="not finite"):
        Features(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"shape \(3,\)"):
        Features(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
