"""Catches: a table of claims on the site that its own committed results do not bear out."""

import json
import re
from pathlib import Path

from invariance.papers import STUDIES
from invariance.studies.report._report import ours

ROOT = Path(__file__).parents[2]
HEADING = re.compile(r"^`(invariance study \S+.*)` \(\[report\]\((.+)/report\.md\)\)$")


def rows():
    """Yield (command, folder, cells) for every row of the table between the two marks."""
    text = (ROOT / "docs" / "pages" / "claims.md").read_text()
    block = text.split("<!-- claims: begin -->")[1].split("<!-- claims: end -->")[0]
    command = folder = None
    for line in block.splitlines():
        if found := HEADING.match(line):
            command, folder = found[1], ROOT / found[2]
        elif line.startswith("| ") and not line.startswith("| claim"):
            yield command, folder, [cell.strip() for cell in line.strip("|").split(" | ")]


def test_every_row_is_what_the_committed_results_say():
    seen = 0
    for command, folder, (statement, paper, number, n, verdict) in rows():
        results = json.loads((folder / "results.json").read_text())
        assert results["command"] == command
        (claim,) = [claim for claim in results["claims"] if claim["statement"] == statement]
        expected = "-" if claim["paper"] is None else f"{claim['paper']:.4g}"
        assert (paper, number) == (expected, ours(claim)), statement
        assert (n, verdict) == (str(claim["n"]), claim["verdict"]), statement
        seen += 1
    assert seen > 20


def test_every_study_is_in_the_table_with_its_figures():
    folders = {folder for _, folder, _ in rows()}
    assert {json.loads((f / "results.json").read_text())["study"] for f in folders} == {
        study.name for study in STUDIES
    }
    for folder in folders:
        report = (folder / "report.md").read_text()
        for figure in re.findall(r"!\[.*\]\((.+)\)", report):
            assert (folder / figure).stat().st_size > 5_000
        assert not list(folder.rglob("*.safetensors"))
