"""Catches: demos that no longer run, figures that are not saved, claims that stopped holding."""

import importlib
import sys
from pathlib import Path

import pytest

DEMOS = Path(__file__).parents[2] / "demos"


@pytest.fixture
def demo(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(DEMOS), *sys.path])

    def run(name):
        module = importlib.import_module(name)
        return module.main(["--task", "digits", "--small", "--out", str(tmp_path)])

    yield run
    for name in ("common", *(path.stem for path in DEMOS.glob("*.py"))):
        sys.modules.pop(name, None)


def test_same_function_sharper(demo, tmp_path):
    report = demo("same_function_sharper")
    assert all(row.bitwise for row in report.function)
    trace = [row for row in report.rows if row.measure == "hessian_trace"]
    assert trace[-1].ratio > 50
    assert report.contradictions == ()
    assert (tmp_path / "same-function-sharper.png").stat().st_size > 5_000


def test_same_function_trains_differently(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DEMOS), *sys.path])
    found = importlib.import_module("same_function_trains_differently").main()
    assert found["before training"] < 1e-12
    assert found["after gradient descent"] > 0.1
    assert found["after relative descent"] < 1e-9


def test_folding_batchnorm(demo, tmp_path):
    report = demo("folding_batchnorm")
    assert {row.transform for row in report.function} == {"FoldBatchNorm", "BatchNormScaling"}
    flat = [row for row in report.rows if row.measure == "relative_flatness"]
    assert all(row.verdict == "invariant" for row in flat)
    assert (tmp_path / "folding-batchnorm.png").exists()


def test_correlation_that_rescaling_destroys(demo, tmp_path):
    study = demo("correlation_that_rescaling_destroys")
    rows = {row.measure: row for row in study.rows}
    assert rows["hessian_trace"].max_relative_change > 1
    assert rows["relative_flatness"].rho == rows["relative_flatness"].rho_after_rescaling
    assert (tmp_path / "correlation-that-rescaling-destroys.png").exists()


def test_flat_and_wrong(demo, tmp_path):
    rows, records = demo("flat_and_wrong")
    verdicts = {row.measure: row.verdict for row in rows}
    assert verdicts["hessian_trace"] == "cannot tell"
    assert verdicts["hessian_eigenvalues"] == "wrong way"
    assert verdicts["path_norm"] == "right way"
    assert len(records) == 5
    assert (tmp_path / "flat-and-wrong.png").stat().st_size > 5_000


def test_study_single_objective(demo, tmp_path):
    outcome = demo("study_single_objective")
    assert {claim.name for claim in outcome.findings.claims} >= {"loss scale", "geometry differs"}
    assert (tmp_path / "study-single-objective.png").stat().st_size > 10_000


def test_study_boundary_tightness(demo, tmp_path):
    outcome = demo("study_boundary_tightness")
    claims = {claim.name: claim for claim in outcome.findings.claims}
    assert claims["tightness at matched loss"].value == 1
    assert (tmp_path / "study-boundary-tightness.png").stat().st_size > 10_000
