"""The convex problem behind minimum sharpness and the canonical form.

A scaling with log-scales ``u`` (one a unit) multiplies parameter entry ``i`` by
``exp((D u)_i)``: plus one for the unit that the entry produces, minus one for the unit
that it consumes. Squared parameters then move by ``exp(2 (D u)_i)`` and Hessian diagonals
by ``exp(-2 (D u)_i)``, so both

* the flattest point of an orbit, ``min_u sum_i H_ii exp(-2 (D u)_i)``, and
* the point of least norm of an orbit, ``min_u sum_i theta_i^2 exp(2 (D u)_i)``,

are one problem: balancing a non-negative matrix by a diagonal similarity (Osborne, 1960,
"On pre-conditioning of matrices", J. ACM 7), with a node for each unit and one "ground"
node for whatever is not scaled (inputs, outputs, biases' other side). The objective is a
sum of exponentials of linear functions, hence convex; it is minimised by monotone
parallel Osborne steps followed by Newton's method on a graph Laplacian.

Where no minimum exists. The entries between different strongly connected components of
that graph can be driven to zero by scaling alone, the entries inside one cannot. So the
infimum is the sum of the components' minima, and ``attained`` says whether it is a
minimum. The scale of a component that does not hang together with the ground in both
directions (a unit whose incoming or whose outgoing weights are all zero) is fixed by a
rule that is itself invariant: the logarithms of the entries between components are as
close to zero as possible in least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from invariance.core._errors import MeasureError
from invariance.symmetry.balance._general import minimise_exponentials
from invariance.symmetry.balance._matrix import (
    Index,
    Vector,
    balance,
    first_of_island,
    scaled_matrix,
    settle,
    strong_components,
)


@dataclass(frozen=True)
class ScalingLeg:
    """Which unit scales each entry of one parameter, and in which direction.

    Attributes:
        parameter: The parameter's name.
        unit: Integer tensor that broadcasts against the parameter's shape: the number of
            the unit that scales the entry, or -1 for none. ``(out, 1)`` for the rows of a
            linear layer, ``(1, in)`` for its columns, ``(1, 1)`` for all of it.
        sign: ``+1`` if the entry is multiplied by the unit's scale (it produces the
            unit), ``-1`` if it is divided by it (it consumes the unit); other integers are
            powers of the scale.
    """

    parameter: str
    unit: Tensor
    sign: int


@dataclass(frozen=True)
class ScalingDesign:
    """How a group of positive scalings acts on parameters: the matrix D, as legs.

    Attributes:
        units: How many log-scales there are.
        legs: The legs; the signs of all legs that reach an entry add up.
    """

    units: int
    legs: tuple[ScalingLeg, ...]

    def exponents(self, name: str, log_scales: Tensor, shape: Sequence[int]) -> Tensor:
        """Return ``(D u)`` for one parameter.

        Args:
            name: The parameter's name.
            log_scales: ``(units,)`` log-scales ``u``.
            shape: The parameter's shape.

        Returns:
            A tensor of that shape; the parameter's entries scale by its exponential.
        """
        total = torch.zeros(tuple(shape), dtype=log_scales.dtype, device=log_scales.device)
        padded = torch.cat([log_scales, log_scales.new_zeros(1)])
        for leg in self.legs:
            if leg.parameter == name:
                total = total + leg.sign * padded[leg.unit.to(log_scales.device)]
        return total


@dataclass(frozen=True)
class BalanceResult:
    """The minimum (or infimum) of ``sum_i h_i exp(power (D u)_i)`` over ``u``.

    Attributes:
        value: The infimum.
        log_scales: ``(units,)`` float64 minimiser ``u``; where the infimum is not
            attained, the module's rule fixes the free scales.
        residual: Largest relative imbalance of a unit, ``|in - out| / (in + out)``: the
            gradient at ``log_scales``, relative to its own two terms. Zero at the minimum.
        iterations: Newton steps taken.
        converged: Whether ``residual`` met the tolerance.
        attained: Whether the infimum is a minimum; if not, some entries can be driven to
            zero by scaling alone, and they count as zero in ``value``.
        objective: The sum at ``log_scales``; equals ``value`` when attained.
    """

    value: float
    log_scales: Tensor
    residual: float
    iterations: int
    converged: bool
    attained: bool
    objective: float


def minimise_over_scalings(
    weights: Mapping[str, Tensor],
    design: ScalingDesign,
    *,
    power: float = -2.0,
    tolerance: float = 1e-12,
    max_iterations: int = 100,
) -> BalanceResult:
    """Minimise ``sum_i h_i exp(power (D u)_i)`` over the log-scales ``u``.

    Args:
        weights: Parameter name to its non-negative ``h``, in the parameter's shape. With
            ``power=-2`` the diagonal of a Hessian, with ``power=2`` squared parameters.
            Parameters without legs add a constant.
        design: The group's legs; every parameter that it names must be in ``weights``.
            :func:`~invariance.symmetry.scaling_design` writes a network's groups as one.
        power: The exponent with which an entry answers a scale; not zero.
        tolerance: On the largest relative imbalance of a unit.
        max_iterations: Newton steps at most.

    Returns:
        The :class:`BalanceResult`.

    Raises:
        MeasureError: If an entry is negative or not finite after summing over what scales
            alike (then the sum is not convex and has no lower bound), or if the legs are
            malformed.
    """
    if power == 0 or not np.isfinite(power):
        raise MeasureError(f"Expected a finite power other than zero. Got {power}.")
    if not _is_difference(design):
        return _minimise_general(weights, design, power, tolerance, max_iterations)
    matrix, negated = _assemble(weights, design), power > 0
    if negated:  # exp(+2 D u): the same problem with every edge turned round
        matrix = matrix.T.tocsr()
    component = strong_components(matrix)
    edges = matrix.tocoo()
    rows, columns = edges.row.astype(np.int64), edges.col.astype(np.int64)
    inside = component[rows] == component[columns]
    core = sparse.csr_matrix(
        (edges.data[inside], (rows[inside], columns[inside])), shape=matrix.shape
    )
    scales, residual, iterations = balance(core, component, tolerance, max_iterations)
    cross = ~inside
    if cross.any():
        scales = settle(scales, component, rows[cross], columns[cross], edges.data[cross])
    # One shift of everything that hangs together moves no entry: the ground stays at 0, and
    # so does the first unit of any island without contact to it.
    scales = scales - scales[first_of_island(matrix)]
    value = float(scaled_matrix(core, scales).sum())
    objective = float(scaled_matrix(matrix, scales).sum())
    return BalanceResult(
        value=value,
        log_scales=torch.from_numpy(scales[1:].copy()) * (2.0 / abs(power)),
        residual=residual,
        iterations=iterations,
        converged=residual <= tolerance,
        attained=not cross.any(),
        objective=objective,
    )


def _is_difference(design: ScalingDesign) -> bool:
    """Whether every entry is multiplied by at most one unit's scale and divided by one."""
    by_sign: dict[tuple[str, int], Tensor] = {}
    for leg in design.legs:
        if abs(leg.sign) != 1:
            return False
        claimed = by_sign.get((leg.parameter, leg.sign), torch.full((1,), -1))
        if claimed.dim() != leg.unit.dim() and claimed.numel() > 1:
            return True  # malformed; _endpoints says how
        if bool(((claimed.cpu() >= 0) & (leg.unit.cpu() >= 0)).any()):
            return False
        by_sign[leg.parameter, leg.sign] = torch.maximum(claimed.cpu(), leg.unit.cpu())
    return True


def _minimise_general(
    weights: Mapping[str, Tensor],
    design: ScalingDesign,
    power: float,
    tolerance: float,
    max_iterations: int,
) -> BalanceResult:
    """Minimise where entries take other combinations of log-scales than differences."""
    matrix, data, constant = _rows(weights, design)
    found = minimise_exponentials(matrix, data, tolerance, max_iterations)
    return BalanceResult(
        value=found.value + constant,
        log_scales=torch.from_numpy(found.scales / power),
        residual=found.residual,
        iterations=found.iterations,
        converged=found.residual <= tolerance,
        attained=found.attained,
        objective=found.objective + constant,
    )


def _rows(
    weights: Mapping[str, Tensor], design: ScalingDesign
) -> tuple[sparse.csr_matrix, Vector, float]:
    """Return coefficients and weight of every distinct entry, and the sum of unscaled ones."""
    by_name = _legs_by_name(weights, design)
    blocks: list[sparse.csr_matrix] = []
    values: list[Vector] = []
    constant = 0.0
    for name, tensor in weights.items():
        units = [_unit_of(name, tensor, leg, design.units) for leg in by_name.get(name, [])]
        ends = units or [torch.full((1,) * tensor.dim(), -1)]
        amount = _checked(name, _summed(tensor.detach().double(), *ends).cpu())
        flat = amount.reshape(-1).numpy()
        row, column, sign = [], [], []
        for leg, unit in zip(by_name.get(name, []), units, strict=True):
            spread = unit.expand(amount.shape).reshape(-1).numpy()
            at = np.flatnonzero((spread >= 0) & (flat > 0))
            row.append(at)
            column.append(spread[at])
            sign.append(np.full(at.size, float(leg.sign)))
        if not row:
            constant += float(flat.sum())
            continue
        ijv = (np.concatenate(sign), (np.concatenate(row), np.concatenate(column)))
        block = sparse.csr_matrix(ijv, shape=(flat.size, design.units))
        block.eliminate_zeros()
        moving = np.diff(block.indptr) > 0
        constant += float(flat[~moving].sum())
        blocks.append(block[moving])
        values.append(flat[moving])
    if not blocks:
        return sparse.csr_matrix((0, design.units)), np.zeros(0), constant
    return sparse.vstack(blocks).tocsr(), np.concatenate(values), constant


def _legs_by_name(
    weights: Mapping[str, Tensor], design: ScalingDesign
) -> dict[str, list[ScalingLeg]]:
    """Sort the legs by parameter; refuse names without weights."""
    by_name: dict[str, list[ScalingLeg]] = {}
    for leg in design.legs:
        if leg.parameter not in weights:
            raise MeasureError(
                f"The design has a leg on {leg.parameter!r}, but weights has no such entry. "
                f"Got: {', '.join(weights) or 'nothing'}."
            )
        by_name.setdefault(leg.parameter, []).append(leg)
    return by_name


def _assemble(weights: Mapping[str, Tensor], design: ScalingDesign) -> sparse.csr_matrix:
    """Sum the weights into ``M[producer, consumer]`` over nodes 0 (ground), 1..units."""
    by_name = _legs_by_name(weights, design)
    heads: list[Index] = []
    tails: list[Index] = []
    values: list[Vector] = []
    for name, tensor in weights.items():
        head, tail = _endpoints(name, tensor, by_name.get(name, []), design.units)
        amount = _checked(name, _summed(tensor.detach().double(), head, tail).cpu())
        heads.append(head.expand(amount.shape).reshape(-1).numpy() + 1)
        tails.append(tail.expand(amount.shape).reshape(-1).numpy() + 1)
        values.append(amount.reshape(-1).numpy())
    size = design.units + 1
    if not values:
        return sparse.csr_matrix((size, size), dtype=np.float64)
    ends = (np.concatenate(heads), np.concatenate(tails))
    matrix = sparse.csr_matrix((np.concatenate(values), ends), shape=(size, size))
    matrix.eliminate_zeros()  # a stored zero would count as an edge
    return matrix


def _checked(name: str, amount: Tensor) -> Tensor:
    """Refuse sums that are negative or not finite."""
    low = float(amount.min()) if amount.numel() else 0.0
    if not bool(torch.isfinite(amount).all()) or low < 0.0:
        raise MeasureError(
            f"Expected non-negative finite weights for {name!r}, so that the sum is convex and "
            f"bounded below. Got a smallest entry of {low!r}. A Hessian diagonal can be negative "
            "away from a minimum: use the Gauss-Newton diagonal, which cannot."
        )
    return amount


def _unit_of(name: str, tensor: Tensor, leg: ScalingLeg, units: int) -> Tensor:
    """Return a leg's units, checked against the tensor's shape."""
    unit = leg.unit.detach().cpu().to(torch.int64)
    fits = unit.dim() == tensor.dim() and all(
        a in (1, b) for a, b in zip(unit.shape, tensor.shape, strict=True)
    )
    if not fits or (unit.numel() and int(unit.max()) >= units):
        raise MeasureError(
            f"A leg on {name!r} of shape {tuple(tensor.shape)} must hold units below {units} in "
            f"a shape that broadcasts against it. Got shape {tuple(unit.shape)}."
        )
    return unit


def _endpoints(
    name: str, tensor: Tensor, legs: list[ScalingLeg], units: int
) -> tuple[Tensor, Tensor]:
    """Return the producing and the consuming unit of each entry, broadcastable; -1: none."""
    ends = {}
    for sign in (1, -1):
        end = torch.full((1,) * tensor.dim(), -1, dtype=torch.int64)
        for leg in legs:
            if leg.sign == sign:
                end = torch.maximum(end, _unit_of(name, tensor, leg, units))
        ends[sign] = end
    return ends[1], ends[-1]


def _summed(tensor: Tensor, *ends: Tensor) -> Tensor:
    """Sum over the axes along which no end varies."""
    axes = [axis for axis in range(tensor.dim()) if all(end.shape[axis] == 1 for end in ends)]
    return tensor.sum(dim=axes, keepdim=True) if axes else tensor
