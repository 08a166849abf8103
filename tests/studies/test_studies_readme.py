"""Catches: published tables of claims that the committed results do not bear out."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from invariance.papers import STUDIES
from invariance.studies.claims._claims import Claim, judged
from invariance.studies.report._claims_page import claims_page, summary
from invariance.studies.report._overview import find_results
from invariance.studies.report._rejudge import record_of
from invariance.studies.report._report import render_markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "demos" / "results"
PAGE = RESULTS / "claims.md"


@pytest.fixture(scope="module")
def found():
    results, problems = find_results([RESULTS])
    assert not problems
    return results


def test_the_page_of_claims_is_what_the_command_writes(found):
    """Made by: invariance studies --results demos/results --markdown demos/results/claims.md."""
    assert PAGE.read_text() == claims_page(found, PAGE)


def test_the_site_counts_the_verdicts_of_every_study(found):
    text = (ROOT / "docs" / "pages" / "claims.md").read_text()
    block = text.split("<!-- claims: begin -->")[1].split("<!-- claims: end -->")[0]
    assert block.strip() == summary(found, ROOT / "README.md").strip()
    assert "demos/results/claims.md" in text


def test_every_verdict_follows_from_its_numbers(found):
    """No word is written by hand: the rules give it again from the numbers beside it."""
    for path, results in found:
        claims = [Claim.from_dict(claim) for claim in results["claims"]]
        again = judged(claims)
        for claim, new, written in zip(claims, again, results["claims"], strict=True):
            assert new.verdict == written["verdict"], (path, claim.name)
            if claim.p_adjusted is not None:
                assert new.p_adjusted == pytest.approx(claim.p_adjusted), (path, claim.name)


def test_every_report_is_made_of_its_results(found):
    for path, results in found:
        assert path.with_name("report.md").read_text() == render_markdown(results), path
        for figure in results["figures"]:
            assert (path.parent / figure["file"]).stat().st_size > 5_000
        assert not list(path.parent.rglob("*.safetensors"))


def test_networks_of_committed_results_are_what_their_settings_say(found):
    for _, results in found:
        for network in results["networks"][::50]:
            assert record_of(network).config.id == network["id"]


def test_regions_are_those_of_the_files(found):
    known = {study.name: study.declared for study in STUDIES}
    for path, results in found:
        claims = [Claim.from_dict(claim) for claim in results["claims"]]
        declared = known[results["study"]]
        assert declared.check(claims) == [], path
        assert results["regions"]["fixed"] == declared.fixed
    for study in STUDIES:
        assert study.declared is not None, study.name


def test_a_file_of_regions_is_no_older_than_it_says():
    """The day in it is that of the first commit that has it; skipped where there is no history."""
    for file in (ROOT / "invariance" / "papers" / "regions").glob("*.json"):
        log = subprocess.run(
            ["git", "log", "--format=%cs", "--", file],
            cwd=ROOT, capture_output=True, text=True, check=False,
        ).stdout.split()  # fmt: skip
        fixed = json.loads(file.read_text())["fixed"]
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", fixed)
        if log:
            assert fixed >= log[-1], file
