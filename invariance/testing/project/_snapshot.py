"""Today's master table of a project's measures, recorded and compared cell by cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invariance.core._errors import UsageError
from invariance.core._files import write_atomically
from invariance.testing.project._describe import Description

#: Version of the JSON layout.
SCHEMA = 1

#: Measure and network to group to the cell in words.
Table = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Change:
    """One cell that is not what was recorded.

    Attributes:
        row: The measure and the network.
        group: The kind of map.
        recorded: The cell then; ``None`` if there was none.
        found: The cell now; ``None`` if there is none.
        evidence: What the new cell rests on.
    """

    row: str
    group: str
    recorded: str | None
    found: str | None
    evidence: str = ""

    def __str__(self) -> str:
        then, now = self.recorded or "(not recorded)", self.found or "(gone)"
        tail = f"\n      {self.evidence}" if self.evidence else ""
        return f"  {self.row}  {self.group}:\n    - {then}\n    + {now}{tail}"


def table_of(rows: Mapping[str, Description]) -> dict[str, dict[str, str]]:
    """Return the cells in words: no numbers that a new version of a library could nudge."""
    return {
        name: {group.value: cell.law for group, cell in found.cells.items()}
        for name, found in rows.items()
    }


def save_snapshot(path: Path, rows: Mapping[str, Description]) -> Path:
    """Record the table."""
    content = {"schema": SCHEMA, "table": table_of(rows)}
    return write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def load_snapshot(path: Path) -> dict[str, dict[str, str]]:
    """Read a recorded table."""
    if not path.is_file():
        raise UsageError(f"There is no snapshot {path}. Record one with --update.")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        table = content["table"]
        if content["schema"] != SCHEMA:
            raise UsageError(
                f"{path} has layout {content['schema']!r}, expected {SCHEMA}. Record it again "
                "with --update."
            )
        return {
            str(row): {str(k): str(v) for k, v in cells.items()} for row, cells in table.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no snapshot of invariance. Record one with --update."
        ) from error


def compare(recorded: Table, rows: Mapping[str, Description]) -> list[Change]:
    """Compare cell by cell."""
    found = table_of(rows)
    changes = []
    for name in [*recorded, *(row for row in found if row not in recorded)]:
        then, now = recorded.get(name, {}), found.get(name, {})
        for group in [*then, *(entry for entry in now if entry not in then)]:
            if then.get(group) == now.get(group):
                continue
            evidence = ""
            if name in rows and group in now:
                evidence = rows[name][group].evidence
            changes.append(Change(name, group, then.get(group), now.get(group), evidence))
    return changes


def render(changes: Sequence[Change], path: Path) -> str:
    """Return the differences as text; says how to accept them."""
    if not changes:
        return f"snapshot {path}: no cell changed"
    count = f"{len(changes)} cell{'s' if len(changes) > 1 else ''} changed"
    body = "\n".join(str(change) for change in changes)
    return f"snapshot {path}: {count}\n{body}\nAccept with --update if this was meant."
