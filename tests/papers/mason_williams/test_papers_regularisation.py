"""The study of regularised networks: its grid, its measurements, its verdicts.

Catches: methods that train what they do not say, pairs of unlike networks, a rescaling that
changes the function or is shared by networks, verdicts read off the wrong side.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from invariance.core._errors import UsageError
from invariance.core._estimate import Estimate
from invariance.measures._registry import get_measure
from invariance.outcomes import jensen_shannon_divergence, prediction_disagreement
from invariance.papers.mason_williams.regularisation import _images as images
from invariance.papers.mason_williams.regularisation import _sharpness as sharpness
from invariance.papers.mason_williams.regularisation._analysis import analyse
from invariance.papers.mason_williams.regularisation._claims import (
    same_after_rescaling,
    sharper_and_better,
)
from invariance.papers.mason_williams.regularisation._methods import (
    METHODS,
    PUBLISHED_METHODS,
    method_of,
)
from invariance.papers.mason_williams.regularisation._reading import fitted_pairs, match
from invariance.papers.mason_williams.regularisation._study import STUDY, grid
from invariance.papers.mason_williams.regularisation._tables import verdict
from invariance.studies import Context, Options, Record
from invariance.studies._engine import run_study
from invariance.studies.claims._paired_treatments import Effect
from invariance.transforms import random_rescaling


def tiny(**changes) -> Options:
    scale = {
        **STUDY.quick.scale,
        "methods": ("baseline", "sam"),
        "epochs": 4,
        "batch_sizes": (32,),
        "rates": (0.05,),
        "score_rows": 2,
        "test_rows": 400,  # all that there are
        "attacked_rows": 20,
        **changes.pop("scale", {}),
    }
    return STUDY.quick.but(task="digits", networks=2, n_train=(60,), scale=scale, **changes)


def test_the_full_grid_is_the_published_one():
    configs = grid(tiny(scale={**STUDY.full.scale}).but(networks=10))
    assert len(configs) == len({c.id for c in configs}) == 6 * 2 * 2 * 10
    assert {method_of(c) for c in configs} == set(PUBLISHED_METHODS)
    assert {c.settings["batch_size"] for c in configs} == {128, 256}
    assert {c.settings["lr"] for c in configs} == {1e-3, 1e-2}
    assert {c.settings["weight_decay"] for c in configs} == {0.0, 5e-4}
    assert {c.settings["sam_rho"] for c in configs} == {0.0, 0.05}
    assert STUDY.full.task == "mnist+fashion-mnist"
    assert STUDY.full.networks == 10


def test_methods_are_named_by_what_they_do():
    for name, method in METHODS.items():
        settings = method.settings(("shift",))
        config = images.image_network(
            0, task="digits", n_train=9, architecture="mlp", lr=0.1, batch_size=3, epochs=1,
            **settings,
        )  # fmt: skip
        assert method_of(config) == name


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"methods": ("baseline", "dropout")}, "dropout"),
        ({"methods": ("sam",)}, "compared with 'baseline'"),
        ({"architectures": ("lenet",)}, "lenet"),
    ],
)
def test_unknown_names_are_refused_before_training(scale, message):
    with pytest.raises(UsageError, match=message):
        grid(tiny(scale=scale))


@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("vgg", marks=pytest.mark.slow), "resnet", "vit"]
)
def test_every_architecture_trains_is_rescaled_and_measured(name):
    options = tiny(scale={"architectures": (name,), "epochs": 1})
    configs = [c for c in grid(options) if method_of(c) == "sam"]
    context = Context(options, "cpu", lambda share: None)
    trained = images.train(configs, context)
    alone = images.train(configs[1:], context)
    for key, weight in alone[0].tensors.items():
        assert torch.equal(weight, trained[1].tensors[key])
    if name not in ("mlp", "vgg"):
        return  # measuring the others takes long; their rescaling is below
    (found, _) = STUDY.measure(configs, trained, context)
    known = {key for key, value in found["measures"].items() if value is not None}
    assert known | found["refused"].keys() == set(sharpness.MEASURES)
    assert {"hessian_trace", "sam_sharpness", "adaptive_worst_case_sharpness"} <= known
    for measure in ("adaptive_sharpness", "adaptive_trace", "fisher_rao_closed_form"):
        assert found["rescaled"][measure] == pytest.approx(found["measures"][measure], rel=1e-6)
    assert found["rescaled"]["hessian_trace"] > 1.5 * found["measures"]["hessian_trace"]
    x = images.task_of(configs[0]).x_train.double()
    model = images.network(configs[0], trained[0])
    direct = get_measure("relative_flatness")(model, x=x, y=images.task_of(configs[0]).y_train)
    assert found["measures"]["relative_flatness"] == pytest.approx(float(direct))
    targets = found["targets"]
    # Training looked at the same points, in single precision: a tie or two may break.
    assert targets["test_accuracy"] == pytest.approx(trained[0].facts["test_accuracy"], abs=0.006)
    assert targets["test_error"] == pytest.approx(1 - targets["test_accuracy"])
    gap = trained[0].facts["train_accuracy"] - targets["test_accuracy"]
    assert targets["generalization_gap"] == pytest.approx(gap)


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "vit"])
def test_rescaling_keeps_the_function_and_moves_every_weight(name):
    task = images.test_task("digits")
    model = images.ARCHITECTURES[name](64, 10, 0).double().eval()
    x = task.x_test[:20].double()
    other, again, third = (random_rescaling(model, x[:8], s)(model, x[:8]) for s in (5, 5, 6))
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-8, atol=1e-9)
    first = next(iter(other.parameters()))
    assert torch.equal(first, next(iter(again.parameters())))
    moved = [
        not torch.equal(a, b) for a, b in zip(other.parameters(), third.parameters(), strict=True)
    ]
    assert sum(moved) >= 3


def test_kept_predictions_give_disagreement_and_divergence():
    task = images.test_task("digits")
    nets = [images.ARCHITECTURES["mlp"](64, 10, seed).double().eval() for seed in range(4)]
    for net in nets:
        with torch.no_grad():
            net[-1].weight *= 20  # outputs that differ
    x = task.x_test.double()
    found = sharpness.diversity([sharpness.predictions(net, x) for net in nets])
    some = x[: sharpness.PROBABILITY_ROWS]
    js = jensen_shannon_divergence(nets, some).detail["per_network"]
    apart = prediction_disagreement(nets, x[: sharpness.LABEL_ROWS]).detail["per_network"]
    np.testing.assert_allclose([entry["js_divergence"] for entry in found], js, atol=1e-3)
    np.testing.assert_allclose([entry["disagreement"] for entry in found], apart, atol=1e-12)
    assert sharpness.diversity([sharpness.predictions(nets[0], x)]) == [{}]


def record(method, seed, accuracy, sharp, *, rescaled=None, train=1.0, task="digits"):
    config = images.image_network(
        seed, task=task, n_train=9, architecture="mlp", lr=0.1, batch_size=3, epochs=1,
        **METHODS[method].settings(("shift",)),
    )  # fmt: skip
    values = dict.fromkeys(("fisher_rao_norm", "relative_flatness", "sam_sharpness"), sharp)
    other = values if rescaled is None else dict.fromkeys(values, rescaled)
    return Record(
        config,
        {"train_accuracy": train, "train_loss": 0.1 + 0.01 * seed * (2 if method == "sam" else 1)},
        {
            "measures": values,
            "rescaled": other,
            "targets": {"test_accuracy": accuracy, "generalization_gap": train - accuracy},
        },
    )


def test_only_pairs_at_a_minimum_are_compared():
    records = [record("baseline", s, 0.5, 1.0, train=0.9 + 0.02 * s) for s in range(5)]
    records += [record("sam", s, 0.6, 2.0, train=0.1) for s in range(5)]
    pairs = fitted_pairs(records)["sam"]
    assert [b.config.seed for _, b in pairs] == [3, 4]
    assert all(match(a) == match(b) for a, b in pairs)
    assert fitted_pairs(records[:3] + records[5:8]) == {}


def test_sharper_and_better_needs_both():
    base = record("baseline", 0, 0.5, 1.0)
    for accuracy, sharp, expected in ((0.6, 2.0, True), (0.6, 0.5, False), (0.4, 2.0, False)):
        assert sharper_and_better(record("sam", 0, accuracy, sharp), base) is expected
    assert sharper_and_better(record("sam", 0, 0.6, math.nan), base) is None
    mixed = record("sam", 0, 0.6, 0.5)
    mixed.measured["measures"]["fisher_rao_norm"] = 2.0  # one of three
    assert sharper_and_better(mixed, base) is False
    mixed.measured["measures"]["relative_flatness"] = 2.0  # two of three
    assert sharper_and_better(mixed, base) is True
    swapped = record("sam", 0, 0.6, 2.0, rescaled=0.5)
    kept = record("baseline", 0, 0.5, 1.0, rescaled=1.0)
    assert same_after_rescaling("sam_sharpness", swapped, kept) is False
    assert same_after_rescaling("sam_sharpness", record("sam", 0, 0.6, 2.0), base) is True


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.01, 0.2), (0.01, 0.2), "sharper"),
        ((0.01, 0.2), (0.5, 0.2), "sharper, only as trained"),
        ((0.5, 0.2), (0.01, 0.2), "sharper, only rescaled"),
        ((0.01, -0.1), (0.01, -0.2), "flatter"),
        ((0.01, -0.1), (0.01, 0.2), "flatter, only as trained"),
        ((0.5, 0.2), (0.5, -0.5), "-"),
    ],
)
def test_verdicts_of_the_table(before, after, expected):
    def made(p, value):
        return Effect("t", "q", 9, value, -1.0, 1.0, 0.0, p, p)

    assert verdict(made(*before), made(*after)) == expected


def test_a_planted_answer_is_found():
    draw = np.random.default_rng(0)
    records = []
    for seed in range(10):
        noise = draw.normal(0, 0.01, 4)
        records.append(record("baseline", seed, 0.8 + noise[0], 1.0 + noise[1], rescaled=5.0))
        records.append(
            record("sam", seed, 0.9 + noise[2], 2.0 + noise[3], rescaled=1.0 + 8 * (seed % 2))
        )
    findings = analyse(records, Options(quick=True))
    verdicts = {claim.name: claim.verdict for claim in findings.claims}
    assert verdicts["better-sam"] == "supported"
    assert verdicts["sharper-and-better-sam"] == "supported"
    assert verdicts["sharper-sam_sharpness"] == "supported"
    assert verdicts["about-the-function-sam_sharpness"] == "contradicted"
    factor = next(c for c in findings.claims if c.name == "sharper-at-equal-loss-sam_sharpness")
    assert factor.value == pytest.approx(2.0, rel=0.05)


def test_a_measure_that_rescaling_does_not_move_keeps_every_order_exactly():
    def claim_of(moved):
        records = []
        for seed in range(8):
            low, high = 1.0 + 0.1 * seed, 3.0 + 0.1 * seed
            records.append(record("baseline", seed, 0.8, low, rescaled=low * moved))
            records.append(record("sam", seed, 0.9, high, rescaled=high))
        claims = analyse(records, Options(quick=True)).claims
        return next(c for c in claims if c.name == "about-the-function-fisher_rao_norm")

    fixed = claim_of(1 + 1e-9)
    assert (fixed.exact, fixed.ci_low, fixed.verdict) == (True, 1.0, "theorem")
    moved = claim_of(1.01)  # eight of eight seeds keep their order, which may be luck
    assert (moved.exact, moved.value, moved.verdict) == (False, 1.0, "open")
    assert moved.ci_low == pytest.approx(0.025 ** (1 / 8))


def test_blocks_that_disagree_are_shown_apart():
    records = []
    for seed in range(8):
        for task, gain in (("digits", 0.1), ("mnist", -0.1)):
            records.append(record("baseline", seed, 0.8, 1.0, task=task))
            records.append(record("sam", seed, 0.8 + gain + 0.001 * seed, 2.0, task=task))
            records.append(record("adaptive-sam", seed, 0.8, 2.0, task=task))
    findings = analyse(records, Options(quick=True))
    pooled = next(c for c in findings.claims if c.name == "sharper-and-better-sam")
    assert (pooled.value, pooled.verdict) == (
        0.5,
        "open",
    )  # every resample says a half: no interval
    verdicts = {claim.name: claim.verdict for claim in findings.claims}
    assert verdicts["sharper-and-better-sam digits, mlp, n = 9"] == "supported"
    assert verdicts["sharper-and-better-sam mnist, mlp, n = 9"] == "contradicted"
    table = findings.tables[0]
    assert table.title == "What the claims pool, block by block"
    shares = {row[:2]: row[-1] for row in table.rows}
    assert shares["sam", "digits, mlp, n = 9"] == "1 [0.631, 1]"  # 8 of 8 seeds
    assert shares["sam", "mnist, mlp, n = 9"] == "0 [0, 0.369]"
    better = {row[:2]: row[3] for row in table.rows}
    assert better["sam", "mnist, mlp, n = 9"] == "-1 [-1, -0.631]"
    assert [row[0] for row in table.rows] == ["sam"] * 2 + ["adaptive-sam"] * 2
    alone = analyse([r for r in records if r.config.settings["task"] == "digits"], Options())
    assert alone.tables[0].title.startswith("Means by cell")


def test_noisy_estimates_are_left_out_and_others_say_how_noisy_they_are(monkeypatch):
    found = [
        Estimate(2.0, stderr=0.1, exact=False, method="probes"),
        Estimate(2.0, stderr=0.3, exact=False, method="probes"),
        Estimate(3.0),
    ]
    stand_in = SimpleNamespace(fields={}, of_many=lambda models, **arguments: found)
    monkeypatch.setattr(sharpness, "MEASURES", {"a": {}, "b": {"samples": 3}})
    monkeypatch.setattr(sharpness, "get_measure", lambda name: stand_in)
    values, refused, estimated = sharpness.measure_all(
        [None] * 3, torch.zeros(2, 2), torch.zeros(2), score_rows=1
    )
    assert [entry["a"] for entry in values] == [2.0, None, 3.0]
    assert [entry["b"] for entry in values] == [2.0, 2.0, 3.0]  # its draws are the measure
    assert estimated == {"a": pytest.approx(0.05)}
    assert "above 10%" in refused["a"]
    config = images.image_network(
        0, task="digits", n_train=9, architecture="vit", lr=0.1, batch_size=3, epochs=1
    )
    seen = Record(config, {}, {"refused": refused, "estimated": estimated})
    notes = " ".join(analyse([seen], Options(quick=True)).notes)
    assert "Not measured (vit): a: left out" in notes
    assert "(vit): a, with a relative standard error of at most 0.05." in notes


def test_the_study_runs_from_end_to_end(tmp_path):
    outcome = run_study(STUDY, tiny(), out=tmp_path / "out", workers=1)
    assert len(outcome.records) == 4
    titles = [table.title for table in outcome.findings.tables]
    assert titles[0] == "Means by cell: digits, mlp, n = 60"
    assert (tmp_path / "out" / "report.md").exists()
    assert not outcome.findings.claims or all(
        claim.verdict == "open" for claim in outcome.findings.claims
    )
