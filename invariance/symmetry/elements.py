"""Elements of symmetry groups, and how they act on a module's tensors.

An element holds, for each group of a :class:`~invariance.symmetry.structures.Symmetries`,
what is done to each unit: a positive factor, a sign, or a new order. The formulas are those
of :mod:`invariance.symmetry.structures`, leg by leg.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core.errors import TransformError
from invariance.symmetry.structures import (
    SCALING_KINDS,
    IntArray,
    Kind,
    Leg,
    Symmetries,
    SymmetryGroup,
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
            or the old unit that each new unit is (permutations).
    """

    kind: Kind
    site: str
    values: Tensor

    @property
    def trivial(self) -> bool:
        """Whether nothing happens."""
        if self.kind is Kind.PERMUTATION:
            return bool((self.values == torch.arange(self.values.numel())).all())
        return bool((self.values == 1).all())


@dataclass(frozen=True, eq=False)
class Element:
    """One element of the product of a module's groups: scale, flip, then reorder.

    Attributes:
        parts: One :class:`GroupElement` a group, keyed by the group's place in
            ``Symmetries.groups``; groups that are missing stay as they are.
    """

    parts: Mapping[int, GroupElement]

    def __str__(self) -> str:
        moved = [part for part in self.parts.values() if not part.trivial]
        if not moved:
            return "the identity"
        return "; ".join(f"{part.kind} at {part.site}" for part in moved)

    def act(self, tensors: Tensors, symmetries: Symmetries) -> Tensors:
        """Return the tensors after the element acted; the given ones stay as they are.

        Args:
            tensors: Parameters and buffers by first name.
            symmetries: What the element belongs to.

        Returns:
            New tensors where a group acts, the same ones elsewhere.
        """
        moved = dict(tensors)
        parts = sorted(self.parts.items(), key=lambda item: item[1].kind is Kind.PERMUTATION)
        for place, part in parts:
            group = symmetries.groups[place]
            for leg in group.legs:
                moved[leg.parameter] = act_on_leg(moved[leg.parameter], group, leg, part.values)
        return moved


def act_on_leg(tensor: Tensor, group: SymmetryGroup, leg: Leg, values: Tensor) -> Tensor:
    """Let one group act on one tensor through one leg."""
    if group.kind is Kind.PERMUTATION:
        return _reordered(tensor, leg, values)
    if group.kind in SCALING_KINDS:
        power, shift = leg.power, leg.shift
    elif group.kind is Kind.SIGN_FLIP:
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
    """Return detached parameters and buffers by first name, in float64 if asked.

    Args:
        model: Any module.
        double: Convert floating-point tensors to float64.

    Returns:
        Name to tensor; the module's own storage unless converted.
    """
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


def compose(first: Element, then: Element, symmetries: Symmetries) -> Element:
    """Return the element that does ``first`` and after it ``then``."""
    order = _orders(first, symmetries)
    parts: dict[int, GroupElement] = {}
    for place in sorted({*first.parts, *then.parts}):
        group = symmetries.groups[place]
        early, late = first.parts.get(place), then.parts.get(place)
        if early is None or late is None:
            only = early or late
            assert only is not None
            values = only.values
            if early is None and group.kind is not Kind.PERMUTATION:
                values = _before(values, order.get(group.stream))
        elif group.kind is Kind.PERMUTATION:
            values = early.values[late.values]
        else:
            values = early.values * _before(late.values, order.get(group.stream))
        parts[place] = GroupElement(group.kind, group.site, values)
    return Element(parts)


def inverse(element: Element, symmetries: Symmetries) -> Element:
    """Return the element that undoes ``element``."""
    order = _orders(element, symmetries)
    parts = {}
    for place, part in element.parts.items():
        group = symmetries.groups[place]
        if group.kind is Kind.PERMUTATION:
            values = torch.argsort(part.values)
        else:
            moved = order.get(group.stream)
            values = 1 / (part.values if moved is None else part.values[moved])
        parts[place] = GroupElement(group.kind, group.site, values)
    return Element(parts)


def _orders(element: Element, symmetries: Symmetries) -> dict[int, Tensor]:
    """Return the new order of each stream of units that the element reorders."""
    return {
        symmetries.groups[place].stream: part.values
        for place, part in element.parts.items()
        if part.kind is Kind.PERMUTATION
    }


def _before(values: Tensor, order: Tensor | None) -> Tensor:
    """Give each old unit the value of the new unit that it became."""
    if order is None:
        return values
    old = torch.empty_like(values)
    old[order] = values
    return old
