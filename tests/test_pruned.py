from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from autoprune import slicing
from autoprune.architectures import digits
from autoprune.errors import UserError
from autoprune.exporters import scheme_file
from autoprune.pruned import SCHEME, TENSORS, load_pruned, save_pruned
from autoprune.search_spaces.traced import trace
from networks import SharedWeight


class Tied(SharedWeight):
    """One weight under two modules and a buffer under two names, all cut together."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("same", self.scale, persistent=False)

    def forward(self, x):
        x = self.back(torch.relu(self.first(x)))
        return self.head(torch.relu(self.again(x))) * self.scale * self.same


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, groups=12), nn.PReLU(12),
        nn.Conv2d(12, 16, 1, groups=4), nn.ConvTranspose2d(16, 10, 2), nn.Flatten(), nn.Linear(10 * 25, 4),
    )  # fmt: skip


def filter_bank() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 4, 1))


FACTORIES = {
    "digits": (digits, (1, 8, 8)),
    "grouped": (grouped, (1, 8, 8)),
    "tied": (Tied, (6,)),
    "bank": (filter_bank, (1, 8, 8)),
}


@pytest.fixture(params=FACTORIES)
def case(request):
    """A factory of the dense network (other weights at every call), its pruned form and an example."""
    factory, shape = FACTORIES[request.param]
    torch.manual_seed(0)
    dense, example = factory(), torch.randn(4, *shape)
    for _ in range(3):
        dense(example)  # moves the statistics of batch norm
    dense.eval()
    space = trace(dense, example)
    assert len(space) > 0
    kept = [np.arange(group.units)[1 :: 2 if group.units > 2 else 1] for group in space.groups]
    return factory, slicing.prune(dense, space, kept), example


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(slicing.named_tensors(model))


def test_a_loaded_network_is_the_saved_one(case, tmp_path):
    factory, pruned, example = case
    assert save_pruned(pruned, tmp_path / "run") == tmp_path / "run"
    loaded = load_pruned(factory, tmp_path / "run")
    assert not loaded.training
    assert state(loaded).keys() == state(pruned).keys()
    assert all(torch.equal(tensor, state(pruned)[name]) for name, tensor in state(loaded).items())
    assert any(tensor.shape != state(factory())[name].shape for name, tensor in state(loaded).items())
    with torch.no_grad():
        assert torch.equal(loaded(example), pruned(example))


def test_modules_know_their_new_sizes(case, tmp_path):
    factory, pruned, _ = case
    loaded = load_pruned(factory, save_pruned(pruned, tmp_path))
    assert [repr(module) for module in loaded.modules()] == [repr(module) for module in pruned.modules()]


def test_saving_what_was_loaded_changes_nothing(case, tmp_path):
    factory, pruned, _ = case
    save_pruned(pruned, tmp_path / "first")
    save_pruned(load_pruned(factory, tmp_path / "first"), tmp_path / "second")
    assert (tmp_path / "first" / TENSORS).read_bytes() == (tmp_path / "second" / TENSORS).read_bytes()


def test_a_loaded_network_can_be_trained(case, tmp_path):
    factory, pruned, example = case
    loaded = load_pruned(factory, save_pruned(pruned, tmp_path)).train()
    loaded(example).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_shared_tensors_are_written_once_and_stay_shared(tmp_path):
    torch.manual_seed(0)
    dense = Tied().eval()
    space = trace(dense, torch.randn(2, 6))
    pruned = slicing.prune(dense, space, [np.arange(3)])
    loaded = load_pruned(Tied, save_pruned(pruned, tmp_path))
    assert loaded.first.weight is loaded.again.weight
    assert loaded.scale is loaded.same
    assert len(loaded.first.weight) == loaded.again.out_features == 3
    written = load_file(tmp_path / TENSORS)
    assert "again.weight" not in written and "same" not in written


def test_frozen_parameters_and_number_formats_are_kept(tmp_path):
    def factory() -> nn.Module:
        model = digits().double()
        model.conv.weight.requires_grad_(requires_grad=False)
        return model

    loaded = load_pruned(factory, save_pruned(digits().half(), tmp_path))
    assert loaded.linear.weight.dtype == torch.float16  # the file's
    assert not loaded.conv.weight.requires_grad and loaded.linear.weight.requires_grad
    assert loaded.bn.num_batches_tracked.dtype == torch.int64


def test_a_factory_on_the_meta_device_gets_real_tensors(tmp_path):
    def factory() -> nn.Module:
        with torch.device("meta"):
            return digits()

    pruned = digits().eval()
    loaded = load_pruned(factory, save_pruned(pruned, tmp_path))
    example = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(example), pruned(example))


def test_the_factorys_own_network_is_left_alone(tmp_path):
    dense, pruned = digits(), digits()
    before = dense.conv.weight.clone()
    loaded = load_pruned(lambda: dense, save_pruned(pruned, tmp_path))
    with torch.no_grad():
        loaded.conv.weight.zero_()
    assert torch.equal(dense.conv.weight, before)
    assert dense.training


def test_views_of_one_storage_are_written_apart(tmp_path):
    def factory() -> nn.Module:
        model, both = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), torch.arange(24.0).reshape(2, 3, 4)
        model[0].weight, model[1].weight = nn.Parameter(both[0]), nn.Parameter(both[1, :, :3])
        return model

    pruned = factory()
    loaded = load_pruned(factory, save_pruned(pruned, tmp_path))
    assert torch.equal(loaded[1].weight, pruned[1].weight)


def test_the_scheme_lies_beside_the_tensors(tmp_path):
    dense = digits()
    space = trace(dense, torch.randn(2, 1, 8, 8))
    text = scheme_file.export(space.smallest, space)
    save_pruned(dense, tmp_path, text)
    assert scheme_file.read(tmp_path / SCHEME, space) == space.smallest
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((TENSORS, SCHEME))


def test_a_later_network_replaces_the_former(tmp_path):
    save_pruned(nn.Linear(4, 4), tmp_path)
    second = nn.Linear(4, 2)
    loaded = load_pruned(lambda: nn.Linear(4, 4), save_pruned(second, tmp_path))
    assert torch.equal(loaded.weight, second.weight)


@pytest.mark.parametrize(
    ("saved", "factory", "message"),
    [
        (nn.Linear(4, 3, bias=False), lambda: nn.Linear(4, 4), "missing bias"),
        (nn.Linear(4, 3), lambda: nn.Linear(4, 4, bias=False), "unexpected bias"),
        (nn.Linear(4, 3), digits, "missing conv.weight, bn.weight, bn.bias and "),
        (
            nn.Linear(4, 5),
            lambda: nn.Linear(4, 4),
            r"weight: float32 (5, 4) in the file is no narrower form of float32 (4, 4)",
        ),
        (nn.Conv2d(4, 3, 1), lambda: nn.Linear(4, 4), "weight: float32 (3, 4, 1, 1) in the file"),
        (nn.Linear(4, 3), lambda: 5, "returned a int"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(saved, factory, message, tmp_path):
    save_pruned(saved, tmp_path)
    with pytest.raises(UserError) as caught:
        load_pruned(factory, tmp_path)
    assert message in str(caught.value)


def test_tensors_of_another_kind_are_refused(tmp_path):
    save_file({"weight": torch.ones(3, 4, dtype=torch.int64), "bias": torch.ones(3)}, tmp_path / TENSORS)
    with pytest.raises(UserError, match="weight: int64"):
        load_pruned(lambda: nn.Linear(4, 4), tmp_path)


def test_an_emptied_axis_is_refused(tmp_path):
    save_file({"weight": torch.ones(0, 4), "bias": torch.ones(0)}, tmp_path / TENSORS)
    with pytest.raises(UserError, match="no narrower form"):
        load_pruned(lambda: nn.Linear(4, 4), tmp_path)


def test_a_folder_without_a_pruned_network_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pruned network"):
        load_pruned(digits, tmp_path)
    with pytest.raises(UserError, match="no file or folder"):
        load_pruned(digits, tmp_path / "none")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_pruned(digits(), tmp_path / "file")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code of the file ran",))


@pytest.mark.parametrize("content", [pickle.dumps(Trap()), b"", b"{}", b"\xff" * 64])
def test_loading_never_runs_code_of_the_file(content, tmp_path):
    (tmp_path / TENSORS).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_pruned(digits, tmp_path)


def test_loading_needs_no_tracing_and_no_forward_pass(tmp_path, monkeypatch):
    save_pruned(digits(), tmp_path)
    monkeypatch.setattr(nn.Module, "__call__", lambda *_: pytest.fail("a forward pass"))
    assert isinstance(load_pruned(digits, tmp_path), nn.Module)
