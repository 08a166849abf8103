"""A study's claims on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from invariance.studies.report._report import claim_cells

_STYLES = {
    "supported": "green",
    "contradicted": "red",
    "open": "yellow",
    "theorem": "blue",
    "not tested": "dim",
}


def claims_table(title: str, claims: Sequence[Mapping[str, Any]]) -> Table:
    """Arrange claims as a table: the paper's number, ours, the verdict."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("claim", overflow="fold", ratio=1)
    for heading in ("paper", "ours (95 % interval)", "n", "p (Holm)"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for claim in claims:
        *cells, verdict = claim_cells(claim)
        table.add_row(*map(Text, cells), Text(verdict, style=_STYLES.get(verdict, "")))
    return table
