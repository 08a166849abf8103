"""A cell of the atlas, a row, and what is raised when evidence and declaration disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from invariance.core._errors import InvarianceError
from invariance.core._groups import Group
from invariance.measures._registry import Declaration

HowKnown = Literal["symbolic", "argument", "numerical", "counterexample"]

#: A declaration, or ``undeclared`` for a kind of map that a measure says nothing about.
Declared = Declaration | Literal["undeclared"]


class AtlasError(InvarianceError, AssertionError):
    """A declaration that its own evidence contradicts, or a cell without evidence."""


@dataclass(frozen=True)
class Cell:
    """One measure (or algorithm) under one kind of map.

    Attributes:
        group: The kind of map.
        declared: What is claimed.
        proof: How it is known: ``"symbolic"``, ``"argument"``, ``"numerical"`` or
            ``"counterexample"``; ``None`` where nothing is claimed.
        evidence: The proof, argument, comparison or counterexample in words.
    """

    group: str
    declared: Declared
    proof: HowKnown | None
    evidence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as JSON has it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Entry:
    """One row of the atlas.

    Attributes:
        name: The measure's Python name.
        source: Where it is from.
        cost: ``"cheap"``, ``"solver"`` or ``"sampling"``.
        summary: What it is, in a line.
        pitfall: How published code gets it wrong, where it is known to.
        cells: One for every kind of map.
    """

    name: str
    source: str
    cost: str
    summary: str
    pitfall: str
    cells: tuple[Cell, ...]

    def cell(self, group: Group | str) -> Cell:
        """Return the cell of one kind of map."""
        return next(cell for cell in self.cells if cell.group == group)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it."""
        return vars(self) | {"cells": [cell.to_dict() for cell in self.cells]}
