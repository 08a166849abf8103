"""Invariance, asserted, and a broken claim shown again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from invariance.cells import CellRow
from invariance.core._groups import Group
from invariance.measures._registry import AnyMeasure
from invariance.testing.gate._binding import precisions
from invariance.testing.gate._bound_measure import RTOL, BoundMeasure, bind, choose, claim_note
from invariance.testing.gate._examine import examine
from invariance.testing.gate._findings import Certificate, Finding, NotInvariantError
from invariance.testing.gate._recorder import recorded
from invariance.transforms._base import Transform


def assert_invariant(
    measure: AnyMeasure,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    transforms: Sequence[Transform] | Transform | None = None,
    groups: Iterable[Group | str] | None = None,
    rtol: float = RTOL,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    examples: int = 1,
    data: Mapping[str, Tensor] | None = None,
    allow_constant: bool = False,
    name: str | None = None,
    explain: bool = True,
    claims_only: bool = False,
) -> Certificate:
    """Assert that function-preserving maps leave a measure's value alone.

    The value may move by ``rtol`` of itself, or by its own float error where that is larger;
    the float error is measured, not chosen. A float32 model is checked in float64 first,
    then as it is. Nothing of the caller's is changed, random states included.

    Args:
        measure: ``measure(model, x, y) -> number``, called by position; functions of
            ``(model)`` or ``(model, x)`` work too, and registered measures by name.
        model: The network, in eval mode.
        x: Inputs.
        y: Labels.
        transforms: What to apply, one or several. By default a member of every kind of map that
            the model admits, or, for a measure that declares its groups, of the declared ones;
            the certificate says which were not claimed.
        groups: Apply the kinds named here instead.
        rtol: Relative change that is not worth mentioning.
        dtype: Check in this precision only, such as ``"float64"``.
        seed: Seed of the random members.
        examples: How many random members of each default kind to draw.
        data: More tensors by task field, such as ``{"x_unseen": ...}``.
        allow_constant: Accept a measure that no change of the weights moves.
        name: The measure's name in messages; its own by default.
        explain: Narrow a failure down and look for its cause, at the price of some dozens
            of evaluations.
        claims_only: A measure that declares invariance under no rescaling at all is tried under
            rescalings all the same, and fails if they move it; True checks what it declares
            and no more.

    Returns:
        What was compared.

    Raises:
        NotInvariantError: (an ``AssertionError``) If the value moves; the message names the
            transform, the layer and the smallest factor that break the claim, and a line
            that replays it.
        FaultyMeasureError: (an ``AssertionError`` too) If the measure has no value to
            compare: NaN, complex, no scalar, side effects, chance.
        BrokenTransformError: If a given transform changes the function.
        TransformError: If a given transform does not apply to the model.
        UsageError: If nothing at all could be applied.
    """
    __tracebackhide__ = True  # pytest shows the caller's line, and our message
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
    maps, chosen = choose(bound, transforms, groups, examples, claims_only=claims_only)
    with recorded("invariant", bound.measure.name) as facts:
        certificate, findings = examine(
            bound, maps, dtype=dtype, strict=chosen, stop=True, explained=explain
        )
        if findings:
            raise NotInvariantError(tuple(_with_claim(bound, entry) for entry in findings))
        if transforms is None and (note := claim_note(bound, groups)):
            certificate = replace(certificate, notes=(*certificate.notes, note))
        facts.update(certificate.to_dict(), message=str(certificate))
    return certificate


def _with_claim(bound: BoundMeasure, finding: Finding) -> Finding:
    """Say in a finding that the measure itself does not claim what broke."""
    declared = bound.measure.declared(finding.groups)
    if bound.plain or declared == "invariant":
        return finding
    own = "a law (see assert_law)" if declared == "law" else "that it varies"
    return replace(
        finding,
        claim=f"the measure declares {own} here; claims_only=True checks its own claims alone",
    )


@dataclass(frozen=True)
class Replay:
    """One comparison shown again.

    Attributes:
        row: Before, after and the verdict.
        dtype: Precision.
    """

    row: CellRow
    dtype: str

    def __str__(self) -> str:
        row = self.row
        ratio = "" if row.ratio is None else f", ratio {row.ratio:.9g}"
        verdict = "moved" if abs(row.after - row.before) > row.tolerance else "did not move"
        return (
            f"{row.measure} {verdict}: before {row.before:.9g}, after {row.after:.9g}{ratio} "
            f"under {row.label} in {self.dtype}"
        )


def replay(
    measure: AnyMeasure,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    transform: Transform,
    *,
    rtol: float = RTOL,
    dtype: torch.dtype | str = "float64",
    seed: int = 0,
    data: Mapping[str, Tensor] | None = None,
) -> Replay:
    """Show one comparison again, without judging: what a failure's last line calls.

    Args:
        measure: As for :func:`assert_invariant`.
        model: The network.
        x: Inputs.
        y: Labels.
        transform: The one map to apply.
        rtol: Relative tolerance.
        dtype: Precision.
        seed: Seed of the round-off probes.
        data: More tensors by task field.

    Returns:
        The comparison; printing it gives one line.
    """
    bound = bind(measure, model, x, y, rtol=rtol, seed=seed, data=data, allow_constant=True)
    precision = precisions(model, dtype)[0]
    cell = bound.engine(precision).cell(transform)
    return Replay(cell.row, str(precision).removeprefix("torch."))
