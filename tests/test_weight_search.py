"""Searches of per-layer sparsity, end to end: Python, command line, environment, and every searcher on a fine grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import nn

import autoprune
import toy
from autoprune import api, arguments, demo, finetune, masking, masks, models
from autoprune.budget import Budget
from autoprune.compare import compare
from autoprune.data import Splits
from autoprune.errors import UserError
from autoprune.exporters import scheme_file
from autoprune.hints import Hints
from autoprune.pruned import load_pruned
from autoprune.run import LEDGER, Run
from autoprune.scheme import Scheme
from autoprune.search_spaces import weights
from autoprune.searchers import find
from autoprune.searchers.ranking import ranking
from autoprune.sensitivity import sensitivity

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [(torch.randn(16, 4, 6, 6, generator=GENERATOR), torch.arange(16) % 5) for _ in range(3)]
EXAMPLE = BATCHES[0][0][:1]


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Run]:
    def go(**choices: Any) -> Run:
        given = {"budget": "weights=30%", "space": "weights,levels=50", "searcher": "random", "trials": 4, "batch": 2}
        given |= {"run": "one", "root": tmp_path, **choices}
        return autoprune.search(make(), EXAMPLE, BATCHES[:2], BATCHES[2:], **given)

    return go


# --- a run ---


@pytest.mark.parametrize(
    ("space", "budget"), [("weights,levels=50", "weights=30%"), ("weights,pattern=any:4", "macs=60%")]
)
def test_a_run_holds_the_sparse_network_and_its_counts(
    search: Callable[..., Run], space: str, budget: str, tmp_path: Path
) -> None:
    run = search(space=space, budget=budget)
    assert run.scheme is not None and run.space is not None and run.model is not None
    assert run.scheme.granularity == run.space.granularity == ("weight" if "levels" in space else "n:m")
    loaded = load_pruned(make, run.folder)
    masking.check_removed(loaded, run.space, run.scheme)
    assert masking.non_zero(loaded.state_dict(), run.space) == run.scheme
    for group, count in zip(run.space.groups, run.scheme.kept, strict=True):
        assert count in group.counts
        assert int(loaded.get_parameter(str(group.tensor)).count_nonzero()) == count
    for name, tensor in make().state_dict().items():
        assert loaded.state_dict()[name].shape == tensor.shape
    with torch.no_grad():
        assert torch.equal(loaded(BATCHES[0][0]), run.model(BATCHES[0][0]))
    assert scheme_file.read(run.folder / "scheme.json", run.space) == run.scheme
    costs = run.summary["rows"]["found"]["costs"]
    assert costs["weights"] == sum(run.scheme.kept)
    assert set(costs) == {"macs", "params", "weights", "bitmask", "csr"}
    assert "weights kept" in (run.folder / "widths.svg").read_text()
    assert run.point(0).indices is None
    assert run.front()["kept"].str.count(" ").eq(len(run.space) - 1).all()


def test_the_scheme_file_speaks_of_weights(search: Callable[..., Run]) -> None:
    run = search()
    record = json.loads((run.folder / "scheme.json").read_text())
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(record, scheme_file.schema())
    for entry, group, count in zip(record["groups"], run.space.groups, run.scheme.kept, strict=True):
        assert entry["tensor"] == group.tensor
        assert entry["members"] == [{"module": group.name, "role": "entries"}]
        assert (entry["original_weights"], entry["kept_weights"]) == (group.width, count)
        assert "kept_channels" not in entry and "kept_indices" not in entry
    record["groups"][0]["kept_channels"] = record["groups"][0].pop("kept_weights")
    with pytest.raises(UserError, match="kept_weights = None is not a whole number"):
        scheme_file.read(json.dumps(record), run.space)


def test_a_run_continues_without_measuring_anything_anew(search: Callable[..., Run], tmp_path: Path) -> None:
    first = search()
    size = (first.folder / LEDGER).read_bytes()
    again = search()
    assert (first.folder / LEDGER).read_bytes() == size
    assert again.scheme == first.scheme
    assert search(trials=6).summary["trials"] == 6
    with pytest.raises(UserError):
        search(space="weights,levels=40")  # another space is another request


def test_the_answer_is_the_best_of_the_trials_and_uniform_is_equal_everywhere(search: Callable[..., Run]) -> None:
    run = search(trials=8)
    assert run.summary["reward"] >= run.summary["uniform_reward"]
    uniform = np.array(run.summary["uniform"]) / np.array(run.summary["widths"])
    assert uniform == pytest.approx(np.full(3, 0.3), abs=0.02 + 1e-9)  # one step of the grid
    total = sum(run.summary["widths"])
    assert sum(run.summary["uniform"]) <= 0.3 * total < sum(run.summary["uniform"]) + total / 50


def test_start_schemes_are_rounded_to_the_grid(search: Callable[..., Run]) -> None:
    space = weights.define(make(), EXAMPLE, levels=50)
    odd = Scheme(tuple(count + 1 for count in space.floor([0.2] * 3).kept), "weight")
    run = search(start=[odd], searcher="swap")
    floored = tuple(group.floor(count) for group, count in zip(space.groups, odd.kept, strict=True))
    assert run.config["request"]["start"] == [Scheme(floored, "weight").to_dict()]


@pytest.mark.parametrize("wrong", [{"budget": "latency=5ms"}, {"also": ["memory"]}, {"latency": lambda network: 1.0}])
def test_no_speed_is_promised_for_zeros(search: Callable[..., Run], wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="make it neither faster nor smaller while it runs"):
        search(**wrong)


def test_training_at_the_end_must_leave_zeros_zero(search: Callable[..., Run]) -> None:
    def careless(network: nn.Module) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1)

    def careful(network: nn.Module) -> None:
        stays = masks.present(network, ["0.weight", "3.weight", "6.weight"])
        careless(network)
        masks.impose(network, stays)

    with pytest.raises(UserError, match="hold the masks while the network is trained"):
        search(finish=careless)
    run = search(finish=careful)
    assert "finished" in run.summary["rows"]


def test_a_polish_of_the_answer_is_a_repair_of_weights(search: Callable[..., Run]) -> None:
    assert "polished" in search(polish="fine_tune,steps=2+recalibrate_bn").summary["rows"]
    with pytest.raises(UserError, match="sequential does not repair networks that lost weights"):
        search(polish="sequential", run="two")


def test_comparisons_and_sensitivity_know_weights(tmp_path: Path) -> None:
    problem = api.problem(make(), EXAMPLE, BATCHES[:2], BATCHES[2:], budget="weights=30%", space="weights,levels=20")
    found = compare(problem, ["uniform", "global_threshold"], seeds=(0,), trials=3, run="both", root=tmp_path)
    assert set(found.frame()["searcher"]) == {"uniform", "global_threshold"}
    curves = sensitivity(problem, points=2, run="curves", root=tmp_path)
    assert [curve.group for curve in curves.curves] == ["0", "3", "6"]


def test_hints_compare_weights_as_the_criterion_has_them() -> None:
    """Magnitudes make the one ranking of all weights that a global threshold is known for."""
    problem = api.problem(make(), EXAMPLE, BATCHES[:2], BATCHES[2:], budget="weights=20%", space="weights")
    space, scores = problem.evaluator.space, problem.evaluator.hints().scores
    kept = ranking(space, problem.budget, scores).kept
    dense = {str(group.tensor): make().get_parameter(str(group.tensor)).abs() for group in space.groups}
    together = masks.ranked(dense, 0.8)
    for group, count in zip(space.groups, kept, strict=True):
        assert abs(count - int(together[str(group.tensor)].sum())) <= max(2, 0.02 * group.width)


# --- applying and reading back ---


def test_a_scheme_file_is_applied_to_the_dense_network(search: Callable[..., Run], tmp_path: Path) -> None:
    run = search(recovery="none")
    space = weights.define(make(), EXAMPLE, levels=50)
    scheme = scheme_file.read(run.folder / "scheme.json", space)
    done = api.apply(make(), space, scheme, tmp_path / "applied", recovery="none")
    for ours, theirs in zip(done.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert done.summary["costs"]["weights"] == sum(scheme.kept)
    repaired = api.apply(make(), space, scheme, tmp_path / "repaired", calibration=BATCHES[:1])
    masking.check_removed(load_pruned(make, repaired.folder), space, scheme)


def test_the_space_of_a_scheme_file_is_known_from_it(search: Callable[..., Run]) -> None:
    assert arguments.space_of(search().folder / "scheme.json") == "weights"
    blocks = search(space="weights,pattern=2:4", budget="weights=60%", run="blocks")
    assert arguments.space_of(blocks.folder / "scheme.json") == "weights,pattern=any:4"


# --- the words of the command line ---


def test_options_name_the_space() -> None:
    assert arguments.find_space("mine", None, None, None) == "mine"
    assert arguments.find_space(None, "weight", None, None) == "weights"
    assert arguments.find_space(None, None, "2:4", None) == "weights,pattern=2:4"
    assert arguments.find_space(None, "weight", "1+2:4", 100) == "weights,levels=100,pattern=1+2:4"
    for words, message in (
        ((None, "filter", None, None), "--granularity 'filter' is unknown: use one of channel, weight, n:m"),
        ((None, "channel", "2:4", None), "--pattern 2:4 is of single weights"),
        ((None, "n:m", None, None), "say which with --pattern"),
        (("traced", "weight", None, None), "give one of them"),
    ):
        with pytest.raises(UserError, match=message):
            arguments.find_space(*words)


@pytest.mark.parametrize(
    ("text", "cap"),
    [("90%", "weights=10%"), ("0.9", "weights=10%"), ("87.5 %", "weights=12.5%"), ("0", "weights=100%")],
)
def test_a_sparsity_is_a_cap_on_weights(text: str, cap: str) -> None:
    assert arguments.make_caps(["macs=50%"], text, toy.sparse()) == ["macs=50%", cap]


def test_without_a_cap_half_of_what_is_removed_stays() -> None:
    assert arguments.make_caps(None, None, toy.sparse()) == ["weights=50%"]
    assert arguments.make_caps(None, None, toy.SPACES["chain"]) == ["macs=50%"]


@pytest.mark.parametrize("text", ["100%", "1", "-5%", "90", "most", "nan"])
def test_a_sparsity_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(
        UserError, match=f"--sparsity {text}: the share of weights to remove is at least 0% and below 100%"
    ):
        arguments.make_caps(None, text, toy.sparse())
    with pytest.raises(UserError, match="add --granularity weight"):
        arguments.make_caps(None, "90%", toy.SPACES["chain"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    demo.digits(folder / "runs")
    return folder


def test_the_command_line_searches_shows_exports_and_applies(
    home: Path, monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(home)
    small = ("--calibration", "64", "--validation", "64")
    words = ("search", "--granularity", "weight", "--sparsity", "80%", "--searcher", "random", "--trials", "3", *small)
    status, out, errors = command_line(*words, "--run", "sparse")
    assert status == 0, errors
    assert "tensors whose weights can be pruned: 12" in out and "prunable weights" in out and "torch_prune_masks" in out
    space = weights.define(models.load("autoprune:digits"), torch.zeros(1, 1, 8, 8))
    scheme = scheme_file.read(Path("runs/sparse/scheme.json"), space)
    loaded = load_pruned(lambda: models.load("autoprune:digits"), "runs/sparse")
    names = [str(group.tensor) for group in space.groups]
    assert masks.sparsity(loaded, names) == pytest.approx(1 - sum(scheme.kept) / space.widths.sum())
    assert 0 <= masks.sparsity(loaded, names) - 0.8 < 0.001
    assert command_line("show", "sparse")[0] == 0
    status, out, errors = command_line("export", "sparse", "--to", "torch_prune_masks")
    assert status == 0, errors
    assert {name: len(entry["kept"]) for name, entry in json.loads(out).items()} == dict(
        zip(names, scheme.kept, strict=True)
    )
    status, out, errors = command_line(
        "apply", "runs/sparse/scheme.json", "--model", "autoprune:digits", "--out", "applied", "--input", "1x8x8"
    )
    assert status == 0, errors
    assert f"{sum(scheme.kept):,} weights" in out
    status, out, _ = command_line("diff", "sparse", "applied/scheme.json")
    assert "0 weights apart" in out
    status, _, errors = command_line("export", "sparse", "--to", "torch_pruning")
    assert status == 2 and "Torch-Pruning removes whole channels" in errors
    status, _, errors = command_line("search", "--granularity", "weight", "--criterion", "l1", *small)
    assert status == 2 and "criterion l1 scores channels" in errors
    status, out, _ = command_line("groups", "autoprune:digits", "--input", "1x8x8", "--pattern", "2:4")
    assert status == 0 and "4 does not divide the 1 inputs" in " ".join(out.split())


# --- the environment ---


@pytest.mark.parametrize("m", [None, 4])
@pytest.mark.parametrize("wall", ["two-sided", "one-sided", "release", "none"])
def test_the_environment_decides_a_sparsity_a_step(m: int | None, wall: str) -> None:
    space = toy.sparse(m=m)
    env = gymnasium.make("autoprune.envs:autoprune/Pruning-v0", space=space, budget="weights=50%", wall=wall)
    if wall == "two-sided":
        check_env(env.unwrapped, skip_render_check=True)
    rng = np.random.default_rng(0)
    for _ in range(5):
        env.reset()
        done = False
        while not done:
            _, _, done, _, facts = env.step(rng.uniform(-1, 1, 1).astype(np.float32))
        scheme = facts["scheme"]
        space.check(scheme)
        assert scheme.granularity == space.granularity
        assert all(count in group.counts for count, group in zip(scheme.kept, space.groups, strict=True))
        if wall in ("two-sided", "one-sided"):
            assert sum(scheme.kept) <= 0.5 * space.widths.sum()


def test_the_agent_sees_the_layer_that_has_the_weights() -> None:
    space = toy.sparse()
    env = gymnasium.make("autoprune.envs:autoprune/Pruning-v0", space=space, budget="macs=50%", state="release")
    names = ("index", "type", "in", "out", "stride", "kernel", "weights")
    first = dict(zip(names, env.reset()[0], strict=False))
    second = dict(zip(names, env.step(np.ones(1, np.float32))[0], strict=False))
    outputs = [space.shapes[layer.weight][0] for layer in space.layers]
    inputs = [space.shapes[layer.weight][1] for layer in space.layers]
    sizes = [prod(space.shapes[layer.weight]) for layer in space.layers]
    for at, seen in enumerate((first, second)):
        for name, values in (("out", outputs), ("in", inputs), ("weights", sizes)):
            scaled = (values[at] - min(values)) / (max(values) - min(values))
            assert seen[name] == pytest.approx(scaled)


# --- searchers on a grid of a thousand levels ---

PRESETS = [("evolution", {"preset": preset}) for preset in ("default", "unipts_release", "metapruning")]
OTHERS = [(name, {}) for name in ("uniform", "random", "swap", "auto", "netadapt", "sensitivity", "global_threshold")]
REST = [("knapsack", {}), ("optuna", {}), ("levels", {}), ("annealing", {}), ("spdy", {"points": 2})]


@pytest.mark.parametrize(("name", "options"), [*OTHERS, *PRESETS, *REST], ids=str)
def test_fine_grids_are_searched_to_the_last_weights(name: str, options: dict[str, Any]) -> None:
    space = toy.sparse(levels=1000)
    budget = Budget.parse("weights=10%", space)
    proposals = find(name)(space, budget, seed=0, hints=toy.unit_scores(space), batch=8, **options)
    told = toy.play(proposals, toy.landscape(space, 0), 400 if name == "netadapt" else 40)
    affordable = [trial.scheme for trial in told if budget.allows(trial.scheme)]
    assert affordable
    for trial in told:
        assert all(count in group.counts for count, group in zip(trial.scheme.kept, space.groups, strict=True))
    full = max(sum(scheme.kept) for scheme in affordable)
    assert full > 0.1 * space.widths.sum() - max(1, space.widths.max() / 1000) - 1


def test_a_search_starts_where_nothing_is_known_of_scores() -> None:
    space = toy.sparse(m=4)
    budget = Budget.parse("weights=50%", space)
    told = toy.play(find("swap")(space, budget, seed=0, hints=Hints(), batch=4), toy.landscape(space, 0), 20)
    assert all(budget.allows(trial.scheme) for trial in told)


# --- trained to the end ---


def test_fine_tuning_a_run_holds_its_zeros(search: Callable[..., Run], tmp_path: Path) -> None:
    run = search(budget="weights=20%")
    splits = Splits("toy", BATCHES[:1], BATCHES[2:], lambda: BATCHES[:2], None, (), "")
    result = finetune.finish(make(), run.folder, splits, tmp_path / "tuned", finetune.Recipe(2, 0.1, 8, ema=0.5))
    tuned = load_pruned(make, tmp_path / "tuned")
    masking.check_removed(tuned, run.space, run.scheme)
    assert any(not torch.equal(a, b) for a, b in zip(tuned.parameters(), run.model.parameters(), strict=True))
    assert scheme_file.read(tmp_path / "tuned" / "scheme.json", run.space) == run.scheme
    assert result["rows"]["finetuned"]["loss"] != result["rows"]["found"]["loss"]
