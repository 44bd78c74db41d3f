from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.search_spaces.proof import Proof, prove
from autoprune.search_spaces.traced import UnprovedWarning, trace
from autoprune.slicing import prune
from autoprune.space import Group, SearchSpace, Slice
from networks import NETWORKS, Function, conv, image, lively, pooled, widths


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def unproved(forward: Any, example: Any, **layers: Any) -> tuple[SearchSpace, dict[str, str]]:
    """The space of a network with a trap, and the reasons why groups were left out."""
    with pytest.warns(UnprovedWarning):
        space = trace(lively(Function(forward, **layers)).double(), example)
    return space, {left.name: left.reason for left in space.left_out}


def test_code_that_slices_by_a_constant_is_found_out() -> None:
    space, reasons = unproved(lambda m, x: m.out(m.a(x)[:, :4]), image(), a=conv(3, 6), out=conv(4, 4))
    assert widths(space) == {}
    assert "does not run" in reasons["a"]


def test_code_that_splits_into_constant_parts_is_found_out() -> None:
    def forward(m, x):
        return m.out(torch.cat(m.a(x).split([2, 4], 1), 1))

    _, reasons = unproved(forward, image(), a=conv(3, 6), out=conv(6, 4))
    assert "split" in reasons["a"]


def test_code_that_fixes_a_size_in_a_view_is_found_out() -> None:
    def forward(m, x):
        return m.out(m.a(x).view(-1, 6 * 36))

    _, reasons = unproved(forward, image(), a=conv(3, 6), out=nn.Linear(216, 4))
    assert "invalid for input of size" in reasons["a"]


def test_code_that_divides_by_the_number_of_channels_is_found_out() -> None:
    """The network runs, and only its numbers are wrong."""
    _, reasons = unproved(lambda m, x: m.out((h := m.a(x)) / h.shape[1]), image(), a=conv(3, 6), out=conv(6, 4))
    assert reasons["a"].startswith("sliced and zeroed outputs differ by ")


def test_a_group_that_the_output_does_not_depend_on_is_not_called_proved() -> None:
    def forward(m, x):
        return m.out(m.a(x)).argmax(1)

    _, reasons = unproved(forward, image(), a=conv(3, 6), out=conv(6, 4))
    assert reasons["a"] == "cutting it does not change the output, so nothing is proved"


def test_one_trap_costs_only_the_group_that_is_in_it() -> None:
    def forward(m, x):
        return m.out(m.c(m.b(m.a(x))[:, :4]))

    layers = {"a": conv(3, 5), "b": conv(5, 6), "c": conv(4, 7), "out": conv(7, 4)}
    space, reasons = unproved(forward, image(), **layers)
    assert widths(space) == {"a": (5, 1), "c": (7, 1)}
    assert set(reasons) == {"b", "out"}


def test_the_warning_counts_and_names_the_groups_that_failed() -> None:
    model = Function(lambda m, x: m.out(m.b(m.a(x))[:, :4]), a=conv(3, 5), b=conv(5, 6), out=conv(4, 4))
    with pytest.warns(UnprovedWarning, match=r"1 of 2 groups could not be proved and are left out: b \("):
        trace(lively(model).double(), image())


def test_no_time_leaves_everything_out_and_says_so() -> None:
    model, example, expected = NETWORKS["residual"]()
    with pytest.warns(UnprovedWarning):
        space = trace(lively(model).double(), example, time_limit=0.0)
    assert len(space) == 0
    reasons = {left.name: left.reason for left in space.left_out}
    assert {reasons[name] for name in expected} == {"it was not proved within 0 s"}


def test_every_group_is_decided_once() -> None:
    decided: list[int] = []

    def forward(m, x):
        return m.out(m.c(m.b(m.a(x))[:, :4]))

    model = Function(forward, a=conv(3, 5), b=conv(5, 6), c=conv(4, 7), out=conv(7, 4))
    with pytest.warns(UnprovedWarning):
        trace(lively(model).double(), image(), progress=decided.append)
    assert sum(decided) == 3


def test_exchanged_channels_are_found_out_in_a_network_fresh_from_its_constructor() -> None:
    """Batch norm starts with equal scales: a slice that takes the wrong ones would go unnoticed."""
    model = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4)).eval()
    space = trace(model, image().float())
    (group,) = space.groups
    assert prove(Proof(model, image().float(), space), 60.0) == {}
    wrong = tuple(
        Slice(p.module, p.tensor, p.axis, p.role, np.roll(p.positions, 1, 0) if p.module == "1" else p.positions)
        for p in group.slices
    )
    swapped = SearchSpace((Group(group.name, 6, wrong, group.counts),), space.layers, space.shapes)
    assert "differ" in prove(Proof(model, image().float(), swapped), 60.0)["0"]


def test_a_group_that_hardly_reaches_the_output_is_proved_by_itself() -> None:
    """Behind a factor of 1e-12 a flaw is smaller than the tolerance: what cannot be seen is not proved."""

    def forward(m, x):
        return m.head(pooled(m.b(x))) + 1e-12 * m.far(pooled(torch.relu(m.a(x))))

    layers = {"a": conv(3, 5), "far": nn.Linear(5, 4), "b": conv(3, 6), "head": nn.Linear(6, 4)}
    space, reasons = unproved(forward, image(), **layers)
    assert widths(space) == {"b": (6, 1)}
    assert reasons["a"] == "cutting it does not change the output, so nothing is proved"


def test_without_a_gradient_every_group_is_tried_by_itself() -> None:
    def forward(m, x):
        return torch.from_numpy(m.out(m.b(m.a(x))).detach().numpy())

    model = Function(forward, a=conv(3, 5), b=conv(5, 6), out=conv(6, 4)).eval()
    proof = Proof(model, image(), trace(model, image().float()))
    assert proof.faint() == {group.name for group in proof.space.groups}
    assert prove(proof, 60.0) == {}


def test_the_early_layers_of_a_deep_untrained_network_are_not_faint() -> None:
    stages: list[nn.Module] = [conv(3, 8)]
    for _ in range(12):
        stages += [nn.BatchNorm2d(8), nn.Hardswish(), conv(8, 8, bias=False)]
        nn.init.normal_(stages[-1].weight, std=0.01)
    model = nn.Sequential(*stages, nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    example = image().float()
    assert Proof(model, example, trace(model, example)).faint() == set()


def test_a_forgotten_slice_is_found_out() -> None:
    model, example, _ = NETWORKS["plain"]()
    space = trace(lively(model).double(), example)
    (group,) = space.groups
    for forgotten in group.slices[1:]:
        rest = tuple(piece for piece in group.slices if piece is not forgotten)
        lacking = SearchSpace((Group("a", group.width, rest, group.counts),), space.layers, space.shapes)
        assert set(prove(Proof(model, example, lacking), 60.0)) == {"a"}


def test_zero_initialised_branches_are_woken_up() -> None:
    """The last layer of a residual branch often starts at zero, which would hide all that is before it."""

    def forward(m, x):
        return m.head(pooled(x + m.b(torch.relu(m.a(x)))))

    model = Function(forward, a=conv(3, 6), b=conv(6, 3), head=nn.Linear(3, 4)).eval()
    nn.init.zeros_(model.b.weight)
    nn.init.zeros_(model.b.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprovedWarning)
        assert widths(trace(model, image().float())) == {"a": (6, 1)}


def test_code_that_insists_on_single_precision_is_proved_in_it() -> None:
    def forward(m, x):
        return m.out(torch.relu(m.a(x.float())).float())

    model = Function(forward, a=conv(3, 6), out=conv(6, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprovedWarning)
        assert widths(trace(model, image().float())) == {"a": (6, 1)}


def test_a_network_that_breaks_on_other_buffers_is_proved_as_it_is() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        assert bool((m.mask == 1).all())
        return m.out(torch.relu(m.a(x)) * m.mask)

    model = Function(forward, a=conv(3, 6), out=conv(6, 4), mask=torch.ones(6, 6)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprovedWarning)
        assert widths(trace(model, image().float())) == {"a": (6, 1)}


def test_infinite_outputs_do_not_stand_in_the_way() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        logits = m.out(torch.relu(m.a(x)))
        return torch.cat([logits, logits[:, :1].exp() * 0 - torch.inf], 1)

    model = Function(forward, a=conv(3, 6), out=conv(6, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprovedWarning)
        assert widths(trace(model, image().float())) == {"a": (6, 1)}


def test_a_proof_leaves_its_own_weights_as_they_were() -> None:
    model, example, _ = NETWORKS["residual"]()
    space = trace(lively(model).double(), example)
    proof = Proof(model, example, space)
    before = copy.deepcopy(proof.model.state_dict())
    assert proof.flaw({"b": np.array([1, 3])}) is None
    after = proof.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_is_proved_together_runs_together_down_to_one_unit_each() -> None:
    model, example, _ = NETWORKS["chunked_and_joined"]()
    space = trace(lively(model).double(), example)
    candidate = prune(model, space, [np.array([group.units - 1]) for group in space.groups])
    assert candidate(example).shape == model(example).shape
