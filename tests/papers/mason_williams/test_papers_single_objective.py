"""Catches: a wrong function or gradient, networks that are not comparable, claims that misread."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import rosen
from torch import nn
from torch.func import functional_call

from invariance.core._errors import ModelError, UsageError
from invariance.models import mlp
from invariance.papers.mason_williams.single_objective import _findings as findings
from invariance.papers.mason_williams.single_objective import _study as study
from invariance.papers.mason_williams.single_objective._full_batch import fit_full_batch
from invariance.papers.mason_williams.single_objective._objectives import (
    OBJECTIVES,
    log_epochs,
    network_at,
    objective_config,
    regression_of,
    train,
)
from invariance.studies import Config, Context, Options, Record
from invariance.studies._engine import run_study

#: Where each function is zero, and its value at (1.5, -2) by hand.
KNOWN = {
    "sphere": [((0.0, 0.0), 0.0), ((1.5, -2.0), 6.25)],
    "booth": [((1.0, 3.0), 0.0), ((1.5, -2.0), 9.5**2 + 4.0**2)],
    "three-hump-camel": [((0.0, 0.0), 0.0), ((1.5, -2.0), 4.5 - 5.315625 + 1.8984375 - 3 + 4)],
    "himmelblau": [((3.0, 2.0), 0.0), ((1.5, -2.0), 10.75**2 + 1.5**2)],
    "rosenbrock": [((1.0, 1.0), 0.0), ((1.5, -2.0), float(rosen([1.5, -2.0])))],
    "beale": [((3.0, 0.5), 0.0), ((1.5, -2.0), 9.0 + 6.75**2 + 10.875**2)],
    "rastrigin": [((0.0, 0.0), 0.0), ((1.5, -2.0), 20 + 6.25 - 10 * (math.cos(3 * math.pi) + 1))],
}


def config(seed=0, objective="booth", targets="standardised", **options):
    sizes = {"n_train": 40, "n_test": 30, "epochs": 20, "sizes": (2, 6, 5, 1)} | options
    return objective_config(seed, objective=objective, targets=targets, **sizes)


def context():
    return Context(Options(), "cpu", lambda share: None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name):
    for (a, b), value in KNOWN[name]:
        found = OBJECTIVES[name](torch.tensor([a]).double(), torch.tensor([b]).double())
        assert float(found) == pytest.approx(value, abs=1e-12)


def test_networks_of_a_seed_share_points_and_standardised_targets_have_variance_one():
    one, other = (regression_of(config(3, name)) for name in ("sphere", "beale"))
    assert torch.equal(one.x, other.x) and torch.equal(one.x_test, other.x_test)
    assert not torch.equal(one.x, regression_of(config(4, "sphere")).x)
    assert not torch.equal(one.x[:30], one.x_test)
    assert float(other.y.mean()) == pytest.approx(0, abs=1e-12)
    assert float(other.y.var(correction=0)) == pytest.approx(1, rel=1e-12)
    raw = regression_of(config(3, "beale", "raw"))
    assert torch.allclose(other.y_test * raw.deviation + raw.mean, raw.y_test, rtol=1e-10)
    assert raw.deviation**2 == pytest.approx(float(raw.y.var(correction=0)))
    assert float(one.x.abs().max()) <= 3.5 and float(one.x.abs().max()) > 3.0
    with pytest.raises(UsageError, match=r"ackley.*sphere"):
        regression_of(config(0, "ackley"))
    with pytest.raises(UsageError, match=r"kind of targets.*raw"):
        regression_of(config(0, targets="log"))


def test_full_batch_adam_is_torchs():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(3, 30, 2, generator=draws, dtype=torch.float64)
    y = torch.randn(3, 30, 2, generator=draws, dtype=torch.float64)
    models = [mlp((2, 7, 5, 2), seed=seed, dtype=torch.float64) for seed in range(3)]
    found = fit_full_batch(models, x, y, epochs=60, lr=0.01, marks=(1, 10, 60))
    for slot, model in enumerate(models):
        reference = mlp((2, 7, 5, 2), seed=slot, dtype=torch.float64)
        optimiser = torch.optim.Adam(reference.parameters(), lr=0.01)
        states = {}
        for epoch in range(1, 61):
            optimiser.zero_grad()
            nn.functional.mse_loss(reference(x[slot]), y[slot]).backward()
            optimiser.step()
            states[epoch] = {k: v.clone() for k, v in reference.state_dict().items()}
        for state, mark in zip(found[slot], (1, 10, 60), strict=True):
            for name, value in state.items():
                assert torch.allclose(value, states[mark][name], rtol=1e-8, atol=1e-10), name
        assert torch.equal(model[0].weight, mlp((2, 7, 5, 2), seed=slot).double()[0].weight)


def test_full_batch_refuses_other_networks():
    x = torch.zeros(1, 3, 2)
    with pytest.raises(ModelError, match="perceptrons of one shape"):
        fit_full_batch(
            [mlp((2, 3, 1), activation="tanh")], x, x[..., :1], epochs=1, lr=1, marks=(1,)
        )


def test_logged_epochs():
    assert log_epochs(100_000) == (1, 10, 100, 1_000, 10_000, 100_000)
    assert log_epochs(50) == (1, 10, 50)
    assert log_epochs(1) == (1,)


def test_training_depends_on_the_configuration_alone():
    configs = [config(seed) for seed in range(3)]
    together = train(configs, context())
    alone = train(configs[1:2], context())[0]
    assert together[1].facts == alone.facts
    for name, value in alone.tensors.items():
        assert torch.equal(value, together[1].tensors[name]), name
    assert alone.facts["logged"] == [1, 10, 20]
    assert alone.facts["train_mse"] == sorted(alone.facts["train_mse"], reverse=True)
    data = regression_of(configs[1])
    model = network_at(configs[1], alone, 20)
    mse = float((model(data.x_test) - data.y_test).square().mean().detach())
    assert alone.facts["test_mse"][-1] == pytest.approx(mse, rel=1e-12)
    with pytest.raises(UsageError, match="logged epoch"):
        network_at(configs[1], alone, 7)


def dense_trace(model, x, y):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat):
        parts = {
            name: part.view_as(parameters[name])
            for name, part in zip(parameters, flat.split(sizes), strict=True)
        }
        return (functional_call(model, parts, (x,)) - y).square().mean()

    flat = torch.cat([p.flatten() for p in parameters.values()])
    return float(torch.func.jacrev(torch.func.grad(loss))(flat).trace())


def test_measures_against_dense_hessians():
    chosen = config(1, "himmelblau", "raw")
    trained = train([chosen], context())[0]
    found = study.measure([chosen], [trained], context())[0]
    data = regression_of(chosen)
    model = network_at(chosen, trained, 20)
    variance = data.deviation**2
    values = found["measures"]
    trace = dense_trace(model, data.x, data.y)
    assert values["hessian_trace"] == pytest.approx(trace, rel=1e-9)
    assert values["hessian_trace_over_variance"] == pytest.approx(trace / variance, rel=1e-9)
    with torch.no_grad():
        model[-1].weight.div_(data.deviation)
        model[-1].bias.div_(data.deviation)
    standard = dense_trace(model, data.x, data.y / data.deviation)
    assert values["hessian_trace_standard_units"] == pytest.approx(standard, rel=1e-9)
    assert standard != pytest.approx(trace / variance, rel=0.01)
    early = dense_trace(network_at(chosen, trained, 1), data.x, data.y) / variance
    assert found["trace_over_variance_along_training"][0] == pytest.approx(early, rel=1e-9)
    assert found["targets"]["test_error"] == pytest.approx(
        trained.facts["test_mse"][-1] / float(data.y_test.var(correction=0))
    )
    # The rescaled network is the same function: what is invariant stays, the trace does not.
    assert found["outputs_changed"] < 1e-9
    for name in ("minimum_sharpness", "adaptive_trace", "fisher_rao_norm"):
        assert found["rescaled"][name] == pytest.approx(values[name], rel=1e-6), name
    assert abs(math.log(found["rescaled"]["hessian_trace"] / values["hessian_trace"])) > 0.1


def planted(traces, *, targets="standardised", variances=None, errors=None):
    """Records of several seeds: ``traces[seed][function]``."""
    made = []
    for seed, row in enumerate(traces):
        for place, (name, trace) in enumerate(zip(OBJECTIVES, row, strict=False)):
            variance = 1.0 if variances is None else variances[place]
            error = 1e-3 if errors is None else errors[place]
            values = {"hessian_trace": trace, "hessian_trace_over_variance": trace / variance}
            made.append(
                Record(
                    config(seed, name, targets),
                    {"train_loss": 0.1},
                    {
                        "measures": values,
                        "rescaled": {"hessian_trace": trace * (1 + 7 * ((seed + 2) * place % 5))},
                        "targets": {"target_variance": variance, "test_error": error},
                    },
                )
            )
    return made


def test_numbers_behind_the_claims():
    family = findings.families(planted([[1, 2, 4, 8, 16]]), "standardised")[0]
    assert findings.spread(family) == 16
    bad = planted([[1, 2, 4, 8, 16]], errors=[1e-3, 1e-3, 0.5, 1e-3, 0.5])
    assert findings.spread(bad) == 8  # 4 and 16 do not fit
    assert findings.error_correlation(bad) is None
    rising = planted([[1, 2, 4, 8]], errors=[1e-3, 2e-3, 3e-3, 4e-3])
    assert findings.error_correlation(rising) == pytest.approx(1)
    # Proportional to the variance: all of the spread is the unit, and the order too.
    unit = planted([[3, 30, 300, 3000]], variances=[1, 10, 100, 1000])
    assert findings.scale_correlation(unit) == pytest.approx(1)
    assert findings.scale_share(unit) == pytest.approx(1)
    none = planted([[1, 8, 2, 4]], variances=[1, 1, 1, 1])
    assert findings.scale_share(none) == pytest.approx(0)
    same = findings.families(planted([[1, 2, 4, 8], [3, 5, 6, 7], [1, 2, 3, 4]]), "standardised")
    np.testing.assert_allclose(findings.order_agreement(same, "hessian_trace"), 1)
    turned = findings.families(planted([[1, 2, 4, 8], [8, 4, 2, 1]]), "standardised")
    np.testing.assert_allclose(findings.order_agreement(turned, "hessian_trace"), -1)


def test_families_are_in_the_order_of_the_functions():
    shuffled = planted([[1, 2, 4, 8], [1, 2, 4, 8]])[::-1]
    for family in findings.families(shuffled, "standardised"):
        assert [r.config.settings["objective"] for r in family] == list(OBJECTIVES)[:4]


def test_the_whole_study(tmp_path):
    options = study.STUDY.quick.but(networks=2, n_train=(60,), scale={"n_test": 50, "epochs": 30})
    outcome = run_study(study.STUDY, options, out=tmp_path / "out", workers=1)
    assert len(outcome.records) == 7 * 2 * 2
    claims = {claim.name: claim for claim in outcome.findings.claims}
    assert set(claims) == {
        "geometry differs", "follows the function", "loss scale", "loss scale explains",
        "follows the function, rescaled", "follows the function, invariant",
        "sharper is not worse",
    }  # fmt: skip
    assert claims["follows the function"].value is not None
    assert claims["geometry differs"].verdict == "open"  # nothing fits after 30 epochs
    assert all(c.ci_low >= -1 and c.ci_high <= 1 for c in claims.values()
               if c.ci_low is not None and c.name != "geometry differs")  # fmt: skip
    groups = {row["group"] for row in outcome.findings.correlations}
    assert groups == {"n=60, raw", "n=60, standardised"}
    assert (tmp_path / "out" / "figures" / "single-objective.png").stat().st_size > 10_000
    init = {r.config.seed: r for r in outcome.records}
    assert isinstance(init[0].config, Config)
