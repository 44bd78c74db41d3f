"""Run a network once and let every operator tell what it does to the labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoprune.errors import UserError
from autoprune.forward import Example, first_call, outputs

from .labels import Book
from .rules import PRODUCTS, rule_for
from .rules.call import Call
from .rules.mixing import unforeseen

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001  # no public name


def follow(model: nn.Module, example: Example) -> Book:
    """What one forward pass teaches; channels of the network's outputs are frozen.

    Raises :class:`UserError` when the network cannot run on the example, or returns no tensor.
    """
    book = Book(model)
    with torch.no_grad(), untouched_rng(), _unfused(), _Follow(book):
        result = first_call(model, example)
    if not outputs(result):
        raise UserError(
            f"{type(model).__name__} returned {type(result).__name__}, in which no tensor is found: "
            "return tensors, or a tuple, list, dict or dataclass of them"
        )
    for tensor in outputs(result):
        book.freeze_all(tensor, "it is the network's output")
    return book


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Give back torch's random states as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield


@contextmanager
def _unfused() -> Iterator[None]:
    """Switch off the single operators that would hide the linear layers of attention and recurrent layers."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    onednn = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)[0]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=onednn, _fp32_precision=None)
        torch.backends.mha.set_fastpath_enabled(fast_path)


class _Follow(TorchDispatchMode):
    """The dispatch mode under which every operator call goes through its rule."""

    def __init__(self, book: Book) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._book = book

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func.has_kernel_for_dispatch_key(COMPOSITE):
            with self:  # where a model switches inference mode on, composite operators arrive whole
                return func.decompose(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._book.touch(inputs)
        known = [(self._book.axes_of(tensor), tuple(tensor.shape)) for tensor in inputs]
        result = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        made = Call(func, args, kwargs, inputs, known, outs)
        try:
            rule_for(made)(self._book, made)
        except Exception:  # noqa: BLE001  # a call no rule foresaw costs prunable layers, never the search
            unforeseen(self._book, made)
        if made.name not in PRODUCTS:
            self._book.derive(outs, inputs)
        return result
