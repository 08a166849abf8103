"""Choose signs and an order of units by functions that no symmetry can move.

Streams of units are arranged one after another. A function of a unit's weights may use
entry by entry only what is fixed already (inputs, outputs, streams arranged before); over
dimensions that belong to streams still to come it sums, and where their signs are still
free it takes squares. So the functions take equal values on every member of the orbit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from invariance.core._rng import generator
from invariance.symmetry._structures import Leg, Role, Symmetries, SymmetryGroup, SymmetryKind
from invariance.symmetry.elements._group_elements import Element, GroupElement, Tensors, compact

#: How many independent functions are tried before two units count as the same.
_FUNCTIONS = 3


class Sorter:
    """Arranges the units of a network that is balanced already.

    Attributes:
        tensors: The tensors, as arranged so far.
    """

    def __init__(self, tensors: Tensors, found: Symmetries, tolerance: float) -> None:
        self.tensors = dict(tensors)
        self._found = found
        self._tolerance = tolerance
        # For each tensor, the groups that may still reorder or flip it, and along what.
        self._moving = self._touched(SymmetryKind.PERMUTATION)
        self._flipping = self._touched(SymmetryKind.SIGN_FLIP)

    def _touched(self, kind: SymmetryKind) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
        table: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        for place, group in enumerate(self._found.groups):
            for leg in group.legs if group.kind is kind else ():
                table.setdefault(leg.parameter, []).append((place, compact(leg)[0]))
        return table

    def arrange(self) -> tuple[Element, tuple[str, ...]]:
        """Choose every sign and order, acting on ``self.tensors``."""
        steps: list[tuple[int, GroupElement]] = []
        ambiguous: list[str] = []
        groups = self._found.groups
        places = [
            p
            for p, g in enumerate(groups)
            if g.kind in (SymmetryKind.SIGN_FLIP, SymmetryKind.PERMUTATION)
        ]
        places.sort(key=lambda p: (groups[p].order, groups[p].kind is SymmetryKind.PERMUTATION))
        undecided = []
        for place in places:
            if groups[place].kind is SymmetryKind.SIGN_FLIP:
                if not self._decide_signs(place, steps):
                    undecided.append(place)
                continue
            order, tied = self._order(place)
            self._apply(place, order, steps)
            self._forget(self._moving, place)
            if tied:
                ambiguous.append(groups[place].site)
        # A sign may become decidable only once later groups are arranged: ask again.
        while undecided:
            left = [place for place in undecided if not self._decide_signs(place, steps)]
            if len(left) == len(undecided):
                ambiguous.extend(groups[place].site for place in left)
                break
            undecided = left
        return Element(tuple(steps)), tuple(ambiguous)

    def _apply(self, place: int, values: Tensor, steps: list[tuple[int, GroupElement]]) -> None:
        group = self._found.groups[place]
        part = GroupElement(group.kind, group.site, values)
        self.tensors = Element(((place, part),)).act(self.tensors, self._found)
        steps.append((place, part))

    @staticmethod
    def _forget(table: dict[str, list[tuple[int, tuple[int, ...]]]], place: int) -> None:
        for name, entries in table.items():
            table[name] = [entry for entry in entries if entry[0] != place]

    def _decide_signs(self, place: int, steps: list[tuple[int, GroupElement]]) -> bool:
        """Choose the signs of one group, if some function can decide."""
        group = self._found.groups[place]
        own = self._mover(group)
        total = torch.zeros(group.size, dtype=torch.float64)
        for number, leg in enumerate(group.legs):
            dims = set(compact(leg)[0])
            flipped = self._flipping.get(leg.parameter, [])
            if leg.sign_power % 2 == 0 or flipped != [(place, compact(leg)[0])]:
                continue
            if own is None and any(
                dims & set(along) for _, along in self._moving.get(leg.parameter, [])
            ):
                continue  # its units are not those of the order that is still to come
            label = (group.order, number, "sign")
            total += self._function(leg, group.size, own, label, power=1)
        if not bool((total != 0).any()):
            return False
        self._apply(place, torch.where(total < 0, -1.0, 1.0).to(torch.float64), steps)
        self._forget(self._flipping, place)
        return True

    def _mover(self, group: SymmetryGroup) -> int | None:
        """Return the permutation group of the same units, if there is one."""
        for place, other in enumerate(self._found.groups):
            if other.kind is SymmetryKind.PERMUTATION and other.stream == group.stream:
                return place
        return None

    def _order(self, place: int) -> tuple[Tensor, bool]:
        """Sort the units of one group; return the order and whether some stayed tied."""
        group = self._found.groups[place]
        return _sorted(self._keys(group, place), group.size, self._tolerance)

    def _keys(self, group: SymmetryGroup, place: int) -> Iterator[Tensor]:
        """Yield functions of the units to sort by: the norm, then what breaks ties."""
        norm = torch.zeros(group.size, dtype=torch.float64)
        for leg in group.legs:
            if leg.role is Role.PRODUCER:
                norm += self._function(leg, group.size, place, None, power=2)
        yield norm
        for trial in range(_FUNCTIONS):
            key = torch.zeros(group.size, dtype=torch.float64)
            for number, leg in enumerate(group.legs):
                power = 2 if self._flipping.get(leg.parameter) else 1
                key += self._function(leg, group.size, place, (number, trial), power=power)
            yield key

    def _function(
        self,
        leg: Leg,
        size: int,
        own: int | None,
        label: tuple[object, ...] | None,
        *,
        power: int,
    ) -> Tensor:
        """Sum ``weight * entry ** power`` over each unit's entries.

        The weights are random but fixed by ``label`` (all ones without), and constant over
        the dimensions along which other streams may still move.
        """
        tensor = self.tensors[leg.parameter].cpu() ** power
        dims, units, addresses = compact(leg)
        moving = {
            d
            for place, touched in self._moving.get(leg.parameter, [])
            for d in touched
            if place != own or touched != dims
        }
        front = torch.movedim(tensor, dims, tuple(range(len(dims))))
        flat = front.reshape(units.size, -1)
        others = [along for place, along in self._moving.get(leg.parameter, []) if place != own]
        if len(dims) > 1 and any(set(along) & set(dims) for along in others):
            addresses = np.zeros_like(addresses)  # they would follow the other stream's order
        if label is not None:
            rest = [1 if d in moving else n for d, n in enumerate(tensor.shape) if d not in dims]
            span = int(addresses.max(initial=0)) + 1
            draw = generator(0, "key", *label)
            noise = torch.rand(span, *rest, generator=draw, dtype=torch.float64) + 0.5
            if power == 1:
                noise = noise * torch.where(
                    torch.rand(noise.shape, generator=draw, dtype=torch.float64) < 0.5, -1.0, 1.0
                )
            weight = noise.expand(span, *front.shape[len(dims) :]).reshape(span, -1)
            flat = flat * weight[torch.from_numpy(addresses)]
        inside = units >= 0
        result = torch.zeros(size, dtype=torch.float64)
        rows = flat.sum(1)[torch.from_numpy(inside)]
        return result.index_add_(0, torch.from_numpy(units[inside]), rows)


def _sorted(keys: Iterable[Tensor], size: int, tolerance: float) -> tuple[Tensor, bool]:
    """Sort by the first key; break ties within ``tolerance`` by the next ones, if there are any."""
    rank = np.zeros(size, dtype=np.int64)
    tied = size > 1
    for key in keys:
        values = key.numpy()
        gap = tolerance * float(np.abs(values).max(initial=0.0))
        order = np.lexsort((values, rank))
        step = (np.diff(rank[order]) != 0) | (np.diff(values[order]) > gap)
        rank[order] = np.concatenate([[0], np.cumsum(step)])[:size]
        tied = np.unique(rank).size < size
        if not tied:
            break
    order = np.lexsort((np.arange(size), rank))
    return torch.from_numpy(order.astype(np.int64)), bool(tied)
