"""Catches: circles of another shape, a match that is none, trends read off the wrong networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from invariance.core._errors import MeasureError, UsageError
from invariance.models import mlp
from invariance.papers.mason_williams.boundary_tightness import _findings as findings
from invariance.papers.mason_williams.boundary_tightness import _study as study
from invariance.papers.mason_williams.boundary_tightness._circles import (
    circles_config,
    circles_task,
    task_of,
    train,
)
from invariance.papers.mason_williams.boundary_tightness._temperature import (
    logit_factor_for_loss,
    logit_factor_for_margin,
    with_logits_scaled,
)
from invariance.papers.recipes._perceptrons import network
from invariance.studies import Context, Options, Record
from invariance.studies._engine import run_study


def config(seed=0, factor=0.3, split=0, **options):
    settings = {"sizes": (2, 12, 10, 2), "epochs": 40, "n_train": 20} | options
    return circles_config(seed, factor=factor, split=split, **settings)


def context():
    return Context(Options(), "cpu", lambda share: None)


def test_circles():
    task = circles_task(0.4, 3)
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    assert task.x_train.shape == task.x_test.shape == (50, 2)
    radius = x.norm(dim=1)
    assert torch.allclose(radius, torch.where(y == 1, 0.4, 1.0), atol=1e-6)
    assert len(x.unique(dim=0)) == 100 and int(y.sum()) == 50
    # The same split has the same angles at every factor, another split has others.
    near = circles_task(0.9, 3)
    angle = [torch.atan2(t.x_train[:, 1], t.x_train[:, 0]) for t in (task, near)]
    assert torch.allclose(*angle, atol=1e-5) and torch.equal(task.y_train, near.y_train)
    assert not torch.equal(task.x_train, circles_task(0.4, 4).x_train)
    with pytest.raises(UsageError, match="factor"):
        circles_task(1.0, 0)
    with pytest.raises(UsageError, match="label_share"):
        circles_task(0.5, 0, label_share=1.5)


def test_resampled_labels_are_nested_and_never_in_the_test_set():
    clean = circles_task(0.5, 1)
    changed = []
    for share in (0.2, 0.5, 1.0):
        task = circles_task(0.5, 1, label_share=share)
        assert torch.equal(task.x_train, clean.x_train)
        assert torch.equal(task.y_test, clean.y_test)
        changed.append(set((task.y_train != clean.y_train).nonzero()[:, 0].tolist()))
    assert changed[0] < changed[1] < changed[2]
    assert 15 <= len(changed[2]) <= 35  # half of the resampled labels are what they were


def test_training_depends_on_the_configuration_alone():
    configs = [config(seed) for seed in range(3)]
    together = train(configs, context())
    alone = train(configs[2:], context())[0]
    assert together[2].facts == alone.facts
    assert all(torch.equal(v, together[2].tensors[k]) for k, v in alone.tensors.items())
    assert alone.facts["epochs"] == 40
    with pytest.raises(UsageError, match="one cell"):
        train([config(0), config(0, factor=0.5)], context())


def test_logits_are_brought_to_a_loss_or_a_margin():
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(30, 3, generator=draws, dtype=torch.float64)
    y = z.argmax(1)
    for loss in (1e-4, 0.05, 1.0):
        factor = logit_factor_for_loss(z, y, loss)
        assert float(F.cross_entropy(factor * z, y)) == pytest.approx(loss, rel=1e-9)
    top = z.topk(2).values
    factor = logit_factor_for_margin(z, y, 4.0)
    assert float((factor * (top[:, 0] - top[:, 1])).mean()) == pytest.approx(4.0, rel=1e-12)
    wrong = y.clone()
    wrong[3] = (y[3] + 1) % 3
    assert math.isnan(logit_factor_for_loss(z, wrong, 0.05))
    assert logit_factor_for_margin(z, wrong, 4.0) < factor * 1.5
    with pytest.raises(MeasureError, match="between 0 and ln 3"):
        logit_factor_for_loss(z, y, 1.2)
    model = mlp((4, 5, 3), dtype=torch.float64)
    x = torch.randn(6, 4, generator=draws, dtype=torch.float64)
    scaled = with_logits_scaled(model, 2.5)
    assert torch.allclose(scaled(x), 2.5 * model(x), rtol=1e-12)
    assert torch.equal(model[-1].weight, mlp((4, 5, 3), dtype=torch.float64)[-1].weight)


def dense_trace(model, x, y):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat):
        parts = {
            name: part.view_as(parameters[name])
            for name, part in zip(parameters, flat.split(sizes), strict=True)
        }
        return F.cross_entropy(functional_call(model, parts, (x,)), y)

    flat = torch.cat([p.flatten() for p in parameters.values()])
    return float(torch.func.jacrev(torch.func.grad(loss))(flat).trace())


def test_measures_against_dense_hessians_at_the_matched_loss():
    chosen = config(1, epochs=150)
    trained = train([chosen], context())[0]
    assert trained.facts["train_accuracy"] == 1.0
    found = study.measure([chosen], [trained], context())[0]
    model, task = network(chosen, trained), task_of(chosen)
    x, y = task.x_train.double(), task.y_train
    values = found["measures"]
    assert values["hessian_trace"] == pytest.approx(dense_trace(model, x, y), rel=1e-8)
    factor = found["logit_factors"]["matched_loss"]
    matched = nn.Sequential(*model)
    with torch.no_grad():
        matched[-1].weight.mul_(factor)
        matched[-1].bias.mul_(factor)
    assert float(F.cross_entropy(matched(x).detach(), y)) == pytest.approx(
        study.MATCHED_LOSS, rel=1e-9
    )
    expected = dense_trace(matched, x, y)
    assert values["hessian_trace_matched_loss"] == pytest.approx(expected, rel=1e-8)
    assert expected != pytest.approx(values["hessian_trace"], rel=0.1)
    assert found["labels_changed"] == 0
    for version in findings.VERSIONS:
        for name in ("minimum_sharpness", "adaptive_trace", "fisher_rao_norm"):
            key = name + version
            assert found["rescaled"][key] == pytest.approx(values[key], rel=1e-6), key
    assert abs(math.log(found["rescaled"]["hessian_trace"] / values["hessian_trace"])) > 0.1


def test_a_network_with_a_mistake_has_no_common_loss():
    chosen = config(0, epochs=1, label_share=0.5, factor=0.5)
    trained = train([chosen], context())[0]
    assert trained.facts["train_accuracy"] < 1
    found = study.measure([chosen], [trained], context())[0]
    assert math.isnan(found["measures"]["hessian_trace_matched_loss"])
    assert math.isfinite(found["measures"]["hessian_trace_matched_margin"])


FACTORS = (0.1, 0.3, 0.5, 0.7)


def planted(curves, *, splits=2, train_accuracy=1.0, label_shares=None):
    """Records of networks along the factors: ``curves[seed][place]`` is the trace."""
    made = []
    for seed, curve in enumerate(curves):
        for place, value in enumerate(curve):
            made.append(
                Record(
                    config(seed, FACTORS[place], split=seed % splits),
                    {"train_accuracy": train_accuracy, "test_accuracy": 1.0, "train_loss": 0.1},
                    {"measures": {"hessian_trace": value}, "rescaled": {}, "targets": {}},
                )
            )
    return made


def test_trends_within_networks_are_averaged_by_split():
    records = planted([[1, 2, 3, 4], [9, 8, 7, 6], [1, 2, 4, 3], [1, 5, math.nan, math.nan]])
    found = findings.within_networks(records, "factor", "hessian_trace")
    assert found == pytest.approx({0: (1 + 0.8) / 2, 1: -1.0})  # the last has two points only
    # Networks that differ in level do not blur the trend, as they would if pooled.
    offset = planted([[1, 2, 3, 4], [101, 102, 103, 104]])
    assert findings.within_networks(offset, "factor", "hessian_trace") == {0: 1.0, 1: 1.0}


def test_only_networks_without_a_mistake_speak_about_tightness():
    good, bad = planted([[1, 2, 3, 4]] * 2), planted([[4, 3, 2, 1]] * 2, train_accuracy=0.98)
    assert all(findings.is_perfect(r) for r in good)
    assert not any(findings.is_perfect(r) for r in bad)


def test_the_whole_study(tmp_path):
    options = study.STUDY.quick.but(
        networks=2,
        n_train=(40,),
        scale={"factors": (0.3, 0.5, 0.7), "label_shares": (0.3, 0.6), "epochs": 60, "splits": 2},
    )
    configs = study.grid(options)
    assert len({c.id for c in configs}) == len(configs) == 5 * 2
    assert {c.settings["split"] for c in configs} == {0, 1}
    outcome = run_study(study.STUDY, options, out=tmp_path / "out", workers=1)
    claims = {claim.name: claim for claim in outcome.findings.claims}
    assert claims["tightness"].n == claims["random labels"].n == 2
    # Both splits say 1: at least 0.158 of all do, by Clopper and Pearson.
    assert claims["tightness"].ci_low == pytest.approx(0.025**0.5)
    assert claims["tightness"].verdict == "open"
    assert claims["perfect"].ci_high <= 1
    assert {row["group"] for row in outcome.findings.correlations} == {
        "tightness, perfect networks", "resampled labels",
    }  # fmt: skip
    table = next(t for t in outcome.findings.tables if t.title == "Tightness")
    assert [row[0] for row in table.rows] == [0.3, 0.5, 0.7]
    traces = [row[5] for row in table.rows]
    assert traces == sorted(traces)
    assert (tmp_path / "out" / "figures" / "boundary-tightness.png").stat().st_size > 10_000
    assert np.isfinite(claims["random labels"].value)
