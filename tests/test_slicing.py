from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.slicing import check_removed, choose, named_tensors, prune, resize_attributes, with_tensors
from autoprune.space import Group, SearchSpace, Slice
from networks import SharedWeight


class Branches(nn.Module):
    """A sum, a concatenation, a grouped and a depthwise convolution, a flatten and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.side = nn.Conv2d(8, 6, 1)
        self.split = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.bare = nn.BatchNorm2d(14, affine=False)
        self.head = nn.Linear(14 * 4, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        x = x + self.deep(x)
        x = functional.avg_pool2d(self.bare(torch.cat([self.split(x), self.side(x)], 1)), 2)
        return self.head(x.flatten(1))


class Shared(SharedWeight):
    """Two layers with one weight, and a frozen one between them."""

    def __init__(self) -> None:
        super().__init__()
        self.back.weight.requires_grad_(requires_grad=False)


def narrow() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.PReLU(6), nn.Conv2d(6, 12, 1, groups=6), nn.ConvTranspose2d(12, 4, 2),
        nn.ConvTranspose2d(4, 4, 1, groups=4), nn.Flatten(), nn.Linear(4 * 9, 3),
    )  # fmt: skip


NETWORKS = {"branches": (Branches, (2, 1, 4, 4)), "shared": (Shared, (2, 6)), "narrow": (narrow, (2, 1, 4, 4))}


@pytest.fixture(params=NETWORKS)
def case(request):
    """A network with statistics of its own, its space, and an input."""
    make, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    model.eval()
    space = trace(model, x)
    assert len(space)
    return model, space, x


def some(space: SearchSpace, seed: int = 0) -> list[np.ndarray]:
    """Units to keep: not all of them in any group."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(g.units, rng.integers(1, g.units), replace=False)) for g in space.groups]


def scheme_of(space: SearchSpace, kept: list[np.ndarray]) -> Scheme:
    return Scheme(tuple(len(units) * group.unit for group, units in zip(space.groups, kept, strict=True)))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(before: dict[str, torch.Tensor], model: nn.Module) -> None:
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("seed", range(3))
def test_every_tensor_keeps_exactly_the_entries_of_its_units(case, seed):
    model, space, _ = case
    kept = some(space, seed)
    candidate = dict(named_tensors(prune(model, space, kept)))
    for path, dense in named_tensors(model):
        removed: dict[int, list[int]] = {}
        for group, units in zip(space.groups, kept, strict=True):
            for piece in group.slices:
                if piece.path == path:
                    gone = [p for u in range(group.units) if u not in units for p in piece.positions[u]]
                    removed.setdefault(piece.axis, []).extend(gone)
        expected = dense.detach().numpy()
        for axis, positions in removed.items():
            expected = np.delete(expected, positions, axis)
        assert np.array_equal(candidate[path].detach().numpy(), expected)
        assert candidate[path].dtype == dense.dtype


def test_the_pruned_network_runs_and_answers_in_the_same_shape(case):
    model, space, x = case
    assert prune(model, space, some(space))(x).shape == model(x).shape


def test_cutting_nothing_gives_the_same_numbers(case):
    model, space, x = case
    assert torch.equal(prune(model, space, [np.arange(g.units) for g in space.groups])(x), model(x))


def test_the_model_stays_bit_identical(case):
    model, space, _ = case
    before, sizes = snapshot(model), repr(model)
    prune(model, space, some(space))
    assert_same(before, model)
    assert repr(model) == sizes


def test_changing_a_candidate_never_changes_the_model(case):
    model, space, _ = case
    before = snapshot(model)
    for kept in (some(space), [np.arange(g.units) for g in space.groups]):
        with torch.no_grad():
            for _, tensor in named_tensors(prune(model, space, kept)):
                tensor.add_(1)
        assert_same(before, model)


def test_modules_know_their_new_sizes(case):
    model, space, _ = case
    candidate = prune(model, space, some(space))
    seen = 0
    for module in candidate.modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
        elif isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean.shape == module.running_var.shape == (module.num_features,)
        elif isinstance(module, nn.PReLU):
            assert module.weight.shape == (module.num_parameters,)
        else:
            continue
        seen += 1
    assert seen >= 4


def test_depthwise_convolutions_stay_depthwise():
    model = Branches().eval()
    space = trace(model, torch.randn(1, 1, 4, 4))
    kept = some(space)
    candidate = prune(model, space, kept)
    width = len(kept[space.index("stem")]) * space.groups[space.index("stem")].unit
    assert candidate.deep.groups == candidate.deep.in_channels == candidate.deep.out_channels == width
    assert candidate.split.groups == 2
    assert candidate.stem.groups == 1


def test_a_single_depthwise_channel_may_stay():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    space = trace(model, torch.randn(1, 1, 5, 5))
    candidate = prune(model, space, [np.array([2]) for _ in space.groups])
    assert (candidate[1].groups, candidate[1].in_channels, candidate[1].out_channels) == (1, 1, 2)
    assert candidate(torch.randn(1, 1, 5, 5)).shape == (1, 2, 3, 3)


def test_recurrent_layers_and_embeddings_know_their_new_input():
    lstm, table = nn.LSTM(8, 4), nn.Embedding(10, 8)
    lstm.weight_ih_l0 = nn.Parameter(torch.zeros(16, 5))
    table.weight = nn.Parameter(torch.zeros(10, 5))
    resize_attributes(lstm)
    resize_attributes(table)
    assert (lstm.input_size, table.embedding_dim, table.num_embeddings) == (5, 5, 10)


def test_shared_weights_stay_shared():
    model = Shared()
    space = trace(model, torch.randn(2, 6))
    kept = some(space)
    candidate = prune(model, space, kept)
    assert candidate.again.weight is candidate.first.weight
    assert candidate.again.out_features == candidate.first.out_features == candidate.first.weight.shape[0] < 8


def test_gradients_are_wanted_where_they_were():
    model = Shared()
    model(torch.randn(2, 6)).sum().backward()
    space = trace(model, torch.randn(2, 6))
    candidate = prune(model, space, some(space))
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: p.requires_grad for name, p in candidate.named_parameters()} == wanted
    assert set(wanted.values()) == {True, False}
    assert all(p.grad is None and p.is_leaf for p in candidate.parameters())


def test_modes_and_hooks_are_copied_along(case):
    model, space, x = case
    calls = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(module))
    model.train()
    candidate = prune(model, space, some(space))
    assert all(module.training for module in candidate.modules())
    candidate(x)
    assert calls == [candidate]


def test_a_network_on_another_device_is_pruned_there():
    model = Branches().eval()
    space = trace(model, torch.randn(1, 1, 4, 4))
    kept = some(space)
    shapes = {path: tensor.shape for path, tensor in named_tensors(prune(model, space, kept))}
    elsewhere = prune(copy.deepcopy(model).to("meta"), space, kept)
    assert {path: tensor.shape for path, tensor in named_tensors(elsewhere)} == shapes
    assert all(tensor.device.type == "meta" for _, tensor in named_tensors(elsewhere))


def test_given_tensors_take_the_place_of_all_others():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    tensors = {path: torch.full_like(t, 7.0) for path, t in named_tensors(model)}
    tensors["0.weight"], tensors["0.bias"], tensors["1.weight"] = torch.ones(2, 3), torch.zeros(2), torch.ones(2, 2)
    copied = with_tensors(model, {path: nn.Parameter(tensor) for path, tensor in tensors.items()})
    assert copied(torch.ones(1, 3)).tolist() == [[3 + 3 + 7, 3 + 3 + 7]]
    assert (copied[0].out_features, model[0].out_features) == (2, 4)


# -- which units stay ------------------------------------------------------------------------------


def two_groups() -> SearchSpace:
    """Group a of four single channels, group b of three pairs."""
    pairs = np.stack([np.arange(3), np.arange(3) + 3], axis=1)
    a = Slice("a", "weight", 0, "out", np.arange(4)[:, None])
    b = Slice("b", "weight", 0, "out", pairs)
    groups = (Group("a", 4, (a,), (1, 2, 3, 4)), Group("b", 6, (b,), (2, 4, 6), unit=2))
    return SearchSpace(groups, (), {"a.weight": (4, 2), "b.weight": (6, 2)})


def test_the_units_with_the_best_scores_stay_in_ascending_order():
    kept = choose(two_groups(), Scheme((2, 4)), [np.array([0.1, 3.0, 0.2, 4.0]), np.array([5.0, 1.0, 7.0])])
    assert [units.tolist() for units in kept] == [[1, 3], [0, 2]]


def test_ties_go_to_the_lower_unit_so_that_larger_counts_contain_smaller_ones():
    space = two_groups()
    scores = [np.array([1.0, 2.0, 2.0, 1.0]), np.zeros(3)]
    kept = [set(choose(space, Scheme((count, 2)), scores)[0].tolist()) for count in (1, 2, 3, 4)]
    assert kept == [{1}, {1, 2}, {0, 1, 2}, {0, 1, 2, 3}]
    assert choose(space, Scheme((4, 4)), scores)[1].tolist() == [0, 1]


def test_a_schemes_own_indices_win_over_the_scores():
    scheme = Scheme((2, 2), indices=((0, 2), (1,)))
    kept = choose(two_groups(), scheme, [np.array([0.0, 9.0, 0.0, 9.0]), np.array([9.0, 0.0, 0.0])])
    assert [units.tolist() for units in kept] == [[0, 2], [1]]


def test_a_scheme_of_another_space_is_refused():
    with pytest.raises(UserError, match="3 kept channels is not a legal count"):
        choose(two_groups(), Scheme((4, 3)), [np.zeros(4), np.zeros(3)])


# -- the removed counts ----------------------------------------------------------------------------


def test_an_honest_candidate_passes_the_check(case):
    model, space, _ = case
    kept = some(space)
    check_removed(prune(model, space, kept), space, scheme_of(space, kept))


def test_a_candidate_that_is_not_as_narrow_as_asked_is_refused(case):
    model, space, _ = case
    kept = some(space)
    honest = prune(model, space, kept)
    for position, group in enumerate(space.groups):
        lie = scheme_of(space, kept).replace(position, group.width)
        with pytest.raises(UserError, match=r"entries where the scheme asks for"):
            check_removed(honest, space, lie)


def test_a_candidate_with_one_layer_left_wide_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    space = trace(model, torch.randn(1, 3))
    candidate = prune(model, space, [np.array([0, 1])])
    check_removed(candidate, space, Scheme((2,)))
    candidate[1] = model[1]
    with pytest.raises(UserError, match=r"axis 1 of 1\.weight has 4 entries where the scheme asks for 2"):
        check_removed(candidate, space, Scheme((2,)))
    candidate[1] = nn.Identity()
    with pytest.raises(UserError, match=r"1\.weight has 0 entries"):
        check_removed(candidate, space, Scheme((2,)))
