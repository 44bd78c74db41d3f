"""Networks that come with autoprune: CIFAR ResNets, MobileNet v1 and a small network for 8x8 digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import UserError

MOBILENET_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
MOBILENET_STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions with the parameter-free shortcut (He et al. 2016, section 4.2, option A).

    Where the block widens, the shortcut takes every second pixel and pads the new channels with zeros,
    half of them on each side.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(residual + x)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images: three stages of n blocks, 16, 32 and 64 channels wide."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    first = PaddedBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(PaddedBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def cifar_resnet(depth: int, num_classes: int = 10) -> CifarResNet:
    """The CIFAR ResNet with ``depth`` weighted layers (He et al. 2016: 20, 32, 44, 56, 110)."""
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"a CIFAR ResNet of depth {depth} does not exist: depths are 6n + 2, such as 20 or 56")
    return CifarResNet((depth - 2) // 6, num_classes)


resnet20 = partial(cifar_resnet, 20)
resnet32 = partial(cifar_resnet, 32)
resnet44 = partial(cifar_resnet, 44)
resnet56 = partial(cifar_resnet, 56)
resnet110 = partial(cifar_resnet, 110)


class MobileNetV1(nn.Module):
    """MobileNet v1 (Howard et al. 2017, table 1): a strided stem and 13 depthwise-separable blocks.

    ``widths`` are the output channels of the stem and of the 13 pointwise convolutions.
    """

    def __init__(self, num_classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) != len(MOBILENET_STRIDES):
            raise UserError(f"MobileNet v1 has {len(MOBILENET_STRIDES)} widths, not {len(widths)}")
        stem = nn.Sequential(*_convolution(3, widths[0], 3, MOBILENET_STRIDES[0]))
        blocks = [
            nn.Sequential(
                *_convolution(inputs, inputs, 3, stride, groups=inputs),
                *_convolution(inputs, outputs, 1),
            )
            for inputs, outputs, stride in zip(widths, widths[1:], MOBILENET_STRIDES[1:], strict=False)
        ]
        self.features = nn.Sequential(stem, *blocks)
        self.classifier = nn.Linear(widths[-1], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]  # as above


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def mobilenet_v1(num_classes: int = 1000, widths: Sequence[int] = MOBILENET_WIDTHS) -> MobileNetV1:
    """MobileNet v1 at width 1.0, or with the given widths (a published channel list, for instance)."""
    return MobileNetV1(num_classes, widths)


class ProjectedBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs or stride != 1:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(residual + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network of 10 weighted layers (projections aside) for 8x8 images of one channel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            ProjectedBlock(16, 16, 1),
            ProjectedBlock(16, 32, 2),
            ProjectedBlock(32, 32, 1),
            ProjectedBlock(32, 48, 2),
        )
        self.linear = nn.Linear(48, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn(self.conv(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]  # as above


def digits(num_classes: int = 10) -> DigitsNet:
    """The small network for scikit-learn's digits; it trains in seconds on a processor."""
    return DigitsNet(num_classes)


def _initialise(model: nn.Module) -> None:
    """Kaiming initialisation of convolutions and linear layers, as the ResNet paper has it."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "digits": digits,
    "mobilenet_v1": mobilenet_v1,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
}
