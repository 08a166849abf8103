"""Scale whole layers, as the literature on sharp minima does."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.core._modules import weight_layers
from invariance.core._rng import generator
from invariance.symmetry._structures import (
    SCALING_KINDS,
    IntArray,
    Role,
    Symmetries,
    SymmetryGroup,
)
from invariance.transforms._acting import FloatArray, check_factors, prepare, what_stops
from invariance.transforms._base import Transform

#: How far the product of factors that has to be one may be from one.
PRODUCT_TOLERANCE = 1e-9


class LayerScaling(Transform):
    """Multiply every weight layer by one factor; the factors' product is 1.

    The factors are those of the weights, in the order of execution. Everything else follows:
    a bias is multiplied by the cumulative product up to its layer, since that is the factor
    of the layer's output. In a network with BatchNorm, the running statistics take up the
    factor of a layer exactly (``v -> a^2 (v + eps) - eps``), and the affine part, which makes
    the output anew, is multiplied by the cumulative product like a bias. In a network with
    branches the factors have to be consistent: layers that add to one stream share the
    cumulative product, or the transform is refused, naming them.

    Args:
        factors: One positive factor for every weight layer.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model, x = inv.models.from_weights([[[4.0]], [[1.0]]]), torch.ones(1, 1).double()
        >>> [p.tolist() for p in LayerScaling([0.5, 2.0])(model, x).parameters()]
        [[[2.0]], [[2.0]]]
    """

    group = Group.LAYER_SCALING

    def __init__(self, factors: Sequence[float]) -> None:
        self.factors = [float(f) for f in check_factors("LayerScaling", factors)]
        product = float(np.exp(np.log(self.factors).sum()))
        if abs(product - 1) > PRODUCT_TOLERANCE:
            raise TransformError(
                f"LayerScaling needs factors whose product is 1; the product of {self.factors} is "
                f"{product:.10g}. Divide the last one by it."
            )

    def __repr__(self) -> str:
        return f"LayerScaling({self.factors!r})"

    @classmethod
    def random_member(cls, model: nn.Module, seed: int) -> LayerScaling:
        """Draw a factor for every weight layer; powers of two under even seeds."""
        return cls(_random_factors(len(weight_layers(model)), seed))

    @classmethod
    def default_members(cls, model: nn.Module, seed: int) -> tuple[LayerScaling, ...]:
        """Return one scaling by powers of two and one by other factors."""
        layers = len(weight_layers(model))
        return cls(_power_of_two_factors(layers)), cls(_general_factors(layers))

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """See :meth:`Transform.apply`; ``detail["streams"]`` maps groups to their factors."""
        actor = prepare(model, example_input)
        found = actor.analysis.symmetries
        layers = dict.fromkeys(use.weight for use in found.weights)
        if len(layers) != len(self.factors):
            raise TransformError(
                f"LayerScaling got {len(self.factors)} factors; {found.model} has {len(layers)} "
                f"weight layers in this order: {', '.join(layers) or 'none'}."
            )
        groups = found.of(*SCALING_KINDS)
        used = {}
        for group, factor in zip(groups, self._solve(found, groups, list(layers)), strict=True):
            if factor != 1.0:
                actor.scale(group, np.full(group.size, factor))
                used[f"{group.site} ({group.kind})"] = factor
        named = ", ".join(f"{n} x {f:g}" for n, f in zip(layers, self.factors, strict=True))
        return actor.finish(model, repr(self), f"scaled {named}", actor.action(), {"streams": used})

    def inverse(self) -> LayerScaling:
        """Return the scaling by the reciprocal factors."""
        return LayerScaling([1.0 / factor for factor in self.factors])

    def _solve(
        self, found: Symmetries, groups: Sequence[SymmetryGroup], layers: list[str]
    ) -> FloatArray:
        """Find one factor for every group that gives every weight its own.

        Exponents are solved for in rational arithmetic, so that powers of two stay exact.
        """
        system = _System(len(groups), len(layers))
        for number, name in enumerate(layers):
            for row in _weight_rows(name, groups):
                right = [Fraction(int(i == number)) for i in range(len(layers))]
                leftover = system.add(row, right)
                if leftover is not None:
                    self._require_one(leftover, layers, found)
        for row in _norm_rows(found, groups):
            system.add(row, [Fraction(0)] * len(layers))
        factors = np.array(self.factors)
        return np.array([_product(factors, powers) for powers in system.solution()])

    def _require_one(self, powers: list[Fraction], layers: list[str], found: Symmetries) -> None:
        logs = np.log(self.factors)
        total = sum(float(p) * log for p, log in zip(powers, logs, strict=True))
        if abs(total) <= PRODUCT_TOLERANCE * max(1.0, *(abs(float(p)) for p in powers)):
            return
        terms = " * ".join(
            f"f({layer})" + ("" if power == 1 else f"^{power}")
            for layer, power in zip(layers, powers, strict=True)
            if power
        )
        raise TransformError(
            f"LayerScaling cannot give these layers independent factors: {terms} has to be 1 "
            f"(they share a stream, or a symmetry stops between them), but it is "
            f"{np.exp(total):.6g}. inv.symmetries(model, example_input) shows the streams."
            f"{what_stops(found)}"
        )


#: log2 of the factor that the first weight layer gets in the default bitwise scaling, and
#: the largest log2 of a random layer's factor.
FIRST_EXPONENT, MAX_EXPONENT = 8, 5


def _power_of_two_factors(layers: int) -> list[float]:
    """Factors ``2^8, 2^-k, ...`` with product one that touch every hidden layer.

    Powers of two change no mantissa, so the outputs stay bitwise equal; touching the
    last hidden layer matters, because a last-layer measure cannot notice otherwise.
    """
    if layers == 1:
        return [1.0]
    rest = layers - 1
    exponents = [-(FIRST_EXPONENT // rest)] * rest
    for i in range(FIRST_EXPONENT % rest):
        exponents[-1 - i] -= 1
    return [2.0**FIRST_EXPONENT, *(2.0**e for e in exponents)]


def _general_factors(layers: int) -> list[float]:
    """Factors that are not powers of two, with product one up to rounding."""
    factors = [3.0 if i % 2 == 0 else 1 / 3.0 for i in range(layers)]
    if layers % 2:
        factors[-1] = 1.0
    return factors


def _random_factors(layers: int, seed: int) -> list[float]:
    """Draw one factor a weight layer with product one: powers of two under even seeds."""
    source = generator(seed, "layer factors")
    span = 2 * MAX_EXPONENT * torch.rand(layers - 1, generator=source, dtype=torch.float64)
    logs = (span - MAX_EXPONENT).tolist()
    if seed % 2 == 0:
        logs = [float(round(log)) for log in logs]
    return [2.0 ** (now - then) for now, then in zip([*logs, 0.0], [0.0, *logs], strict=True)]


def _product(factors: FloatArray, powers: list[Fraction]) -> float:
    result = 1.0
    for factor, power in zip(factors, powers, strict=True):
        exponent = int(power) if power.denominator == 1 else float(power)
        result *= float(factor) ** exponent
    return result


def _weight_rows(name: str, groups: Sequence[SymmetryGroup]) -> list[list[Fraction]]:
    """Return the exponents of the groups' factors in the entries of a weight."""
    columns, arrays = [], []
    for number, group in enumerate(groups):
        for leg in group.legs:
            if leg.parameter == name:
                columns.append(number)
                arrays.append(np.where(leg.units >= 0, leg.power, 0))
    if not arrays:
        return [[Fraction(0)] * len(groups)]
    slim = [_slim(array) for array in arrays]
    stacked = np.stack([a.reshape(-1) for a in np.broadcast_arrays(*slim)], axis=1)
    rows = []
    for line in np.unique(stacked, axis=0).tolist():
        row = [Fraction(0)] * len(groups)
        for column, power in zip(columns, line, strict=True):
            row[column] += power
        rows.append(row)
    return rows


def _slim(array: IntArray) -> IntArray:
    for dim in range(array.ndim):
        first = array.take([0], axis=dim)
        if (array == first).all():
            array = first
    return array


def _norm_rows(found: Symmetries, groups: Sequence[SymmetryGroup]) -> list[list[Fraction]]:
    """Prefer, where there is a choice, one factor before and after every BatchNorm."""
    before, after = {}, {}
    for number, group in enumerate(groups):
        for leg in group.legs:
            if leg.role is Role.STATISTIC and leg.power > 0:
                before[leg.parameter] = number
            if leg.role is Role.PRODUCER or leg.power < 0:
                after[leg.parameter] = number
    rows = []
    for norm in found.norms:
        first = before.get(norm.tensors["running_var"])
        made = norm.tensors.get("weight", norm.tensors["running_var"])
        second = after.get(made)
        if first is not None and second is not None and first != second:
            row = [Fraction(0)] * len(groups)
            row[first], row[second] = Fraction(1), Fraction(-1)
            rows.append(row)
    return rows


class _Row(NamedTuple):
    pivot: int
    left: list[Fraction]
    right: list[Fraction]


class _System:
    """Linear equations in rational arithmetic, kept in reduced form."""

    def __init__(self, unknowns: int, knowns: int) -> None:
        self.unknowns = unknowns
        self.knowns = knowns
        self.rows: list[_Row] = []

    def add(self, left: list[Fraction], right: list[Fraction]) -> list[Fraction] | None:
        """Add an equation; return what it requires of the right side if nothing is left."""
        for row in self.rows:
            if left[row.pivot]:
                left, right = _minus(left, right, row, left[row.pivot])
        pivot = next((i for i, entry in enumerate(left) if entry), None)
        if pivot is None:
            return right if any(right) else None
        scale = left[pivot]
        new = _Row(pivot, [e / scale for e in left], [e / scale for e in right])
        self.rows = [
            _Row(row.pivot, *_minus(row.left, row.right, new, row.left[pivot]))
            if row.left[pivot]
            else row
            for row in self.rows
        ]
        self.rows.append(new)
        return None

    def solution(self) -> list[list[Fraction]]:
        """Return every unknown's combination of the knowns, free unknowns being zero."""
        found = [[Fraction(0)] * self.knowns for _ in range(self.unknowns)]
        for row in self.rows:
            found[row.pivot] = row.right
        return found


def _minus(
    left: list[Fraction], right: list[Fraction], row: _Row, times: Fraction
) -> tuple[list[Fraction], list[Fraction]]:
    return (
        [a - times * b if b else a for a, b in zip(left, row.left, strict=True)],
        [a - times * b if b else a for a, b in zip(right, row.right, strict=True)],
    )
