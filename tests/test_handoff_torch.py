"""torch.nn.utils.prune and torch.ao.pruning, which ship with PyTorch, applied for real."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from autoprune import slicing
from autoprune.errors import UserError
from autoprune.exporters import EXPORTERS, check, torch_ao, torch_prune
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from handoff_networks import NETWORKS, marked, network, random_scheme, sequence
from networks import SharedWeight


def units(scheme: Scheme):
    return [np.asarray(chosen) for chosen in scheme.indices]


def made(build, *shape):
    torch.manual_seed(0)
    model, example = build().eval(), torch.randn(2, *shape)
    return model, example, trace(model, example)


def plain() -> nn.Module:
    first, second, third, last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 13, 3), nn.Conv2d(13, 7, 1), nn.Conv2d(7, 4, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), last)


def zeroed(model: nn.Module, space, scheme: Scheme) -> nn.Module:
    """The network with every entry of a removed channel set to zero by hand."""
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters())
    for group, kept in zip(space.groups, units(scheme), strict=True):
        gone = np.setdiff1d(np.arange(group.units), kept)
        for piece in group.slices:
            if piece.path in tensors:
                entries = torch.from_numpy(piece.positions[gone].ravel())
                tensors[piece.path].data.index_fill_(piece.axis, entries, 0)
    return masked


# --- torch.nn.utils.prune: masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(NETWORKS, "resnet56", "resnet18"))
def test_masks_compute_what_the_masked_and_the_pruned_network_compute(name):
    model, example, space = network(name)
    scheme = random_scheme(space, seed=2)
    found = json.loads(json.dumps(torch_prune.masks(scheme, space, model)))
    masked = torch_prune.apply(copy.deepcopy(model), found)
    ours, pruned = zeroed(model, space, scheme), slicing.prune(model, space, units(scheme))
    with torch.no_grad():
        answer = masked(example)
        assert torch.equal(answer, ours(example))
        torch.testing.assert_close(answer, pruned(example), rtol=1e-5, atol=1e-5)
        assert not torch.equal(answer, model(example))
    torch_prune.check_masks(scheme, space, model, example)


@pytest.mark.parametrize("name", ["digits", "resnet20", "grouped"])
def test_masked_layers_have_as_many_zero_filters_as_the_scheme_removes(name):
    model, _, space = network(name)
    scheme = random_scheme(space, seed=3)
    masked = torch_prune.apply(copy.deepcopy(model), torch_prune.masks(scheme, space))
    for group, kept in zip(space.groups, scheme.kept, strict=True):
        for piece in group.slices:
            if piece.role == "out":
                weight = masked.get_submodule(piece.module).weight
                share = weight.shape[piece.axis] // group.units
                assert torch_prune.zeros(weight, piece.axis) == (group.units - kept // group.unit) * share


def test_finished_masks_leave_a_plain_network_with_zeros():
    model, example, space = network("digits")
    scheme = random_scheme(space)
    masked = torch_prune.apply(copy.deepcopy(model), torch_prune.masks(scheme, space))
    assert prune.is_pruned(masked)
    with torch.no_grad():
        before = masked(example)
        torch_prune.finish(masked)
        assert not prune.is_pruned(masked)
        assert torch.equal(masked(example), before)
    assert set(masked.state_dict()) == set(model.state_dict())
    with torch.no_grad():
        assert torch.equal(zeroed(model, space, scheme)(example), before)


def test_a_parameter_shared_by_modules_is_masked_in_each():
    model, example, space = made(SharedWeight, 6)
    scheme = random_scheme(space)
    masked = torch_prune.apply(copy.deepcopy(model), torch_prune.masks(scheme, space))
    with torch.no_grad():
        pruned = slicing.prune(model, space, units(scheme))
        torch.testing.assert_close(masked(example), pruned(example), rtol=1e-5, atol=1e-6)


def test_masks_for_another_network_or_a_masked_one_are_refused():
    model, _, space = network("digits")
    found = torch_prune.masks(random_scheme(space), space)
    with pytest.raises(UserError, match="this one has no parameter conv.weight"):
        torch_prune.apply(nn.Linear(2, 2), found)
    masked = torch_prune.apply(copy.deepcopy(model), found)
    with pytest.raises(UserError, match="masked already"):
        torch_prune.apply(masked, found)
    with pytest.raises(UserError, match=r"conv.weight has shape .*: axis 0 has no entries \[99, 99\]"):
        torch_prune.apply(copy.deepcopy(model), {"conv.weight": {"0": [99]}})
    with pytest.raises(UserError, match="not which, and masks for torch.nn.utils.prune need to know"):
        torch_prune.masks(space.smallest, space)


# --- torch.nn.utils.prune: amounts ------------------------------------------------------------------------------------


def test_amounts_zero_exactly_as_many_filters():
    model, _, space = made(plain, 3, 12, 12)
    scheme = Scheme((5, 9, 1))
    found = torch_prune.amounts(scheme, space, model)
    assert [how["amount"] for how in found.values()] == [16 - 5, 13 - 9, 7 - 1]
    for name, how in found.items():
        prune.ln_structured(model.get_submodule(name), **how)
    for name, kept in zip(found, scheme.kept, strict=True):
        weight = model.get_submodule(name).weight
        assert len(weight) - torch_prune.zeros(weight, 0) == kept


def test_transposed_convolutions_are_cut_along_their_own_axis():
    layers = nn.ConvTranspose2d(3, 10, 2), nn.ReLU(), nn.Conv2d(10, 4, 1)
    model, example, space = made(sequence(*layers), 3, 5, 5)
    found = torch_prune.amounts(Scheme((4,)), space)
    assert found == {"0": {"name": "weight", "amount": 6, "n": 2, "dim": 1}}
    torch_prune.check_amounts(Scheme((4,)), space, model, example)


def test_coupled_groups_are_refused_without_masks():
    model, example, space = network("digits")
    scheme = space.dense.replace(0, 5)
    with pytest.raises(UserError, match=r"group conv are made by 2 layers \(conv, .*cuts each by itself; .*masks"):
        torch_prune.amounts(scheme, space)
    alone = space.dense.replace(space.index("blocks.0.conv1"), 5)
    check("torch_prune", alone, space, model, example)
    assert torch_prune.amounts(alone, space) == {
        "blocks.0.conv1": {"name": "weight", "amount": space.groups[1].width - 5, "n": 2, "dim": 0}
    }


def test_channels_that_leave_several_at_a_time_are_refused_without_masks():
    _, _, space = network("grouped")
    group = next(group for group in space.groups if group.unit > 1)
    scheme = space.dense.replace(space.index(group.name), group.counts[0])
    with pytest.raises(UserError, match=f"leave {group.unit} at a time because of a grouped convolution.*masks"):
        torch_prune.amounts(scheme, space)


# --- torch.ao.pruning -------------------------------------------------------------------------------------------------


def test_saliency_pruner_makes_a_plain_network_exactly_as_wide():
    model, example, space = made(plain, 3, 12, 12)
    for scheme in (Scheme((5, 9, 1)), Scheme((16, 12, 6)), Scheme((1, 13, 7))):
        torch_ao.check(scheme, space, model, example)
        pruned = torch_ao.apply(copy.deepcopy(model), torch_ao.config(scheme, space))
        widths = [pruned.get_submodule(str(place)).out_channels for place in (0, 2, 4)]
        assert widths == list(scheme.kept)
        assert pruned(example).shape == model(example).shape


def test_every_count_of_a_layer_is_pruned_exactly():
    model, example, space = made(sequence(nn.Linear(6, 11), nn.ReLU(), nn.Linear(11, 3)), 6)
    for kept in range(1, 11):
        scheme = Scheme((kept,))
        assert (
            torch_ao.apply(copy.deepcopy(model), torch_ao.config(scheme, space)).get_submodule("0").out_features == kept
        )
        torch_ao.check(scheme, space, model, example)


def test_what_saliency_pruner_cannot_follow_is_refused():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    model, example, space = made(sequence(*layers), 3, 8, 8)
    with pytest.raises(UserError, match=r"torch.ao.pruning cannot prune this network \(.*no batch norms and no sums"):
        check("torch_ao", Scheme((5,)), space, model, example)
    model, example, space = network("digits")
    with pytest.raises(UserError, match="made by 2 layers"):
        torch_ao.config(space.dense.replace(0, 5), space)
    torch_ao.check(space.dense, space, model, example)


@pytest.mark.parametrize("name", EXPORTERS)
def test_checks_leave_the_model_as_it_is(name):
    model, example, space = made(plain, 3, 12, 12)
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    scheme = Scheme((5, 9, 7), indices=(tuple(range(5)), tuple(range(9)), tuple(range(7))))
    check(name, scheme, space, model, example)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[path]) for path, tensor in model.state_dict().items())
    assert not prune.is_pruned(model)
