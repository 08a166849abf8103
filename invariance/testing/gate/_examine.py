"""Every map in every precision: rows for what held, findings for what broke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from invariance.cells import (
    BrokenTransformError,
    Cell,
    CellEngine,
    CellRow,
    FaultyMeasureError,
    Refusal,
)
from invariance.core._errors import (
    EndedProgramError,
    InvarianceError,
    UnevaluatedError,
    UsageError,
)
from invariance.testing.blame._explain import explained as explain
from invariance.testing.gate._binding import precisions
from invariance.testing.gate._bound_measure import BoundMeasure
from invariance.testing.gate._findings import Certificate, Finding, replay_line
from invariance.transforms._base import Transform


def examine(
    bound: BoundMeasure,
    maps: Sequence[Transform],
    *,
    dtype: torch.dtype | str | None = None,
    strict: bool = False,
    stop: bool = False,
    judged: bool = False,
    explained: bool = True,
) -> tuple[Certificate, tuple[Finding, ...]]:
    """Try every map in every precision."""
    rows: list[CellRow] = []
    refused: dict[str, Refusal] = {}
    open_claim: UnevaluatedError | None = None
    findings: list[Finding] = []
    notes: list[str] = []
    used: list[str] = []
    evaluations = 0
    zero, last = 0.0, None
    wanted = precisions(bound.model, dtype)
    for precision in wanted:
        made = _engine(bound, precision, zero, bool(used), dtype is None, notes)
        if made is None:
            continue
        last = made
        used.append(str(precision).removeprefix("torch."))
        for transform in maps:
            try:
                cell = made.cell(transform, judged=judged)
            except (FaultyMeasureError, BrokenTransformError, EndedProgramError):
                raise
            except InvarianceError as error:
                if strict:
                    raise
                refused[repr(transform)] = Refusal(repr(transform), str(error))
                open_claim = open_claim or _unevaluated(made, transform, error, judged)
                continue
            rows.append(cell.row)
            broken = cell.row.verdict == "contradicts" if judged else cell.moved
            if not broken:
                continue
            finding = _finding(bound, made, cell, roundoff=len(used) > 1, explained=explained)
            findings.append(finding)
            if stop:
                break
        if precision != wanted[-1] and len(used) == 1:
            zero = max(zero, 100 * made.error)  # needed in the next precision only
        evaluations += made.evaluations
        if findings:
            break  # a claim that is broken in float64 says nothing about round-off
    if open_claim and not findings:
        raise open_claim
    if last is not None and not rows:
        reasons = "; ".join(f"{entry.what}: {entry.reason}" for entry in refused.values())
        raise UsageError(
            f"Nothing was checked: no transform applies to this model. {reasons or 'None named.'}"
        )
    certificate = Certificate(
        bound.measure.name,
        tuple(rows),
        tuple(refused.values()),
        tuple(used),
        evaluations,
        tuple(notes),
    )
    return certificate, tuple(findings)


def _unevaluated(
    made: CellEngine, transform: Transform, error: InvarianceError, judged: bool
) -> UnevaluatedError | None:
    """Say that a map of the claim applies and the measure does not answer."""
    claimed = not judged or made.measure.claims(transform.groups)
    if not (claimed and made.network.admits(transform)):
        return None
    return UnevaluatedError(
        f"Measure {made.measure.name!r} could not be compared under {transform!r} in {made.dtype}, "
        f"which keeps the function and is part of the claim: {error} A claim holds only where it "
        "was tried: mend the measure, or claim less."
    )


def _engine(
    bound: BoundMeasure,
    precision: torch.dtype,
    zero: float,
    again: bool,
    may_skip: bool,
    notes: list[str],
) -> CellEngine | None:
    """Return an engine, or ``None`` for a measure that cannot run in float64."""
    own = precisions(bound.model, None)[-1]
    try:
        return bound.engine(precision, zero)
    except FaultyMeasureError as error:
        if again and error.kind in ("nan", "infinite"):
            raise FaultyMeasureError(
                error.kind,
                error.measure,
                f"{error.detail} It is finite in float64 and not in {precision}: only round-off "
                "and range are to blame.",
            ) from error
        raise
    except (RuntimeError, TypeError) as error:
        if precision != torch.float64 or own == precision or not may_skip:
            raise
        try:
            bound.engine(own, zero)
        except (RuntimeError, TypeError):
            raise error from None  # it fails in either precision: the user's own error
        first = str(error).split("\n", 1)[0]
        notes.append(f"Checked in {own} only: the measure cannot run in float64 ({first}).")
        return None


def _finding(
    bound: BoundMeasure, made: CellEngine, cell: Cell, *, roundoff: bool, explained: bool
) -> Finding:
    dtype = str(made.dtype).removeprefix("torch.")
    label = repr(cell.transform)
    finding = Finding(
        row=cell.row,
        groups=cell.transform.groups,
        dtype=dtype,
        replay=replay_line(label, dtype),
        plain=bound.plain,
        law="breaks its declared law" if cell.row.predicted is not None else "",
    )
    if roundoff:
        return replace(
            finding,
            cause=f"{dtype} round-off",
            explanation=(
                f"only {dtype} round-off is to blame: it is invariant only in float64. Compute "
                "it there (model.double(), x.double()) or rewrite the step that cancels; to "
                'claim no more than that, pass dtype="float64"'
            ),
        )
    if not explained or cell.row.predicted is not None:
        return finding
    return explain(finding, made, cell.transform)
