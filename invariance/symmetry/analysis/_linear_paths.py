"""Linear paths: which entries an invertible matrix multiplies, and which its inverse.

Where units may be scaled by arbitrary factors, may change places, and meet nothing that
treats them other than linearly and alike, they may be mixed by any invertible matrix ``A``.
Scaling is the diagonal case, so it tells the direction: an entry that a factor multiplies is
multiplied by ``A``, an entry that it divides by ``A`` inverse transposed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from invariance.symmetry._structures import IntArray, Leg, Role, SymmetryGroup
from invariance.symmetry.analysis._threads import distinct


def mixing_legs(move: SymmetryGroup, scalings: Sequence[SymmetryGroup]) -> list[Leg] | None:
    """Return the legs of the mixing of a permutation group's units, if scaling covers them."""
    legs: list[Leg] = []
    factor_of = np.full((move.size, 2), -1, dtype=np.int64)
    for leg in move.legs:
        if leg.role not in (Role.PRODUCER, Role.CONSUMER):
            return None
        answer = _answers(leg, scalings)
        if answer is None:
            return None
        power, group, factor = answer
        inside = np.broadcast_to(leg.units, power.shape) >= 0
        unit = np.broadcast_to(leg.units, power.shape)[inside]
        pair = np.stack([group[inside], factor[inside]], axis=1)
        known = factor_of[unit]
        if ((known >= 0) & (known != pair)).any():
            return None
        factor_of[unit] = pair
        if not np.array_equal(factor_of[unit], pair):
            return None  # two factors act on one unit
        for value in distinct(power[inside]).tolist():
            units = np.where(inside & (power == value), leg.units, -1)
            legs.append(Leg(leg.parameter, units, value, 0, leg.role, leg.addresses, 0.0, leg.site))
    if len(np.unique(factor_of, axis=0)) != move.size or (factor_of < 0).any():
        return None
    return legs


def _answers(
    leg: Leg, scalings: Sequence[SymmetryGroup]
) -> tuple[IntArray, IntArray, IntArray] | None:
    """Return power, group and factor of each entry of a leg; ``None`` unless one each."""
    shape = leg.units.shape
    matching = [
        (number, other)
        for number, scaling in enumerate(scalings)
        for other in scaling.legs
        if (other.parameter, other.role, other.site) == (leg.parameter, leg.role, leg.site)
    ]
    for _, other in matching:
        shape = np.broadcast_shapes(shape, other.units.shape)
    inside = np.broadcast_to(leg.units, shape) >= 0
    power, group, factor = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for number, other in matching:
        hit = inside & (np.broadcast_to(other.units, shape) >= 0)
        if (power[hit] != 0).any():
            return None
        power[hit] = other.power
        group[hit] = number
        factor[hit] = np.broadcast_to(other.units, shape)[hit]
    return None if (np.abs(power[inside]) != 1).any() else (power, group, factor)
