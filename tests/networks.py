"""Small networks, one per thing that real networks do with channels, and an oracle of "sliced == zeroed".

Most are two or three layers long with odd widths, so that a wrong tie cannot fit by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.forward import call, outputs
from autoprune.slicing import prune
from autoprune.space import Group, SearchSpace


class Function(nn.Module):
    """Layers by name, and a function ``(layers, *inputs)`` that says how they are put together."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self._put_together = forward
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._put_together(self, *inputs, **named)


def lively(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with every vector drawn at random, so that no two channels are alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def draw(space: SearchSpace, rng: np.random.Generator) -> list[np.ndarray]:
    """Random kept units of random number for every group."""
    return [np.sort(rng.choice(g.units, int(rng.integers(1, g.units)), replace=False)) for g in space.groups]


def zeroed(model: nn.Module, example: Any, space: SearchSpace, kept: Sequence[np.ndarray]) -> list[Tensor]:
    """What the dense network computes when every reader's *input* is zero in the removed channels.

    Independent of the proof, which zeroes weights: only convolution, linear and transposed convolution
    modules can be readers here.
    """
    gone: dict[str, list[np.ndarray]] = {}
    for group, units in zip(space.groups, kept, strict=True):
        removed = np.setdiff1d(np.arange(group.units), units)
        for piece in group.slices:
            if piece.role == "in":
                assert piece.tensor == "weight"
                gone.setdefault(piece.module, []).append(piece.positions[removed].ravel())
    handles = []
    for module in model.modules():
        positions = next(
            (gone[name] for name in gone if model.get_submodule(name).weight is getattr(module, "weight", 0)), []
        )
        if not positions:
            continue
        axis = -1 if isinstance(module, nn.Linear) else 1
        narrow = np.concatenate(positions)
        blocks = getattr(module, "groups", 1)
        size = module.weight.shape[0 if isinstance(module, nn.ConvTranspose2d) else 1]
        channels = torch.from_numpy(np.concatenate([narrow + block * size for block in range(blocks)]))

        def silence(_: nn.Module, inputs: tuple[Tensor], axis: int = axis, channels: Tensor = channels) -> Tensor:
            return inputs[0].index_fill(axis, channels, 0.0)

        handles.append(module.register_forward_pre_hook(silence))
    try:
        with torch.no_grad():
            return outputs(call(model, example))
    finally:
        for handle in handles:
            handle.remove()


def agrees(model: nn.Module, example: Any, space: SearchSpace, seed: int) -> bool:
    """Whether slicing a random scheme computes what silencing the same channels does."""
    model = model.double()
    kept = draw(space, np.random.default_rng(seed))
    with torch.no_grad():
        sliced = outputs(call(prune(model, space, kept), example))
    silent = zeroed(model, example, space, kept)
    dense = outputs(call(model, example))
    assert any(not torch.allclose(a, b, rtol=1e-6) for a, b in zip(dense, silent, strict=True)), "nothing was cut"
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(sliced, silent, strict=True))


def widths(space: SearchSpace) -> dict[str, tuple[int, int]]:
    """Width and unit by the name of the group."""
    return {group.name: (group.width, group.unit) for group in space.groups}


def members(group: Group, role: str) -> set[str]:
    """Paths of a group's tensors that play a role."""
    return {piece.path for piece in group.slices if piece.role == role}


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def image(channels: int = 3, size: int = 6, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


Made = tuple[nn.Module, Any, Mapping[str, tuple[int, int]]]  # network, example, expected widths and units


def plain() -> Made:
    def forward(m, x):
        return m.head(pooled(functional.relu(m.bn(m.a(x)))))

    return Function(forward, a=conv(3, 5, 3), bn=nn.BatchNorm2d(5), head=nn.Linear(5, 4)), image(), {"a": (5, 1)}


def residual() -> Made:
    def forward(m, x):
        return m.head(pooled((h := m.a(x)) + m.c(functional.relu(m.b(h)))))

    model = Function(forward, a=conv(3, 5), b=conv(5, 7, 3), c=conv(7, 5), head=nn.Linear(5, 4))
    return model, image(), {"a": (5, 1), "b": (7, 1)}


def concatenation() -> Made:
    def forward(m, x):
        return m.head(pooled(m.join(torch.cat([(h := m.a(x)), m.b(h)], 1))))

    model = Function(forward, a=conv(3, 5), b=conv(5, 7, 3), join=conv(12, 6), head=nn.Linear(6, 4))
    return model, image(), {"a": (5, 1), "b": (7, 1), "join": (6, 1)}


def with_input() -> Made:
    def forward(m, x):
        return m.join(torch.cat([x, m.a(x)], 1))

    return Function(forward, a=conv(3, 5), join=conv(8, 4)), image(), {"a": (5, 1)}


def depthwise() -> Made:
    layers = (conv(3, 5), nn.BatchNorm2d(5), nn.ReLU6(), conv(5, 5, 3, groups=5), nn.BatchNorm2d(5), conv(5, 4))
    return nn.Sequential(*layers), image(), {"0": (5, 1)}


def multiplier() -> Made:
    layers = (conv(3, 5), conv(5, 10, 3, groups=5), nn.ReLU(), conv(10, 4))
    return nn.Sequential(*layers), image(), {"0": (5, 1)}


def grouped() -> Made:
    layers = (conv(3, 6), nn.ReLU(), conv(6, 10, 3, groups=2), nn.ReLU(), conv(10, 4))
    return nn.Sequential(*layers), image(), {"0": (6, 2), "2": (10, 2)}


def grouped_input() -> Made:
    layers = (conv(4, 6, groups=2), nn.ReLU(), conv(6, 4))
    return nn.Sequential(*layers), image(4), {"0": (6, 2)}


def flattened() -> Made:
    layers = (conv(3, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 7), nn.ReLU(), nn.Linear(7, 4))
    return nn.Sequential(*layers), image(), {"0": (5, 1), "3": (7, 1)}


def gate() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        squeezed = functional.relu(m.down(functional.adaptive_avg_pool2d(x, 1)))
        return m.out(x * torch.sigmoid(m.up(squeezed)))

    model = Function(forward, a=conv(3, 6), down=conv(6, 5), up=conv(5, 6), out=conv(6, 4))
    return model, image(), {"a": (6, 1), "down": (5, 1)}


def prelu() -> Made:
    return (
        nn.Sequential(conv(3, 5), nn.PReLU(5), conv(5, 6), nn.PReLU(), conv(6, 4)),
        image(),
        {"0": (5, 1), "2": (6, 1)},
    )


def transposed() -> Made:
    layers = (conv(3, 5), nn.ConvTranspose2d(5, 7, 2, 2), nn.BatchNorm2d(7), nn.ReLU(), conv(7, 4))
    return nn.Sequential(*layers), image(), {"0": (5, 1), "1": (7, 1)}


def transposed_depthwise() -> Made:
    layers = (conv(3, 5), nn.ConvTranspose2d(5, 5, 2, 2, groups=5), nn.ReLU(), conv(5, 4))
    return nn.Sequential(*layers), image(), {"0": (5, 1)}


def chunked() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = m.a(x).chunk(2, 1)
        return m.out(left * torch.sigmoid(right))

    return Function(forward, a=conv(3, 10, 3), out=conv(5, 4)), image(), {"a": (10, 2)}


def glu() -> Made:
    return nn.Sequential(conv(3, 10, 3), nn.GLU(1), conv(5, 4)), image(), {"0": (10, 2)}


def chunked_and_joined() -> Made:
    """As in YOLO's C2f: one half is worked on, and all parts are concatenated."""

    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = m.a(x).chunk(2, 1)
        return m.out(torch.cat([left, right, right + m.b(right)], 1))

    return Function(forward, a=conv(3, 10), b=conv(5, 5, 3), out=conv(15, 4)), image(), {"a": (10, 2)}


def shuffled() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        b, c, h, w = x.shape
        return m.out(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))

    return Function(forward, a=conv(3, 10, 3), out=conv(10, 4)), image(), {"a": (10, 2)}


def channel_shuffle() -> Made:
    return nn.Sequential(conv(3, 10, 3), nn.ChannelShuffle(2), conv(10, 4)), image(), {"0": (10, 2)}


def pixel_shuffle() -> Made:
    layers = (conv(3, 20, 3), nn.PixelShuffle(2), conv(5, 6), nn.PixelUnshuffle(2), conv(24, 4))
    return nn.Sequential(*layers), image(), {"0": (20, 4), "2": (6, 1)}


def blocks_of_fixed_size() -> Made:
    """The code fixes the size of a block (4), so the number of blocks shrinks."""

    def forward(m, x):
        return m.out((h := m.a(x)).view(h.shape[0], -1, 4, *h.shape[2:]).flatten(1, 2))

    return Function(forward, a=conv(3, 12), out=conv(12, 4)), image(), {"a": (12, 4)}


def split_attention() -> Made:
    """As in ResNeSt: two halves are weighed and added."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        parts = x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
        return m.out(parts.sum(1))

    return Function(forward, a=conv(3, 10, 3), out=conv(5, 4)), image(), {"a": (10, 2)}


def reused() -> Made:
    """One convolution applied twice: what it reads and what it makes are the same channels."""

    def forward(m, x):
        return m.out(m.b(functional.relu(m.b(m.a(x)))))

    return Function(forward, a=conv(3, 5), b=conv(5, 5, 3), out=conv(5, 4)), image(), {"a": (5, 1)}


def tied() -> Made:
    model = nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 5), nn.ReLU(), conv(5, 5), nn.ReLU(), conv(5, 4))
    model[4].weight = model[2].weight
    return model, image(), {"0": (5, 1)}


def padded() -> Made:
    """The shortcut of CIFAR ResNets: zeros on both sides keep the sum whole, not what lies inside."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.head(pooled(functional.pad(x, (0, 0, 0, 0, 2, 2)) + m.c(functional.relu(m.b(x)))))

    model = Function(forward, a=conv(3, 5), b=conv(5, 7), c=conv(7, 9), head=nn.Linear(9, 4))
    return model, image(), {"b": (7, 1)}


def normed() -> Made:
    """Layer norm keeps the trunk whole, not the inner width of the two linear layers."""

    def forward(m, x):
        return m.out(m.norm(x + m.b(functional.gelu(m.a(x)))))

    model = Function(forward, a=nn.Linear(6, 9), b=nn.Linear(9, 6), norm=nn.LayerNorm(6), out=nn.Linear(6, 4))
    return model, rows(2, 3, 6), {"a": (9, 1)}


def normed_over_tokens() -> Made:
    """Layer norm over another axis lets the channels pass."""

    def forward(m, x):
        return m.out(m.norm(m.a(x).transpose(1, 2)).transpose(1, 2))

    model = Function(forward, a=nn.Linear(6, 9), norm=nn.LayerNorm(3), out=nn.Linear(9, 4))
    return model, rows(2, 3, 6), {"a": (9, 1)}


def group_normed() -> Made:
    layers = (conv(3, 6), nn.GroupNorm(2, 6), conv(6, 5), nn.ReLU(), conv(5, 4))
    return nn.Sequential(*layers), image(), {"2": (5, 1)}


def instance_normed() -> Made:
    layers = (conv(3, 6), nn.InstanceNorm2d(6, affine=True), conv(6, 5), nn.ReLU(), conv(5, 4))
    return nn.Sequential(*layers), image(), {"0": (6, 1), "2": (5, 1)}


def attention() -> Made:
    def forward(m, x):
        return m.head(m.b(functional.relu(m.a(m.attend(x, x, x, need_weights=False)[0]))))

    attend = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Function(forward, attend=attend, a=nn.Linear(8, 5), b=nn.Linear(5, 6), head=nn.Linear(6, 4))
    return model, rows(2, 3, 8), {"attend.out_proj": (8, 1), "a": (5, 1), "b": (6, 1)}


def encoder() -> Made:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 11, batch_first=True), nn.Linear(8, 4))
    return model, rows(2, 3, 8), {"0.linear1": (11, 1)}


def embedded() -> Made:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    return model, torch.tensor([[1, 2, 3], [4, 5, 8]]), {"0": (6, 1), "1": (5, 1)}


def one_dimensional() -> Made:
    layers = (nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.MaxPool1d(2), nn.ReLU(), nn.Conv1d(5, 6, 1), nn.Conv1d(6, 4, 1))
    return nn.Sequential(*layers), rows(2, 3, 9), {"0": (5, 1), "4": (6, 1)}


def three_dimensional() -> Made:
    layers = (nn.Conv3d(3, 5, 3), nn.BatchNorm3d(5), nn.AvgPool3d(2), nn.ReLU(), nn.Conv3d(5, 4, 1))
    return nn.Sequential(*layers), rows(2, 3, 5, 5, 5), {"0": (5, 1)}


def mixer() -> Made:
    """Tokens are mixed through an inner width of their own."""

    def forward(m, x):
        return m.out(x + m.b(functional.relu(m.a(x.transpose(1, 2)))).transpose(1, 2))

    model = Function(forward, a=nn.Linear(3, 7), b=nn.Linear(7, 3), out=nn.Linear(6, 4))
    return model, rows(2, 3, 6), {"a": (7, 1)}


def einsum() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(functional.relu(torch.einsum("bnc,cd->bnd", x, m.weight)))

    model = Function(forward, weight=nn.Parameter(torch.randn(6, 5)), out=nn.Linear(5, 4))
    return model, rows(2, 3, 6), {"weight": (5, 1)}


def repeated() -> Made:
    def forward(m, x):
        return m.out(m.a(x).repeat(1, 2, 1, 1))

    return Function(forward, a=conv(3, 5), out=conv(10, 4)), image(), {"a": (5, 1)}


def interleaved() -> Made:
    def forward(m, x):
        return m.out(m.a(x).repeat_interleave(2, 1))

    return Function(forward, a=conv(3, 5), out=conv(10, 4)), image(), {"a": (5, 1)}


def stacked() -> Made:
    def forward(m, x):
        return m.out(torch.stack([m.a(x), m.b(x)], 1).mean(1))

    return Function(forward, a=conv(3, 5), b=conv(3, 5), out=conv(5, 4)), image(), {"a": (5, 1)}


def written_in_place() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x[:, :, 0] = m.b(x)[:, :, 1]
        x.add_(1.0).relu_()
        return m.out(x)

    return Function(forward, a=conv(3, 5), b=conv(5, 5), out=conv(5, 4)), image(), {"a": (5, 1)}


def computed_masks() -> Made:
    def forward(m, x):
        return m.out(torch.where((h := m.a(x)) > 0, h, torch.zeros_like(h)))

    return Function(forward, a=conv(3, 5), out=conv(5, 4)), image(), {"a": (5, 1)}


def blurred() -> Made:
    """One fixed filter for however many channels there are."""

    def forward(m, x):
        return m.out(functional.conv2d(h := m.a(x), m.filter.expand(h.shape[1], -1, -1, -1), groups=h.shape[1]))

    model = Function(forward, a=conv(3, 5), filter=torch.rand(1, 1, 3, 3), out=conv(5, 4))
    return model, image(), {"a": (5, 1)}


def scaled() -> Made:
    """A learned factor per channel, as in ConvNeXt's layer scale."""

    def forward(m, x):
        return m.out(m.a(x) * m.gamma)

    return (
        Function(forward, a=conv(3, 5), gamma=nn.Parameter(torch.rand(5, 1, 1)), out=conv(5, 4)),
        image(),
        {"a": (5, 1)},
    )


def bare_norm() -> Made:
    """Batch norm without scale and shift has running statistics only."""
    layers = (conv(3, 5), nn.BatchNorm2d(5, affine=False), nn.ReLU(), conv(5, 4))
    return nn.Sequential(*layers), image(), {"0": (5, 1)}


def weight_normed() -> Made:
    """The norm is taken over the inputs, so only the channels it makes can go."""
    first = nn.utils.parametrizations.weight_norm(conv(3, 5, 3))
    return (
        nn.Sequential(first, nn.ReLU(), conv(5, 6), nn.ReLU(), conv(6, 4)),
        image(),
        {
            "0.parametrizations.weight": (5, 1),
            "2": (6, 1),
        },
    )


NETWORKS: Mapping[str, Callable[[], Made]] = {
    network.__name__: network
    for network in (
        plain, residual, concatenation, with_input, depthwise, multiplier, grouped, grouped_input, flattened, gate,
        prelu, transposed, transposed_depthwise, chunked, glu, chunked_and_joined, shuffled, channel_shuffle,
        pixel_shuffle, blocks_of_fixed_size, split_attention, reused, tied, padded, normed, normed_over_tokens,
        group_normed, instance_normed, attention, encoder, embedded, one_dimensional, three_dimensional, mixer, einsum,
        repeated, interleaved, stacked, written_in_place, computed_masks, blurred, scaled, bare_norm, weight_normed,
    )
}  # fmt: skip


class SharedWeight(nn.Module):
    """One weight under two modules, cut together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.back, self.again, self.head = (
            nn.Linear(6, 8),
            nn.Linear(8, 6),
            nn.Linear(6, 8),
            nn.Linear(8, 3),
        )
        self.again.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.relu(self.again(self.back(torch.relu(self.first(x))))))
