"""The same numbers on an accelerator as on the CPU; skipped where there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from curvature_cases import Case

from invariance.curvature import (
    GGNOperator,
    HessianOperator,
    hessian_eigenvalues,
    hessian_eigenvalues_ensemble,
    hessian_norm,
    hessian_trace_estimate,
    spectral_density,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def moved(name):
    model, x, y = Case(name, "cross-entropy").build()
    return (model, x, y), (copy.deepcopy(model).cuda(), x.cuda(), y.cuda())


@pytest.mark.parametrize("mode", ["auto", "graph", "dual"])
@pytest.mark.parametrize("name", ["relu", "tanh", "conv-max-pool", "tied", "attention"])
def test_matrices_agree_across_devices(name, mode):
    here, there = moved(name)
    for build in (HessianOperator, GGNOperator):
        expected = build(*here, mode=mode).to_dense()
        found = build(*there, mode=mode)
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.to_dense().cpu(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["relu", "conv-max-pool"])
def test_results_agree_across_devices_and_no_generator_moves(name):
    here, there = moved(name)
    state = torch.cuda.get_rng_state()
    for run in (
        lambda *a: hessian_eigenvalues(*a, solver="lanczos", which="smallest"),
        lambda *a: hessian_eigenvalues(*a, solver="arpack"),
        lambda *a: hessian_norm(*a, exact=False, budget=30),
        lambda *a: hessian_trace_estimate(*a, budget=24),
        lambda *a: hessian_trace_estimate(*a, estimator="hutchpp", budget=24),
        lambda *a: spectral_density(*a, probes=2, steps=5).moment(2),
    ):
        assert float(run(*there)) == pytest.approx(float(run(*here)), rel=1e-6)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_batches_on_the_cpu_serve_a_model_on_the_device():
    (_, x, y), (model, _, _) = moved("relu")
    found = HessianOperator(model, [(x[:5], y[:5]), (x[5:], y[5:])]).to_dense().cpu()
    here = HessianOperator(*moved("relu")[0]).to_dense()
    torch.testing.assert_close(found, here, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["relu", "conv-max-pool"])
def test_ensembles_agree_across_devices(name):
    here, there = moved(name)
    ours = hessian_eigenvalues_ensemble([there[0]] * 3, there[1], there[2])
    theirs = hessian_eigenvalues_ensemble([here[0]] * 3, here[1], here[2])
    for one, other in zip(ours, theirs, strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-6)
