"""Traps that other curvature libraries fell into, each as a test that fails if we do too.

Stopping rules, unused parameters, momentum in the eigenvalue, ragged batches, copies of the
top eigenvalue, zero rows, weighted losses over batches, one-shot iterators, eval mode left
behind, random data and random models.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from curvature_cases import Case, dense_hessian
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from invariance.core._errors import DataError, ModelError
from invariance.curvature import (
    HessianOperator,
    hessian_eigenvalues,
    hessian_norm,
    hessian_trace_estimate,
    spectral_density,
)

TIGHT = {"rtol": 0.0, "atol": 1e-12}


def problem(loss_name="cross-entropy"):
    return Case("relu", loss_name).build()


def test_a_lucky_pair_of_probes_does_not_end_the_trace():
    # Two sign probes of a diagonal matrix agree exactly; a rule on successive means stops.
    model, x, y = problem()
    found = hessian_trace_estimate(
        model, x, y, estimator="hutchinson", budget=60, relative_error=0.999
    )
    assert found.iterations >= 16
    assert found.stderr > 0


@pytest.mark.parametrize("measure", [hessian_eigenvalues, hessian_norm, hessian_trace_estimate])
def test_unused_parameters_do_not_crash_and_are_named(measure):
    model, x, y = Case("unused-layer", "cross-entropy").build()
    found = measure(model, x, y)
    assert "spare.weight" in found.method
    assert found.detail["without_influence"] == ("spare.weight", "spare.bias")
    model.spare = None
    assert float(measure(model, x, y)) == pytest.approx(float(found), rel=0.5)


@pytest.mark.parametrize("solver", ["lanczos", "arpack", "lobpcg"])
def test_no_momentum_hides_in_the_eigenvalue(solver):
    model, x, y = problem()
    truth = float(torch.linalg.eigvalsh(dense_hessian(Case("relu", "cross-entropy")))[-1])
    found = hessian_eigenvalues(model, x, y, solver=solver, tolerance=1e-8)
    assert float(found) == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("loss_name", ["weighted", "smoothed-ignoring", "mse", "log-cosh"])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_loader_with_a_ragged_last_batch_weighs_every_row_once(loss_name, size):
    case = Case("relu", loss_name)
    model, x, y = case.build()
    loader = DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)
    found = HessianOperator(model, loader, loss=case.loss).to_dense()
    torch.testing.assert_close(found, dense_hessian(case), rtol=1e-10, atol=1e-12)


def test_float32_lanczos_returns_each_eigenvalue_once():
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(400, 300, generator=draws)
    x[:, :3] *= torch.tensor([40.0, 20.0, 10.0])  # converge early, then would come back
    model = nn.Linear(300, 1, bias=False)
    truth = torch.linalg.eigvalsh(2 * x.double().T @ x.double() / 400).flip(0)[:8]
    found = hessian_eigenvalues(
        model, x, x[:, :1], loss="mse", k=8, solver="lanczos", tolerance=1e-5
    )
    np.testing.assert_allclose(found.values, truth.numpy(), rtol=1e-3)


def test_true_copies_of_an_eigenvalue_are_all_found():
    # Hessian of regression onto 5 outputs: five copies of every eigenvalue of 2 X^T X / n K.
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(80, 60, generator=draws, dtype=torch.float64)
    model = nn.Linear(60, 5, bias=False).double()
    top = torch.linalg.eigvalsh(2 * x.T @ x / (80 * 5)).flip(0)
    found = hessian_eigenvalues(
        model, x, torch.zeros(80, 5, dtype=torch.float64), loss="mse", k=6, solver="lanczos"
    )
    expected = [float(top[0])] * 5 + [float(top[1])]
    np.testing.assert_allclose(found.values, expected, rtol=1e-8)


def test_dead_units_give_zero_rows_and_no_crash():
    case = Case("dead-unit", "cross-entropy")
    model, x, y = case.build()
    operator = HessianOperator(model, x, y)
    assert bool((operator.to_dense().abs().sum(1) == 0).any())
    truth = float(dense_hessian(case).trace())
    found = hessian_trace_estimate(operator, estimator="xtrace", budget=40)
    assert float(found) == pytest.approx(truth, abs=5 * found.stderr + 1e-9)


def test_one_shot_iterators_are_refused_with_the_remedy():
    model, x, y = problem()
    with pytest.raises(DataError, match=r"one-shot iterator .*list of batches"):
        HessianOperator(model, iter([(x, y)]))
    with pytest.raises(DataError, match="one-shot"):
        HessianOperator(model, ((a, b) for a, b in [(x, y)]))


class Augmented(Dataset):
    """Draws fresh noise at every visit."""

    def __init__(self, x, y, draw):
        self.x, self.y, self.draw = x, y, draw

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + self.draw(), self.y[index]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(4, dtype=torch.float64),
        lambda: float(np.random.rand()),  # noqa: NPY002 - what careless loaders do
        random.random,
    ],
    ids=["torch", "numpy", "python"],
)
def test_random_augmentation_is_refused_and_no_generator_moves(draw):
    model, x, y = problem()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with pytest.raises(DataError, match="not the same in two passes"):
        HessianOperator(model, DataLoader(Augmented(x, y, draw), batch_size=4))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


def test_dropping_random_rows_is_refused():
    model, x, y = problem()
    # Its own generator: what the global one holds must not decide which rows are dropped.
    own = torch.Generator().manual_seed(0)
    loader = DataLoader(
        TensorDataset(x, y), batch_size=4, shuffle=True, drop_last=True, generator=own
    )
    with pytest.raises(DataError, match="rows differ"):
        HessianOperator(model, loader)


def test_data_that_does_not_fit_is_read_again_in_every_pass():
    from invariance.curvature._batches import collect_batches

    model, x, y = problem()
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    batches = collect_batches(loader, hold_bytes=100)
    assert batches.held is None
    state = torch.get_rng_state()
    found = HessianOperator(model, batches).to_dense()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, HessianOperator(model, x, y).to_dense(), **TIGHT)


class FunctionalDropout(nn.Module):
    """Dropout that eval() cannot turn off."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.dropout(self.layer(x), 0.5, training=True)


class BatchCentred(nn.Module):
    """Subtracts the mean of the batch: rows influence each other."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Counting(nn.Module):
    """Counts its calls in a buffer, and uses the count."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


RANDOM_MODELS = {
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)), "Dropout.*eval"),
    "batch-norm": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "BatchNorm1d.*eval"),
    "no-statistics": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval(),
        "track_running_stats",
    ),
    "functional-dropout": (FunctionalDropout, "random"),
    "coupled-rows": (BatchCentred, "depends on the other rows"),
    "counting": (Counting, "buffer 'calls'"),
}


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_models_that_are_not_a_function_of_the_row_are_refused(name):
    build, words = RANDOM_MODELS[name]
    _, x, y = problem()
    model = build().double()
    x = torch.cat([x, x + 1])  # more rows than the probe, so that coupling can show
    with pytest.raises(ModelError, match=words):
        HessianOperator(model, x, torch.cat([y, y]))


def test_bad_data_is_refused():
    model, x, y = problem()
    bad = x.clone()
    bad[1, 2] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        HessianOperator(model, bad, y)
    with pytest.raises(DataError, match="NaN"):
        HessianOperator(model, [(x, y), (bad, y)])
    with pytest.raises(DataError, match="empty"):
        HessianOperator(model, x[:0], y[:0])
    with pytest.raises(DataError, match="no batch"):
        HessianOperator(model, [])
    with pytest.raises(DataError, match="out of range"):
        HessianOperator(model, x, y + 2)
    with pytest.raises(DataError, match="targets y are needed"):
        HessianOperator(model, x)
    with pytest.raises(DataError, match="targets y are needed"):
        HessianOperator(model, [x])
    with pytest.raises(DataError, match="leave y out"):
        HessianOperator(model, [(x, y)], y)
    with pytest.raises(DataError, match="weight zero"):
        HessianOperator(model, x, torch.full_like(y, -100))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"0\.weight"):
        HessianOperator(model, x, y)


def test_modes_of_submodules_survive_every_front_door():
    model, x, y = problem()
    model.train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    hessian_eigenvalues(model, x, y)
    hessian_norm(model, x, y)
    hessian_trace_estimate(model, x, y, budget=8)
    spectral_density(model, x, y, probes=2, steps=3)
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_second_derivative_through_fused_attention_works():
    case = Case("attention", "cross-entropy")
    model, x, y = case.build()
    found = HessianOperator(model, x, y).to_dense()
    torch.testing.assert_close(found, dense_hessian(case), rtol=1e-10, atol=1e-12)
