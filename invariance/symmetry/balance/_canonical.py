"""The canonical representative of a network's scaling, sign and permutation orbit.

Five steps, each of which moves along the orbit only, in float64:

1. what may be shifted freely gets mean zero;
2. where running variances answer a scale, the smallest ``variance + eps`` of each unit
   becomes one;
3. all other units are balanced, the squared norm of what produces a unit equal to that of
   what consumes it: the point of least parameter norm of the orbit, unique by convexity
   (:mod:`invariance.symmetry.balance._scalings`, which also says what happens to units with zero
   incoming or outgoing weights);
4. where signs are free, a fixed linear function of each unit's weights becomes positive;
5. units are sorted by norm, ties within round-off broken by fixed functions of the weights.

Two networks on one orbit arrive at the same tensors, up to round-off. Units that all these
functions cannot tell apart (exact copies, or a symmetric network) keep their present order
and are named in :attr:`CanonicalForm.ambiguous`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from invariance.core._errors import MeasureError, TransformError
from invariance.core._modules import clone
from invariance.symmetry._preconditions import example_or_default, refuse_train_mode
from invariance.symmetry._structures import SCALING_KINDS, Symmetries, SymmetryGroup, SymmetryKind
from invariance.symmetry._verify import verify
from invariance.symmetry.balance._scalings import (
    BalanceResult,
    ScalingDesign,
    ScalingLeg,
    minimise_over_scalings,
)
from invariance.symmetry.balance._sorting import Sorter
from invariance.symmetry.elements._group_elements import (
    Element,
    GroupElement,
    Tensors,
    named_tensors,
    write_tensors,
)


@dataclass(frozen=True, eq=False)
class CanonicalForm:
    """A network's canonical representative, and how it was reached.

    Attributes:
        model: The representative, a copy of the model's own class, dtype and device.
        tensors: Its parameters and buffers by first name, still in float64.
        element: The group element that leads from the model to the representative.
        symmetries: What the element's parts refer to.
        balance: The convex problem's result: value, certified residual, iterations.
        ambiguous: Sites of groups in which some units could not be told apart, or some
            signs could not be chosen.
    """

    model: nn.Module
    tensors: Tensors
    element: Element
    symmetries: Symmetries
    balance: BalanceResult
    ambiguous: tuple[str, ...]


def canonicalize(model: nn.Module, example_input: Any = None) -> nn.Module:
    """Return the canonical representative of a network's scaling and permutation orbit.

    Args:
        model: Any module that :func:`~invariance.symmetry.symmetries` can analyse, in eval
            mode if it has BatchNorm. It is left as it is.
        example_input: A batch that the model accepts; may be omitted for a network whose
            first weight layer is linear.

    Returns:
        A new module that computes the same function; equal, up to round-off, for any two
        networks on one orbit.

    Raises:
        TransformError: If the representative cannot be found; says why.

    Example:
        A unit with 4 coming in and 1 going out is balanced at 2 and 2:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[4.0]], [[1.0]]])
        >>> balanced = inv.canonicalize(model, torch.ones(1, 1).double())
        >>> [round(float(p.detach()), 9) for p in balanced.parameters()]
        [2.0, 2.0]
    """
    return canonical_form(model, example_input).model


def canonical_form(model: nn.Module, example_input: Any = None) -> CanonicalForm:
    """Like :func:`canonicalize`, but with the element, the certificate and the caveats.

    Args:
        model: As for :func:`canonicalize`.
        example_input: As for :func:`canonicalize`.

    Returns:
        The :class:`CanonicalForm`.

    Raises:
        TransformError: If parameters are not finite, if two scales multiply one entry, or
            if the balancing does not converge.

    Example:
        One unit with weights 4 and 1: balanced, both are ``sqrt(4 * 1)``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[4.0]], [[1.0]]])
        >>> form = inv.symmetry.canonical_form(model, torch.ones(1, 1).double())
        >>> [round(float(value), 9) for value in form.tensors.values()]
        [2.0, 2.0]
    """
    from invariance.symmetry.analysis._symmetries import symmetries as analyse

    who = "canonicalize"
    refuse_train_mode(model, who)
    x = example_or_default(model, example_input, who)
    found = analyse(model, x)
    tensors = named_tensors(model, double=True)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TransformError(f"{who}: {name!r} has entries that are not finite.")
    parameters = {name for name, _ in model.named_parameters()}

    centred = Element(
        tuple(
            (place, _centred(group, tensors))
            for place, group in enumerate(found.groups)
            if group.kind is SymmetryKind.TRANSLATION
        )
    )
    tensors = centred.act(tensors, found)
    normed = Element(
        tuple(
            (place, _unit_variance(group, tensors))
            for place, group in enumerate(found.groups)
            if group.kind in SCALING_KINDS and _has_variance(group)
        )
    )
    tensors = normed.act(tensors, found)
    fixed = {place for place, _ in normed.steps}
    balance, scaled = balance_units(tensors, found, parameters, skip=fixed)
    tensors = scaled.act(tensors, found)
    sorter = Sorter(tensors, found, _dtype_tolerance(model))
    arranged, ambiguous = sorter.arrange()
    tensors, element = sorter.tensors, centred.then(normed).then(scaled).then(arranged)

    new = clone(model)
    write_tensors(new, tensors)
    verify(model, new, x, who)
    return CanonicalForm(new, tensors, element, found, balance, ambiguous)


def scaling_design(
    found: Symmetries, *, skip: set[int] | None = None, per_unit: bool = True
) -> tuple[ScalingDesign, dict[int, slice]]:
    """Write the scaling groups of a network as one design for the convex problem.

    Args:
        found: The network's symmetries.
        skip: Places of groups to leave out.
        per_unit: One log-scale a unit; if False, one for all units of a group.

    Returns:
        The design, and where each group's log-scales lie, by the group's place.
    """
    legs: list[ScalingLeg] = []
    spans: dict[int, slice] = {}
    units = 0
    for place, group in enumerate(found.groups):
        if group.kind not in SCALING_KINDS or place in (skip or set()):
            continue
        count = group.size if per_unit else 1
        spans[place] = slice(units, units + count)
        for leg in group.legs:
            if leg.power == 0 or leg.shift != 0:
                continue
            unit = torch.from_numpy(leg.units.copy())
            moved = torch.where(unit >= 0, (unit if per_unit else 0 * unit) + units, unit)
            legs.append(ScalingLeg(leg.parameter, moved, leg.power))
        units += count
    return ScalingDesign(units, tuple(legs)), spans


def balance_units(
    tensors: Tensors, found: Symmetries, parameters: set[str], *, skip: set[int]
) -> tuple[BalanceResult, Element]:
    """Find the scales of least parameter norm."""
    design, spans = scaling_design(found, skip=skip)
    design = ScalingDesign(
        design.units, tuple(leg for leg in design.legs if leg.parameter in parameters)
    )
    weights = {name: t.square() for name, t in tensors.items() if name in parameters}
    try:
        result = minimise_over_scalings(weights, design, power=2.0, tolerance=1e-11)
    except MeasureError as error:
        raise TransformError(f"canonicalize cannot balance this network: {error}") from error
    if not result.converged:
        raise TransformError(
            "canonicalize could not balance the units' norms to 1e-11: a relative imbalance of "
            f"{result.residual:.3g} is left after {result.iterations} Newton steps. Some unit "
            "hangs on weights too small for float64; set them to zero if they mean nothing."
        )
    scales = result.log_scales.exp()
    groups = found.groups
    return result, Element(
        tuple(
            (place, GroupElement(groups[place].kind, groups[place].site, scales[span]))
            for place, span in spans.items()
        )
    )


def _centred(group: SymmetryGroup, tensors: Tensors) -> GroupElement:
    """Make the mean of what every number is added to zero."""
    sums, counts = torch.zeros(2, group.size + 1, dtype=torch.float64)
    for leg in group.legs:
        tensor = tensors[leg.parameter].cpu()
        units = torch.from_numpy(leg.units.copy()).expand(tensor.shape).reshape(-1)
        places = torch.where(units >= 0, units, group.size)
        sums.index_add_(0, places, tensor.reshape(-1))
        counts.index_add_(0, places, torch.ones_like(tensor.reshape(-1)))
    return GroupElement(group.kind, group.site, -(sums / counts.clamp_min(1))[:-1])


def _has_variance(group: SymmetryGroup) -> bool:
    return any(leg.shift != 0 for leg in group.legs)


def _unit_variance(group: SymmetryGroup, tensors: Tensors) -> GroupElement:
    """Make the smallest ``variance + eps`` of each unit one, so that no variance is negative."""
    smallest = torch.full((group.size,), torch.inf, dtype=torch.float64)
    for leg in group.legs:
        if leg.shift == 0 or leg.power == 0:
            continue
        units = torch.from_numpy(leg.units.copy())
        value = (tensors[leg.parameter].cpu() + leg.shift) ** (2.0 / leg.power)
        where = units.expand(value.shape).reshape(-1)
        inside = where >= 0
        smallest.scatter_reduce_(0, where[inside], value.reshape(-1)[inside], "amin")
    factors = torch.where(torch.isfinite(smallest), smallest.rsqrt(), torch.ones_like(smallest))
    return GroupElement(group.kind, group.site, factors)


def _dtype_tolerance(model: nn.Module) -> float:
    """Below which relative gap two units' keys count as tied."""
    eps = max(
        (torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()),
        default=torch.finfo(torch.float64).eps,
    )
    return float(eps) ** 0.5 * 1e-2 if eps < 1e-10 else 1e2 * float(eps)
