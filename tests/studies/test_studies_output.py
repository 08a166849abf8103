"""Catches: results that are not JSON, numbers lost on the way, reports that omit a doubt."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_study import STUDY as TOY

from invariance.core._errors import StudyError, UsageError
from invariance.studies import Claim, Findings, Region, Table, run_study
from invariance.studies._plain_json import finite, not_finite, plain, to_json
from invariance.studies.report._output import command_of
from invariance.studies.report._overview import find_results, read_results, worth_showing
from invariance.studies.report._report import duration, ours


def claim(**changes):
    base = Claim(
        "rho", "Flat | networks\ngeneralise.", "rho", 0.83, Region(low=0.0), 0.5, 0.1, 0.75, 100
    )
    return replace(base, **changes)


def found(records, options):
    return Findings(
        correlations=(
            {"measure": "trace", "target": "gap", "group": "n=1", "n": 5, "rho": -0.25,
             "ci_low": -0.5, "ci_high": 0.125, "p_value": 0.004, "p_holm": 0.012,
             "partial": {"all": {"rho": 0.375}}, "rho_after_rescaling": None},
            {"measure": "norm", "target": "gap", "group": "n=1", "n": 5, "rho": math.nan,
             "ci_low": None, "ci_high": None, "p_value": None},
        ),
        claims=(
            claim(),
            claim(name="low", value=-0.5, ci_low=-0.9, ci_high=-0.1, paper=None, note="A doubt."),
            claim(name="none", value=None, ci_low=None, ci_high=None),
            claim(name="same", exact=True, region=Region(0.4, 0.6), ci_low=0.5, ci_high=0.5),
            claim(name="adjusted", p_value=0.2, ours=True),
        ),
        tables=(Table("Sizes", ("n", "share"), ((1, 0.123456), ("all", None)), "Beware."),),
        notes=("Nothing was left out.",),
    )  # fmt: skip


def draw(records, findings, folder):
    path = folder / "one.svg"
    path.write_text("<svg/>")
    return [(path, "A figure.")]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    study = replace(TOY, analyse=found, figures=draw)
    return run_study(study, out=tmp_path_factory.mktemp("toy") / "toy", workers=1)


@pytest.fixture(scope="module")
def results(outcome):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = (outcome.folder / "results.json").read_text()
    return json.loads(text, parse_constant=refuse)


def test_results_hold_what_the_contract_names(results, outcome):
    assert results == outcome.results
    assert set(results) == {
        "schema", "study", "title", "paper", "question", "options", "command", "environment",
        "origins", "networks", "correlations", "claims", "tables", "figures", "notes", "run",
    }  # fmt: skip
    assert (results["schema"], results["study"]) == (1, "toy")
    assert results["options"]["n_train"] == [1, 2]
    first = results["networks"][0]
    record = outcome.records[0]
    assert first["id"] == record.config.id
    assert (first["seed"], first["settings"], first["facts"]) == (0, {"n": 1}, {"epochs": 0})
    assert first["measures"]["norm"] == record.measured["measures"]["norm"]
    assert (first["targets"], first["rescaled"], first["curve"]) == ({}, {}, [1, 2])
    assert [c["verdict"] for c in results["claims"]] == [
        "supported", "contradicted", "open", "supported", "open",
    ]  # fmt: skip
    assert results["claims"][0]["region"] == [0.0, None]
    assert results["figures"] == [{"file": "figures/one.svg", "caption": "A figure."}]


def test_numbers_that_json_cannot_hold_are_null_and_named(results, outcome):
    assert outcome.records[0].measured["measures"]["odd"] == math.inf  # the analysis sees it
    assert results["networks"][0]["measures"]["odd"] is None
    assert results["networks"][0]["not_finite"] == {"measures.odd": "inf"}
    assert results["correlations"][1]["rho"] is None
    assert results["correlations"][1]["not_finite"] == {"rho": "nan"}
    assert "not_finite" not in results["correlations"][0]


def test_only_the_part_called_run_tells_one_run_from_another(results, tmp_path):
    study = replace(TOY, analyse=found, figures=draw)
    other = dict(run_study(study, out=tmp_path / "toy", workers=1).results)
    assert {k: v for k, v in other.items() if k != "run"} == {
        k: v for k, v in results.items() if k != "run"
    }
    assert other["run"] != results["run"]
    for word in ("seconds", "started", str(tmp_path)):
        assert word not in json.dumps({k: v for k, v in other.items() if k != "run"})


def test_the_report_says_everything(outcome):
    text = (outcome.folder / "report.md").read_text()
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("| Flat")]
    assert rows == [
        r"| Flat \| networks generalise. | 0.83 | 0.5 [0.1, 0.75] | 100 | 0.044 | supported |",
        r"| Flat \| networks generalise. | - | -0.5 [-0.9, -0.1] | 100 | 0.044 | contradicted |",
        r"| Flat \| networks generalise. | 0.83 | - | 100 | - | open |",
        r"| Flat \| networks generalise. | 0.83 | 0.5 (exact) | 100 | - | supported |",
        r"| Flat \| networks generalise. | 0.83 | 0.5 [0.1, 0.75] | 100 | 0.2 | open |",
    ]
    assert lines.index("### Of the paper") < lines.index("### Questions of our own")
    assert lines.index("### Questions of our own") < lines.index(rows[-1])
    assert "* **low**: rho; true if above 0. A doubt." in lines
    assert "* **same**: rho; true if between 0.4 and 0.6." in lines
    assert "| trace | gap | n=1 | 5 | -0.250 [-0.500, +0.125] | 0.004 | 0.012 | +0.375 |" in lines
    assert "| norm | gap | n=1 | 5 | - | - | - | - |" in lines
    assert "| 1 | 0.1235 |" in lines
    assert "| all | - |" in lines
    for part in ("Beware.", "![A figure.](figures/one.svg)", "* Nothing was left out."):
        assert part in lines
    assert "invariance study toy" in lines
    assert any("torch " + torch.__version__ in line for line in lines)
    assert any(line.startswith("* Trained 10, measured 10:") for line in lines)


def test_networks_of_other_versions_are_named(tmp_path, monkeypatch):
    from invariance.studies import _jobs as jobs

    here = jobs.describe_machine("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "describe_machine", lambda device: here | {"torch": "1.0"})
        run_study(TOY, TOY.full.but(networks=2), out=tmp_path, resume=True, workers=1)
    results = run_study(TOY, out=tmp_path, resume=True, workers=1).results
    assert sorted((o["trained"], o["environment"]["torch"]) for o in results["origins"]) == [
        (4, "1.0"), (6, torch.__version__),
    ]  # fmt: skip
    (note,) = results["notes"]
    assert (
        f"4 networks were trained and 4 measured elsewhere: torch 1.0 (here {torch.__version__})"
        in note
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "invariance study toy"),
        ({"networks": 7, "seed": 3}, "invariance study toy --networks 7 --seed 3"),
        ({"n_train": (4, 5)}, "invariance study toy --n-train 4 5"),
        ({"task": "my data"}, "invariance study toy --task 'my data'"),
        ({"n_unseen": 3, "device": "cpu"}, "invariance study toy --n-unseen 3 --device cpu"),
        (
            {"scale": {"steps": 9, "rate": 0.1, "kinds": ("a", "b")}},
            'invariance study toy --set steps=9 --set \'kinds=["a", "b"]\'',
        ),
    ],
)
def test_the_command_is_what_differs_from_the_defaults(changes, expected):
    assert command_of(TOY, TOY.full.but(**changes), "toy") == expected
    assert (
        command_of(TOY, TOY.quick, "toy_study:STUDY") == "invariance study toy_study:STUDY --quick"
    )


def test_a_figure_that_cannot_be_written_is_one_sentence_and_records_stay(tmp_path):
    def full(records, findings, folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(StudyError, match=r"Cannot write figures .*No space left.*--resume"):
        run_study(replace(TOY, figures=full), out=tmp_path, resume=True, workers=1)
    assert not (tmp_path / "results.json").exists()
    never = replace(TOY, train=pytest.fail, measure=pytest.fail)
    assert len(run_study(never, out=tmp_path, resume=True).records) == 10


# Plain values


def test_arrays_and_tensors_become_plain():
    content = {1: (np.float32(0.5), np.arange(2)), "t": torch.tensor([[1.0, math.nan]]), "b": True}
    found = plain(content)
    assert found["1"] == [0.5, [0, 1]]
    assert found["t"][0][0] == 1.0
    assert math.isnan(found["t"][0][1])
    assert found["b"] is True
    assert type(plain(np.float64(2.0))) is float
    assert type(plain(torch.tensor(3))) is int


def test_the_text_is_faithful():
    values = {"a": [math.inf, -math.inf, 0.1, -0.0, 1e-300], "b": {"c": None}}
    assert json.loads(to_json(values)) == values
    assert math.copysign(1, json.loads(to_json(values))["a"][3]) == -1
    assert finite(values) == {"a": [None, None, 0.1, -0.0, 1e-300], "b": {"c": None}}
    assert not_finite(values) == {"a.0": "inf", "a.1": "-inf"}


def test_what_is_not_plain_is_named():
    with pytest.raises(UsageError, match=r"facts\.a\[1\] must be made of plain.*Got set"):
        to_json({"a": [1, {2}]}, "facts")


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.21, "4.2 s"), (200.4, "3 min 20 s"), (3900, "1 h 05 min")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_number_without_an_interval_says_so():
    assert ours(claim(ci_low=None).to_dict()) == "0.5 (no interval)"


# Results found in folders


def test_results_are_found_and_the_largest_full_ones_shown(outcome, results, tmp_path):
    for name, changes in {
        "a": {"networks": results["networks"][:2]},
        "b": {"options": results["options"] | {"quick": True}},
        "c": {},
        "d": {"study": "other"},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results | changes))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "results.json").write_text("[]")  # of some other program
    everything, problems = find_results([tmp_path, tmp_path / "nowhere", tmp_path / "c"])
    assert [path.parent.name for path, _ in everything] == ["a", "b", "c", "d"]

    def shown(found, study):
        return [path.parent.name for path, _ in worth_showing(found, study)]

    assert shown(everything, "toy") == ["c"]  # "a" is the same with fewer networks
    assert shown(everything, "other") == ["d"]
    assert shown(everything, "third") == []
    assert shown([entry for entry in everything if entry[0].parent.name == "b"], "toy") == ["b"]
    elsewhere = results | {"options": results["options"] | {"task": "digits"}}
    both = [*everything, (tmp_path / "f" / "results.json", elsewhere)]
    assert shown(both, "toy") == ["c", "f"]  # other options answer for other claims
    assert [str(tmp_path / "e" / "results.json") in str(problem) for problem in problems] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"schema": 1}',
        '{"schema": 2}',
        '{"schema": 1, "study": "a", "claims": [], "options": 3}',
    ],
)
def test_what_is_not_results_is_told(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(StudyError, match=r"results\.json"):
        read_results(path)
