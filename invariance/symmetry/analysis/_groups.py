"""From solved relations to symmetry groups: units, legs and kinds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from invariance.symmetry._structures import IntArray, Leg, Role, SymmetryGroup, SymmetryKind
from invariance.symmetry.analysis._linear_paths import mixing_legs
from invariance.symmetry.analysis._solve import Solution, merge, signatures, solve
from invariance.symmetry.analysis._threads import (
    ZERO,
    RawLeg,
    ThreadRelations,
    distinct,
    mix_hash,
    unique_rows,
)


@dataclass(frozen=True, eq=False)
class Solved:
    """Everything that the relations imply about their threads.

    Attributes:
        legs: Every tensor's legs, once.
        labels: The threads of every leg, each once.
        scale: Free factors.
        sign: Free signs.
        family: ``(threads,)`` class of threads that move together.
        rank: ``(threads,)`` signature of every thread.
        movable: ``(families,)`` whether the class may change places with an equal one.
    """

    legs: tuple[RawLeg, ...]
    labels: tuple[IntArray, ...]
    scale: Solution
    sign: Solution
    family: IntArray
    rank: npt.NDArray[np.uint64]
    movable: npt.NDArray[np.bool_]


def settle(relations: ThreadRelations) -> Solved:
    """Solve relations whose uses have been coupled."""
    count = relations.threads
    scale = solve(
        count, relations.scale_equations, [t for t, _ in relations.pins.scale], modulo_two=False
    )
    sign = solve(
        count, relations.sign_equations, [t for t, _ in relations.pins.sign], modulo_two=True
    )
    family = merge(count, relations.move_ties)
    rank = signatures(relations)
    families = int(family.max()) + 1
    movable = np.ones(families, dtype=bool)
    for threads, _ in relations.pins.move:
        movable[family[threads]] = False
    # Two threads of one class that nothing tells apart: the class has no canonical order.
    order = np.lexsort((rank, family))
    twin = (family[order][1:] == family[order][:-1]) & (rank[order][1:] == rank[order][:-1])
    movable[family[order][1:][twin]] = False
    legs = tuple(_legs_once(relations))
    labels = tuple(distinct(raw.labels[raw.labels > 0]) for raw in legs)
    return Solved(legs, labels, scale, sign, family, rank, movable)


def _legs_once(relations: ThreadRelations) -> list[RawLeg]:
    """Return the legs of every tensor, each entry covered by one use only."""
    legs = []
    for uses in relations.uses.values():
        first = uses[0]
        legs.extend(first.legs)
        if first.covered is None:
            continue
        covered = first.covered
        for use in uses[1:]:
            new = ~covered if use.covered is None else use.covered & ~covered
            covered = covered | new
            for leg in use.legs:
                labels = np.where(new, np.broadcast_to(leg.labels, new.shape), ZERO)
                legs.append(
                    RawLeg(
                        leg.tensor,
                        labels,
                        leg.power,
                        leg.sign_power,
                        leg.role,
                        np.broadcast_to(leg.addresses, new.shape).copy(),
                        leg.shift,
                        leg.site,
                    )
                )
    return legs


class Assembler:
    """Builds the groups of what was solved."""

    def __init__(
        self,
        solved: Solved,
        order: dict[str, int],
        norm_weights: frozenset[str],
        relations: ThreadRelations,
    ) -> None:
        self.solved = solved
        self.order = order
        self.norm_weights = norm_weights
        self.relations = relations
        #: Class to permutation group, and to its unit there.
        families = len(solved.movable)
        self.stream = np.full(families, -1, dtype=np.int64)
        self.place = np.full(families, -1, dtype=np.int64)
        self.streams: list[IntArray] = []

    def build(self) -> tuple[SymmetryGroup, ...]:
        """Return all groups in the order of execution."""
        moves = self._permutations()
        scalings = self._factors(self.solved.scale, signs=False)
        signs = self._factors(self.solved.sign, signs=True)
        mixings = self._mixings(moves, scalings)
        kinds = list(SymmetryKind)
        groups = [*moves, *scalings, *signs, *mixings]
        groups.sort(key=lambda group: (group.order, kinds.index(group.kind)))
        return tuple(groups)

    # -- permutations ----------------------------------------------------------------

    def _permutations(self) -> list[SymmetryGroup]:
        solved = self.solved
        present = np.zeros(len(solved.movable), dtype=bool)
        for labels in solved.labels:
            present[solved.family[labels]] = True
        key = np.zeros(len(solved.movable), dtype=np.uint64)
        with np.errstate(over="ignore"):
            np.add.at(key, solved.family, mix_hash(11, solved.rank.view(np.int64)))
        first = np.full(len(solved.movable), np.iinfo(np.int64).max)
        np.minimum.at(first, solved.family, np.arange(solved.family.size))
        candidates = np.flatnonzero(present & solved.movable)
        candidates = candidates[np.argsort(first[candidates], kind="stable")]
        _, start, inverse, size = np.unique(
            key[candidates], return_index=True, return_inverse=True, return_counts=True
        )
        for index in np.argsort(start, kind="stable"):
            if size[index] < 2:
                continue
            members = candidates[inverse == index]
            self.stream[members] = len(self.streams)
            self.place[members] = np.arange(members.size)
            self.streams.append(members)
        legs: dict[int, list[Leg]] = {}
        for used, labels in zip(solved.legs, solved.labels, strict=True):
            for stream, leg in self._moved_legs(used, labels):
                known = legs.setdefault(stream, [])
                if not any(_same_places(leg, other) for other in known):
                    known.append(leg)
        return [
            self._group(SymmetryKind.PERMUTATION, members.size, 0, legs.get(stream, []), stream)
            for stream, members in enumerate(self.streams)
        ]

    def _moved_legs(self, raw: RawLeg, labels: IntArray) -> list[tuple[int, Leg]]:
        family = self.solved.family
        numbers = distinct(self.stream[family[labels]])
        if not (numbers >= 0).any():
            return []
        live = raw.labels > 0
        families = family[np.where(live, raw.labels, 0)]
        stream = np.where(live, self.stream[families], -1)
        place = self.place[families]
        rank = self.solved.rank[np.where(live, raw.labels, 0)].view(np.int64)
        shape = np.broadcast_shapes(raw.labels.shape, raw.addresses.shape)
        stream, place, rank, addresses = (
            np.broadcast_to(array, shape).reshape(-1)
            for array in (stream, place, rank, raw.addresses)
        )
        order = np.argsort(stream, kind="stable")
        found = []
        for number in numbers[numbers >= 0].tolist():
            start, end = np.searchsorted(stream[order], [number, number + 1])
            cells = order[start:end]
            units, numbered = np.full(stream.size, -1), np.zeros(stream.size, dtype=np.int64)
            units[cells] = place[cells]
            numbered[cells] = _number(rank[cells], addresses[cells], place[cells])
            found.append((number, _leg(raw, units.reshape(shape), numbered.reshape(shape))))
        return found

    # -- factors and signs -----------------------------------------------------------

    def _factors(self, solution: Solution, *, signs: bool) -> list[SymmetryGroup]:
        """Group free factors (or signs) that touch the same legs with the same powers."""
        touches = []  # (factor, leg, slot, power) of every leg's entries
        for number, raw in enumerate(self.solved.legs):
            power = raw.sign_power if signs else raw.power
            labels = self.solved.labels[number]
            for slot in range(solution.column.shape[1]):
                column = solution.column[labels, slot]
                exponent = solution.exponent[labels, slot] * power
                if signs:
                    exponent = exponent % 2
                keep = (column >= 0) & (exponent != 0)
                if keep.any():
                    pairs = np.stack([column[keep], exponent[keep]], axis=1)
                    unique = unique_rows(pairs)[0]
                    touches.append(np.insert(unique, 1, number, axis=1))
        if not touches:
            return []
        table = unique_rows(np.concatenate(touches))[0]
        key = np.zeros(solution.count, dtype=np.uint64)
        with np.errstate(over="ignore"):
            np.add.at(key, table[:, 0], mix_hash(13, table[:, 1], table[:, 2]))
        present = distinct(table[:, 0])
        _, start, inverse = np.unique(key[present], return_index=True, return_inverse=True)
        homes = self._homes(solution)
        groups = []
        for index in np.argsort(start, kind="stable"):
            members = present[inverse == index]
            stream = self._match_stream(members, homes)
            if stream >= 0:
                members = members[np.argsort(self.place[homes[members]], kind="stable")]
            lines = table[table[:, 0] == members[0]]
            legs = self._factor_legs(solution, members, distinct(lines[:, 1]), signs=signs)
            kind = SymmetryKind.SIGN_FLIP if signs else self._scaling_kind(legs)
            groups.append(self._group(kind, members.size, members.size, legs, stream))
        return groups

    def _homes(self, solution: Solution) -> IntArray:
        """Return for every factor the one class that it acts on; -1 if it acts on several."""
        homes = np.full(solution.count, -1, dtype=np.int64)
        several = np.zeros(solution.count, dtype=bool)
        for slot in range(solution.column.shape[1]):
            threads = np.flatnonzero(solution.column[:, slot] >= 0)
            column, family = solution.column[threads, slot], self.solved.family[threads]
            fresh = homes[column] < 0
            homes[column[fresh]] = family[fresh]
            np.logical_or.at(several, column, homes[column] != family)
        homes[several] = -1
        return homes

    def _match_stream(self, members: IntArray, homes: IntArray) -> int:
        home = homes[members]
        if (home < 0).any():
            return -1
        stream = distinct(self.stream[home])
        if stream.size != 1 or stream[0] < 0 or distinct(home).size != members.size:
            return -1
        return int(stream[0]) if self.streams[int(stream[0])].size == members.size else -1

    def _factor_legs(
        self, solution: Solution, members: IntArray, numbers: IntArray, *, signs: bool
    ) -> list[Leg]:
        unit_of = np.full(solution.count + 1, -1, dtype=np.int64)
        unit_of[members] = np.arange(members.size)
        legs = []
        for number in numbers.tolist():
            raw = self.solved.legs[number]
            labels = np.where(raw.labels > 0, raw.labels, 0)
            power = raw.sign_power if signs else raw.power
            for slot in range(solution.column.shape[1]):
                units = unit_of[solution.column[labels, slot]]
                exponent = solution.exponent[labels, slot] * power
                if signs:
                    exponent = exponent % 2
                for value in distinct(exponent[(units >= 0) & (exponent != 0)]).tolist():
                    chosen = np.where(exponent == value, units, -1)
                    legs.append(
                        _leg(
                            raw,
                            chosen,
                            raw.addresses,
                            power=0 if signs else value,
                            sign_power=value if signs else 0,
                        )
                    )
        return legs

    def _scaling_kind(self, legs: list[Leg]) -> SymmetryKind:
        if any(leg.role is Role.STATISTIC for leg in legs):
            return SymmetryKind.BATCHNORM_WEIGHT_SCALE
        producers = {leg.parameter for leg in legs if leg.role is Role.PRODUCER}
        return (
            SymmetryKind.BATCHNORM_AFFINE if producers & self.norm_weights else SymmetryKind.SCALING
        )

    # -- mixing ----------------------------------------------------------------------

    def _mixings(
        self, moves: list[SymmetryGroup], scalings: list[SymmetryGroup]
    ) -> list[SymmetryGroup]:
        blocked = np.zeros(len(self.solved.movable), dtype=bool)
        for threads in self.relations.mix_blocked:
            blocked[self.solved.family[distinct(threads[threads >= 0])]] = True
        found = []
        for move in moves:
            if blocked[self.streams[move.stream]].any():
                continue
            legs = mixing_legs(move, scalings)
            if legs is not None:
                found.append(
                    self._group(
                        SymmetryKind.LINEAR_MIXING, move.size, move.size**2, legs, move.stream
                    )
                )
        return found

    def _group(
        self, kind: SymmetryKind, size: int, dof: int, legs: list[Leg], stream: int
    ) -> SymmetryGroup:
        legs = sorted(legs, key=lambda leg: self.order.get(leg.parameter, 0))
        makers = [leg for leg in legs if leg.role is Role.PRODUCER] or legs
        order = min((self.order.get(leg.parameter, 0) for leg in legs), default=0)
        site = makers[0].parameter if makers else ""
        return SymmetryGroup(kind, site, int(size), int(dof), tuple(legs), order, stream)


def _leg(
    raw: RawLeg,
    units: IntArray,
    addresses: IntArray,
    power: int | None = None,
    sign_power: int | None = None,
) -> Leg:
    return Leg(
        raw.tensor,
        np.array(units),
        raw.power if power is None else power,
        raw.sign_power if sign_power is None else sign_power,
        raw.role,
        np.array(addresses),
        raw.shift,
        raw.site,
    )


def _same_places(one: Leg, other: Leg) -> bool:
    return one.parameter == other.parameter and np.array_equal(one.units, other.units)


def _number(rank: IntArray, addresses: IntArray, units: IntArray) -> IntArray:
    """Number units' entries: by thread, by address, and by occurrence where both repeat.

    Shapes: ``rank (n,)``, ``addresses (n,)``, ``units (n,)``.
    """
    rank = np.unique(rank, return_inverse=True)[1].reshape(-1)
    distinct, numbered = unique_rows(np.stack([rank, addresses], axis=1))
    key = units * len(distinct) + numbered
    _, group, counts = np.unique(key, return_inverse=True, return_counts=True)
    if counts.size and counts.max() > 1:
        order = np.argsort(group, kind="stable")
        start = np.concatenate([[0], np.cumsum(counts)[:-1]])
        occurrence = np.empty_like(group)
        occurrence[order] = np.arange(group.size) - start[group[order]]
        numbered = numbered * (int(counts.max()) + 1) + occurrence
    return np.asarray(numbered, dtype=np.int64)
