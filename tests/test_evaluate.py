from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune import criteria, recover
from autoprune.cost import costs
from autoprune.errors import UserError
from autoprune.evaluate import Evaluator, fixed_threads
from autoprune.fidelity import Fidelity
from autoprune.layout import ChannelsLast, Parts
from autoprune.scheme import Scheme
from autoprune.search_spaces.traced import trace
from autoprune.trial import Measurement
from networks import Function, lively


def network() -> nn.Module:
    torch.manual_seed(0)
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )
    )  # fmt: skip


def data(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 4, (n,), generator=generator)) for n in sizes
    ]


CALIBRATION, VALIDATION = data((16, 16)), data((10, 10, 3), seed=1)


def make(model: nn.Module | None = None, calibration=CALIBRATION, validation=VALIDATION, **options) -> Evaluator:
    model = network() if model is None else model
    return Evaluator(model, trace(model, CALIBRATION[0][0]), calibration, validation, **options)


HALF = Scheme((4, 3))
UNREPAIRED = Fidelity(recovery="none")


# -- what is measured ------------------------------------------------------------------------------


def test_loss_accuracy_and_divergence_are_means_over_all_images():
    evaluator = make()
    measured = evaluator(HALF)
    candidate = evaluator.candidate(HALF)
    x, y = (torch.cat(parts) for parts in zip(*VALIDATION, strict=True))
    with torch.no_grad():
        answer, dense = candidate(x), evaluator.model(x)
    assert measured.loss == pytest.approx(float(functional.cross_entropy(answer, y)), rel=1e-5)
    assert measured.accuracy == pytest.approx(float((answer.argmax(1) == y).float().mean()))
    p = dense.softmax(1)
    assert measured.kl == pytest.approx(float((p * (p.log() - answer.log_softmax(1))).sum(1).mean()), rel=1e-4)
    assert measured.kl > 0
    assert measured.error is None


def test_costs_are_absolute_and_relative_to_the_dense_network():
    evaluator = make()
    measured, functions = evaluator(HALF), costs(evaluator.space)
    assert measured.costs == {name: cost(HALF) for name, cost in functions.items()}
    assert measured.fractions == {name: cost(HALF) / cost(evaluator.space.dense) for name, cost in functions.items()}
    own = make(cost_functions={"channels": lambda scheme: float(sum(scheme.kept))})(HALF)
    assert (own.costs, own.fractions) == ({"channels": 7.0}, {"channels": 0.5})


def test_seconds_are_given_per_phase():
    seconds = make()(HALF).seconds
    assert seconds.keys() == {"recover", "validate", "total"}
    assert seconds["recover"] + seconds["validate"] == pytest.approx(seconds["total"])


def test_the_dense_network_is_measured_the_same_way_and_does_not_diverge_from_itself():
    evaluator = make()
    x, y = (torch.cat(parts) for parts in zip(*VALIDATION, strict=True))
    with torch.no_grad():
        expected = functional.cross_entropy(evaluator.model(x), y)
    assert evaluator.dense.loss == pytest.approx(float(expected), rel=1e-5)
    assert evaluator.dense.kl == 0
    assert set(evaluator.dense.fractions.values()) == {1.0}


def test_a_candidate_with_nothing_cut_agrees_with_the_dense_network_exactly():
    evaluator = make()
    measured = evaluator(evaluator.space.dense, fidelity=UNREPAIRED)
    assert (measured.loss, measured.accuracy, measured.kl) == (evaluator.dense.loss, evaluator.dense.accuracy, 0.0)
    assert (measured.costs, measured.fractions) == (evaluator.dense.costs, evaluator.dense.fractions)


@pytest.mark.parametrize("criterion", ["l2", "taylor", "obs", "bn_scale"])
def test_measuring_again_gives_the_same_numbers(criterion):
    norm = {"bn_scale": nn.BatchNorm2d(6)}.get(criterion, nn.Identity())
    model = network()
    model.insert(4, lively(norm))
    one, two = make(copy.deepcopy(model), criterion=criterion), make(copy.deepcopy(model), criterion=criterion)
    first = one(HALF)
    one(Scheme((2, 5)))
    for again in (one(HALF), two(HALF)):
        assert (again.loss, again.accuracy, again.kl) == (first.loss, first.accuracy, first.kl)


@pytest.mark.parametrize("around", [1, 2])
def test_the_number_of_threads_around_it_makes_no_difference(around):
    expected = make()(HALF)
    with fixed_threads(around):
        evaluator = make()
        _ = evaluator.scores, evaluator.dense
        found = evaluator(HALF)
        assert torch.get_num_threads() == around
    assert (found.loss, found.kl) == (expected.loss, expected.kl)


def test_repair_brings_the_candidate_closer_to_the_dense_network():
    evaluator = make()
    divergence = {name: evaluator(HALF, fidelity=Fidelity(recovery=name)).kl for name in ("none", "least_squares")}
    assert divergence["least_squares"] < divergence["none"]


def test_other_batches_are_observed_without_a_divergence():
    evaluator = make()
    found = evaluator.observe(evaluator.model, VALIDATION[:1])
    assert math.isnan(found.kl)
    with torch.no_grad():
        expected = functional.cross_entropy(evaluator.model(VALIDATION[0][0]), VALIDATION[0][1])
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


def test_without_class_labels_there_is_only_the_divergence():
    evaluator = make(validation=[(x, None) for x, _ in VALIDATION])
    for measured in (evaluator(HALF), evaluator.dense):
        assert measured.error is None
        assert math.isnan(measured.loss)
        assert math.isnan(measured.accuracy)
    assert evaluator(HALF).kl == make()(HALF).kl > evaluator.dense.kl == 0


def test_the_first_tensor_of_a_container_is_the_answer():
    model = network()
    wrapped = Function(lambda m, x: {"logits": m.net(x), "more": x}, net=copy.deepcopy(model))
    assert make(wrapped)(HALF).loss == make(model)(HALF).loss


# -- which channels stay ---------------------------------------------------------------------------


def test_a_schemes_own_indices_decide():
    evaluator = make(criterion=lambda group, model, statistics: pytest.fail("asked for scores"))
    scheme = Scheme((2, 3), indices=((1, 6), (0, 2, 5)))
    assert [units.tolist() for units in evaluator.kept(scheme)] == [[1, 6], [0, 2, 5]]
    candidate = evaluator.candidate(scheme, UNREPAIRED)
    assert torch.equal(candidate[0].weight, evaluator.model[0].weight[[1, 6]])


def test_hints_are_scores_of_unit_length():
    evaluator = make()
    for hint, score in zip(evaluator.hints().scores, evaluator.scores, strict=True):
        assert np.linalg.norm(hint) == pytest.approx(1)
        np.testing.assert_allclose(hint * np.linalg.norm(score), score)
    zero = make(criterion=lambda group, model, statistics: torch.zeros(group.units))
    assert all((hint == 0).all() for hint in zero.hints().scores)


# -- a task of one's own ---------------------------------------------------------------------------


def test_an_own_evaluation_replaces_the_class_measures():
    seen = []

    def evaluate(model):
        seen.append(model.training)
        return {"loss": 2, "iou": 0.25}

    model = network().train()
    evaluator = make(model, evaluate=evaluate, validation=[])
    measured = evaluator(HALF)
    assert (measured.loss, measured.metrics) == (2.0, {"loss": 2.0, "iou": 0.25})
    assert math.isnan(measured.accuracy)
    assert math.isnan(measured.kl)
    assert evaluator.dense.metrics == measured.metrics
    assert evaluator.dense.fractions["macs"] == 1.0 > measured.fractions["macs"]
    assert seen == [False, False]
    assert all(module.training for module in model.modules())


def test_an_own_accuracy_counts_as_such():
    assert make(evaluate=lambda model: {"accuracy": 0.5})(HALF).accuracy == 0.5


@pytest.mark.parametrize("answer", [3.0, {"loss": "low"}, None])
def test_an_own_evaluation_that_returns_no_numbers_is_refused(answer):
    evaluator = make(evaluate=lambda model: answer)
    with pytest.raises(UserError, match="a dict from names to numbers is needed"):
        _ = evaluator.dense
    assert "a dict from names to numbers is needed" in evaluator(HALF).error


def test_a_network_without_class_scores_is_told_to_bring_an_evaluation():
    model = Function(lambda m, x: m.net(x)[:, 0], net=network())
    with pytest.raises(UserError, match=r"shape \(10,\), which are no class scores: pass evaluate"):
        _ = make(model).dense


# -- failures --------------------------------------------------------------------------------------


def broken(candidate, context):
    raise RuntimeError("it fell apart\nand more")


def poisoned(candidate, context):
    candidate[0].weight.data.fill_(float("nan"))


def assert_failed(measured: Measurement, reason: str) -> None:
    assert measured.failed
    assert measured.error == reason
    assert all(math.isnan(value) for value in (measured.loss, measured.accuracy, measured.kl))
    assert not measured.costs
    assert measured.seconds["total"] > 0


def test_a_candidate_that_breaks_becomes_a_failed_measurement():
    assert_failed(make(recovery=broken)(HALF), "RuntimeError: it fell apart")


def test_numbers_that_are_not_finite_make_a_failed_measurement():
    assert_failed(make(recovery=poisoned)(HALF), "kl is nan, loss is nan")
    own = make(evaluate=lambda model: {"loss": 1.0, "iou": math.inf})
    assert own(HALF).error == "iou is inf"


def test_a_recovery_that_changes_the_shape_of_a_layer_fails_alone():
    def narrow(candidate, context):
        candidate[7] = nn.Linear(2, 4)

    assert make(recovery=narrow)(HALF).error.startswith("RuntimeError: ")


def test_a_space_of_another_network_makes_failed_measurements():
    model = network()
    space = trace(model, CALIBRATION[0][0])
    model[0], model[1], model[3] = nn.Conv2d(3, 9, 3, bias=False), nn.BatchNorm2d(9), nn.Conv2d(9, 6, 3)
    evaluator = Evaluator(model, space, CALIBRATION, VALIDATION, criterion="taylor")
    scheme = Scheme((2, 3), indices=((1, 6), (0, 2, 5)))
    assert "the search space does not fit this network" in evaluator(scheme).error


def test_an_illegal_scheme_is_an_error_of_the_caller():
    with pytest.raises(UserError, match="9 kept channels is not a legal count"):
        make()(Scheme((9, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": []}, "the calibration set holds no batch"),
        ({"validation": []}, "the validation set holds no batch"),
        ({"threads": 0}, "threads = 0: at least 1 is needed"),
        ({"criterion": "l3"}, "criterion 'l3' is unknown"),
        ({"recovery": "hope"}, "recovery 'hope' is unknown"),
        ({"precision": "float8"}, "precision 'float8' is unknown: choose float32, bfloat16, float16"),
    ],
)
def test_bad_options_are_refused_at_once(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_observing_no_batches_is_refused():
    evaluator = make()
    with pytest.raises(UserError, match="no image to observe"):
        evaluator.observe(evaluator.model, [])


# -- what is left alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["obs", "taylor", "l1"])
@pytest.mark.parametrize("recovery", ["least_squares+recalibrate_bn", broken])
def test_the_model_is_untouched(criterion, recovery):
    model = network().train()
    model[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    evaluator = make(model, criterion=criterion, recovery=recovery)
    _ = evaluator.dense, evaluator(HALF), evaluator(evaluator.space.smallest)
    assert evaluator.model is model
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_data_is_untouched():
    calibration, validation = copy.deepcopy((CALIBRATION, VALIDATION))
    make(calibration=calibration, validation=validation)(HALF)
    for after, before in zip([*calibration, *validation], [*CALIBRATION, *VALIDATION], strict=True):
        assert torch.equal(after[0], before[0])
        assert after[0].is_contiguous()
        assert torch.equal(after[1], before[1])


def test_random_streams_are_untouched():
    evaluator = make()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    evaluator(HALF)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_are_restored_even_after_a_failure():
    with fixed_threads(2):
        make(recovery=broken)(HALF)
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError), fixed_threads(1):
            raise RuntimeError
        assert torch.get_num_threads() == 2


def test_a_candidate_is_in_evaluation_mode_and_on_its_own():
    evaluator = make(network().train())
    candidate = evaluator.candidate(HALF)
    assert not any(module.training for module in candidate.modules())
    before = evaluator(HALF)
    for parameter in candidate.parameters():
        parameter.data.zero_()
    assert evaluator(HALF).loss == before.loss


def test_an_evaluator_travels_to_another_process():
    evaluator = make()
    there = pickle.loads(pickle.dumps(evaluator))
    assert there(HALF).loss == evaluator(HALF).loss
    assert pickle.loads(pickle.dumps(evaluator))(HALF).loss == evaluator(HALF).loss


# -- layout and device -----------------------------------------------------------------------------


def test_images_are_laid_out_for_the_processor_where_the_network_takes_it():
    assert isinstance(make().validation, ChannelsLast)

    class Viewing(nn.Flatten):
        def forward(self, x):
            return x.view(len(x), -1)

    model = network()
    model[5] = nn.AdaptiveAvgPool2d(2)
    model[6], model[7] = Viewing(), nn.Linear(24, 4)
    evaluator = make(model)
    assert evaluator.validation is VALIDATION
    assert evaluator(HALF).error is None


def test_parts_of_a_batch_measure_what_the_batch_does():
    large = data((1024,), seed=2)
    whole, apart = (
        make(validation=large),
        make(validation=[(x[:512], y[:512]) for x, y in large] + [(x[512:], y[512:]) for x, y in large]),
    )
    assert len(Parts(large)) > 1
    one, two = whole(HALF), apart(HALF)
    assert (one.loss, one.kl) == pytest.approx((two.loss, two.kl), rel=1e-5)
    assert one.accuracy == two.accuracy
    assert whole.protocol["validation"] == {"batches": 1, "samples": 1024}


def test_sixteen_bits_measure_nearly_the_same():
    exact, close = make()(HALF), make(precision="bfloat16")(HALF)
    assert close.loss != exact.loss  # other numbers were computed with
    assert (close.loss, close.kl) == pytest.approx((exact.loss, exact.kl), rel=1e-3, abs=5e-4)


def test_every_forward_pass_of_a_candidate_is_in_sixteen_bits_and_its_network_is_not():
    seen = []

    class Watched(nn.ReLU):
        def forward(self, x):
            seen.append(x.dtype)
            return super().forward(x)

    model = network()
    model[4] = Watched()
    evaluator = make(model, precision="bfloat16")
    _ = evaluator.hints(), evaluator.dense  # what is known once: statistics in single precision
    seen.clear()
    assert evaluator(HALF).error is None
    assert set(seen) == {torch.bfloat16}
    candidate = evaluator.candidate(HALF)
    assert {tensor.dtype for tensor in candidate.parameters()} == {torch.float32}
    seen.clear()
    evaluator.observe(candidate, VALIDATION)
    assert set(seen) == {torch.float32}  # data of the user's are looked at exactly


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("criterion", ["obs", "taylor", "l1"])
def test_a_graphics_card_measures_the_same(criterion):
    here, there = make(criterion=criterion)(HALF), make(criterion=criterion, device="cuda")(HALF)
    assert there.error is None
    assert (there.loss, there.kl) == pytest.approx((here.loss, here.kl), rel=1e-2)


# -- the protocol ----------------------------------------------------------------------------------


def test_the_same_settings_have_the_same_fingerprint():
    assert make().fingerprint == make().fingerprint
    assert make(cost_functions={"channels": lambda scheme: 1.0}).fingerprint == make().fingerprint


def other_space() -> Evaluator:
    model = network()
    model[3] = lively(nn.Conv2d(8, 7, 3))
    model[7] = nn.Linear(7, 4)
    return make(model)


OTHERS = {
    "criterion": lambda: make(criterion="l1"),
    "criterion option": lambda: make(criterion=partial(criteria.obs, ridge=0.1)),
    "recovery": lambda: make(recovery="recalibrate_bn"),
    "recovery option": lambda: make(recovery=partial(recover.recalibrate_bn, images=64)),
    "another recovery option": lambda: make(recovery=partial(recover.recalibrate_bn, images=65)),
    "custom recovery": lambda: make(recovery=broken),
    "evaluate": lambda: make(evaluate=len),
    "calibration": lambda: make(calibration=CALIBRATION[:1]),
    "batches": lambda: make(calibration=data((8, 24))[:2] + data((0,))),
    "validation": lambda: make(validation=VALIDATION[:2]),
    "threads": lambda: make(threads=2),
    "precision": lambda: make(precision="bfloat16"),
    "seed": lambda: make(seed=1),
    "identity": lambda: make(identity={"model": "another"}),
    "space": other_space,
}


def test_everything_that_changes_a_measurement_changes_the_fingerprint():
    found = {name: make_one().fingerprint for name, make_one in OTHERS.items()} | {"default": make().fingerprint}
    assert len(set(found.values())) == len(found)


def test_the_protocol_is_json_ready():
    assert make(identity={"model": "abc"}).protocol == {
        "space": make().space.fingerprint,
        "criterion": "obs",
        "recovery": "least_squares+recalibrate_bn",
        "evaluate": None,
        "calibration": {"batches": 2, "samples": 32},
        "validation": {"batches": 3, "samples": 23},
        "threads": 1,
        "device": "cpu",
        "seed": 0,
        "model": "abc",
    }
    named = make(recovery=partial(recover.recalibrate_bn, images=64)).protocol["recovery"]
    assert named == "autoprune.recover:recalibrate_bn(images=64)"
