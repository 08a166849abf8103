"""Catches: verdicts that excuse a contradiction, tolerances chosen by taste."""

import pytest
import torch
from torch import nn

from invariance.cells._engine import judge
from invariance.cells._roundoff import _reordered, float_error, jitter
from invariance.core._estimate import Estimate
from invariance.measures._registry import Measure, as_measure

CASES = [
    # before, after, declared, predicted, tolerance, verdict
    (1.0, 1.0, "invariant", None, 0.0, "invariant"),
    (1.0, 1.0 + 1e-9, "invariant", None, 1e-12, "contradicts"),
    (1.0, 4.0, "law", 4.0, 1e-12, "law"),
    (1.0, 4.0, "law", 4.1, 1e-12, "contradicts"),
    (1.0, 4.0, "law", None, 1e-12, "varies"),
    (1.0, 4.0, "varies", None, 1e-12, "varies"),
    (1.0, 1.0, "varies", None, 1e-12, "invariant"),
    (1.0, float("nan"), "varies", None, 1e-12, "contradicts"),
    (float("inf"), float("inf"), "invariant", None, 1e-12, "contradicts"),
]


@pytest.mark.parametrize(("before", "after", "declared", "predicted", "tolerance", "want"), CASES)
def test_judge(before, after, declared, predicted, tolerance, want):
    verdict, note = judge(
        before, after, declared=declared, predicted=predicted, tolerance=tolerance
    )
    assert verdict == want
    assert bool(note) == (verdict == "contradicts" or declared != verdict)


def linear(dtype=torch.float64):
    layer = nn.Linear(200, 3).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )
    return layer


def inputs(dtype=torch.float64, rows=50):
    return {"x": torch.randn(rows, 200, generator=torch.Generator().manual_seed(2)).to(dtype)}


def mean_output(model, x):
    return float(model(x).detach().mean())


def cancelling(model, x):
    """A small difference of large numbers: round-off is amplified."""
    output = model(x).detach()
    return float((1e4 * output + 1.0).sum() - 1e4 * output.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tolerance_covers_the_true_float_error_and_little_more(dtype):
    model, data = linear(dtype), inputs(dtype)
    measure = as_measure(mean_output)
    value = measure(model, **data)
    exact = mean_output(linear(torch.float64), {k: v.double() for k, v in data.items()}["x"])
    tolerance = float_error(measure, model, data, value)
    assert abs(float(value) - exact) <= tolerance <= 1e4 * torch.finfo(dtype).eps


def test_a_badly_conditioned_measure_gets_a_wider_tolerance():
    model, data = linear(), inputs()
    good, bad = as_measure(mean_output), as_measure(cancelling)
    narrow = float_error(good, model, data, good(model, **data))
    wide = float_error(bad, model, data, bad(model, **data))
    assert wide > 1e3 * narrow


def hanging(model):
    """A value whose digits all hang on one parameter of hundreds."""
    weight = model.weight[0, 0].detach()
    return float((1e8 * weight) % 1.0)


def test_no_seed_of_the_probes_misses_what_hangs_on_one_parameter():
    model = linear()
    measure = as_measure(hanging)
    value = measure(model)
    moved = [jitter(model, 100 + seed) for seed in range(40)]
    largest = max(abs(float(measure(other)) - float(value)) for other in moved)
    assert largest > 1e-12
    for seed in range(40):
        assert float_error(measure, model, {}, value, seed=seed) >= largest


def test_counts_get_no_slack_and_residuals_do():
    model, data = linear(), inputs()
    count = as_measure(lambda model, x: 7, name="count", discrete=True)
    assert float_error(count, model, data, count(model, **data)) < 1e-12
    iterative = Estimate(2.0, residual=1e-7)
    solver = as_measure(lambda model, x: iterative, name="solver")
    assert float_error(solver, model, data, iterative) >= 1e-7


def test_jitter_moves_by_one_unit_in_the_last_place_and_leaves_the_model():
    model = linear()
    kept = [p.detach().clone() for p in model.parameters()]
    moved = jitter(model, 0)
    for old, now, new in zip(kept, model.parameters(), moved.parameters(), strict=True):
        assert torch.equal(old, now)
        assert (new - old).abs().max() > 0
        assert ((new - old).abs() <= 2 * torch.finfo(old.dtype).eps * old.abs()).all()


def test_rows_are_shuffled_alike_and_what_has_none_is_left():
    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    inputs = {"x": x, "y": y, "few": torch.arange(3), "rate": torch.tensor(0.5), "name": "a"}
    found = _reordered(inputs, 0)
    assert list(found) == list(inputs)
    assert (found["rate"], found["name"]) == (0.5, "a")
    assert torch.equal(found["x"], x[found["y"]])
    assert not torch.equal(found["y"], y) and torch.equal(found["y"].sort().values, y)
    assert sorted(found["few"].tolist()) == [0, 1, 2]


def test_a_measure_is_no_count_unless_it_says_so():
    plain = Measure("m", mean_output, frozenset(), {}, {"x": "x_train"}, "")
    assert not plain.discrete and not as_measure(mean_output).discrete
    model, data = linear(), inputs()
    assert float_error(plain, model, data, plain(model, **data)) > 0.0
