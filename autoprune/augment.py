"""Images drawn anew in every epoch: mirrored, and shifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each mirrored left to right, half of the time."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.reshape(-1, *(1,) * (images.dim() - 1)), images.flip(-1), images)


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored half of the time, and shifted by up to an eighth of its size, zeros coming in."""
    height, width = images.shape[-2:]
    reach = max(1, height // 8), max(1, width // 8)
    wide = functional.pad(flip(images, generator), (reach[1], reach[1], reach[0], reach[0]))
    down = torch.randint(2 * reach[0] + 1, (len(images), 1, 1, 1), generator=generator)
    across = torch.randint(2 * reach[1] + 1, (len(images), 1, 1, 1), generator=generator)
    rows = (down + torch.arange(height)[:, None]).expand(-1, images.shape[1], height, wide.shape[-1])
    columns = (across + torch.arange(width)).expand(-1, images.shape[1], height, width)
    return wide.gather(2, rows).gather(3, columns)


AUGMENTS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda images, generator: images,
    "flip": flip,
    "crop": crop,
}
