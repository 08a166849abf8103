"""What the studies of one paper measure, against independent references.

Would catch: a shared sweep that measures something else than the registered measures, a
network whose numbers depend on which others were measured beside it, and an agreement read
off the wrong bits.
"""

import math

import numpy as np
import pytest
import torch
from bennett_cases import MODULES, context, tiny

from invariance import measures as M
from invariance.models import mlp
from invariance.papers.recipes._measure_perceptrons import curvature_values, pair_values
from invariance.papers.recipes._profile import (
    agreement,
    pack,
    profile,
    regions_of,
    unpack,
    with_agreement,
)
from invariance.studies import Config, Record
from invariance.studies._plain_json import to_json
from invariance.weakness import ensemble_agreement


def test_one_sweep_measures_what_the_registered_measures_do(small_digits):
    model, task = small_digits
    found = curvature_values(model, task, eigenvalues=True)
    assert len(found) == 7
    for name, value in found.items():
        expected = float(getattr(M, name)(model, task.x_train, task.y_train))
        assert value == pytest.approx(expected, rel=1e-10), name


def test_one_pass_reads_labels_patterns_and_regions(small_digits):
    model, task = small_digits
    train, unseen = profile(model, task.x_train.float()), profile(model, task.x_unseen)
    np.testing.assert_array_equal(unseen.labels, model(task.x_unseen).argmax(1).numpy())
    for layer in (0, 1):
        assert unseen.patterns[layer] == float(M.activation_patterns(model, task.x_unseen, layer))
    regions = regions_of(train.bits[-1], unseen.bits[-1], 8, 10)
    assert regions.free == float(M.free_regions(model, task.x_train, task.x_unseen))
    assert regions.parameters == float(M.free_parameters(model, task.x_train, task.x_unseen))
    assert regions.free > 0


def test_pairs_are_not_counted_where_training_points_are_not_separable(small_digits):
    model, task = small_digits
    assert pair_values(model, task)["pair_proxy"] == float(
        M.pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
    )
    untrained = mlp((64, 6, 1, 10), seed=0).double().eval()
    assert math.isnan(pair_values(untrained, task)["pair_proxy"])


@pytest.mark.parametrize("name", MODULES)
def test_a_network_is_measured_the_same_in_any_company(name, bennett_outcomes):
    study, options = tiny(name)
    records = bennett_outcomes(name).records
    chosen = [r for r in records if r.config.cell == records[0].config.cell][1:2]
    trained = study.train([chosen[0].config], context(options))
    alone = study.measure([chosen[0].config], trained, context(options))[0]
    assert to_json(alone) == to_json(chosen[0].measured)


@pytest.mark.parametrize("name", MODULES)
def test_rescaling_keeps_functions_and_moves_traces(name, bennett_outcomes):
    for record in bennett_outcomes(name).records:
        before, after = record.measured["measures"], record.measured["rescaled"]
        assert record.measured["labels_changed"] == 0
        assert after["minimum_sharpness"] == pytest.approx(before["minimum_sharpness"], rel=1e-6)
        assert after["hessian_trace"] != pytest.approx(before["hessian_trace"], rel=0.1)


def test_agreement_is_that_of_the_weakness_engine(small_digits):
    _, task = small_digits
    models = [mlp((64, 12, 10), seed=seed).double().eval() for seed in range(4)]
    wrong = np.stack(
        [profile(model, task.x_test).labels != task.y_test.numpy() for model in models]
    )
    np.testing.assert_allclose(
        agreement(wrong), ensemble_agreement(models, task.x_test, task.y_test).values
    )
    assert np.isnan(agreement(wrong[:1])).all()
    assert np.isnan(agreement(np.array([[False, False], [True, False]])))[0]


def test_mistakes_are_read_back_as_written_and_moved_as_told():
    rng = np.random.default_rng(0)
    wrong = rng.random((5, 77)) < 0.3
    assert all((unpack(pack(row), 77) == row).all() for row in wrong)
    records = [
        Record(
            Config("r/1", {}, seed),
            {},
            {
                "mistakes": pack(row),
                "points": 77,
                "moved": [0, 3] if seed == 2 else [],
                "measures": {"m": 1.0},
                "rescaled": {"m": 1.0},
            },
        )
        for seed, row in enumerate(wrong)
    ]
    found = with_agreement(records)
    moved = wrong.copy()
    moved[2, [0, 3]] ^= True
    for part, expected in (("measures", agreement(wrong)), ("rescaled", agreement(moved))):
        values = [record.measured[part]["ensemble_agreement"] for record in found]
        np.testing.assert_array_equal(values, expected)
    assert records[0].measured["measures"] == {"m": 1.0}


def test_no_torch_state_is_left_behind(small_digits):
    model, task = small_digits
    before = torch.random.get_rng_state()
    curvature_values(model, task)
    profile(model, task.x_test)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
