"""Retrieval: find images of the same class by features, where queries and gallery may come from different networks.

A device with little memory makes the features of a query with a subnetwork; those of the gallery were made long ago by
the dense network. The *self-test* takes both from the subnetwork, the *cross-test* (asymmetric) the gallery from the
dense network: it works only as far as the two networks agree about what a feature means.

A query ranks the gallery by cosine similarity, equal ones in the gallery's order; an image is not in its own gallery.
With R_q images of the query's class in it, rel_q(k) = 1 if the k-th is one of them, and P_q(k) the share of them among
the first k,

    AP_q = 1/R_q Σ_k rel_q(k) P_q(k),    mAP = mean of AP_q,
    recall@k = share of queries with at least one image of their class among the first k.

Queries without any image of their class in the gallery are left out of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.forward import call, evaluating, logits, to

Batches = Sequence[tuple[Any, Any]]

RECALLS = (1, 5, 10)
BLOCK = 256  # queries whose similarities are in memory at once


@dataclass(frozen=True, eq=False)
class Features:
    """A feature vector per image, shape (images, d), and class numbers, shape (images,)."""

    vectors: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.vectors.dim() != 2 or self.labels.shape != self.vectors.shape[:1] or not len(self.labels):
            raise UserError(
                f"features of shape {tuple(self.vectors.shape)} with labels of shape {tuple(self.labels.shape)}: one "
                "vector and one class number per image are needed, and at least one image"
            )
        if not bool(self.vectors.isfinite().all()):
            raise UserError("some features are not finite: did the network diverge?")


@dataclass(frozen=True)
class Retrieval:
    """What a ranking of the gallery is worth, as shares: mAP, recall by k, and how many queries were counted."""

    mean_average_precision: float
    recall: Mapping[int, float]
    queries: int


def last_linear(model: nn.Module) -> str | None:
    """The name of the last linear layer, by convention the classifier; None where there is none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


@contextmanager
def tapped(model: nn.Module, module: str | None = None) -> Iterator[list[Tensor]]:
    """Hear the features of every forward pass: what the named module gives, or what the last linear layer takes."""
    heard: list[Tensor] = []
    classifier = last_linear(model)
    if module is None and classifier is None:
        raise UserError(f"{type(model).__name__} has no linear layer: name the module whose output is the feature")
    name = module if module is not None else classifier or ""
    if name not in dict(model.named_modules()):
        raise UserError(f"{type(model).__name__} has no module {name!r} to take features from")
    source = model.get_submodule(name)
    if module is None:
        hook = source.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].flatten(1)))
    else:
        hook = source.register_forward_hook(lambda _, inputs, output: heard.append(logits(output).flatten(1)))
    try:
        yield heard
    finally:
        hook.remove()


def features(model: nn.Module, batches: Batches, module: str | None = None) -> Features:
    """The features of (input, class numbers) batches in evaluation mode, on the CPU; see :func:`tapped`."""
    if not len(batches):
        raise UserError("there are no images to retrieve")
    device = next(model.parameters()).device
    vectors = []
    with torch.inference_mode(), evaluating(model), tapped(model, module) as heard:
        for inputs, _ in batches:
            call(model, to(inputs, device))
            if len(heard) != 1:
                raise UserError(
                    f"the module {module or last_linear(model)!r} ran {len(heard)} times in one forward pass: name one "
                    "that runs once"
                )
            vectors.append(heard.pop().cpu())
    return Features(torch.cat(vectors), torch.cat([labels.cpu() for _, labels in batches]))


def retrieve(query: Features, gallery: Features, *, same: bool, recalls: Sequence[int] = RECALLS) -> Retrieval:
    """Rank the gallery for every query.

    ``same`` says that both are of the same images in the same order, so that a query's own image is left out.
    """
    if same and not torch.equal(query.labels, gallery.labels):
        raise UserError("queries and gallery are said to be the same images, but their labels differ")
    if query.vectors.shape[1] != gallery.vectors.shape[1]:
        raise UserError(
            f"features of {query.vectors.shape[1]} and {gallery.vectors.shape[1]} numbers cannot be compared: both "
            "networks have to give the same"
        )
    wrong = [k for k in recalls if not 1 <= k <= len(gallery.labels) - same]
    if wrong:
        raise UserError(f"recall@{wrong[0]} of a gallery of {len(gallery.labels) - same} images: take a smaller one")
    against = nn.functional.normalize(gallery.vectors.double(), dim=1).T
    numbers = torch.arange(1, len(gallery.labels) + 1, dtype=torch.float64)
    precisions, firsts = [], []
    for start in range(0, len(query.labels), BLOCK):
        rows = slice(start, start + BLOCK)
        similarity = nn.functional.normalize(query.vectors[rows].double(), dim=1) @ against
        own = torch.arange(start, start + len(similarity))
        if same:
            similarity[torch.arange(len(own)), own] = -torch.inf  # ranked last, and never right
        order = similarity.argsort(dim=1, descending=True, stable=True)
        right = gallery.labels[order] == query.labels[rows, None]
        if same:
            right &= order != own[:, None]
        counted = right[right.any(1)]
        share = counted.cumsum(1) / numbers
        precisions.append((share * counted).sum(1) / counted.sum(1))
        firsts.append(counted.int().argmax(1))
    precision, first = torch.cat(precisions), torch.cat(firsts)
    if not len(precision):
        raise UserError("no query has an image of its class in the gallery: there is nothing to find")
    recall = {k: float((first < k).double().mean()) for k in recalls}
    return Retrieval(float(precision.mean()), recall, len(precision))


def asymmetric(
    query: nn.Module, gallery: nn.Module, batches: Batches, module: str | None = None, recalls: Sequence[int] = RECALLS
) -> dict[str, Retrieval]:
    """The "self" and the "cross" test of a query network beside a gallery network, every image against all others."""
    asked = features(query, batches, module)
    return {
        "self": retrieve(asked, asked, same=True, recalls=recalls),
        "cross": retrieve(asked, features(gallery, batches, module), same=True, recalls=recalls),
    }
