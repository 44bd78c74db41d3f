"""Networks by name and weights from files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune import models
from autoprune.errors import UserError

FACTORIES = """
import torch
from torch import nn

def small(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))

def fixed():
    return nn.Linear(4, 2)

def text():
    return "no network"

number = 7
ready = nn.Linear(2, 2).train()
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with factories in the current directory, which is not on the import path."""
    (tmp_path / "mylab_networks.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mylab_networks", raising=False)
    return "mylab_networks"


def saved(model: nn.Module, path: Path, wrap: Callable[[dict[str, torch.Tensor]], object] = lambda s: s) -> Path:
    torch.save(wrap(dict(model.state_dict())), path)
    return path


def test_a_network_without_weights_is_the_same_every_time_and_leaves_the_random_stream_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second = models.load("autoprune:digits"), models.load("autoprune:digits")
    assert models.digest(first) == models.digest(second)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not first.training


def test_the_number_of_classes_reaches_every_source(factories: str) -> None:
    assert models.load("autoprune:digits", num_classes=4).linear.out_features == 4  # type: ignore[union-attr]
    assert models.load("torchvision:squeezenet1_1", num_classes=4).num_classes == 4
    assert models.load(f"{factories}:small", num_classes=4)[1].out_features == 4  # type: ignore[index]


def test_a_number_of_classes_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="num_classes = 0"):
        models.load("autoprune:digits", num_classes=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet20", "does not say where it comes from: write it like autoprune:resnet20"),
        ("autoprune:", "does not say where it comes from"),
        ("autoprune:resnet21", "autoprune has digits, mobilenet_v1, resnet20, resnet32"),
        ("torchvision:resnet19", "unknown to torchvision; close: .*resnet18"),
        ("torchvision:qqqqqq", "unknown to torchvision$"),
        ("no_such_package.models:net", "no module 'no_such_package' is installed or found under"),
        ("json.no_such_module:net", "no module 'json.no_such_module'"),
        ("json:lods", "no 'lods' there; close: loads"),
        ("json:decoder.JSONDecode", "no 'JSONDecode' there; close: JSONDecoder"),
        ("my lab:net", "write it like package.module:name"),
    ],
)
def test_an_unknown_name_is_refused_with_a_way_on(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.load(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [("text", "returned a str, not a torch.nn.Module"), ("number", "is a int: a network or a function")],
)
def test_a_factory_that_makes_no_network_is_refused(factories: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.load(f"{factories}:{name}")


def test_a_factory_that_takes_no_number_of_classes_is_refused_when_one_is_given(factories: str) -> None:
    assert isinstance(models.load(f"{factories}:fixed"), nn.Linear)
    with pytest.raises(UserError, match=r"cannot be called with \(num_classes=4\)"):
        models.load(f"{factories}:fixed", num_classes=4)


def test_a_network_that_stands_ready_in_a_module_is_taken(factories: str) -> None:
    assert not models.load(f"{factories}:ready").training


def test_what_a_custom_module_lacks_is_named(factories: str, tmp_path: Path) -> None:
    (tmp_path / "mylab_broken.py").write_text("import a_package_that_nobody_has\n")
    with pytest.raises(UserError, match="mylab_broken imports 'a_package_that_nobody_has', which is not installed"):
        models.load("mylab_broken:net")


def test_an_error_inside_a_custom_module_is_its_own(factories: str, tmp_path: Path) -> None:
    (tmp_path / "mylab_failing.py").write_text("None.nothing\n")
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'nothing'"):
        models.load("mylab_failing:net")


def test_timm_networks_load_or_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is an optional extra")
    assert models.load("timm:resnet10t", num_classes=3).num_classes == 3
    with pytest.raises(UserError, match="unknown to timm; close: .*resnet10t"):
        models.load("timm:resnet10x")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'autoprune\[timm\]'"):
        models.load("timm:resnet10t")


def test_a_detector_is_built_without_downloading_its_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("something was to be downloaded")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    assert models.load("torchvision:ssdlite320_mobilenet_v3_large") is not None


def test_names_of_published_weights_go_to_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    published = squeezenet1_1().state_dict()
    asked: list[object] = []

    def download(weights: object, *arguments: object, **options: object) -> dict[str, torch.Tensor]:
        asked.append(weights)
        return published

    monkeypatch.setattr(SqueezeNet1_1_Weights, "get_state_dict", download)
    for name in ("DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        model = models.load("torchvision:squeezenet1_1", name)
        assert all(torch.equal(model.state_dict()[key], published[key]) for key in published)
    assert asked == [SqueezeNet1_1_Weights.IMAGENET1K_V1] * 3


def test_weights_that_are_neither_a_file_nor_a_published_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"no such file, and not a name of .* \(IMAGENET1K_V1, DEFAULT\)"):
        models.load("torchvision:squeezenet1_1", "IMAGENET21K")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"state": {}}},
        lambda s: {"state_dict": {"model": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "model", "twice", "parallel", "compiled", "before batches were counted"],
)
def test_weights_are_found_under_wrappers_and_prefixes(
    wrap: Callable[[dict[str, torch.Tensor]], object], tmp_path: Path
) -> None:
    source = models.load("autoprune:digits")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    path = saved(source, tmp_path / "w.pt", wrap)
    assert models.digest(models.load("autoprune:digits", path)) == models.digest(source)


def test_a_model_whose_own_names_begin_like_a_prefix_keeps_them(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    source, target = Wrapper(), Wrapper()
    models.load_weights(target, saved(source, tmp_path / "w.pth"))
    assert models.digest(target) == models.digest(source)


def test_a_network_called_module_keeps_its_names(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    source, target = Wrapper(), Wrapper()
    models.load_weights(target, saved(source, tmp_path / "w.pth"))
    assert models.digest(target) == models.digest(source)


def test_safetensors_load(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = nn.Linear(3, 2)
    save_file(dict(source.state_dict()), tmp_path / "w.safetensors")
    target = nn.Linear(3, 2)
    models.load_weights(target, tmp_path / "w.safetensors")
    assert models.digest(target) == models.digest(source)


def test_keys_that_do_not_fit_are_named_and_counted(tmp_path: Path) -> None:
    source = nn.ModuleDict({f"other{i}": nn.Linear(3, 2) for i in range(2)} | {"same": nn.Linear(5, 2)})
    target = nn.ModuleDict({"mine": nn.Linear(3, 2), "same": nn.Linear(3, 2)})
    with pytest.raises(UserError) as refused:
        models.load_weights(target, saved(source, tmp_path / "w.pt"))
    message = str(refused.value)
    assert "do not fit ModuleDict: missing: mine.weight, mine.bias; " in message
    assert "unexpected: other0.weight, other0.bias, other1.weight, … (4 in all); " in message
    assert message.endswith("of another shape: same.weight (2, 5) for (2, 3)")


def test_weights_that_do_not_fit_leave_the_model_as_it_was(tmp_path: Path) -> None:
    target = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = models.digest(target)
    with pytest.raises(UserError):
        models.load_weights(target, saved(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)), tmp_path / "w.pt"))
    assert models.digest(target) == before


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "sprung"),)  # type: ignore[return-value]

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match=r"are not unpickled: save them again with torch.save\(model.state_dict\(\)"):
        models.load_weights(nn.Linear(1, 1), tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"some text"])
def test_damaged_files_are_refused_on_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as refused:
        models.load_weights(nn.Linear(1, 1), tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = saved(nn.Linear(50, 50), tmp_path / "w.pt")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="not a file that torch.save wrote"):
        models.load_weights(nn.Linear(50, 50), path)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="hold a dict without tensors, not a state dict"):
        models.load_weights(nn.Linear(1, 1), tmp_path / "w.pt")


def test_a_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no file or folder .*AUTOPRUNE_DATA"):
        models.load("autoprune:digits", tmp_path / "w.pt")
    monkeypatch.delenv("SURELY_UNSET", raising=False)
    with pytest.raises(UserError, match="variable SURELY_UNSET is not set"):
        models.load("autoprune:digits", "$SURELY_UNSET/w.pt")


def test_paths_may_hold_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.load("autoprune:digits")
    saved(source, tmp_path / "w.pt")
    monkeypatch.setenv("MY_WEIGHTS", str(tmp_path))
    assert models.digest(models.load("autoprune:digits", "${MY_WEIGHTS}/w.pt")) == models.digest(source)


def test_the_digest_sees_names_shapes_types_values_and_buffers() -> None:
    def linear(weight: torch.Tensor) -> nn.Module:
        model = nn.Module()
        model.register_buffer("weight", weight)
        return model

    values = torch.arange(6.0)
    different = [
        linear(values),
        linear(values.reshape(2, 3)),
        linear(values.reshape(3, 2)),
        linear(values.view(torch.int32)),
        linear(values.bfloat16()),
        linear(values + torch.eye(6)[5] * 1e-6),
        nn.ModuleDict({"inner": linear(values)}),
        linear(torch.tensor(1.0)),
    ]
    digests = [models.digest(model) for model in different]
    assert len(set(digests)) == len(different)
    assert digests[0] == models.digest(linear(values.clone()))
    assert models.digest(linear(torch.ones(3, 2).t())) == models.digest(linear(torch.ones(2, 3)))


def test_the_shared_checkpoints_load(data_folder: Path) -> None:
    for depth in (20, 56):
        path = data_folder / f"resnet{depth}-cifar10-jpeg.pt"
        model = models.load(f"autoprune:resnet{depth}", path)
        state = torch.load(path, weights_only=True)
        assert torch.equal(model.state_dict()["linear.weight"], state["linear.weight"])
