"""One measure on one network in one precision: its value, and its cell under each map.

Whoever asks whether a value stays under a map asks this engine: ``check``, the assertions of
:mod:`invariance.testing`, and the soak. They differ in their :class:`ComparisonPolicy` and in
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from invariance.cells._faults import (
    FaultyMeasureError,
    ambient_seed,
    as_number,
    isolated,
    watched,
)
from invariance.cells._mapped_network import MappedNetwork
from invariance.cells._roundoff import JITTERS, float_error
from invariance.cells._rows import CellRow, CellVerdict
from invariance.core._applied import Applied
from invariance.core._errors import InvarianceError, MeasureError
from invariance.core._estimate import Estimate
from invariance.core._modules import clone
from invariance.core._rng import generator
from invariance.measures._registry import Declaration, Measure, Setting
from invariance.transforms._base import Transform

#: In less than float64, round-off may excuse no more than this share of the value: a
#: measure that loses three digits there is invariant in float64 only, and gets told so.
LOW_PRECISION_CAP = 1e-3

#: A share of the value that no round-off is taken for where the value is declared to move.
LARGE = 0.01

#: A move of an estimate counts as one beyond this many standard errors of each side: a
#: false alarm in fewer than one cell in 100,000 if the errors are normal.
DECISIVE = 4.5 * 2**0.5

#: What a cell says of a measure that is silent about its kind of map.
NOT_CLAIMED = "Not claimed: the measure says nothing about this kind of map."

#: Networks of other functions that a measure has to tell apart.
OTHER_NETWORKS = 8


@dataclass(frozen=True)
class ComparisonPolicy:
    """What counts as the same value, and how far a measure is trusted.

    A value may miss its goal (the value before, or what a law predicts) by ``rtol`` of the
    goal, or by its measured float error where that is larger.

    Attributes:
        rtol: Relative change that is not worth mentioning.
        zero: Absolute value under which the exact value counts as zero.
        seed: Seed of the round-off probes.
        vetted: Look for defects of the measure itself first (chance, side effects, a value
            that is no finite number), and take no estimates.
        allow_constant: Accept a vetted measure whose value no change of the weights moves.
    """

    rtol: float = 0.0
    zero: float = 0.0
    seed: int = 0
    vetted: bool = False
    allow_constant: bool = False


@dataclass(frozen=True)
class Cell:
    """One transform tried on one measure.

    Attributes:
        row: The comparison, as a report holds it.
        transform: What was applied.
        applied: What came out of it.
        dtype: The precision.
    """

    row: CellRow
    transform: Transform
    applied: Applied = field(repr=False, compare=False)
    dtype: torch.dtype = torch.float64

    @property
    def moved(self) -> bool:
        """True if the value moved by more than the tolerance."""
        return not abs(self.row.after - self.row.before) <= self.row.tolerance


class CellEngine:
    """Evaluates one measure around one network; remembers what several cells share.

    Args:
        measure: The measure.
        network: The network with its maps, already in the precision to work in.
        inputs: The measure's arguments, in the same precision.
        policy: What counts as the same value.

    Raises:
        FaultyMeasureError: If a vetted measure has no value to compare.
        MeasureError: If the measure refuses the network.
    """

    def __init__(
        self,
        measure: Measure,
        network: MappedNetwork,
        inputs: Mapping[str, Any],
        policy: ComparisonPolicy = ComparisonPolicy(),
    ) -> None:
        self.measure = _checked(measure) if policy.vetted else measure
        self.network, self.inputs, self.policy = network, dict(inputs), policy
        self.model, self.example = network.model, network.example
        self.dtype = network.example.dtype
        self.evaluations = 0
        self._error: float | None = None
        self.before = self._vetted_value() if policy.vetted else self.value(self.model)

    def value(self, model: nn.Module) -> Estimate:
        """Evaluate the measure; every global random state is left as it was."""
        self.evaluations += 1
        with isolated():
            found = self.measure(model, **self.inputs)
            float(found)  # a vector has no place in a cell, and says so
            return found

    @property
    def error(self) -> float:
        """Absolute float error of the value at the model, as measured; computed once."""
        if self._error is None:
            self._error = self._float_error(self.model, self.before)
        return self._error

    def cell(self, transform: Transform, *, judged: bool = False) -> Cell:
        """Apply ``transform``, evaluate, and compare.

        Args:
            transform: The map to try.
            judged: Compare with the measure's own declaration (a law, for one) instead
                of with invariance.

        Returns:
            The cell.

        Raises:
            TransformError: If the transform does not apply.
            BrokenTransformError: If it changes the function.
            FaultyMeasureError: If a vetted value after it is no finite number.
            MeasureError: If the measure refuses, or if estimates cannot decide.
        """
        applied = self.network.under(transform, self.measure.name)
        after = self.value(applied.model)
        declared = self.measure.declared(transform.groups) if judged else "invariant"
        predicted = self._predict(transform, applied) if declared == "law" else None
        before = float(self.before)
        goal = before if predicted is None else predicted
        tolerance = self._tolerance(applied.model, after, goal, declared)
        if reason := _undecidable(self.before, after, tolerance):
            raise MeasureError(reason)
        claimed = not judged or self.measure.claims(transform.groups)
        verdict, note = judge(
            before, float(after), declared=declared, predicted=predicted, tolerance=tolerance
        )
        row = CellRow(
            measure=self.measure.name,
            transform=transform.name,
            before=before,
            after=float(after),
            ratio=float(after) / before if before else None,
            declared=declared,
            predicted=predicted,
            verdict=verdict,
            model=self.network.title,
            label=repr(transform),
            tolerance=tolerance,
            method=after.method,
            note=note if claimed else NOT_CLAIMED,
            claimed=claimed,
        )
        return Cell(row, transform, applied, self.dtype)

    def slack(self, cell: Cell) -> float:
        """Absolute float error of one comparison, before the map and after it."""
        after = Estimate(cell.row.after)
        return self.error + self._float_error(cell.applied.model, after)

    def _predict(self, transform: Transform, applied: Applied) -> float | None:
        laws = self.measure.laws
        law = next((laws[group] for group in transform.groups if group in laws), None)
        if law is None:
            return None
        shared = self.network.scratch(self.measure.fields)
        return law(Setting(self.model, applied, self.inputs, self.before, shared))

    def _tolerance(
        self, model: nn.Module, after: Estimate, goal: float, declared: Declaration
    ) -> float:
        """The relative tolerance asked for, or the measured float error where that is larger."""
        base = self.policy.rtol * abs(goal)
        if base and abs(float(after) - goal) <= base:
            return base  # measuring the float error could only widen it
        slack, move = self.error, abs(float(after) - goal)
        # What is within the error before the map needs none after it; neither does a large
        # move of what may move.
        if move > slack and not (declared == "varies" and move > LARGE * abs(goal) + slack):
            slack += self._float_error(model, after)
        # Round-off may not excuse everything where there is little precision.
        low = self.dtype != torch.float64
        if low and abs(goal) > self.policy.zero:
            slack = min(slack, LOW_PRECISION_CAP * abs(goal))
        return max(base, slack)

    def _float_error(self, model: nn.Module, value: Estimate) -> float:
        self.evaluations += JITTERS + 1
        with isolated():
            return float_error(self.measure, model, self.inputs, value, seed=self.policy.seed)

    def _vetted_value(self) -> Estimate:
        """Evaluate twice on throwaway copies, watching for every defect of the measure itself."""
        name = self.measure.name
        seen = []
        for ambient in (None, 12_345):
            model = clone(self.model)
            inputs = {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in self.inputs.items()
            }
            self.evaluations += 1
            with isolated():
                if ambient is None:
                    with watched(name, model, inputs):
                        result = self.measure(model, **inputs)
                else:
                    with ambient_seed(ambient):
                        result = self.measure(model, **inputs)
            seen.append(result)
        first, second = seen
        if float(first) != float(second):
            raise FaultyMeasureError(
                "not deterministic",
                name,
                f"Two calls on the same model and data gave {float(first)!r} and "
                f"{float(second)!r}.",
            )
        if not first.exact and first.residual is None:
            raise MeasureError(
                f"measure {name!r} gives only an estimate here ({first.method or 'no method'}), "
                "and two estimates cannot decide whether a value moved. Use "
                "invariance.testing.assert_equal_in_law with repeated seeds instead."
            )
        if not self.policy.allow_constant:
            self._require_dependence(first)
        return first

    def _require_dependence(self, value: Estimate) -> None:
        """Refuse a measure that gives one value for very different networks.

        A measure that reads another object than the model it is given passes every test of
        invariance. Networks of other functions tell it from a real one.
        """
        for number in range(OTHER_NETWORKS):
            other = _another_network(self.model, number, self.policy.seed)
            try:
                if float(self.value(other)) != float(value):
                    return
            except (InvarianceError, ArithmeticError, RuntimeError, ValueError):
                return  # it noticed
        raise FaultyMeasureError(
            "ignores the model",
            self.measure.name,
            f"It gave {float(value)!r} for this network, for ones with random weights and for one "
            "whose weights are all zero.",
        )


def judge(
    before: float,
    after: float,
    *,
    declared: Declaration,
    predicted: float | None,
    tolerance: float,
) -> tuple[CellVerdict, str]:
    """Compare what was measured with what was declared."""
    if not (math.isfinite(before) and math.isfinite(after)):
        return "contradicts", "The measure is not finite here."
    still = abs(after - before) <= tolerance
    if declared == "invariant":
        if still:
            return "invariant", ""
        return "contradicts", f"Declared invariant, but it moved by {after - before:.3g}."
    if declared == "law":
        if predicted is None:
            note = "No law for this transform; the value is reported as it came out."
            return ("invariant" if still else "varies"), note
        if abs(after - predicted) <= tolerance:
            return "law", ""
        return "contradicts", f"The law gives {predicted:.6g}, measured {after:.6g}."
    return (
        ("invariant", "Declared to vary in general; it does not move here.")
        if still
        else (
            "varies",
            "",
        )
    )


def _undecidable(before: Estimate, after: Estimate, tolerance: float) -> str | None:
    """Say why two estimates with standard errors cannot decide whether the value moved.

    With common random numbers an invariant estimate does not move at all, and a large
    move is a move; between the two, noise and effect cannot be told apart.
    """
    noise = max(before.stderr or 0.0, after.stderr or 0.0)
    if before.exact or before.residual is not None or noise == 0.0:
        return None
    moved = abs(float(after) - float(before))
    if moved <= tolerance or moved > DECISIVE * noise:
        return None
    return (
        f"Undecided: it moved by {moved:.3g}, and the standard error is {noise:.3g} "
        f"({after.method}). Ask for more samples or for an exact measure."
    )


def _checked(measure: Measure) -> Measure:
    """The same measure, whose every result is a finite scalar estimate or a reported fault."""

    def function(model: nn.Module, **inputs: Any) -> Estimate:
        return as_number(measure.function(model, **inputs), measure.name)

    return replace(measure, function=function)


def _another_network(model: nn.Module, number: int, seed: int) -> nn.Module:
    """A copy with other weights: perturbed, random, of one sign (no ReLU is dead), or zero."""
    copied = clone(model)
    source = generator(seed, "another network", number)
    with torch.no_grad():
        for parameter in copied.parameters():
            noise = torch.randn(parameter.shape, generator=source).to(parameter)
            if number == 0:
                parameter.mul_(1 + 0.5 * noise)
            elif number == OTHER_NETWORKS - 1:
                parameter.zero_()
            elif number <= 2:
                parameter.copy_(noise.abs() if number == 1 else -noise.abs())
            else:
                parameter.copy_(noise)
    return copied
