"""The table that ``print(symmetries(...))`` shows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from invariance.symmetry._structures import Stop, Symmetries, SymmetryGroup

WIDTH = 100


def render(found: Symmetries, width: int = WIDTH) -> str:
    """Return the groups as a table and the stops as a list, at most ``width`` wide."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, legacy_windows=False)
    table = Table(title=f"Symmetries of {found.model}", title_justify="left", expand=False)
    table.add_column("kind")
    table.add_column("degrees", justify="right")
    table.add_column("produced by", overflow="fold")
    table.add_column("consumed by", overflow="fold")
    for group in found.groups:
        others = [f"({name})" for name in group.others]
        table.add_row(
            Text(group.kind.replace("_", " ").replace("batchnorm", "BatchNorm")),
            Text(_degrees(group)),
            Text(_names(group.producers)),
            Text(_names((*group.consumers, *others))),
        )
    console.print(table)
    if not found.groups:
        console.print(Text("No symmetry was found."))
    if found.stops:
        console.print(Text("Where symmetries stop"))
        for line in _merged(found.stops):
            console.print(Text("  " + line))
    for label, names in (("Unused", found.unused), ("Frozen", found.frozen)):
        if names:
            console.print(Text(f"{label} parameters: {_names(names)}"))
    if found.holds_for:
        console.print(Text(f"Holds for {'; '.join(found.holds_for)}"))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _degrees(group: SymmetryGroup) -> str:
    if group.kind == "permutation":
        return f"{group.size}!"
    if group.kind == "sign_flip":
        return f"2^{group.size}"
    return str(group.dof)


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown}, and {len(names) - 6} more" if len(names) > 6 else shown


def _merged(stops: tuple[Stop, ...]) -> list[str]:
    """Say once what several places have in common."""
    places: dict[tuple[str, str], list[str]] = {}
    for stop in stops:
        places.setdefault((stop.operation, stop.reason), []).append(f"`{stop.place}`")
    return [
        f"{', '.join(where)} {operation} {reason}".replace("  ", " ")
        for (operation, reason), where in places.items()
    ]
