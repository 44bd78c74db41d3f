"""Tools that are not installed with us, applied for real where they are.

NVIDIA ModelOpt comes with ``pip install 'autoprune[modelopt]'``. The others want environments of their own.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from autoprune import exporters, slicing
from autoprune.errors import UserError
from autoprune.exporters import llm_compressor, modelopt, nncf, nni
from autoprune.exporters.cuts import weights
from autoprune.scheme import Scheme
from handoff_networks import marked, network, random_scheme

pytestmark = pytest.mark.filterwarnings("ignore")


def counted(space, seed: int, whole: tuple[str, ...] = ()) -> Scheme:
    rng = np.random.default_rng(seed)
    return Scheme(tuple(g.width if g.name in whole else int(rng.choice(g.counts)) for g in space.groups))


# --- NVIDIA ModelOpt --------------------------------------------------------------------------------------------------

FLATTENED = {"digits": ("blocks.3.conv2",), "resnet18": ("layer4.0.conv2",), "mobilenet_v2": ("features.18.0",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "resnet20", "resnet56", "resnet18", "mobilenet_v2"])
def test_modelopt_makes_every_layer_as_wide_as_we_do(name):
    pytest.importorskip("modelopt")
    model, example, space = network(name)
    scheme = counted(space, seed=0, whole=FLATTENED.get(name, ()))
    pruned = modelopt.apply(copy.deepcopy(model), modelopt.export(scheme, space, model))
    ours = slicing.prune(model, space, [np.arange(k // g.unit) for g, k in zip(space.groups, scheme.kept, strict=True)])
    widths = {path: tuple(tensor.shape) for path, tensor in pruned.state_dict().items()}
    assert widths == {path: tuple(tensor.shape) for path, tensor in ours.state_dict().items()}
    assert widths != {path: tuple(tensor.shape) for path, tensor in model.state_dict().items()}
    assert pruned(example).shape == model(example).shape


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FLATTENED))
def test_channels_that_modelopt_keeps_whole_are_refused(name):
    pytest.importorskip("modelopt")
    model, example, space = network(name)
    for group in FLATTENED[name]:
        with pytest.raises(UserError, match="NVIDIA ModelOpt sees other groups than the search space"):
            exporters.check("modelopt", space.dense.replace(space.index(group), 3), space, model, example)


# --- NNI 3.0 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(["digits", "resnet20", "resnet18", "resnext50"]))
def test_nni_masks_as_many_filters_as_the_scheme_removes_and_the_same_in_a_group(name):
    pytest.importorskip("nni")
    from nni.compression.pruning import L1NormPruner

    model, _, space = network(name)
    scheme = counted(space, seed=0)
    _, masks = L1NormPruner(copy.deepcopy(model), nni.config_list(scheme, space, model)).compress()
    for group, kept in zip(space.groups, scheme.kept, strict=True):
        rows = [
            masks[p.module]["weight"].flatten(1).any(1) for p in group.slices if p.role == "out" and kept < group.width
        ]
        assert all(int(one.sum()) == kept for one in rows)
        assert all(torch.equal(one, rows[0]) for one in rows)


# --- NNCF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "resnet20", "resnet18"])
def test_nncf_computes_with_our_masks_what_the_pruned_network_computes(name):
    library = pytest.importorskip("nncf")
    from nncf.torch.function_hook.pruning.magnitude.algo import get_pruned_modules

    model, example, space = network(name)
    scheme = random_scheme(space)
    table = nncf.table(scheme, space, model)
    mode = library.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL
    masked = library.prune(copy.deepcopy(model), mode=mode, ratio=table["ratio"], examples_inputs=example)
    nncf.write_masks(get_pruned_modules(masked), table)
    ours = slicing.prune(model, space, [np.asarray(units) for units in scheme.indices])
    with torch.no_grad():
        torch.testing.assert_close(masked(example), ours(example), rtol=1e-5, atol=1e-5)


# --- llm-compressor ---------------------------------------------------------------------------------------------------


def test_llm_compressor_reads_the_recipe_and_zeroes_the_written_number_of_weights_in_every_row():
    pytest.importorskip("llmcompressor")
    from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import sparsify_weight
    from llmcompressor.recipe import Recipe

    model, _, space = network("digits")
    scheme = random_scheme(space)
    modifiers = Recipe.create_instance(llm_compressor.recipe(scheme, space)).modifiers
    removed = {one.layer.name: one.removed for one in weights(scheme, space, "llm-compressor")}
    asked = {name: modifier for modifier in modifiers for name in modifier.targets}
    assert {name for name, share in removed.items() if share} == set(asked)
    for name, modifier in asked.items():
        layer = model.get_submodule(name)
        columns = layer.weight[0].numel()
        sparse = sparsify_weight(layer, {layer: torch.ones(columns)}, modifier.sparsity, 0, 0)
        zeros = (sparse.flatten(1) == 0).sum(1)
        assert torch.equal(zeros, torch.full_like(zeros, min(round(columns * removed[name]), columns - 1)))
