"""Choose signs and an order of units by functions that no symmetry can move.

Streams of units are arranged one after another. A function of a unit's weights may use
entry by entry only what is fixed already (inputs, outputs, streams arranged before); over
dimensions that belong to streams still to come it sums, and where their signs are still
free it takes squares. So the functions take equal values on every member of the orbit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from invariance.core.rng import generator
from invariance.symmetry.elements import GroupElement, Tensors, act_on_leg, compact
from invariance.symmetry.structures import Kind, Leg, Role, Symmetries, SymmetryGroup

#: How many independent functions are tried before two units count as the same.
_FUNCTIONS = 3


class Sorter:
    """Arranges the units of a network that is balanced already.

    Args:
        tensors: Parameters and buffers by first name, float64.
        found: The network's symmetries.
        tolerance: Relative gap below which two keys count as tied.

    Attributes:
        tensors: The tensors, as arranged so far.
    """

    def __init__(self, tensors: Tensors, found: Symmetries, tolerance: float) -> None:
        self.tensors = dict(tensors)
        self._found = found
        self._tolerance = tolerance
        self._signs = self._by_stream(Kind.SIGN_FLIP)
        self._orders = self._by_stream(Kind.PERMUTATION)
        # For each tensor, the streams that may still reorder or flip each dimension.
        self._moving = self._touched(self._orders)
        self._flipping = self._touched(self._signs)

    def _by_stream(self, kind: Kind) -> dict[int, int]:
        return {g.stream: place for place, g in enumerate(self._found.groups) if g.kind is kind}

    def _touched(self, places: dict[int, int]) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
        table: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        for stream, place in places.items():
            for leg in self._found.groups[place].legs:
                table.setdefault(leg.parameter, []).append((stream, compact(leg)[0]))
        return table

    def arrange(self) -> tuple[dict[int, GroupElement], tuple[str, ...]]:
        """Choose every sign and order, acting on :attr:`tensors`.

        Returns:
            The elements by place, and the sites that stayed ambiguous.
        """
        parts: dict[int, GroupElement] = {}
        ambiguous: list[str] = []
        groups = self._found.groups
        streams = sorted(
            {*self._signs, *self._orders},
            key=lambda stream: min(
                groups[table[stream]].order
                for table in (self._signs, self._orders)
                if stream in table
            ),
        )
        undecided = []
        for stream in streams:
            if stream in self._signs and not self._decide_signs(stream, parts):
                undecided.append(stream)
            if stream in self._orders:
                place = self._orders[stream]
                order, tied = self._order(groups[place], stream)
                self._apply(place, order, parts)
                self._forget(self._moving, stream)
                if tied:
                    ambiguous.append(groups[place].site)
        # A sign may become decidable only once later streams are arranged: ask again.
        while undecided:
            left = [stream for stream in undecided if not self._decide_signs(stream, parts)]
            if len(left) == len(undecided):
                ambiguous.extend(groups[self._signs[stream]].site for stream in left)
                break
            undecided = left
        return parts, tuple(ambiguous)

    def _apply(self, place: int, values: Tensor, parts: dict[int, GroupElement]) -> None:
        group = self._found.groups[place]
        for leg in group.legs:
            name = leg.parameter
            self.tensors[name] = act_on_leg(self.tensors[name], group, leg, values)
        parts[place] = GroupElement(group.kind, group.site, values)

    @staticmethod
    def _forget(table: dict[str, list[tuple[int, tuple[int, ...]]]], stream: int) -> None:
        for name, entries in table.items():
            table[name] = [entry for entry in entries if entry[0] != stream]

    def _decide_signs(self, stream: int, parts: dict[int, GroupElement]) -> bool:
        """Choose the signs of one stream, if some function can decide."""
        place = self._signs[stream]
        group = self._found.groups[place]
        total = torch.zeros(group.size, dtype=torch.float64)
        for number, leg in enumerate(group.legs):
            others = [s for s, _ in self._flipping.get(leg.parameter, []) if s != stream]
            twice = sum(s == stream for s, _ in self._flipping.get(leg.parameter, [])) > 1
            if leg.sign_power % 2 == 0 or others or twice:
                continue
            total += self._function(leg, group.size, stream, (stream, number, "sign"), power=1)
        if not bool((total != 0).any()):
            return False
        values = torch.where(total < 0, -1.0, 1.0).to(torch.float64)
        self._apply(place, values, parts)
        sorting = parts.get(self._orders.get(stream, -1))
        if sorting is not None:  # the parts of an element refer to the numbering before sorting
            before = torch.empty_like(values)
            before[sorting.values] = values
            parts[place] = GroupElement(group.kind, group.site, before)
        self._forget(self._flipping, stream)
        return True

    def _order(self, group: SymmetryGroup, stream: int) -> tuple[Tensor, bool]:
        """Sort the units; return the order and whether some stayed tied."""
        size = group.size
        norm = torch.zeros(size, dtype=torch.float64)
        for leg in group.legs:
            if leg.role is Role.PRODUCER:
                norm += self._function(leg, size, stream, None, power=2)
        keys = [norm]
        for trial in range(_FUNCTIONS):
            key = torch.zeros(size, dtype=torch.float64)
            for number, leg in enumerate(group.legs):
                power = 2 if self._flipping.get(leg.parameter) else 1
                key += self._function(leg, size, stream, (number, trial), power=power)
            keys.append(key)
        return _sorted(keys, self._tolerance)

    def _function(
        self, leg: Leg, size: int, stream: int, label: tuple[object, ...] | None, *, power: int
    ) -> Tensor:
        """Sum ``weight * entry ** power`` over each unit's entries.

        The weights are random but fixed by ``label`` (all ones without), and constant over
        the dimensions along which other streams may still move.
        """
        tensor = self.tensors[leg.parameter].cpu() ** power
        dims, units, addresses = compact(leg)
        moving = {
            d
            for s, touched in self._moving.get(leg.parameter, [])
            for d in touched
            if s != stream or touched != dims
        }
        front = torch.movedim(tensor, dims, tuple(range(len(dims))))
        flat = front.reshape(units.size, -1)
        others = [touched for s, touched in self._moving.get(leg.parameter, []) if s != stream]
        if len(dims) > 1 and any(set(touched) & set(dims) for touched in others):
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


def _sorted(keys: list[Tensor], tolerance: float) -> tuple[Tensor, bool]:
    """Sort by the first key; break ties within ``tolerance`` by the next ones."""
    rank = np.zeros(keys[0].numel(), dtype=np.int64)
    order = np.arange(rank.size)
    for key in keys:
        values = key.numpy()
        gap = tolerance * float(np.abs(values).max(initial=0.0))
        order = np.lexsort((values, rank))
        step = (np.diff(rank[order]) != 0) | (np.diff(values[order]) > gap)
        rank[order] = np.concatenate([[0], np.cumsum(step)])[: rank.size]
    order = np.lexsort((np.arange(rank.size), rank))
    return torch.from_numpy(order.astype(np.int64)), bool(np.unique(rank).size < rank.size)
