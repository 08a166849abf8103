"""Catches: a report that cannot contradict, cells off their law, models that get changed."""

import json

import numpy as np
import pytest
import torch

import invariance as inv
from invariance.checking import alpha_sweep
from invariance.core._groups import Group
from invariance.measures._registry import as_measure

T = inv.transforms


@pytest.fixture(scope="module")
def task():
    return inv.load_task("digits", n_train=120, n_unseen=12, seed=0)


@pytest.fixture(scope="module")
def network(task):
    return inv.fit(inv.models.mlp([64, 16, 12, 10]), task, lr=0.2, max_epochs=60).model


@pytest.fixture(scope="module")
def normalised(task):
    network = inv.models.mlp([64, 16, 12, 10], batch_norm=True)
    return inv.fit(network, task, lr=0.1, max_epochs=20).model


@pytest.fixture(scope="module")
def report(task, network, normalised):
    return inv.check({"plain": network, "batch_norm": normalised}, task)


def rows(report, **wanted):
    return [row for row in report.rows if all(row[k] == v for k, v in wanted.items())]


def test_nothing_contradicts_and_nothing_is_left_out(report):
    assert report.contradictions == ()
    applied = {row.transform for row in report.function}
    assert applied >= {
        "LayerScaling",
        "NeuronScaling",
        "Permutation",
        "FoldBatchNorm",
        "BatchNormScaling",
        "LogitShift",
        "SplitUnits",
        "DormantUnits",
        "Compose",
    }
    measured = {row.measure for row in report.rows}
    assert measured >= {
        "hessian_trace",
        "hessian_eigenvalues",
        "relative_flatness",
        "fisher_rao_norm",
        "adaptive_trace",
        "minimum_sharpness",
        "parameter_norm",
        "path_norm",
        "activation_patterns",
        "free_regions",
        "pair_proxy",
    }


def test_the_whole_argument(report):
    bitwise = {row.label for row in report.function if row.bitwise and row.model == "plain"}
    (trace,) = [
        row
        for row in rows(report, measure="hessian_trace", model="plain", transform="LayerScaling")
        if row.label in bitwise
    ]
    assert trace.ratio > 50
    for name in ("relative_flatness", "pair_proxy", "activation_patterns", "adaptive_trace"):
        (row,) = rows(report, measure=name, model="plain", label=trace.label)
        assert row.verdict == "invariant"


def test_every_trace_cell_meets_its_law_to_nine_digits(report):
    found = [row for row in rows(report, measure="hessian_trace") if row.predicted is not None]
    assert len(found) >= 10
    for row in found:
        assert row.after == pytest.approx(row.predicted, rel=1e-9), row.label


def test_a_false_declaration_contradicts(task, network):
    def naive_norm(model):
        return sum(float(p.detach().square().sum()) for p in model.parameters())

    liar = as_measure(naive_norm, invariant_under=[Group.LAYER_SCALING, Group.PERMUTATION])
    found = inv.check(
        network,
        task,
        transforms=[T.LayerScaling([2.0, 0.5, 1.0]), T.Permutation()],
        measures=[liar],
    )
    verdicts = {row.transform: row.verdict for row in found.rows}
    assert verdicts == {"LayerScaling": "contradicts", "Permutation": "invariant"}
    assert "naive_norm" in str(found)
    assert "CONTRADICT" in str(found)


def test_a_wrong_law_contradicts(task, network):
    def trace(model, x, y):
        return inv.measures.hessian_trace(model, x, y)

    wrong = as_measure(trace, law={Group.LAYER_SCALING: lambda s: float(s.before) * 1.001})
    found = inv.check(
        network, task, transforms=[T.LayerScaling([4.0, 0.25, 1.0])], measures=[wrong]
    )
    assert found.rows[0].verdict == "contradicts"
    assert "law gives" in found.rows[0].note


def test_a_tiny_planted_mistake_is_seen(task, network):
    """One part in a million, the size of a BatchNorm left in place after folding."""

    def almost(model, x, y):
        first = next(model.parameters()).detach().abs().mean()
        return float(inv.measures.adaptive_trace(model, x, y)) * (1 + 1e-6 * float(first))

    planted = as_measure(almost, invariant_under=[Group.LAYER_SCALING])
    found = inv.check(
        network, task, transforms=[T.LayerScaling([4.0, 0.25, 1.0])], measures=[planted]
    )
    assert found.rows[0].verdict == "contradicts"


@pytest.mark.parametrize(
    ("per_unit", "outcome"), [(0.0, "invariant"), (1e-3, "undecided"), (1e3, "contradicts")]
)
def test_estimates_decide_only_what_noise_cannot_explain(task, network, per_unit, outcome):
    def noisy(model, x, y):
        norm = float(inv.measures.parameter_norm(model))
        return inv.Estimate(1 + per_unit * norm, stderr=0.1, exact=False, method="probes")

    drawn = as_measure(noisy, invariant_under=[Group.LAYER_SCALING], cost="sampling")
    found = inv.check(
        network, task, transforms=[T.LayerScaling([4.0, 0.25, 1.0])], measures=[drawn]
    )
    if outcome == "undecided":
        assert found.rows == ()
        assert "standard error is 0.1" in found.refused[0].reason
    else:
        assert found.rows[0].verdict == outcome


def test_refusals_carry_reasons(report):
    folds = [entry for entry in report.refused if entry.what.startswith("FoldBatchNorm")]
    assert [entry.model for entry in folds] == ["plain"]
    assert "BatchNorm" in folds[0].reason


def test_json_has_the_promised_layout(report):
    plain = json.loads(report.to_json())
    assert plain["schema"] == 1
    assert set(plain) >= {
        "schema", "task", "model", "environment", "function", "rows", "correlations",
    }  # fmt: skip
    for row in plain["function"]:
        assert set(row) >= {"transform", "max_abs_logit_diff", "labels_changed", "bitwise"}
    for row in plain["rows"]:
        assert set(row) >= {
            "measure", "transform", "before", "after", "ratio", "declared", "predicted", "verdict",
        }  # fmt: skip
        assert row["declared"] in {"invariant", "law", "varies"}
        assert row["verdict"] in {"invariant", "law", "varies", "contradicts"}
        assert hasattr(T, row["transform"])
        assert hasattr(inv.measures, row["measure"])


def test_the_model_is_left_as_it_was(task, network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    rng = torch.get_rng_state()
    inv.check(network, task, transforms=[T.NeuronScaling()], measures=["hessian_trace"])
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert next(network.parameters()).dtype == torch.float32


def test_same_seed_same_report(task, network):
    def run(seed):
        return inv.check(
            network, task, transforms=[T.NeuronScaling(seed=seed)], measures=["hessian_trace"]
        ).to_json()

    assert run(3) == run(3)


def test_bad_input(task, network, normalised):
    with pytest.raises(inv.UsageError, match=r"hessian_trac.*Did you mean 'hessian_trace'"):
        inv.check(network, task, measures=["hessian_trac"])
    with pytest.raises(inv.UsageError, match=r"transforms\[0\] is 'Permutation', not a transform"):
        inv.check(network, task, transforms=["Permutation"])
    with pytest.raises(inv.UsageError, match=r"needs an nn.Module as model. Got Task"):
        inv.check(task, network)
    with pytest.raises(inv.UsageError, match=r"needs a Task.*Got Tensor"):
        inv.check(network, task.x_train)
    with pytest.raises(inv.DataError, match=r"the task's x_train of shape \(rows, 64\)"):
        inv.check(inv.models.mlp([60, 5, 10]), task, measures=["path_norm"])
    normalised.train()
    try:
        with pytest.raises(inv.MeasureError, match="train mode"):
            inv.check(normalised, task)
    finally:
        normalised.eval()


def test_float32_gets_wider_tolerances_and_no_contradiction(task, network):
    found = inv.check(
        network,
        task,
        measures=["hessian_trace", "relative_flatness", "adaptive_trace", "path_norm"],
        dtype=torch.float32,
    )
    assert found.contradictions == ()
    assert max(row.tolerance / max(abs(row.after), 1e-30) for row in found.rows) > 1e-7


def test_sweep_meets_the_law_and_stays_bitwise(task, network):
    sweep = alpha_sweep(network, task)
    assert sweep.bitwise
    assert sweep.worst_relative_error < 1e-11
    assert np.ptp(sweep.relative_flatness) <= 1e-12 * sweep.relative_flatness[0]
    assert sweep.a > 0
    assert sweep.b > 0
    assert sweep.c > 0
