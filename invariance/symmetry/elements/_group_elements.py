"""Elements of symmetry groups, and how they act on a module's tensors.

An element holds, for each group of a :class:`~invariance.symmetry._structures.Symmetries`,
what is done to each unit: a positive factor, a sign, or a new order. The formulas are those
of :mod:`invariance.symmetry._structures`, leg by leg.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._errors import TransformError
from invariance.symmetry._structures import (
    SCALING_KINDS,
    IntArray,
    Leg,
    Symmetries,
    SymmetryGroup,
    SymmetryKind,
)

#: A module's parameters and buffers by their first name.
Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class GroupElement:
    """What happens to the units of one group.

    Attributes:
        kind: The group's kind, which says what ``values`` mean.
        site: The group's name for a reader.
        values: ``(size,)`` positive factors (scaling kinds), signs -1 or +1 (sign flips),
            the old unit that each new unit is (permutations), or what is added (translations).
    """

    kind: SymmetryKind
    site: str
    values: Tensor

    @property
    def trivial(self) -> bool:
        """Whether nothing happens, beyond round-off."""
        if self.kind is SymmetryKind.PERMUTATION:
            return bool((self.values == torch.arange(self.values.numel())).all())
        if self.kind is SymmetryKind.TRANSLATION:
            return bool((self.values.abs() <= 1e-12).all())
        return bool(((self.values - 1).abs() <= 1e-12).all())

    def inverse(self) -> GroupElement:
        """Return what undoes it."""
        if self.kind is SymmetryKind.PERMUTATION:
            undo = torch.argsort(self.values)
        else:
            undo = -self.values if self.kind is SymmetryKind.TRANSLATION else 1 / self.values
        return GroupElement(self.kind, self.site, undo)


@dataclass(frozen=True, eq=False)
class Element:
    """One element of the product of a module's groups, as steps that are taken in turn.

    Attributes:
        steps: Pairs of a group's place in ``Symmetries.groups`` and what happens to it. Each
            step refers to the units' numbering at its time. In :meth:`normal` form there is
            at most one step a group, and scales and signs come before new orders, so that
            they refer to the numbering of the network that the element starts from.
    """

    steps: tuple[tuple[int, GroupElement], ...] = ()

    def __str__(self) -> str:
        moved = [part for _, part in self.steps if not part.trivial]
        if not moved:
            return "the identity"
        return "; ".join(f"{part.kind} at {part.site}" for part in moved)

    def part(self, site: str, kind: SymmetryKind | str) -> GroupElement | None:
        """Return the first step at a site of a kind, if there is one."""
        for _, part in self.steps:
            if part.site == site and part.kind == SymmetryKind(kind):
                return part
        return None

    def then(self, other: Element) -> Element:
        """Return the element that takes these steps and after them ``other``'s."""
        return Element(self.steps + other.steps)

    def inverse(self) -> Element:
        """Return the element that undoes this one."""
        return Element(tuple((place, part.inverse()) for place, part in reversed(self.steps)))

    def act(self, tensors: Tensors, symmetries: Symmetries) -> Tensors:
        """Return the tensors after the element acted; the given ones stay as they are.

        Args:
            tensors: Parameters and buffers by first name.
            symmetries: What the element belongs to.

        Returns:
            New tensors where a group acts, the same ones elsewhere.
        """
        moved = dict(tensors)
        for place, part in self.steps:
            group = symmetries.groups[place]
            for leg in group.legs:
                moved[leg.parameter] = act_on_leg(moved[leg.parameter], group, leg, part.values)
        return moved

    def normal(self, symmetries: Symmetries) -> Element:
        """Return the same element with one step a group: scale and flip first, then reorder.

        One that translates is returned as it is, for translations do not commute with these.
        """
        if any(part.kind is SymmetryKind.TRANSLATION for _, part in self.steps):
            return self
        factors: dict[int, Tensor] = {}
        orders: dict[int, tuple[int, Tensor]] = {}
        for place, part in self.steps:
            stream = symmetries.groups[place].stream
            order = orders[stream][1] if stream in orders else None
            if part.kind is SymmetryKind.PERMUTATION:
                orders[stream] = (place, part.values if order is None else order[part.values])
                continue
            values = part.values
            if order is not None:  # give each old unit what its present place receives
                values = torch.empty_like(part.values)
                values[order] = part.values
            factors[place] = factors[place] * values if place in factors else values
        merged = [*sorted(factors.items()), *sorted(orders.values())]
        groups = symmetries.groups
        return Element(
            tuple((p, GroupElement(groups[p].kind, groups[p].site, v)) for p, v in merged)
        )


def act_on_leg(tensor: Tensor, group: SymmetryGroup, leg: Leg, values: Tensor) -> Tensor:
    """Let one group act on one tensor through one leg."""
    if group.kind is SymmetryKind.PERMUTATION:
        return _reordered(tensor, leg, values)
    if group.kind is SymmetryKind.TRANSLATION:
        padded = torch.cat([values.to(tensor), tensor.new_zeros(1)])
        return tensor + padded[torch.from_numpy(leg.units.copy()).to(tensor.device)]
    if group.kind in SCALING_KINDS:
        power, shift = leg.power, leg.shift
    elif group.kind is SymmetryKind.SIGN_FLIP:
        power, shift = leg.sign_power, 0.0
    else:
        raise TransformError(f"A {group.kind} is not one number a unit.")
    if power == 0:
        return tensor
    factors = unit_values(leg, values, tensor) ** power
    return (tensor + shift) * factors - shift if shift else tensor * factors


def unit_values(leg: Leg, values: Tensor, like: Tensor) -> Tensor:
    """Spread one value a unit over the leg's entries, 1 where the group does not reach."""
    padded = torch.cat([values.to(like), like.new_ones(1)])
    return padded[torch.from_numpy(leg.units.copy()).to(like.device)]


def _reordered(tensor: Tensor, leg: Leg, order: Tensor) -> Tensor:
    """Move entries: (unit j, address a) takes its value from (unit order[j], address a)."""
    dims, units, addresses = compact(leg)
    target = units.copy()
    inside = units >= 0
    target[inside] = order.cpu().numpy()[units[inside]]
    source = _positions(units, addresses, target)
    front = torch.movedim(tensor, dims, tuple(range(len(dims))))
    flat = front.reshape(-1, *front.shape[len(dims) :])
    moved = flat[torch.from_numpy(source).to(tensor.device)].reshape(front.shape)
    return torch.movedim(moved, tuple(range(len(dims))), dims)


def compact(leg: Leg) -> tuple[tuple[int, ...], IntArray, IntArray]:
    """Return the dimensions that a leg distinguishes, and its flat units and addresses there."""
    shape = np.broadcast_shapes(leg.units.shape, leg.addresses.shape)
    dims = tuple(d for d, n in enumerate(shape) if n > 1)
    units = np.broadcast_to(leg.units, shape).reshape(-1).astype(np.int64)
    addresses = np.broadcast_to(leg.addresses, shape).reshape(-1).astype(np.int64)
    return dims, units, addresses


def _positions(units: IntArray, addresses: IntArray, target: IntArray) -> IntArray:
    """Find, for each position, the position of unit ``target`` with the same address."""
    source = np.arange(units.size, dtype=np.int64)
    inside = units >= 0
    low = addresses.min(initial=0)
    span = int(addresses.max(initial=0) - low) + 1
    keys = units[inside] * span + (addresses[inside] - low)
    wanted = target[inside] * span + (addresses[inside] - low)
    sorter = np.argsort(keys)
    at = np.searchsorted(keys, wanted, sorter=sorter)
    found = sorter[np.minimum(at, keys.size - 1)]
    if not np.array_equal(keys[found], wanted):
        raise TransformError("Units of one group own entries with different addresses.")
    source[inside] = np.flatnonzero(inside)[found]
    return source


def named_tensors(model: nn.Module, *, double: bool = False) -> Tensors:
    """Return detached parameters and buffers by first name, in float64 if asked."""
    named: Iterable[tuple[str, Tensor]] = (*model.named_parameters(), *model.named_buffers())
    return {
        name: tensor.detach().double() if double and tensor.is_floating_point() else tensor.detach()
        for name, tensor in named
    }


@torch.no_grad()
def write_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module's parameters and buffers of the same names, in place."""
    own = named_tensors(model)
    for name, value in tensors.items():
        if own[name].data_ptr() != value.data_ptr():
            own[name].copy_(value)
