"""Feeding networks and reading their answers."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune import forward
from autoprune.errors import UserError

Pair = namedtuple("Pair", ["first", "second"])


class Difference(nn.Module):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        return a if b is None else a - b


@dataclass
class Answer:
    scores: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class MappingAnswer(OrderedDict[str, Any]):
    """Both a mapping and an object with attributes, as the results of transformers are."""


def test_a_tensor_is_the_one_argument() -> None:
    x = torch.randn(2, 3)
    assert forward.call(Difference(), x) is x


@pytest.mark.parametrize("container", [tuple, list])
def test_tuples_and_lists_are_positional_arguments(container: type) -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(forward.call(Difference(), container((a, b))), a - b)


@pytest.mark.parametrize("mapping", [dict, UserDict])  # what processors of transformers return is the latter
def test_a_mapping_is_keyword_arguments(mapping: type) -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(forward.call(Difference(), mapping({"b": b, "a": a})), a - b)
    moved = forward.to(mapping({"b": b, "a": a}), dtype=torch.float64)
    assert forward.call(Difference(), moved).dtype == torch.float64


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(5, 2),
        (torch.zeros(5, 2), torch.zeros(7)),
        [torch.zeros(5)],
        {"flag": torch.tensor(1), "x": torch.zeros(5)},
    ],
)
def test_the_batch_size_is_the_length_of_the_first_tensor_with_an_axis(example: forward.Example) -> None:
    assert forward.batch_size(example) == 5


def test_an_example_without_a_batch_axis_is_refused() -> None:
    with pytest.raises(UserError, match="no tensor with a batch axis"):
        forward.batch_size({"x": torch.tensor(3.0)})


def test_moving_changes_the_type_of_floating_tensors_only_and_keeps_containers() -> None:
    example = {"ids": torch.zeros(2, dtype=torch.long), "pair": Pair(torch.zeros(2), [torch.zeros(2)]), "name": "n"}
    moved = forward.to(example, dtype=torch.float64)
    assert moved["ids"].dtype == torch.long
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].first.dtype == moved["pair"].second[0].dtype == torch.float64
    assert moved["name"] == "n"


def test_moving_changes_the_device() -> None:
    assert forward.to((torch.zeros(2),), device="meta")[0].device.type == "meta"


def test_outputs_are_found_in_every_kind_of_container_in_order() -> None:
    a, b, c, d, e = (torch.full((1,), float(n)) for n in range(5))
    result = (a, None, [Pair(b, 3.0)], Answer(c, (d,)), MappingAnswer(x=e, y="text"))
    assert [float(tensor) for tensor in forward.outputs(result)] == [0, 1, 2, 3, 4]


def test_logits_are_the_first_tensor() -> None:
    scores = torch.randn(2, 4)
    assert forward.logits(Answer(scores, (torch.zeros(1),))) is scores


def test_the_auxiliary_heads_of_a_torchvision_network_come_after_its_logits() -> None:
    from torchvision.models.googlenet import GoogLeNetOutputs

    scores, first, second = torch.zeros(1, 9), torch.ones(1, 9), torch.ones(1, 9)
    result = GoogLeNetOutputs(scores, second, first)
    assert forward.logits(result) is scores
    assert len(forward.outputs(result)) == 3


def test_a_result_without_a_tensor_is_refused() -> None:
    with pytest.raises(UserError, match="returned dict without any tensor"):
        forward.logits({"loss": None})
