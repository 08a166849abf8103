"""Every claim of every study in one Markdown page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invariance.core._text import printable, without_html
from invariance.reporting._markdown import markdown_table
from invariance.studies.claims._claims import FORMER_WORDS
from invariance.studies.report._report import CLAIM_COLUMNS, JUDGEMENT, claim_cells

WORDS = ("supported", "contradicted", "open", "theorem", "not tested")


def claims_page(found: Sequence[tuple[Path, Mapping[str, Any]]], page: Path) -> str:
    """Render the claims of all results; links are relative to where the page will lie."""
    parts = [
        "# Every claim of every study",
        "Made by `invariance studies --markdown PATH` from the results that lie in folders; none "
        f"is left out. {JUDGEMENT}",
        summary(found, page),
    ]
    for path, results in found:
        report = os.path.relpath(path.parent / "report.md", page.parent)
        fixed = results.get("regions")
        parts += [
            f"## {without_html(results['title'])}",
            f"`{results['command']}` ([report]({Path(report).as_posix()})), "
            f"{len(results['networks']):,} networks. {without_html(results['paper'])}."
            + (f" Regions fixed on {fixed['fixed']} in `{fixed['file']}`." if fixed else ""),
            markdown_table(
                ["asked by", *CLAIM_COLUMNS],
                [
                    ["us" if claim.get("ours") else "paper", *claim_cells(claim)]
                    for claim in results["claims"]
                ],
            ),
        ]
    return printable("\n\n".join(parts) + "\n")


def summary(found: Sequence[tuple[Path, Mapping[str, Any]]], page: Path) -> str:
    """Render one row a study: how many of its claims have which verdict."""
    rows = []
    for path, results in found:
        words = Counter(
            FORMER_WORDS.get(claim["verdict"], claim["verdict"]) for claim in results["claims"]
        )
        report = Path(os.path.relpath(path.parent / "report.md", page.parent)).as_posix()
        rows.append(
            [
                f"[{path.parent.name}]({report})",
                f"{len(results['networks']):,}",
                *(str(words[word]) if words[word] else "-" for word in WORDS),
            ]
        )
    return markdown_table(["study", "networks", *WORDS], rows)
