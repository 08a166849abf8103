"""How a measure behaves under every kind of map, found out and not declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invariance.cells import BrokenTransformError, Cell, CellEngine, FaultyMeasureError
from invariance.core._errors import EndedProgramError, InvarianceError
from invariance.core._groups import Group
from invariance.measures._registry import AnyMeasure, Declaration
from invariance.testing.blame._explain import explained
from invariance.testing.gate._binding import precisions
from invariance.testing.gate._bound_measure import RTOL, BoundMeasure, as_group, as_groups, bind
from invariance.testing.gate._findings import Finding
from invariance.testing.gate._recorder import record
from invariance.transforms._members import members

Behaviour = Literal["invariant", "moves", "does not apply"]

#: Random members of each kind, besides the default ones.
EXTRA_MEMBERS = 2


@dataclass(frozen=True)
class Behaves:
    """One cell of the master table, with its evidence.

    Attributes:
        group: The kind of map.
        behaviour: What was seen.
        maps: How many members were tried.
        largest_change: Largest relative change of the value over them.
        finding: The first member that moved the value, narrowed down; ``None`` if none did.
        declared: What the measure declares; ``None`` where it claims nothing.
        reason: Why the kind does not apply.
    """

    group: Group
    behaviour: Behaviour
    maps: int = 0
    largest_change: float = 0.0
    finding: Finding | None = None
    declared: Declaration | None = None
    reason: str = ""

    @property
    def law(self) -> str:
        """The cell in a few words: ``invariant``, a power of alpha, or ``moves``."""
        if self.finding is None or self.behaviour != "moves":
            return self.behaviour
        trend = self.finding.trend
        if trend is None or trend.flat:
            return "moves"
        if trend.exponent is not None:
            return f"moves as alpha^{trend.exponent:.2f}"
        if trend.terms:
            powers = ", ".join(f"{power:+d}" for power in trend.terms)
            return f"moves as a sum of alpha^({powers})"
        return "moves"

    @property
    def contradicts(self) -> bool:
        """True if it was declared invariant and moves."""
        return self.declared == "invariant" and self.behaviour == "moves"

    @property
    def evidence(self) -> str:
        """What the cell rests on, in one line."""
        if self.behaviour == "does not apply":
            return self.reason
        if self.finding is None:
            return f"largest relative change {self.largest_change:.1e} over {self.maps} maps"
        smallest = self.finding.smallest
        if smallest is None:
            row = self.finding.row
            return f"{row.before:.6g} -> {row.after:.6g} by {row.label}"
        where = f" at `{smallest.site}`" if smallest.site else ""
        return f"{smallest.before:.6g} -> {smallest.after:.6g} by {smallest.transform}{where}"

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as plain data."""
        return {
            "group": self.group.value,
            "behaviour": self.behaviour,
            "law": self.law,
            "maps": self.maps,
            "largest_change": self.largest_change,
            "declared": self.declared,
            "evidence": self.evidence,
            "finding": self.finding.to_dict() if self.finding else None,
        }


@dataclass(frozen=True)
class Description:
    """A measure's row of the master table.

    Attributes:
        measure: The measure's name.
        model: Class of the model that it was measured on.
        value: Its value there.
        dtype: Precision.
        cells: Group to what was found.
    """

    measure: str
    model: str
    value: float
    dtype: str
    cells: Mapping[Group, Behaves]

    def __getitem__(self, group: Group | str) -> Behaves:
        return self.cells[as_group(group)]

    @property
    def invariant_under(self) -> frozenset[Group]:
        """The kinds of map that left the value alone: what a declaration would list."""
        return frozenset(g for g, cell in self.cells.items() if cell.behaviour == "invariant")

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {
            "measure": self.measure,
            "model": self.model,
            "value": self.value,
            "dtype": self.dtype,
            "cells": {group.value: cell.to_dict() for group, cell in self.cells.items()},
        }

    def __str__(self) -> str:
        lines = [f"{self.measure} = {self.value:.9g} on {self.model}, in {self.dtype}"]
        width = max((len(cell.law) for cell in self.cells.values()), default=0)
        for group, cell in self.cells.items():
            against = "  CONTRADICTS its declaration" if cell.contradicts else ""
            lines.append(f"  {group.value:<18} {cell.law:<{width}}  {cell.evidence}{against}")
        return "\n".join(lines)


def describe(
    measure: AnyMeasure,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    groups: Iterable[Group | str] | None = None,
    rtol: float = RTOL,
    dtype: torch.dtype | str = "float64",
    seed: int = 0,
    data: Mapping[str, Tensor] | None = None,
    allow_constant: bool = False,
    name: str | None = None,
) -> Description:
    """Find out how a measure behaves under every kind of map that a model admits.

    Args:
        measure: As for :func:`invariance.testing.assert_invariant`.
        model: The network, in eval mode.
        x: Inputs.
        y: Labels.
        groups: The kinds to try; by default all but changes of coordinates.
        rtol: Relative change that is not worth mentioning.
        dtype: Precision.
        seed: Seed of the random members.
        data: More tensors by task field.
        allow_constant: Accept a measure that no change of the weights moves.
        name: The measure's name; its own by default.

    Returns:
        The measure's row; printing it shows each cell with its evidence.

    Raises:
        FaultyMeasureError: If the measure has no value to compare.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.mlp([3, 4, 2], dtype=torch.float64).eval()
        >>> x, y = torch.rand(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
        >>> def confidence(model, x, y):
        ...     return float(model(x).detach().softmax(1).max())
        >>> found = inv.testing.describe(confidence, model, x, y)
        >>> "confidence" in str(found)
        True
    """
    bound = bind(
        measure,
        model,
        x,
        y,
        rtol=rtol,
        seed=seed,
        data=data,
        allow_constant=allow_constant,
        name=name,
    )
    precision = precisions(model, dtype)[0]
    engine = bound.engine(precision)
    wanted = (
        [group for group in Group if group is not Group.COORDINATES]
        if groups is None
        else as_groups(groups)
    )
    cells = {group: _cell(bound, engine, group) for group in wanted}
    found = Description(
        measure=bound.measure.name,
        model=type(model).__name__,
        value=float(engine.before),
        dtype=str(precision).removeprefix("torch."),
        cells=cells,
    )
    broken = any(cell.contradicts for cell in cells.values())
    record(
        "description", found.measure, holds=not broken, message=str(found), detail=found.to_dict()
    )
    return found


def _cell(bound: BoundMeasure, engine: CellEngine, group: Group) -> Behaves:
    claimed = not bound.plain and bound.measure.claims([group])
    declared = bound.measure.declared([group]) if claimed else None
    maps = members(engine.model, [group], bound.seed, 1 + EXTRA_MEMBERS)
    tried, change, reason = 0, 0.0, ""
    first: Cell | None = None
    for transform in maps:
        try:
            cell = engine.cell(transform)
        except (FaultyMeasureError, BrokenTransformError, EndedProgramError):
            raise
        except InvarianceError as error:
            reason = reason or str(error)
            continue
        tried += 1
        row = cell.row
        scale = abs(row.before)
        change = max(change, abs(row.after - row.before) / scale if scale else abs(row.after))
        if cell.moved and first is None:
            first = cell
            break
    if not tried:
        return Behaves(group, "does not apply", declared=declared, reason=reason)
    if first is None:
        return Behaves(group, "invariant", tried, change, declared=declared)
    bare = Finding(
        row=first.row,
        groups=first.transform.groups,
        dtype=str(engine.dtype).removeprefix("torch."),
        plain=bound.plain,
    )
    return Behaves(
        group, "moves", tried, change, explained(bare, engine, first.transform), declared
    )
