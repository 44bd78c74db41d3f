"""The networks that come with autoprune."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.architectures import ARCHITECTURES, cifar_resnet, digits, mobilenet_v1, resnet20
from autoprune.errors import UserError

# What AMC published for half of MobileNet v1's FLOPs: the input channels of its 15 prunable layers.
AMC_INPUTS = (3, 24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)
STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def count_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-adds of all convolutions and linear layers, counted while the network runs."""
    total = 0

    def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        pixels = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += pixels * module.weight.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.inference_mode():
        model.eval()(example)
    return total


def mobilenet_macs(widths: tuple[int, ...], classes: int) -> int:
    """The same from the sizes of table 1 of the paper, at 224 pixels."""
    side = 224 // STRIDES[0]
    total = side**2 * 3 * 9 * widths[0]
    for inputs, outputs, stride in zip(widths, widths[1:], STRIDES[1:], strict=False):
        side //= stride
        total += side**2 * (9 * inputs + inputs * outputs)
    return total + widths[-1] * classes


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [(name, (2, 1, 8, 8) if name == "digits" else (2, 3, 32, 32), 7) for name in ARCHITECTURES],
)
def test_every_architecture_answers_with_one_score_per_class(name: str, shape: tuple[int, ...], classes: int) -> None:
    model = ARCHITECTURES[name](num_classes=classes).eval()
    with torch.inference_mode():
        assert model(torch.randn(shape)).shape == (2, classes)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_a_cifar_resnet_has_its_depth_in_weighted_layers_and_no_shortcut_parameters(depth: int) -> None:
    model = cifar_resnet(depth)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth
    blocks = (depth - 2) // 6
    convolutions = 9 * (3 * 16 + (2 * blocks) * 16**2 + 16 * 32 + (2 * blocks - 1) * 32**2)
    convolutions += 9 * (32 * 64 + (2 * blocks - 1) * 64**2)
    norms = 2 * (16 + 2 * blocks * (16 + 32 + 64))
    assert sum(p.numel() for p in model.parameters()) == convolutions + norms + 64 * 10 + 10


def test_the_names_of_a_cifar_resnet_are_those_of_the_published_weights() -> None:
    convolved = [f"layer{s}.{b}.{kind}" for s in (1, 2, 3) for b in range(3) for kind in ("conv1", "conv2")]
    normed = [f"layer{s}.{b}.{kind}" for s in (1, 2, 3) for b in range(3) for kind in ("bn1", "bn2")]
    expected = {f"{name}.weight" for name in ("conv1", *convolved)} | {"linear.weight", "linear.bias"}
    for name in ("bn1", *normed):
        expected |= {f"{name}.{t}" for t in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert set(resnet20().state_dict()) == expected


def test_the_shortcut_takes_every_second_pixel_and_pads_new_channels_on_both_sides() -> None:
    block = resnet20().layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)  # the residual is zero: the block shows its shortcut
    x = torch.rand(1, 16, 32, 32)
    with torch.inference_mode():
        y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("depth", [2, 21, 57])
def test_a_depth_that_no_cifar_resnet_has_is_refused(depth: int) -> None:
    with pytest.raises(UserError, match=f"depth {depth} does not exist"):
        cifar_resnet(depth)


def test_mobilenet_v1_has_the_macs_of_its_paper() -> None:
    expected = mobilenet_macs((32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024), 1000)
    assert count_macs(mobilenet_v1(), torch.zeros(1, 3, 224, 224)) == expected
    assert round((expected + 1000) / 1e6, 1) == 568.7  # AMC's code counts the 1,000 biases of the classifier too


def test_mobilenet_v1_takes_a_published_channel_list() -> None:
    widths = AMC_INPUTS[1:]
    macs = count_macs(mobilenet_v1(widths=widths), torch.zeros(1, 3, 224, 224))
    assert macs == mobilenet_macs(widths, 1000)
    assert round((macs + 1000) / 1e6, 1) == 293.9  # 51.7 % of the dense network, as published


def test_a_channel_list_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(UserError, match="has 14 widths, not 15"):
        mobilenet_v1(widths=AMC_INPUTS)


def test_the_digits_network_is_residual_and_narrows_its_images() -> None:
    model = digits().eval()
    seen: list[torch.Size] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, y: seen.append(y.shape))
    with torch.inference_mode():
        model(torch.rand(1, 1, 8, 8))
    assert [tuple(shape[1:]) for shape in seen] == [(16, 8, 8), (32, 4, 4), (32, 4, 4), (48, 2, 2)]
    assert [len(block.shortcut) for block in model.blocks] == [0, 2, 0, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "published"), [(20, 0.8787), (56, 0.8975)])
def test_the_trained_cifar_resnets_reach_their_accuracy(
    depth: int,
    published: float,
    data_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from autoprune import data, models

    folder = tmp_path_factory.getbasetemp() / "unpacked"  # both depths share it
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    splits = data.load(f"imagefolder:{data_folder / 'cifar10-jpeg.tar.xz'}", 1, 1)
    model = models.load(f"autoprune:resnet{depth}", data_folder / f"resnet{depth}-cifar10-jpeg.pt")
    assert splits.test is not None
    hits = images = 0
    with torch.inference_mode():
        for number, (x, y) in enumerate(splits.test()):
            if number % 5 == 0:  # the files lie class by class: every fifth batch meets every class
                hits += int((model(x).argmax(1) == y).sum())
                images += len(y)
    # Three standard deviations of the mean of this many images.
    assert abs(hits / images - published) < 3 * (published * (1 - published) / images) ** 0.5
