"""The four studies of one paper: protocol, laws and verdicts.

Would catch: a wrong law, published settings that drift, a changed function that passes, and
verdicts that cannot fail.
"""

import json
import math
from dataclasses import replace

import pytest
from bennett_cases import MODULES, tiny

from invariance import measures as M
from invariance import transforms as T
from invariance.papers import STUDIES
from invariance.papers.bennett._networks import regime_configs, small_networks
from invariance.papers.bennett.model_selection import _study as model_selection
from invariance.papers.bennett.pair_proxy import _study as pair_proxy
from invariance.papers.bennett.reparameterisation._axes import law_of
from invariance.papers.bennett.vanishing_advantage import _study as vanishing_advantage
from invariance.studies import Findings, Record, run_study

# -- the law -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_the_law_is_the_trace_of_the_moved_network(small_digits, first):
    model, task = small_digits
    blocks = dict(M.hessian_trace(model, task.x_train, task.y_train).parts)
    law = law_of(blocks, first)
    factors = [1.0, 1.0, 1.0]
    factors[first], factors[first + 1] = 7.0, 1 / 7.0
    moved = T.LayerScaling(factors)(model, task.x_train[:8])
    expected = float(M.hessian_trace(moved, task.x_train, task.y_train))
    assert law(7.0) == pytest.approx(expected, rel=1e-12)
    assert law(1.0) == pytest.approx(sum(blocks.values()), rel=1e-12)
    assert law_of(blocks, 1 - first)(7.0) != pytest.approx(expected, rel=1e-3)


# -- the protocol ------------------------------------------------------------------------


def test_regimes_are_the_published_ones():
    options = vanishing_advantage.STUDY.full.but(task="digits", networks=2)
    table = {
        500: (0.05, 0.5, 500, 500, None, 0.9999),
        2_000: (0.03, 0.5, 2_000, 500, None, 0.9999),
        6_000: (0.01, 0.5, 4_096, 500, None, 0.9999),
        12_000: (0.01, 0.5, 4_096, 500, 0.8, 1.0),
        24_000: (0.01, 0.3, 4_096, 500, 0.8, 1.0),
        60_000: (0.01, 0.3, 4_096, 600, 0.8, 1.0),
    }
    assert vanishing_advantage.STUDY.full.n_train == tuple(table)
    for n, (small_lr, large_lr, large_batch, epochs, drop, stop) in table.items():
        for regime, lr, batch, seeds in (
            ("small", small_lr, 64, [0, 1]),
            ("large", large_lr, large_batch, [100, 101]),
        ):
            configs = regime_configs(options, n, regime)
            assert [config.seed for config in configs] == seeds
            early = regime_configs(options, n, regime, early=True)
            assert [dict(c.settings) for c in early] == [
                {**c.settings, "target_accuracy": 0.995} for c in configs
            ]
            assert dict(configs[0].settings) == {
                "task": "digits",
                "n_train": n,
                "train_seed": 42,
                "sizes": (64, 256, 128, 10),
                "lr": lr,
                "batch_size": batch,
                "max_epochs": epochs,
                "target_accuracy": stop,
                "check_every": 10,
                "lr_drop_at": drop,
            }


def test_small_networks_are_the_published_ones():
    options = pair_proxy.STUDY.full.but(networks=1)
    config = small_networks(options, (64, 8), "digits", 3, 42)[2]
    assert config.seed == 2
    assert config.settings["sizes"] == (64, 64, 8, 10)
    expected = {"lr": 0.1, "batch_size": 64, "max_epochs": 500, "target_accuracy": 1.0}
    assert {name: config.settings[name] for name in expected} == expected
    assert config.settings["check_every"] == 10
    assert model_selection.HIDDEN == (64, 16)


def test_regimes_keep_apart_the_seeds_of_many_networks():
    options = vanishing_advantage.STUDY.full.but(task="digits", networks=150)
    small, large = (regime_configs(options, 500, regime) for regime in ("small", "large"))
    assert not {c.seed for c in small} & {c.seed for c in large}


def test_further_subsets_are_drawn_at_small_sizes_alone():
    full = vanishing_advantage.STUDY.full.but(task="digits", networks=1)
    seeds = [
        {c.settings["train_seed"] for c in vanishing_advantage.grid(full.but(n_train=n))}
        for n in ((500,), (2_000,))
    ]
    assert seeds == [{42, 1, 2}, {42}]


def test_the_configuration_of_a_published_network_keeps_its_name(mnist):
    mnist(n_train=1)
    options = vanishing_advantage.STUDY.full
    assert regime_configs(options, 500, "small")[0].id == PINNED
    assert regime_configs(options, 500, "small", early=True)[0].id == PINNED_EARLY


#: Weights are found by this name: a change of it loses every trained network. The second is
#: what every network was called while all of them stopped early.
PINNED = "21b2c4be71e1f4573ce334ff"
PINNED_EARLY = "16b2a515554d39e25411d3b0"


def test_records_of_the_early_stop_never_pass_for_the_published_one(tmp_path):
    """A folder from when all stopped early: its networks are kept as what they are."""
    study, options = tiny("vanishing-advantage")
    options = options.but(n_train=(40,), networks=2)
    options = options.but(scale={**options.scale, "subsets": 0})
    early = [
        config
        for regime in ("small", "large")
        for config in regime_configs(options, 40, regime, early=True)
    ]
    old = replace(study, grid=lambda options: early, analyse=lambda records, options: Findings(),
                  figures=lambda records, findings, folder: [])  # fmt: skip
    run_study(old, options, out=tmp_path, resume=True, workers=1)
    found = run_study(study, options, out=tmp_path, resume=True, workers=1).results
    assert [entry["trained"] for entry in found["run"]["runs"]] == [4, 4]
    stops = [network["settings"]["target_accuracy"] for network in found["networks"]]
    assert stops == [0.9999] * 4 + [0.995] * 4
    titles = [table["title"] for table in found["tables"]]
    (place,) = [i for i, title in enumerate(titles) if title.startswith("What stopping early")]
    rows = found["tables"][place]["rows"]
    assert [row[0] for row in rows] == ["n=40", "n=40, stopped early"]
    for row, stop in zip(rows, (0.9999, 0.995), strict=True):
        for value, batch in zip(row[1:3], (64, 40), strict=True):
            losses = [
                network["facts"]["train_loss"] for network in found["networks"]
                if network["settings"]["target_accuracy"] == stop
                and network["settings"]["batch_size"] == batch
            ]  # fmt: skip
            assert value == pytest.approx(sum(losses) / 2)


# -- the studies -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_a_study_runs_and_judges(name, bennett_outcomes):
    outcome = bennett_outcomes(name)
    findings = outcome.findings
    assert outcome.results["figures"]
    assert findings.claims and findings.correlations and findings.notes
    names = [claim.name for claim in findings.claims]
    assert len(set(names)) == len(names)
    assert all(claim.paper is None for claim in findings.claims), "the paper did not use digits"
    exact = [claim for claim in findings.claims if claim.exact]
    assert all(claim.verdict == "theorem" for claim in exact), exact
    assert bool(exact) == (name != "vanishing-advantage")
    json.dumps(outcome.results, allow_nan=False)
    assert STUDIES.count(MODULES[name].STUDY) == 1


def test_moved_networks_follow_the_law_and_keep_everything_else(bennett_outcomes):
    for record in bennett_outcomes("reparameterisation").records:
        for points in record.measured["axes"].values():
            assert [point["factor"] for point in points] == [1, 2, 5, 10, 20]
            traces = [point["hessian_trace"] for point in points]
            assert traces == pytest.approx([point["law"] for point in points], rel=1e-9)
            assert traces[-1] > 20 * traces[0]
            assert {point["labels_changed"] for point in points} == {0}
            assert {point["bits_changed"] for point in points} == {0}


@pytest.mark.parametrize(
    ("spoil", "claim"),
    [
        (lambda point: point | {"hessian_trace": point["hessian_trace"] * 1.01}, "law"),
        (lambda point: point | {"labels_changed": 1}, "labels"),
        (lambda point: point | {"patterns": [point["patterns"][0] + 1, point["patterns"][1]]},
         "patterns"),
        (lambda point: point | {"test_accuracy": point["test_accuracy"] + 1e-4}, "accuracy"),
        (lambda point: point | {"moved": [0]}, "agreement"),
    ],
)  # fmt: skip
def test_a_function_that_changed_is_contradicted(bennett_outcomes, spoil, claim):
    study, options = tiny("reparameterisation")
    records = list(bennett_outcomes("reparameterisation").records)
    first = records[0]
    axes = {axis: list(points) for axis, points in first.measured["axes"].items()}
    axes["beta"][2] = spoil(axes["beta"][2])
    records[0] = Record(first.config, first.facts, {**first.measured, "axes": axes})
    found = {c.name: c.verdict for c in study.analyse(records, options).claims}
    assert found[f"{claim} wide, n=60"] == "contradicted"
    assert found[f"{claim} narrow, n=60"] == "theorem"


def test_pairs_of_all_draws_add_up_and_extensions_are_logarithms(bennett_outcomes):
    outcome = bennett_outcomes("pair-proxy")
    main = [r for r in outcome.records if "draws" in r.measured]
    assert len(main) == 6
    for record in main:
        full = pair_proxy_completed(record)
        draws = record.measured["draws"]
        assert set(draws) == {"99", "0"}
        total = sum(values["pair_proxy"] for values in draws.values())
        assert full["pair_proxy_all_draws"] == pytest.approx(total, nan_ok=True)
        assert 0 <= full["log_extension_count"] <= 2 * math.log(11) + 1e-9
    groups = {row["group"] for row in outcome.findings.correlations}
    assert groups == {"digits, n=60", "digits, n=60, subset 1"}


def pair_proxy_completed(record):
    from invariance.papers.bennett.pair_proxy._findings import completed

    return completed(record).measured["measures"]


def test_the_pair_proxy_study_takes_several_data_sets():
    options = pair_proxy.STUDY.full.but(task="digits, digits", networks=1)
    assert pair_proxy.tasks_of(options) == ("digits", "digits")
    assert pair_proxy.STUDY.full.task == "mnist,fashion-mnist"
    with pytest.raises(Exception, match="Expected a data set"):
        pair_proxy.tasks_of(options.but(task=","))
