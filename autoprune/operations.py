"""The operations of a forward pass, with every size a function of the kept counts.

A network is run once as it is and once per group with that group cut, on the meta device where it can be, so that
nothing is computed. All lengths of all tensors are affine in the kept counts, so these runs tell them for every scheme:
length = rest + sum over groups of slope_g * kept_g. Further runs, with everything cut and with random counts, prove it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from autoprune.errors import UserError
from autoprune.forward import Example, call, evaluating, repeated, to
from autoprune.scheme import Scheme
from autoprune.slicing import named_tensors, prune, with_tensors
from autoprune.space import SearchSpace

HELD = 1 << 60  # of a storage that outlives the forward pass
INPUT, WEIGHT = -1, -2  # who made storages that were there before
PROOFS = 2  # random schemes on which the lengths are checked


@dataclass(frozen=True)
class Operand:
    """A tensor of an operation: which value it is, in which storage, and where its lengths stand.

    A tensor that was changed in place is a new value in the same storage. ``parameter`` marks tensors of the network
    itself; ``place`` is the range of its shape in :attr:`Operations.rest`.
    """

    value: int
    storage: int
    parameter: bool
    dtype: torch.dtype
    place: range


@dataclass(frozen=True)
class Size:
    """A whole number among the arguments, such as the groups of a convolution; ``place`` is where it stands."""

    place: int


@dataclass(frozen=True, eq=False)
class Operation:
    """One operator call: all its arguments, defaults too, flattened as ``spec`` says, and the tensors it made.

    ``view`` marks calls that compute nothing: what they return lies in a storage that was there before.
    """

    function: Any
    spec: TreeSpec
    arguments: tuple[Any, ...]
    made: tuple[Operand, ...]
    view: bool

    @property
    def name(self) -> str:
        """The operator, such as ``conv2d``."""
        return str(self.function.__name__).partition(".")[0]

    @property
    def read(self) -> list[Operand]:
        """The tensors among the arguments."""
        return [leaf for leaf in self.arguments if isinstance(leaf, Operand)]


@dataclass(frozen=True, eq=False)
class Storage:
    """Memory that a tensor was given: by which operation (or INPUT or WEIGHT), and before which one it was freed."""

    maker: int
    freed: int
    itemsize: int
    place: range


class Volumes:
    """The entries of some tensors, as a function of the kept counts; ``places`` are where their shapes stand."""

    def __init__(self, operations: Operations, places: Sequence[Sequence[int]]) -> None:
        one = len(operations.rest)  # a length of one, so that no shape is empty
        rows = np.array([row for place in places for row in (*place, one)], dtype=np.int64)
        self._starts = np.cumsum([0, *(len(place) + 1 for place in places)])[:-1]
        self._rest = np.append(operations.rest, 1.0)[rows]
        self._slope = np.vstack([operations.slope, np.zeros(operations.slope.shape[1])])[rows]

    def __call__(self, kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shape (tensors,); the counts need not be whole."""
        volumes: NDArray[np.float64] = np.multiply.reduceat(self._rest + self._slope @ kept, self._starts)
        return volumes


@dataclass(eq=False)
class _Tape:
    """What one forward pass did."""

    operations: list[Operation] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def course(self) -> list[Any]:
        """What is the same in every run, if the code takes the same way.

        Not whether a call is a view: a shuffle of one channel a group moves nothing and copies nothing.
        """
        return [(o.function, o.spec, len(o.made)) for o in self.operations]


@dataclass(frozen=True, eq=False)
class Operations:
    """The forward pass of every scheme of a space, for a batch of ``batch`` samples.

    ``rest`` has shape (sizes,), ``slope`` (sizes, groups).
    """

    calls: tuple[Operation, ...]
    storages: tuple[Storage, ...]
    rest: NDArray[np.float64]
    slope: NDArray[np.float64]
    batch: int

    def sizes(self, kept: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
        """Every recorded length at the kept counts, which need not be whole."""
        sizes: NDArray[np.float64] = self.rest + self.slope @ np.asarray(kept, dtype=np.float64)
        return sizes


def record(model: nn.Module, example: Example, space: SearchSpace, batch: int = 1) -> Operations:
    """The operations of ``model``, in evaluation mode, and how their sizes follow from a scheme.

    The example is repeated to ``batch`` samples. Raises :class:`UserError` where sizes are no affine functions
    of the counts, or the code takes another way when a layer is narrower.
    """
    tape = _recorder(model, repeated(example, batch), space)
    dense = tape(space.dense)
    course, sizes = dense.course, np.array(dense.sizes, dtype=np.float64)
    slope = np.zeros((len(sizes), len(space)))

    def run(scheme: Scheme, what: str) -> NDArray[np.float64]:
        found = tape(scheme)
        if found.course != course:
            raise UserError(f"the network does other operations when {what}: their sizes cannot be told from a scheme")
        return np.array(found.sizes, dtype=np.float64)

    for g, group in enumerate(space.groups):
        least = group.counts[0]
        if least < group.width:
            cut = run(space.dense.replace(g, least), f"{group.name} keeps {least} channels")
            slope[:, g] = (sizes - cut) / (group.width - least)
    found = Operations(tuple(dense.operations), tuple(dense.storages), sizes - slope @ space.widths, slope, batch)
    generator = np.random.default_rng(0)
    for rates in (np.zeros(len(space)), *generator.uniform(size=(PROOFS, len(space)))):
        scheme = space.floor(rates)
        wrong = np.flatnonzero(np.abs(found.sizes(scheme.kept) - run(scheme, "groups are cut together")) > 1e-6)
        if len(wrong):
            at = next(o for o in found.calls if _reaches(o, int(wrong[0])))
            raise UserError(f"sizes of {at.name} are no sum over the groups: costs cannot be told from a scheme")
    return found


def _reaches(operation: Operation, size: int) -> bool:
    last = max((p for o in (*operation.read, *operation.made) for p in o.place), default=-1)
    return size <= max([last, *(leaf.place for leaf in operation.arguments if isinstance(leaf, Size))])


def _recorder(model: nn.Module, example: Example, space: SearchSpace) -> Callable[[Scheme], _Tape]:
    """Runs a scheme's network on the meta device, or really, where the network does not go there."""

    def run(network: nn.Module, inputs: Example, scheme: Scheme) -> _Tape:
        first = [np.arange(count // group.unit) for count, group in zip(scheme.kept, space.groups, strict=True)]
        return _watch(prune(network, space, first), inputs)

    light = with_tensors(model, {path: _shell(tensor) for path, tensor in named_tensors(model)})
    nothing = to(example, "meta")
    try:
        run(light, nothing, space.dense)
    except Exception:  # noqa: BLE001 - code that looks at values, or has tensors of its own; it then runs for real
        device = next(model.parameters()).device
        return lambda scheme: run(model, to(example, device), scheme)
    return lambda scheme: run(light, nothing, scheme)


def _shape_alone(func: Any, args: tuple[Any, ...]) -> Any:
    """What an operator returns on the meta device, where that is known without asking; torch takes milliseconds."""
    if not args or not isinstance(args[0], Tensor) or args[0].device.type != "meta" or not args[0].is_contiguous():
        return None
    if func.__name__ in ("relu_.default", "hardtanh_.default", "silu_.default", "hardswish_.default"):
        return args[0]
    return torch.empty_like(args[0]) if func.__name__ == "batch_norm.default" else None


def _bound(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Every argument, those too that a call leaves out because they are the default, such as groups=1."""
    values = {argument.name: argument.default_value for argument in schema.arguments}
    values |= dict(zip(values, args, strict=False)) | kwargs
    named = {argument.name: values.pop(argument.name) for argument in schema.arguments if argument.kwarg_only}
    return list(values.values()), named


def _shell(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _watch(network: nn.Module, inputs: Example) -> _Tape:
    tape = _Tape()
    with torch.inference_mode(), evaluating(network), _Recorder(tape, network, tree_leaves(inputs)):
        result = call(network, inputs)
    del result
    return tape


class _Recorder(TorchDispatchMode):
    """Writes every operator call down. In inference mode composite ones arrive whole, as the network calls them."""

    def __init__(self, tape: _Tape, network: nn.Module, inputs: Iterable[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape
        self._parameters = {id(tensor) for _, tensor in named_tensors(network)}
        self._values = WeakTensorKeyDictionary()
        self._storages: dict[int, int] = {}  # by address
        self._holders: dict[int, int] = {}
        self._count = 0
        for _, tensor in named_tensors(network):
            self._meet(tensor, WEIGHT)
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                self._meet(tensor, INPUT)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves, spec = tree_flatten(_bound(func._schema, args, kwargs or {}))
        arguments = tuple(self._argument(leaf) for leaf in leaves)
        changed = func._schema.is_mutable  # no public name
        result = _shape_alone(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        known = {operand.storage for operand in arguments if isinstance(operand, Operand)}
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        made = tuple(self._meet(tensor, len(self._tape.operations), anew=changed) for tensor in tensors)
        view = not changed and bool(made) and all(operand.storage in known for operand in made)
        self._tape.operations.append(Operation(func, spec, arguments, made, view))
        return result

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self._meet(leaf, len(self._tape.operations))
        if type(leaf) is int:
            self._tape.sizes.append(leaf)
            return Size(len(self._tape.sizes) - 1)
        return leaf

    def _meet(self, tensor: Tensor, maker: int, anew: bool = False) -> Operand:
        start = len(self._tape.sizes)
        self._tape.sizes.extend(tensor.shape)
        place = range(start, len(self._tape.sizes))
        address = tensor.untyped_storage()._cdata  # noqa: SLF001  # meta tensors have no data_ptr
        if address not in self._storages:
            self._storages[address] = len(self._tape.storages)
            self._tape.storages.append(Storage(maker, HELD, tensor.itemsize, place))
        if tensor not in self._values:
            self._holders[address] = self._holders.get(address, 0) + 1
            weakref.finalize(tensor, self._let_go, address).atexit = False
        if tensor not in self._values or anew:
            self._values[tensor] = self._count
            self._count += 1
        parameter = id(tensor) in self._parameters
        return Operand(self._values[tensor], self._storages[address], parameter, tensor.dtype, place)

    def _let_go(self, address: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            number = self._storages.pop(address)
            kept = self._tape.storages[number]
            self._tape.storages[number] = Storage(kept.maker, len(self._tape.operations), kept.itemsize, kept.place)
