"""The pruned network as ONNX and as a program of torch.export."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from autoprune import api, slicing
from autoprune.errors import UserError
from autoprune.exporters import GRAPHS, graphs, write_graph
from handoff_networks import network, random_scheme

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
FILES = {"onnx": "net.onnx", "torch_export": "net.pt2"}


def pruned(name: str):
    model, example, space = network(name)
    scheme = random_scheme(space)
    return slicing.prune(model, space, [np.asarray(units) for units in scheme.indices]), example


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("batch", ["free", "fixed"])
def test_a_graph_computes_what_the_network_computes(kind, batch, tmp_path):
    model, example = pruned("digits")
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    difference = write_graph(kind, model, example[:1], tmp_path / FILES[kind], {"batch": batch})
    assert 0 <= difference < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == [FILES[kind]]
    assert all(torch.equal(tensor, before[path]) for path, tensor in model.state_dict().items())


def test_an_onnx_file_has_the_narrow_weights_and_a_free_batch(tmp_path):
    import onnx
    import onnxruntime

    model, example = pruned("digits")
    graphs.onnx(model, example, tmp_path / "net.onnx")
    stored = {tuple(tensor.dims) for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert tuple(model.blocks[0].conv1.weight.shape) in stored
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for samples in (1, 5):
        images = torch.randn(samples, 1, 8, 8)
        (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.as_tensor(answer), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_file_that_is_there_is_replaced_only_by_force(kind, tmp_path):
    model, example = pruned("digits")
    path = tmp_path / FILES[kind]
    path.write_text("mine")
    with pytest.raises(UserError, match=r"exists already: .*--force"):
        write_graph(kind, model, example, path, {})
    assert path.read_text() == "mine"
    write_graph(kind, model, example, path, {}, force=True)
    assert path.stat().st_size > 1000


class Undecided(nn.Module):
    """Its path depends on the numbers, which no graph can say."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand(3)


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_network_without_a_graph_is_refused_and_nothing_is_left(kind, tmp_path):
    with pytest.raises(UserError, match="no graph of this network"):
        write_graph(kind, Undecided(), torch.ones(2, 4), tmp_path / FILES[kind], {})
    with pytest.raises(UserError, match="computes something else: outputs differ by"):
        write_graph(kind, Random(), torch.ones(2, 3), tmp_path / FILES[kind], {})
    assert list(tmp_path.iterdir()) == []


def test_wrong_names_and_inputs_are_refused(tmp_path):
    model, example = pruned("digits")
    with pytest.raises(UserError, match="ending in .pt2"):
        graphs.torch_export(model, example, tmp_path / "net.bin")
    with pytest.raises(UserError, match="for tensors as input, not for a dict"):
        graphs.onnx(model, {"x": example}, tmp_path / "net.onnx")
    with pytest.raises(UserError, match="there is no folder"):
        graphs.onnx(model, example, tmp_path / "none" / "net.onnx")


def test_the_command_writes_the_network_beside_a_scheme(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _, space = network("digits")
    api.apply(copy.deepcopy(model), space, space.smallest, "small", criterion="l2", recovery="none")
    words = ("export", "small/scheme.json", "--model", "autoprune:digits", "--to", "onnx")
    status, out, _ = command_line(*words, "--out", "net.onnx")
    assert status == 0 and out.startswith("net.onnx: outputs differ from PyTorch's by at most ")
    assert (tmp_path / "net.onnx").is_file()
    status, _, err = command_line(*words)
    assert status == 2 and "give --out" in err
    (tmp_path / "small" / "pruned.safetensors").unlink()
    status, _, err = command_line(*words, "--out", "other.onnx")
    assert status == 2 and "there is no pruned.safetensors beside small/scheme.json" in err
