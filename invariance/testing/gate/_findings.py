"""What a broken claim looks like: the facts, and the message that a reader gets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import invariance.transforms as T
from invariance.cells import CellRow, Refusal
from invariance.core._groups import ABOUT, Group
from invariance.reporting._words import word
from invariance.testing.blame._trends import Trend


@dataclass(frozen=True)
class SiteFinding:
    """How the measure behaves at one site of the model.

    Attributes:
        site: The layer whose output is moved, as the model calls it.
        transform: The smallest map there that breaks the claim, as it can be replayed.
        factor: Its factor; ``None`` where there is none.
        before: Value before it.
        after: Value after it.
        trend: How the value moves with the factor; ``None`` where there is none.
        layers: Every module whose parameters the map moves.
    """

    site: str
    transform: str
    factor: float | None
    before: float
    after: float
    trend: Trend | None = None
    layers: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """``after / before``; ``None`` where ``before`` is zero."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class Finding:
    """One broken claim.

    Attributes:
        row: The comparison that failed.
        groups: The kinds of map that the transform is made of.
        dtype: Precision in which it failed.
        sites: Every site that breaks the claim alone, the first of the network first.
        intact: Sites that do not break it alone.
        responsible: The layers that every failure can be put down to, and no success
            speaks for.
        smallest: The smallest map that breaks the claim; ``None`` if only the whole does.
        cause: ``"biases"``, ``"BatchNorm parameters"``, ``"float32 round-off"`` or ``""``.
        explanation: The cause in a sentence.
        replay: A line of Python that shows it again.
        law: What was claimed instead of invariance, in words; ``""`` for invariance.
        plain: True if the measure has no declarations of its own.
        claim: What the measure itself claims, where that is less than what broke.
    """

    row: CellRow
    groups: tuple[Group, ...]
    dtype: str
    sites: tuple[SiteFinding, ...] = ()
    intact: tuple[str, ...] = ()
    responsible: tuple[str, ...] = ()
    smallest: SiteFinding | None = None
    cause: str = ""
    explanation: str = ""
    replay: str = ""
    law: str = ""
    plain: bool = True
    claim: str = ""

    @property
    def trend(self) -> Trend | None:
        """The smallest map's trend, if it has one."""
        return self.smallest.trend if self.smallest else None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        row = self.row
        groups = ", ".join(self.groups)
        claim = self.law or "is not invariant"
        ratio = "undefined" if row.ratio is None else f"{row.ratio:.9g}"
        lines = [
            f"measure {row.measure!r} {claim} under {row.transform} (group {groups}).",
            f"  before     {row.before:.9g}",
            f"  after      {row.after:.9g}   by {row.label}",
            f"  ratio      {ratio}   (change {row.after - row.before:.3g}, allowed "
            f"{row.tolerance:.2g}, in {self.dtype})",
        ]
        if row.predicted is not None:
            lines.append(f"  predicted  {row.predicted:.9g}   by its declared law")
        if self.smallest is not None:
            lines += self._where(self.smallest)
        if self.explanation:
            lines.append(f"  cause      {self.explanation}")
        elif meaning := self._meaning():
            lines.append(f"  likely     {meaning}")
        claim = self.claim
        if self.plain and not self.law and self.cause != "float32 round-off":
            claim = "if the measure claims less, say so: groups=[...] or transforms=[...]"
        if claim:
            lines.append(f"  claims     {claim}")
        if self.replay:
            lines.append(f"  replay     {self.replay}")
        return lines

    def _where(self, smallest: SiteFinding) -> list[str]:
        where = f" at `{smallest.site}`" if smallest.site else ""
        factor = "" if smallest.factor is None else f", factor {smallest.factor:g}"
        ratio = "" if smallest.ratio is None else f", ratio {smallest.ratio:.6g}"
        lines = [f"  smallest   {smallest.transform}{where}{factor}{ratio}"]
        if self.responsible:
            named = ", ".join(f"`{name}`" for name in self.responsible)
            lines.append(f"  layer      {named}")
        others = [entry for entry in self.sites if entry.site != smallest.site]
        if others:
            listed = ", ".join(
                f"`{entry.site}`" + (f" ({entry.trend})" if entry.trend else "")
                for entry in others[:6]
            )
            lines.append(f"             also moved at {listed}{' ...' if len(others) > 6 else ''}")
        if self.intact and self.sites:
            still = ", ".join(f"`{name}`" for name in self.intact[:6])
            lines.append(f"             not moved at {still}")
        if smallest.trend is not None and not smallest.trend.flat:
            # A known cause explains more than the shape of the curve does.
            hint = f": {smallest.trend.hint}" if smallest.trend.hint and not self.cause else ""
            lines.append(f"  trend      {smallest.trend}{where}{hint}")
        return lines

    def _meaning(self) -> str:
        if self.trend is not None and self.trend.hint:
            return ""
        return next((ABOUT[group].meaning for group in self.groups if ABOUT[group].meaning), "")

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data, for JSON."""
        smallest = self.smallest
        return {
            **self.row.to_dict(),
            "groups": [str(group) for group in self.groups],
            "dtype": self.dtype,
            "sites": [entry.site for entry in self.sites],
            "site": smallest.site if smallest else None,
            "layers": list(self.responsible),
            "smallest": smallest.transform if smallest else None,
            "factor": smallest.factor if smallest else None,
            "trend": str(self.trend) if self.trend else None,
            "exponent": self.trend.exponent if self.trend else None,
            "cause": self.cause or None,
            "explanation": self.explanation or None,
            "replay": self.replay,
        }


class NotInvariantError(AssertionError):
    """A measure that broke its claim; ``findings`` hold the facts.

    Attributes:
        findings: One for each claim that broke.
    """

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        self.findings = findings
        super().__init__("\n\n".join(str(finding) for finding in findings))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.findings,))


@dataclass(frozen=True)
class Certificate:
    """A claim that held: what was compared, and what did not apply.

    Attributes:
        measure: The measure's name.
        rows: Every comparison.
        refused: Maps that the model does not admit, each with its reason.
        dtypes: Precisions that the claim was checked in.
        evaluations: How often the measure was called.
        notes: Anything a reader should know.
    """

    measure: str
    rows: tuple[CellRow, ...]
    refused: tuple[Refusal, ...] = ()
    dtypes: tuple[str, ...] = ()
    evaluations: int = 0
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        found = "; ".join(f"{what} under {', '.join(maps)}" for what, maps in self.outcomes.items())
        lines = [
            f"measure {self.measure!r}: {found} ({', '.join(self.dtypes)}; "
            f"{self.evaluations} evaluations)."
        ]
        lines += [f"  not applied: {entry.what}: {entry.reason}" for entry in self.refused]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    @property
    def outcomes(self) -> dict[str, list[str]]:
        """Maps by what the measure did under them: *invariant*, *follows its law*, ..."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            maps = found.setdefault(word(row), [])
            if row.transform not in maps:
                maps.append(row.transform)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain data, for JSON."""
        return {
            "measure": self.measure,
            "rows": [row.to_dict() for row in self.rows],
            "refused": [entry.to_dict() for entry in self.refused],
            "dtypes": list(self.dtypes),
            "evaluations": self.evaluations,
            "notes": list(self.notes),
        }


def replayable(label: str) -> str | None:
    """Return a transform's ``repr`` with its names qualified, or ``None`` if it is foreign.

    ``Compose([NeuronScaling(seed=1)])`` becomes
    ``inv.transforms.Compose([inv.transforms.NeuronScaling(seed=1)])``.
    """
    names = set(re.findall(r"\b([A-Za-z_]\w*)\(", label))
    if not names or not names <= {*T.__all__, "AtSite"}:
        return None
    qualified = re.sub(
        r"(?<![\w.])([A-Za-z_]\w*)\(",
        lambda found: (
            f"inv.testing.{found[1]}(" if found[1] == "AtSite" else f"inv.transforms.{found[1]}("
        ),
        label,
    )
    try:
        compile(qualified, "<replay>", "eval")
    except SyntaxError:
        return None
    return qualified


def replay_line(label: str, dtype: str) -> str:
    """Return a line that runs with ``measure``, ``model``, ``x`` and ``y`` in scope."""
    written = replayable(label) or "transform"
    foreign = "" if written != "transform" else f"  # transform = {label}"
    return (
        f"import invariance as inv; print(inv.testing.replay(measure, model, x, y, {written}, "
        f'dtype="{dtype}")){foreign}'
    )
