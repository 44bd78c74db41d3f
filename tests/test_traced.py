from __future__ import annotations

import copy
import re
import warnings
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoprune import architectures
from autoprune.cost import macs, params
from autoprune.errors import UserError
from autoprune.forward import batch_size, call, logits, outputs
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import UnprovedWarning, trace
from autoprune.slicing import check_removed, prune
from autoprune.space import SearchSpace
from networks import NETWORKS, Function, agrees, conv, draw, image, lively, pooled, widths


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def reasons(space: SearchSpace) -> dict[str, str]:
    return {left.name: left.reason for left in space.left_out}


def block() -> Function:
    def forward(m, x):
        return m.head(pooled((h := functional.relu(m.bn(m.a(x)))) + m.c(functional.relu(m.b(h)))))

    return Function(forward, a=conv(3, 5, 3), bn=nn.BatchNorm2d(5), b=conv(5, 7), c=conv(7, 5), head=nn.Linear(5, 4))


def picture(size: int = 6, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


# -- the model is only read -------------------------------------------------------------------


def test_the_model_comes_back_bit_for_bit() -> None:
    model = block().train()
    model.head.eval()
    model.b.weight.requires_grad_(False)
    calls: list[str] = []
    handle = model.a.register_forward_hook(lambda *_: calls.append("a"))
    model(picture(batch=2)).sum().backward()
    state = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    identities = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    generator = torch.get_rng_state()

    trace(model, picture(batch=2))

    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == identities
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert list(model.a._forward_hooks) == [handle.id]
    assert torch.equal(torch.get_rng_state(), generator)


def test_switches_of_torch_are_put_back() -> None:
    def switches() -> tuple[bool, ...]:
        backends = torch.backends
        return backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), torch.is_grad_enabled()

    before = switches()
    trace(block(), picture())
    with pytest.raises(UserError):
        trace(block(), picture()[:, :2])
    assert switches() == before


def test_training_mode_and_frozen_parameters_make_no_difference() -> None:
    reference = trace(block().eval(), picture())
    assert trace(block().train(), picture()).fingerprint == reference.fingerprint
    assert trace(block().requires_grad_(False), picture()).fingerprint == reference.fingerprint


def test_the_same_model_and_seed_give_the_same_space() -> None:
    model = block()
    assert trace(model, picture(), seed=3).fingerprint == trace(model, picture(), seed=3).fingerprint


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_makes_no_difference(batch: int) -> None:
    model = block()
    assert trace(model, picture(batch=batch)).fingerprint == trace(model, picture(batch=3)).fingerprint


def test_groups_come_in_forward_order_and_bear_the_name_of_the_layer_that_makes_them() -> None:
    space = trace(block(), picture())
    assert [group.name for group in space.groups] == ["a", "b"]
    assert space.groups[0].members == ("a", "bn", "b", "c", "head")
    assert [layer.name for layer in space.layers] == ["a", "b", "c", "head"]


def test_several_groups_of_one_layer_are_numbered() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = m.a(x).split([4, 6], 1)
        return m.out(torch.cat([left, right + m.b(right)], 1))

    model = Function(forward, a=conv(3, 10), b=conv(6, 6), out=conv(10, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = trace(model, picture())
    assert {name for name in reasons(space) if name.startswith("a#")} == {"a#1", "a#2"}


# -- inputs and outputs of all kinds ----------------------------------------------------------


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize("wrap", [lambda x: (x, x), lambda x: [x, x], lambda x: {"x": x, "y": x}, lambda x: Pair(x, x)])
def test_inputs_may_be_tuples_lists_and_keywords(wrap: Any) -> None:
    def forward(m, x, y):
        return m.out(m.a(x) + m.b(y))

    model = Function(forward, a=conv(3, 5), b=conv(3, 5), out=conv(5, 4))
    assert widths(trace(model, wrap(picture()))) == {"a": (5, 1)}


@pytest.mark.parametrize(
    "wrap", [Answer, lambda t: {"logits": t}, lambda t: [None, t], lambda t: (t, 3), lambda t: Pair(t, t)]
)
def test_outputs_may_be_any_nest_of_tensors(wrap: Any) -> None:
    model = Function(lambda m, x: wrap(m.out(m.a(x))), a=conv(3, 5), out=conv(5, 4))
    space = trace(model, picture())
    assert widths(space) == {"a": (5, 1)}
    assert reasons(space) == {"out": "it is the network's output"}


def test_every_tensor_of_the_output_is_kept_whole() -> None:
    model = Function(lambda m, x: Answer(m.out(h := m.b(m.a(x))), h), a=conv(3, 5), b=conv(5, 6), out=conv(6, 4))
    space = trace(model, picture())
    assert widths(space) == {"a": (5, 1)}
    assert reasons(space) == dict.fromkeys(("b", "out"), "it is the network's output")


# -- what cannot be traced --------------------------------------------------------------------


def copied_badly() -> nn.Module:
    model = nn.Sequential(conv(3, 5), conv(5, 4))
    model.cached = model[0].weight * 2
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Sequential(conv(3, 5), conv(6, 4)), "cannot run on the example input: RuntimeError"),
        (nn.ReLU, "has no parameters"),
        (lambda: nn.Sequential(nn.LazyConv2d(5, 1)), "lazy layers"),
        (lambda: Function(lambda m, x: iter([m.a(x)]), a=conv(3, 5)), "in which no tensor is found"),
        (copied_badly, "cannot be copied"),
    ],
)
def test_what_cannot_be_traced_is_refused_on_one_line(model: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        trace(model(), picture())
    assert "\n" not in str(caught.value)


def test_a_scripted_network_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(conv(3, 5), conv(5, 4)))
    with pytest.raises(UserError, match="TorchScript"):
        trace(scripted, picture())


def test_modules_that_do_not_run_are_named() -> None:
    spare = nn.Sequential(conv(3, 3), conv(3, 3))
    model = Function(lambda m, x: m.out(m.a(x)), a=conv(3, 5), out=conv(5, 4), spare=spare)
    space = trace(model, picture())
    assert widths(space) == {"a": (5, 1)}
    assert reasons(space)["spare"] == "the example does not use it, so it stays whole"


def test_compiled_and_parallel_networks_are_traced_through_their_shell() -> None:
    plain = nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 4))
    assert widths(trace(torch.compile(plain, backend="eager"), picture())) == {"_orig_mod.0": (5, 1)}
    assert widths(trace(nn.DataParallel(plain), picture())) == {"module.0": (5, 1)}


# -- auxiliary heads --------------------------------------------------------------------------


def with_auxiliary_head() -> Function:
    def forward(m: Any, x: Tensor) -> Any:
        x = functional.relu(m.a(x))
        answer = m.head(pooled(m.b(x)))
        return (answer, m.aux2(functional.relu(m.aux1(pooled(x))))) if m.training else answer

    layers = {"a": conv(3, 6), "b": conv(6, 7), "head": nn.Linear(7, 4)}
    return Function(forward, **layers, aux1=nn.Linear(6, 5), aux2=nn.Linear(5, 4))


def test_auxiliary_heads_shrink_along_and_cost_nothing() -> None:
    model = with_auxiliary_head().eval()
    space = trace(model, picture())
    assert widths(space) == {"a": (6, 1), "b": (7, 1)}  # none for what only the head itself would lose
    assert "aux1" in space.groups[0].members
    assert {layer.name for layer in space.layers} == {"a", "b", "head"}
    candidate = prune(model, space, [np.array([0, 2]), np.array([1])]).train()
    answer, auxiliary = candidate(picture())
    assert answer.shape == auxiliary.shape == (1, 4)


# -- costs ------------------------------------------------------------------------------------


def counted(model: nn.Module, example: Any) -> float:
    """Multiply-adds of one sample, by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model, example)
    return counter.get_total_flops() / 2 / batch_size(example)


def scheme_of(space: SearchSpace, kept: list[np.ndarray]) -> Scheme:
    return Scheme(tuple(len(units) * group.unit for group, units in zip(space.groups, kept, strict=True)))


def costs_hold(model: nn.Module, example: Any, space: SearchSpace, seed: int) -> None:
    kept = draw(space, np.random.default_rng(seed))
    scheme, candidate = scheme_of(space, kept), prune(model, space, kept)
    check_removed(candidate, space, scheme)
    assert params(space)(scheme) == sum(p.numel() for p in candidate.parameters())
    assert macs(space)(scheme) == counted(candidate, example)


OTHERWISE = {"attention", "encoder", "blurred"}  # the counter includes products of data, and fixed filters


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - OTHERWISE))
def test_costs_are_those_of_the_sliced_network(name: str) -> None:
    model, example, _ = NETWORKS[name]()
    model = lively(model).double()
    space = trace(model, example)
    assert macs(space)(space.dense) == counted(model, example)
    for seed in range(3):
        costs_hold(model, example, space, seed)


# -- real networks ----------------------------------------------------------------------------

OUTPUT = "it is the network's output"
SIZES = {"inception_v3": 96, "vit_b_16": 224}  # inception's auxiliary head would need 299
HEAVY = {"vgg11_bn", "vit_b_16", "inception_v3", "densenet121"}
NETWORK_REASONS = {
    "resnet18": {OUTPUT},
    "resnet50": {OUTPUT},
    "resnext50_32x4d": {OUTPUT},
    "vgg11_bn": {OUTPUT},
    "mobilenet_v2": {OUTPUT},
    "mobilenet_v3_small": {OUTPUT},
    "efficientnet_b0": {OUTPUT},
    "densenet121": {OUTPUT},
    "shufflenet_v2_x1_0": {OUTPUT, "all its channels hang together", "it reads a tensor of fixed width"},
    "squeezenet1_1": {OUTPUT},
    "mnasnet1_0": {OUTPUT},
    "googlenet": {OUTPUT},
    "inception_v3": {OUTPUT, "the example does not use it, so it stays whole"},
    "regnet_y_400mf": {OUTPUT},
    "convnext_tiny": {OUTPUT, "layer norm averages over its channels"},
    "vit_b_16": {OUTPUT, "layer norm averages over its channels", "attention needs its heads whole"},
    "swin_t": {OUTPUT, "layer norm averages over its channels", "it is reshaped"},
}


def torchvision_network(name: str) -> nn.Module:
    from torchvision import models

    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    return models.get_model(name, weights=None, **options).eval()


def sliced_to_a_random_scheme(model: nn.Module, example: Any, space: SearchSpace) -> nn.Module:
    """A candidate that runs, and whose layers are as narrow as its scheme says."""
    kept = draw(space, np.random.default_rng(0))
    candidate = prune(model, space, kept)
    check_removed(candidate, space, scheme_of(space, kept))
    for group, units in zip(space.groups, kept, strict=True):
        root = group.slices[0]
        if root.positions.size == space.shapes[root.path][root.axis]:  # nothing else cuts this layer
            assert candidate.get_parameter(root.path).shape[root.axis] == len(units) * group.unit
    with torch.no_grad():
        dense, answer = logits(call(model, example)), logits(call(candidate, example))
    assert answer.shape == dense.shape
    assert bool(answer.isfinite().all())  # a fresh head may be all zeros
    assert (
        sum(p.numel() for p in candidate.parameters())
        == params(space)(scheme_of(space, kept))
        < params(space)(space.dense)
    )
    return candidate


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in NETWORK_REASONS]
)
def test_every_network_of_torchvision_is_traced_proved_and_sliced(name: str) -> None:
    model, example = torchvision_network(name), picture(SIZES.get(name, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprovedWarning)  # everything that is found is proved
        space = trace(model, example)
    assert {re.sub(" from .*", "", left.reason) for left in space.left_out} == NETWORK_REASONS[name]
    candidate = sliced_to_a_random_scheme(model, example, space)
    if name == "googlenet":
        with torch.no_grad():
            assert [tuple(t.shape) for t in outputs(candidate.train()(picture(64, 2)))] == [(2, 1000)] * 3


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", "resnext50_32x4d", pytest.param("densenet121", marks=pytest.mark.slow)],
)
def test_costs_of_real_networks_are_those_of_the_sliced_ones(name: str) -> None:
    model, example = torchvision_network(name), picture(64)
    space = trace(model, example)
    assert macs(space)(space.dense) == counted(model, example)
    costs_hold(model, example, space, seed=0)


@pytest.mark.parametrize(
    ("name", "example", "expected"),
    [
        ("resnet20", picture(32), {OUTPUT, "it is padded with constant channels", "it meets a tensor of fixed width"}),
        ("resnet56", picture(32), {OUTPUT, "it is padded with constant channels", "it meets a tensor of fixed width"}),
        ("mobilenet_v1", picture(64), {OUTPUT}),
        ("digits", image(1, 8, 1).float(), {OUTPUT}),
    ],
)
def test_our_own_networks_are_traced_proved_and_sliced(name: str, example: Tensor, expected: set[str]) -> None:
    model = architectures.ARCHITECTURES[name]().eval()
    space = trace(model, example)
    assert {left.reason for left in space.left_out} == expected
    sliced_to_a_random_scheme(model, example, space)


def test_the_groups_of_a_cifar_resnet_are_the_inner_widths_of_its_blocks() -> None:
    space = trace(architectures.ARCHITECTURES["resnet20"]().eval(), picture(32))
    blocks = [(f"layer{stage}.{i}.conv1", width) for stage, width in ((1, 16), (2, 32), (3, 64)) for i in range(3)]
    assert [(group.name, group.width) for group in space.groups] == blocks


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_slicing_a_real_network_computes_what_silencing_the_channels_does(name: str) -> None:
    model, example = torchvision_network(name), picture(32).double()
    model = lively(model).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.mul_(4.0)  # keeps a network without trained statistics from growing huge
    assert agrees(model, example, trace(model, example), 0)


TIMM = {
    "resnet26": 64,
    "mobilenetv3_small_050": 64,
    "convnext_atto": 64,
    "ghostnet_050": 64,
    "repvgg_a0": 64,
    "resnest14d": 64,
    "mixer_s32_224": 224,
    "vit_tiny_patch16_224": 224,
    "levit_128s": 224,
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (TIMM[name] > 64)) for name in TIMM])
def test_networks_of_timm_are_traced_and_sliced(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, example = timm.create_model(name).eval(), picture(TIMM[name])
        space = trace(model, example, time_limit=60.0)
    assert len(space) > 0
    assert not [left for left in space.left_out if "unforeseen" in left.reason]
    sliced_to_a_random_scheme(model, example, space)
