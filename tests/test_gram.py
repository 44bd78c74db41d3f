from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune.gram import collect
from networks import Function, lively

ALL = 10**6  # positions: every one


def chain(*between: nn.Module, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1, bias=bias), *between).eval()


def batches(shape=(2, 6, 6), sizes=(3, 3), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, *shape, generator=generator, dtype=dtype), None) for size in sizes]


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of rows, straight from the definition."""
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / len(x)


def test_the_moments_are_those_of_all_patches_together():
    model, data = chain().double(), batches(dtype=torch.float64, sizes=(3, 1, 4))
    found = collect(model, {"2.weight": model[2]}, data, ALL, seed=0)["2.weight"]
    reads = model[1](model[0](torch.cat([x for x, _ in data])))
    patches = functional.unfold(reads, 3, padding=1).mT.reshape(-1, 36)
    mean, covariance = moments(patches)
    torch.testing.assert_close(found.mean[0], mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariance[0], covariance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.second[0], patches.T @ patches / len(patches), rtol=1e-12, atol=1e-12)


def test_every_convolution_group_has_a_matrix_of_its_own():
    model = nn.Sequential(nn.Conv2d(6, 4, 1, groups=2)).double()
    data = batches((6, 5, 5), dtype=torch.float64)
    found = collect(model, {"0.weight": model[0]}, data, ALL, seed=0)["0.weight"]
    pixels = torch.cat([x for x, _ in data]).movedim(1, -1).reshape(-1, 6)
    for group, columns in enumerate((slice(0, 3), slice(3, 6))):
        mean, covariance = moments(pixels[:, columns])
        torch.testing.assert_close(found.mean[group], mean)
        torch.testing.assert_close(found.covariance[group], covariance)
    assert found.rest == "0.bias"


def test_a_layer_that_runs_twice_sees_both_inputs():
    model = Function(lambda m, x: m.fc(torch.relu(m.fc(x))), fc=nn.Linear(3, 3)).double()
    data = batches((3,), dtype=torch.float64)
    found = collect(model, {"fc.weight": model.fc}, data, ALL, seed=0)["fc.weight"]
    x = torch.cat([x for x, _ in data])
    mean, covariance = moments(torch.cat([x, torch.relu(model.fc(x))]))
    torch.testing.assert_close(found.mean[0], mean)
    torch.testing.assert_close(found.covariance[0], covariance)


def test_how_the_images_are_cut_into_batches_makes_no_difference():
    model = chain()
    images = torch.randn(9, 2, 6, 6)
    cuts = [[(part, None) for part in images.split(sizes)] for sizes in ([9], [4, 4, 1], [1, 8])]
    found = [collect(model, {"2.weight": model[2]}, cut, ALL, seed=0)["2.weight"] for cut in cuts]
    for gram in found[1:]:
        torch.testing.assert_close(gram.mean, found[0].mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gram.covariance, found[0].covariance, rtol=1e-5, atol=1e-6)


def test_a_large_mean_does_not_spoil_the_covariance_in_single_precision():
    model = nn.Sequential(nn.Linear(4, 2))
    spread = torch.randn(200, 4)
    data = [(part, None) for part in (spread + 1000).split(50)]
    covariance = collect(model, {"0.weight": model[0]}, data, ALL, seed=0)["0.weight"].covariance[0]
    torch.testing.assert_close(covariance, moments(spread.double())[1], rtol=1e-3, atol=1e-3)
    assert torch.linalg.eigvalsh(covariance).min() > 0.1


def test_a_constant_channel_has_no_variance_at_all():
    model = nn.Sequential(nn.Linear(3, 2))
    data = [(torch.cat([torch.randn(8, 2), torch.full((8, 1), 0.1)], 1), None) for _ in range(3)]
    covariance = collect(model, {"0.weight": model[0]}, data, ALL, seed=0)["0.weight"].covariance[0]
    assert covariance[2].abs().max() < 1e-8
    assert covariance[0, 0] > 0.1


def test_half_precision_is_summed_in_single():
    model = nn.Sequential(nn.Linear(3, 2)).bfloat16()
    data = [(torch.randn(500, 3).bfloat16(), None)]
    found = collect(model, {"0.weight": model[0]}, data, ALL, seed=0)["0.weight"]
    torch.testing.assert_close(found.covariance[0], moments(data[0][0].double())[1], rtol=1e-4, atol=1e-4)


def test_sampled_positions_are_the_same_for_the_same_seed():
    model, data = chain(), batches()
    a, b, c = (collect(model, {"2.weight": model[2]}, data, 4, seed)["2.weight"] for seed in (0, 0, 1))
    assert torch.equal(a.covariance, b.covariance)
    assert not torch.equal(a.covariance, c.covariance)


# -- what can absorb a constant shift --------------------------------------------------------------


def rest_of(model: nn.Module, layer: str, shape=(2, 6, 6)) -> str | None:
    model = lively(model)
    path = f"{layer}.weight"
    return collect(model, {path: model.get_submodule(layer)}, batches(shape), ALL, seed=0)[path].rest


def test_a_bias_absorbs_a_shift():
    assert rest_of(chain(bias=True), "2") == "2.bias"
    assert rest_of(chain(nn.BatchNorm2d(5), bias=True), "2") == "2.bias"


def test_the_batch_norm_that_reads_the_output_absorbs_a_shift():
    assert rest_of(chain(nn.BatchNorm2d(5), nn.ReLU()), "2") == "3.running_mean"
    dense = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert rest_of(dense, "0", (3,)) == "1.running_mean"


def test_nothing_absorbs_a_shift_where_there_is_neither():
    assert rest_of(chain(), "2") is None
    assert rest_of(chain(nn.BatchNorm2d(5, track_running_stats=False)), "2") is None


@pytest.mark.parametrize("inplace", [True, False])
def test_an_activation_before_the_batch_norm_forbids_it(inplace):
    assert rest_of(chain(nn.ReLU(inplace=inplace), nn.BatchNorm2d(5)), "2") is None


def test_a_second_reader_of_the_output_forbids_it():
    def skip(m, x):
        x = m.conv(x)
        return m.norm(x) + x

    layers = {"conv": nn.Conv2d(2, 4, 1, bias=False), "norm": nn.BatchNorm2d(4)}
    assert rest_of(Function(skip, **layers), "conv") is None
    assert rest_of(Function(lambda m, x: m.norm(m.conv(x)), **layers), "conv") == "norm.running_mean"


def test_a_batch_norm_that_two_layers_share_forbids_it():
    def both(m, x):
        return m.norm(m.a(x)) * m.norm(m.b(x))

    model = lively(
        Function(both, a=nn.Conv2d(2, 4, 1, bias=False), b=nn.Conv2d(2, 4, 1, bias=False), norm=nn.BatchNorm2d(4))
    )
    found = collect(model, {"a.weight": model.a, "b.weight": model.b}, batches(), ALL, seed=0)
    assert {gram.rest for gram in found.values()} == {None}


def test_one_layer_that_fails_the_proof_does_not_spoil_the_others():
    def forward(m, x):
        x = m.norm1(m.conv1(x))
        x = m.norm2(functional.relu(m.conv2(x), inplace=True))
        return m.norm3(m.conv3(x))

    layers = {f"conv{i}": nn.Conv2d(2, 2, 1, bias=False) for i in (1, 2, 3)}
    norms = {f"norm{i}": nn.BatchNorm2d(2) for i in (1, 2, 3)}
    model = lively(Function(forward, **layers, **norms))
    found = collect(model, {f"{name}.weight": layer for name, layer in layers.items()}, batches(), ALL, seed=0)
    assert [found[f"conv{i}.weight"].rest for i in (1, 2, 3)] == ["norm1.running_mean", None, "norm3.running_mean"]


# -- what is left out, and what is left alone ------------------------------------------------------


class Standardised(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight / self.weight.std(), self.bias)


class PaddedLater(nn.Conv2d):
    def forward(self, x):
        return super().forward(functional.pad(x, (1, 1, 1, 1)))


@pytest.mark.parametrize("kind", [Standardised, PaddedLater])
def test_a_layer_that_is_no_plain_product_is_left_out(kind):
    model = nn.Sequential(kind(2, 3, 3), nn.Conv2d(3, 2, 1))
    layers = {"0.weight": model[0], "1.weight": model[1]}
    assert collect(model, layers, batches(), ALL, seed=0).keys() == {"1.weight"}


def test_a_layer_that_is_called_by_keyword_or_never_is_left_out():
    model = Function(lambda m, x: m.a(input=x), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    layers = {"a.weight": model.a, "b.weight": model.b}
    assert collect(model, layers, batches((3,)), ALL, seed=0) == {}


def test_the_model_is_left_as_it_was():
    model = lively(chain(nn.BatchNorm2d(5))).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    collect(model, {"2.weight": model[2]}, batches(), ALL, seed=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_gone_when_the_network_fails():
    model = chain(nn.BatchNorm2d(7))
    with pytest.raises(RuntimeError):
        collect(model, {"2.weight": model[2]}, batches(), ALL, seed=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
