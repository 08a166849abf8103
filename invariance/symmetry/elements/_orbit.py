"""Are two networks the same up to a known symmetry, and by which element?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from invariance.symmetry._structures import Symmetries
from invariance.symmetry.balance._canonical import CanonicalForm, canonical_form
from invariance.symmetry.elements._group_elements import (
    Element,
    Tensors,
    named_tensors,
    write_tensors,
)


@dataclass(frozen=True, eq=False)
class OrbitResult:
    """Whether two networks are related by scaling, signs and reordering of units.

    Attributes:
        related: Whether an element was found that carries the first onto the second.
        element: That element, in the numbering of the first network; ``None`` if none.
        residual: Largest difference of any tensor entry, relative to the tensor's largest,
            between the second network and the first after the element acted, and between
            their canonical forms; infinite if the networks cannot be compared.
        tolerance: What ``residual`` had to stay below.
        reason: Why (not), in one sentence.
        worst: Name of the tensor with the largest difference.
        ambiguous: Groups in which units could not be told apart: there a "no" is weaker.
    """

    related: bool
    element: Element | None
    residual: float
    tolerance: float
    reason: str
    worst: str = ""
    ambiguous: tuple[str, ...] = ()
    symmetries: Symmetries | None = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return self.related

    def apply(self, model: nn.Module) -> nn.Module:
        """Apply the element to a copy of the first network.

        Args:
            model: The first network, or one of the same architecture.

        Returns:
            The second network, up to round-off.

        Raises:
            TransformError: If the networks are not related.
        """
        from invariance.core._errors import TransformError
        from invariance.core._modules import clone

        if self.element is None or self.symmetries is None:
            raise TransformError(f"There is no element to apply: {self.reason}")
        new = clone(model)
        moved = self.element.act(named_tensors(new, double=True), self.symmetries)
        write_tensors(new, moved)
        return new


def same_orbit(
    a: nn.Module,
    b: nn.Module,
    example_input: Any = None,
    *,
    tolerance: float | None = None,
) -> OrbitResult:
    """Say whether two networks differ by a known symmetry, and find the element.

    Known are scalings, sign flips and permutations of units, as
    :func:`~invariance.symmetry.symmetries` lists them. Parameters that the forward pass
    never reads, and counters, may differ.

    Args:
        a: The first network; neither is changed.
        b: The second network.
        example_input: A batch that both accept; may be omitted for networks whose first
            weight layer is linear.
        tolerance: On the residual; by default 1e-8 in float64 and 1e-3 in float32.

    Returns:
        The :class:`OrbitResult`; it is truthy when the networks are related.

    Raises:
        TransformError: If one of them has no canonical form; says why.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model, x = inv.models.mlp([2, 3, 2], dtype=torch.float64), torch.rand(1, 2).double()
        >>> other = inv.transforms.NeuronScaling(seed=1)(model, x)
        >>> stranger = inv.models.mlp([2, 3, 2], seed=1, dtype=torch.float64)
        >>> bool(inv.same_orbit(model, other, x)), bool(inv.same_orbit(model, stranger, x))
        (True, False)
    """
    limit = _default_tolerance(a) if tolerance is None else tolerance
    problem = _different_architecture(a, b)
    if problem:
        return OrbitResult(False, None, float("inf"), limit, problem)
    forms = canonical_form(a, example_input), canonical_form(b, example_input)
    found = forms[0].symmetries
    problem = _different_groups(found, forms[1].symmetries)
    if problem:
        return OrbitResult(False, None, float("inf"), limit, problem)
    ambiguous = tuple(dict.fromkeys(forms[0].ambiguous + forms[1].ambiguous))
    element = _element(forms, named_tensors(a, double=True))
    moved = element.act(named_tensors(a, double=True), found)
    # Two looks: at the raw tensors, where a small unit may hide behind a large one, and at
    # the canonical forms, where every unit has its natural scale.
    raw, worst = _difference(moved, named_tensors(b, double=True), set(found.unused))
    canonical, place = _difference(forms[0].tensors, forms[1].tensors, set(found.unused))
    residual, worst = max((raw, worst), (canonical, place))
    if residual <= limit:
        reason = f"An element carries the first onto the second: {element}."
        return OrbitResult(True, element, residual, limit, reason, worst, ambiguous, found)
    reason = (
        f"Brought to canonical form, they differ in {worst!r} by {residual:.3g} of its largest "
        f"entry (tolerance {limit:.3g})."
    )
    if ambiguous:
        reason += f" Units of {', '.join(ambiguous)} could not be told apart."
    return OrbitResult(False, None, residual, limit, reason, worst, ambiguous, found)


def _element(forms: tuple[CanonicalForm, CanonicalForm], start: Tensors) -> Element:
    """Go from the first network to its canonical form, and from there to the second network."""
    found = forms[0].symmetries
    path = forms[0].element.then(forms[1].element.inverse())
    normal = path.normal(found)
    # One step a group is easier to read, but where a scale belongs to several classes of
    # units the steps do not commute that simply: look, and keep the path where they differ.
    gap, _ = _difference(normal.act(start, found), path.act(start, found), set())
    return normal if gap <= 1e-10 else path


def _default_tolerance(model: nn.Module) -> float:
    eps = max(
        (torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()),
        default=torch.finfo(torch.float64).eps,
    )
    return 1e-8 if eps < 1e-10 else 1e4 * float(eps)


def _different_architecture(a: nn.Module, b: nn.Module) -> str:
    """Say in what the two networks' tensors differ, or nothing."""
    mine, yours = named_tensors(a), named_tensors(b)
    for name in (*mine, *yours):
        if name not in mine or name not in yours:
            return f"Only one of the networks has a tensor {name!r}."
        if mine[name].shape != yours[name].shape:
            return (
                f"{name!r} has shape {tuple(mine[name].shape)} in one network and "
                f"{tuple(yours[name].shape)} in the other."
            )
    return ""


def _different_groups(a: Symmetries, b: Symmetries) -> str:
    """Say where the two networks' groups differ, or nothing."""
    if len(a.groups) != len(b.groups):
        return f"One network has {len(a.groups)} symmetry groups, the other {len(b.groups)}."
    for mine, yours in zip(a.groups, b.groups, strict=True):
        same = (mine.kind, mine.size, len(mine.legs)) == (yours.kind, yours.size, len(yours.legs))
        if not same or not all(
            x.parameter == y.parameter
            and np.array_equal(x.units, y.units)
            and (x.power, x.sign_power, x.shift) == (y.power, y.sign_power, y.shift)
            for x, y in zip(mine.legs, yours.legs, strict=True)
        ):
            return f"Their groups at {mine.site!r} and {yours.site!r} act differently."
    return ""


def _difference(a: Tensors, b: Tensors, ignored: set[str]) -> tuple[float, str]:
    """Return the largest relative difference over tensors, and where it is."""
    worst, where = 0.0, ""
    for name, mine in a.items():
        if name in ignored or not mine.is_floating_point() or not mine.numel():
            continue
        yours = b[name].to(mine)
        scale = max(float(mine.abs().max()), float(yours.abs().max()))
        gap = float((mine - yours).abs().max()) / scale if scale > 0 else 0.0
        if gap > worst or not where:
            worst, where = gap, name
    return worst, where
