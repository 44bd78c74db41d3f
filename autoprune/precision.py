"""What the forward passes of candidates compute in.

Processors with instructions for it (AVX-512 BF16, AMX, GPUs) multiply 16-bit numbers about twice as fast.
Convolutions and linear layers then take 16-bit inputs and weights and add up in single precision; softmax and the loss
stay in single precision (:class:`torch.autocast`). Least squares and Gram matrices are solved as ever.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from autoprune.errors import UserError

FULL = "float32"
PRECISIONS = {FULL: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(precision: str) -> str:
    """The name of a precision; others are refused."""
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown: choose {', '.join(PRECISIONS)}")
    return precision


def passes(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Forward passes in it on a device."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
