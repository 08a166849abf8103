"""Catches: verdicts that no longer follow from the numbers, and a study that does not run."""

import json
import math

import pytest

from invariance.measures._registry import all_measures
from invariance.papers.wen.flat_not_general import contest, draw_problem
from invariance.papers.wen.flat_not_general._findings import training_table
from invariance.papers.wen.flat_not_general._memoriser_or_generaliser import (
    MORE_IS_BETTER,
    NEEDS_GRADIENT,
    judge,
)
from invariance.papers.wen.flat_not_general._settings import CELLS, at_scale, config_of, recipe_of
from invariance.papers.wen.flat_not_general._study import STUDY, problem_of
from invariance.papers.wen.flat_not_general._verdicts import (
    FAILS,
    FLATTEST,
    GENERALISES,
    claims,
    mean_interval,
)
from invariance.studies import Options, Record
from invariance.studies._engine import run_study

TINY = Options(
    task="two-bit parity", networks=2, n_train=(12,), device="cpu", quick=True,
    scale={"dimension": 6, "width": 8, "n_test": 60, "epochs": 1e-6, "full_batch_epochs": 1e-6},
)  # fmt: skip


def test_what_tells_memoriser_and_generaliser_apart():
    data = draw_problem(1, dimension=12, n_train=24, n_test=200)
    names = ["hessian_trace", "minimum_sharpness", "fisher_rao_norm", "hessian_eigenvalues",
             "path_norm", "relative_flatness", "pair_proxy", "repaired_pair_proxy",
             "extension_count", "free_regions", "sam_sharpness"]  # fmt: skip
    without, with_bias = (
        {row.measure: row for row in contest(data, output_bias=b, n_unseen=10, names=names)}
        for b in (False, True)
    )
    verdicts = {name: (without[name].verdict, with_bias[name].verdict) for name in names}
    for name in ("hessian_trace", "minimum_sharpness", "fisher_rao_norm"):
        assert verdicts[name] == ("cannot tell", "cannot tell")
    for name in ("path_norm", "relative_flatness"):
        assert verdicts[name] == ("right way", "right way")
    for name in ("hessian_eigenvalues", "free_regions"):
        assert verdicts[name] == ("wrong way", "wrong way")
    for name in ("pair_proxy", "repaired_pair_proxy", "extension_count"):
        assert verdicts[name] == ("right way", "wrong way")
    assert verdicts["sam_sharpness"] == ("does not apply", "does not apply")
    # Ten unseen points: none of 20 pairs, all of them, or the one right class of each.
    assert (without["pair_proxy"].memoriser, with_bias["pair_proxy"].memoriser) == (0, 20)
    assert (without["pair_proxy"].generaliser, with_bias["pair_proxy"].generaliser) == (10, 10)
    assert without["hessian_trace"].memoriser == pytest.approx(4 * math.sqrt(13), rel=1e-12)


def test_names_of_the_contest_are_measures():
    assert set(all_measures()) >= MORE_IS_BETTER | NEEDS_GRADIENT


@pytest.mark.parametrize(
    ("name", "memoriser", "generaliser", "noise", "verdict"),
    [
        ("path_norm", 2.0, 1.0, 0.0, "right way"),
        ("path_norm", 1.0, 2.0, 0.0, "wrong way"),
        ("pair_proxy", 1.0, 2.0, 0.0, "right way"),
        ("pair_proxy", 2.0, 1.0, 0.0, "wrong way"),
        ("path_norm", 1.0, 1.0 + 1e-9, 0.0, "cannot tell"),
        ("path_norm", 1.0, 1.2, 0.1, "cannot tell"),
        ("path_norm", 1.0, 1.4, 0.1, "wrong way"),
        ("path_norm", 0.0, 0.0, 0.0, "cannot tell"),
        ("path_norm", math.nan, 1.0, 0.0, "cannot tell"),
    ],
)
def test_which_way_a_measure_orders(name, memoriser, generaliser, noise, verdict):
    assert judge(name, memoriser, generaliser, noise) == verdict


def record(cell, seed, accuracy, sharp, excess):
    config = config_of(cell, CELLS[cell], STUDY.full, seed)
    least = 22.0 if "SAM" in cell else 44.0 + seed
    measures = {"gauss_newton_trace": sharp, "excess_sharpness": excess}
    measures |= {"minimum_sharpness": least}
    return Record(config, {}, {"targets": {"test_accuracy": accuracy}, "measures": measures})


def test_claims_follow_their_regions():
    cells = {
        "no bias, SAM": [record("no bias, SAM", s, 0.99 + s / 1e3, 22.0, 1.02) for s in range(3)],
        "bias, SAM": [record("bias, SAM", s, 0.65 + s / 1e3, 22.3, 1.0 + s / 1e3)
                      for s in range(3)],
        "bias, GD + decay": [record("bias, GD + decay", s, 1.0, 70.0 + s, 3.0) for s in range(4)],
        "layer, SAM": [record("layer, SAM", 0, 0.99, 2.0, 1.0)],
    }  # fmt: skip
    found = {claim.name: claim for claim in claims(cells, [], [], [])}
    assert found["no-bias-sam-generalises"].verdict == "supported"
    assert found["bias-sam-fails"].verdict == "supported"
    assert found["bias-sam-near-chance"].verdict == "contradicted"
    assert found["bias-sam-flattest"].verdict == "supported"
    assert found["layer-sam-generalises"].verdict == "open"  # one seed has no interval
    assert found["batch-sam-generalises"].value is None
    hurts = found["bias-sam-hurts"]
    assert (hurts.n, hurts.value) == (3, pytest.approx(0.349))
    flatter = found["bias-sam-flatter"]
    assert flatter.value == pytest.approx((70 + 71 + 72) / 3 / 22.3)
    assert flatter.verdict == "supported"
    assert found["bias-sam-flatter-rescaled"].value == pytest.approx(45 / 22)
    assert (GENERALISES.low, FAILS.high, FLATTEST.high) == (0.9, 0.9, 1.1)


def test_a_network_that_diverged_is_no_evidence():
    cell = "batch, SAM"
    kept = [record(cell, s, 0.99 + s / 1e3, 8.0, 1.0) for s in range(3)]
    lost = [record(cell, s, 0.0, math.nan, math.nan) for s in (3, 4)]
    lost = [Record(r.config, {"diverged": True}, r.measured) for r in lost]
    found = {claim.name: claim for claim in claims({cell: kept + lost}, [], [], [])}
    claim = found["batch-sam-generalises"]
    assert (claim.n, claim.value) == (3, pytest.approx(0.991))
    assert claim.verdict == "not tested"  # the paper's own schedule is fifty times longer
    assert "2 of 5 networks diverged and are left out" in claim.note
    none = {c.name: c for c in claims({cell: lost}, [], [], [])}["batch-sam-generalises"]
    assert (none.value, none.verdict) == (None, "not tested")


def test_the_table_counts_the_diverged_apart():
    targets = {"test_accuracy": 0.9, "train_loss": 0.1}
    numbers = {"gauss_newton_trace": 8.0, "excess_sharpness": 1.0, "minimum_sharpness": None}
    measured = {"targets": targets, "measures": numbers, "rescaled": numbers}
    lost = measured | {"targets": {"test_accuracy": 0.0, "train_loss": None}}
    records = [
        Record(config_of("batch, SAM", CELLS["batch, SAM"], STUDY.full, s), {"diverged": s > 0},
               lost if s else measured)
        for s in range(3)
    ]  # fmt: skip
    row = training_table(records).rows[0]
    assert row[:6] == ("batch, SAM", "1, 2 diverged", 0.9, "0.900 to 0.900", 0.1, 8.0)
    assert training_table(records[1:]).rows[0][1:4] == ("0, 2 diverged", None, None)


def test_the_interval_is_student_s():
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2.0)
    assert high - low == pytest.approx(2 * 4.302652729911275 / math.sqrt(3))
    assert mean_interval([1.0]) == (None, None)


def test_configurations_are_complete_and_sizes_are_scaled():
    configs = STUDY.grid(STUDY.full.but(networks=2))
    assert len({config.id for config in configs}) == 2 * len(CELLS)
    for config in configs:
        assert recipe_of(config) == CELLS[config.settings["cell"]]
    small = at_scale(CELLS["bias, SAM"], STUDY.quick)
    assert [phase.epochs for phase in small.phases] == [4_000, 8_000]
    assert at_scale(CELLS["bias, GD + decay"], STUDY.quick).phases[0].epochs == 10_000
    projected = at_scale(CELLS["layer, SAM projected"], STUDY.quick)
    assert [phase.epochs for phase in projected.phases] == [200] * 3
    assert STUDY.cost(configs[0]) == 100_000 * 500


def test_the_study_runs_and_says_what_it_found(tmp_path):
    outcome = run_study(STUDY, TINY, out=tmp_path / "out", workers=1)
    assert len(outcome.records) == 2 * len(CELLS)
    for one in outcome.records:
        measured = one.measured
        assert measured["output_change"] < 1e-9
        data = problem_of(one.config)
        assert len(data.x_train) == 12
        assert measured["targets"]["test_accuracy"] == one.facts["log"]["test_accuracy"][-1]
        excess = measured["measures"]["excess_sharpness"]
        assert excess is None or excess > 1 - 1e-9
        plain = measured["measures"]["minimum_sharpness"]
        if plain is not None:  # what no rescaling moves
            assert plain == pytest.approx(measured["rescaled"]["minimum_sharpness"], rel=1e-9)
            assert plain <= measured["measures"]["gauss_newton_trace"] * (1 + 1e-9)
    tables = {table.title: table for table in outcome.findings.tables}
    assert len(tables["Where training ends"].rows) == len(CELLS)
    assert len(tables["Memoriser against generaliser, through every measure"].rows) > 30
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    names = {claim["name"]: claim["verdict"] for claim in written["claims"]}
    assert names["memoriser-is-flattest"] == "theorem"
    assert names["published-constants-hold"] == "contradicted"
    for name in ("accuracy-against-sharpness.png", "accuracy-over-time.png"):
        assert (tmp_path / "out" / "figures" / name).stat().st_size > 5_000
