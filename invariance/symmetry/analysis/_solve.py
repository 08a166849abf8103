"""Solve what relates threads: free factors and signs, and which threads move together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from invariance.symmetry._structures import IntArray
from invariance.symmetry.analysis._threads import (
    Equations,
    RawLeg,
    ThreadRelations,
    Use,
    distinct,
    mix_hash,
    unique_rows,
)


@dataclass(frozen=True, eq=False)
class Solution:
    """The general solution of homogeneous equations over threads.

    The factor of thread ``t`` is the product over ``k`` of the free factor ``column[t, k]``
    to the power ``exponent[t, k]`` (columns of ``-1`` do not occur).

    Attributes:
        count: Number of free factors.
        column: ``(threads, k)``.
        exponent: ``(threads, k)``; all zero where the thread is fixed.
    """

    count: int
    column: IntArray
    exponent: IntArray


def merge(count: int, ties: Iterable[tuple[IntArray, IntArray]]) -> IntArray:
    """Number the connected components of threads ``0 .. count - 1``."""
    ties = list(ties)
    if not ties:
        return np.arange(count, dtype=np.int64)
    left = np.concatenate([a for a, _ in ties])
    right = np.concatenate([b for _, b in ties])
    graph = sparse.coo_matrix((np.ones(left.size, dtype=np.int8), (left, right)), (count, count))
    labels = csgraph.connected_components(graph, directed=False)[1]
    return np.asarray(labels, dtype=np.int64)


def solve(
    count: int,
    equations: list[Equations],
    pins: Iterable[IntArray],
    *,
    modulo_two: bool,
) -> Solution:
    """Solve homogeneous equations over the threads.

    Whatever says that a factor is one, or that two are equal, is applied at once to all rows
    together, until nothing is left to apply. The rows that remain have three unknowns or more
    and are eliminated one by one.
    """
    fixed = np.zeros(count, dtype=bool)
    for threads in pins:
        fixed[threads] = True
    equal = []
    rows = []
    for block in equations:
        if len(block.coefficients) == 2 and _is_equality(block.coefficients, modulo_two):
            a, b = block.threads[:, 0], block.threads[:, 1]
            keep = (a >= 0) & (b >= 0)
            equal.append((a[keep], b[keep]))
        else:
            rows.append(_Rows.of(block))
    root = merge(count, equal)
    table = _Rows.stacked(rows)
    while True:
        # The first thread of a class stands for it: its factor is the one that stays free.
        pinned = np.zeros(int(root.max(initial=-1)) + 1, dtype=bool)
        pinned[root[fixed]] = True
        table = table.reduced(root, pinned, modulo_two)
        alone, pairs = table.implied(modulo_two)
        if not alone.size and not pairs[0].size:
            break
        fixed[_first_of(root)[alone]] = True
        if pairs[0].size:
            first = _first_of(root)
            merged = merge(int(root.max()) + 1, [pairs])
            back = first[_first_of(merged)]
            root = merged[root]
            table = _Rows(np.where(table.threads >= 0, back[merged[table.threads]], -1),
                          table.coefficients)  # fmt: skip
        else:
            table = _Rows(
                np.where(table.threads >= 0, _first_of(root)[table.threads], -1),
                table.coefficients,
            )
    return _eliminate(table, root, pinned, modulo_two)


def _first_of(root: IntArray) -> IntArray:
    """Return the first member of every class."""
    return np.unique(root, return_index=True)[1]


def _is_equality(coefficients: tuple[int, ...], modulo_two: bool) -> bool:
    if modulo_two:
        return all(c % 2 for c in coefficients)
    return sum(coefficients) == 0 and coefficients[0] != 0


@dataclass(frozen=True, eq=False)
class _Rows:
    """Equations of several lengths in one table.

    Attributes:
        threads: ``(m, k)`` unknowns; -1 fills up.
        coefficients: ``(m, k)``; 0 fills up.
    """

    threads: IntArray
    coefficients: IntArray

    @staticmethod
    def of(block: Equations) -> _Rows:
        """Return the distinct equations of a block, by thread."""
        threads = unique_rows(np.maximum(block.threads, -1))[0]
        coefficients = np.where(threads >= 0, np.array(block.coefficients, dtype=np.int64), 0)
        return _Rows(threads, coefficients)

    @staticmethod
    def stacked(parts: list[_Rows]) -> _Rows:
        """Return all equations in one table."""
        width = max((part.threads.shape[1] for part in parts), default=1)
        tables = []
        for array, fill in (("threads", -1), ("coefficients", 0)):
            padded = [
                np.pad(
                    getattr(part, array),
                    ((0, 0), (0, width - part.threads.shape[1])),
                    constant_values=fill,
                )
                for part in parts
            ]
            tables.append(np.concatenate(padded) if padded else np.zeros((0, 1), dtype=np.int64))
        return _Rows(tables[0], tables[1])

    def reduced(self, root: IntArray, pinned: npt.NDArray[np.bool_], modulo_two: bool) -> _Rows:
        """Write the equations over classes: equal unknowns summed, pinned ones left out."""
        threads = np.where(self.threads >= 0, root[self.threads], -1)
        coefficients = np.where(threads >= 0, self.coefficients, 0)
        coefficients[(threads >= 0) & pinned[threads]] = 0
        order = np.argsort(threads, axis=1, kind="stable")
        threads = np.take_along_axis(threads, order, axis=1)
        coefficients = np.take_along_axis(coefficients, order, axis=1)
        for place in range(1, threads.shape[1]):  # sum up equal neighbours, on the last one
            same = threads[:, place] == threads[:, place - 1]
            coefficients[same, place] += coefficients[same, place - 1]
            coefficients[same, place - 1] = 0
        if modulo_two:
            coefficients = coefficients % 2
        threads = np.where(coefficients != 0, threads, -1)
        order = np.argsort(-threads, axis=1, kind="stable")
        threads = np.take_along_axis(threads, order, axis=1)
        coefficients = np.take_along_axis(coefficients, order, axis=1)
        both = np.concatenate([threads, coefficients], axis=1)
        both = unique_rows(both[threads[:, 0] >= 0])[0]
        width = threads.shape[1]
        return _Rows(both[:, :width], both[:, width:])

    def implied(self, modulo_two: bool) -> tuple[IntArray, tuple[IntArray, IntArray]]:
        """Return the unknowns that are alone in a row, and the pairs that are equal."""
        length = (self.threads >= 0).sum(1)
        alone = self.threads[length == 1, 0]
        if self.threads.shape[1] < 2:
            return alone, (alone[:0], alone[:0])
        pair = length == 2
        if not modulo_two:
            pair &= self.coefficients[:, 0] == -self.coefficients[:, 1]
        return alone, (self.threads[pair, 0], self.threads[pair, 1])


def _eliminate(
    table: _Rows, root: IntArray, pinned: npt.NDArray[np.bool_], modulo_two: bool
) -> Solution:
    """Solve the equations that remain, over classes, and return the factor of every thread."""
    size = pinned.size
    last, core, links = _last_links(table, size)
    solved = null_space(
        [
            {t: c for t, c in zip(threads, coefficients, strict=True) if t >= 0}
            for threads, coefficients in zip(
                core.threads.tolist(), core.coefficients.tolist(), strict=True
            )
        ],
        modulo_two,
    )
    free = ~pinned
    free[list(solved)] = False
    free[last] = False
    # A factor with denominators becomes a power of itself, so that exponents are whole.
    powers = np.ones(size, dtype=np.int64)
    for terms in solved.values():
        for unknown, value in terms.items():
            powers[unknown] = lcm(int(powers[unknown]), value.denominator)
    entries = [
        (thread, unknown, int(value * int(powers[unknown])))
        for thread, terms in solved.items()
        for unknown, value in terms.items()
    ]
    at = np.array(entries, dtype=np.int64).reshape(-1, 3)
    own = np.flatnonzero(free)
    expressed = sparse.csr_matrix(
        (
            np.concatenate([powers[own], at[:, 2]]),
            (np.concatenate([own, at[:, 0]]), np.concatenate([own, at[:, 1]])),
        ),
        shape=(size, size),
    )
    # X = L X + E, where L leads from each determined unknown to those that determine it.
    while links.nnz:
        expressed = _tidy(expressed + links @ expressed, modulo_two)
        links = _tidy(links @ links, modulo_two)
    expressed.sort_indices()
    length = np.diff(expressed.indptr)
    column = np.full((size, max(int(length.max(initial=0)), 1)), -1, dtype=np.int64)
    exponent = np.zeros_like(column)
    rows = np.repeat(np.arange(size), length)
    slots = np.arange(rows.size) - np.repeat(expressed.indptr[:-1], length)
    column[rows, slots] = (np.cumsum(free) - 1)[expressed.indices]
    exponent[rows, slots] = expressed.data
    return Solution(int(free.sum()), column[root], exponent[root])


def _last_links(table: _Rows, size: int) -> tuple[IntArray, _Rows, sparse.csr_matrix]:
    """Set aside the equations that determine an unknown which no other one needs."""
    threads, coefficients = table.threads, table.coefficients
    ends: list[IntArray] = []
    sources: list[IntArray] = []
    values: list[IntArray] = []
    while len(threads):
        count = np.bincount(threads[threads >= 0], minlength=size)
        leaf = (count[threads[:, 0]] == 1) & (np.abs(coefficients[:, 0]) == 1)
        if not leaf.any():
            break
        rest = threads[leaf, 1:]
        inside = rest >= 0
        ends.append(np.broadcast_to(threads[leaf, :1], rest.shape)[inside])
        sources.append(rest[inside])
        values.append((-coefficients[leaf, :1] * coefficients[leaf, 1:])[inside])
        threads, coefficients = threads[~leaf], coefficients[~leaf]
    flat = [np.concatenate(part) if part else np.zeros(0, np.int64)
            for part in (values, ends, sources)]  # fmt: skip
    links = sparse.csr_matrix((flat[0], (flat[1], flat[2])), shape=(size, size))
    return distinct(flat[1]), _Rows(threads, coefficients), links


def _tidy(matrix: sparse.csr_matrix, modulo_two: bool) -> sparse.csr_matrix:
    """Drop what cancels."""
    if modulo_two:
        matrix.data %= 2
    matrix.eliminate_zeros()
    return matrix


def null_space(
    rows: Iterable[Mapping[int, int]], modulo_two: bool
) -> dict[int, dict[int, Fraction | int]]:
    """Express the unknowns that equations determine by those that they leave free.

    Every row determines its last unknown, so that early ones stay free and bases read like
    the network.
    """
    if modulo_two:
        return _null_space_of_signs(rows)
    expressed: dict[int, dict[int, Fraction | int]] = {}
    for row in rows:
        left: dict[int, Fraction | int] = dict(row)
        while left:
            last = max(left)
            scale = left.pop(last)
            if last not in expressed:
                sign = {unknown: -value for unknown, value in left.items()}
                expressed[last] = sign if scale == 1 else {
                    unknown: _ratio(value, scale) for unknown, value in sign.items()
                }  # fmt: skip
                break
            _add(left, expressed[last], scale)
    # What a row is expressed by may be determined by a row before it.
    for last in sorted(expressed):
        terms = expressed[last]
        for unknown in [unknown for unknown in terms if unknown in expressed]:
            _add(terms, expressed[unknown], terms.pop(unknown))
    return expressed


def _add(
    target: dict[int, Fraction | int], terms: Mapping[int, Fraction | int], scale: Fraction | int
) -> None:
    """Add a multiple of a combination to another, in place."""
    for unknown, value in terms.items():
        total = target.get(unknown, 0) + scale * value
        if total:
            target[unknown] = total
        else:
            target.pop(unknown, None)


def _ratio(value: Fraction | int, scale: Fraction | int) -> Fraction | int:
    ratio = Fraction(value) / Fraction(scale)
    return int(ratio) if ratio.denominator == 1 else ratio


def _null_space_of_signs(
    rows: Iterable[Mapping[int, int]],
) -> dict[int, dict[int, Fraction | int]]:
    """Do the same over GF(2), where a row is a set of unknowns and adding is the difference."""
    expressed: dict[int, set[int]] = {}
    for row in rows:
        left = set(row)
        while left:
            last = max(left)
            left.remove(last)
            if last not in expressed:
                expressed[last] = left
                break
            left ^= expressed[last]
    for last in sorted(expressed):
        terms = expressed[last]
        for unknown in [unknown for unknown in terms if unknown in expressed]:
            terms.remove(unknown)
            terms ^= expressed[unknown]
    return {last: dict.fromkeys(terms, 1) for last, terms in expressed.items()}


def couple_uses(relations: ThreadRelations) -> None:
    """Make all uses of one tensor agree: it has one value, so it takes one factor.

    Two uses demand factors ``F = prod over legs of u ** power`` of every entry; these have to
    be equal. Where the legs lie along separate dimensions, that splits into one equation a
    row and one a column, up to a constant that one may give to the other.
    """
    for tensor, uses in relations.uses.items():
        for second in uses[1:]:
            _couple(relations, tensor, uses[0], second)
        for i, one in enumerate(uses[1:], start=1):
            if one.covered is not None or uses[0].covered is not None:
                for other in uses[i + 1 :]:
                    _couple(relations, tensor, one, other)


def _couple(relations: ThreadRelations, tensor: str, first: Use, second: Use) -> None:
    both = None
    if first.covered is not None or second.covered is not None:
        shape = first.covered.shape if first.covered is not None else second.covered.shape  # type: ignore[union-attr]
        both = np.ones(shape, dtype=bool)
        for use in (first, second):
            both = both & (True if use.covered is None else use.covered)
        if not both.any():
            return
    signed = [(leg, +1) for leg in first.legs] + [(leg, -1) for leg in second.legs]
    if not signed:
        return
    blocks = [range(signed[0][0].labels.ndim)] if both is not None else _blocks(signed)
    constants = relations.fresh(len(blocks), -1_000_000 - relations.threads)
    for block, constant in zip(blocks, constants, strict=True):
        _couple_block(
            relations, tensor, signed, set(block), constant if len(blocks) > 1 else 0, both
        )
    if len(blocks) > 1:
        relations.relate(*((constants[i : i + 1], 1) for i in range(len(blocks))))


def _blocks(signed: list[tuple[RawLeg, int]]) -> list[set[int]]:
    """Sets of dimensions such that every leg varies inside one of them."""
    blocks: list[set[int]] = []
    for leg, _ in signed:
        dims = {d for d, n in enumerate(leg.labels.shape) if n > 1} or {0}
        touching = [b for b in blocks if b & dims]
        blocks = [b for b in blocks if not b & dims] + [set(dims).union(*touching)]
    return blocks


def _couple_block(
    relations: ThreadRelations,
    tensor: str,
    signed: list[tuple[RawLeg, int]],
    block: set[int],
    constant: int,
    both: npt.NDArray[np.bool_] | None,
) -> None:
    inside = [
        (leg, side)
        for leg, side in signed
        if ({d for d, n in enumerate(leg.labels.shape) if n > 1} or {min(block)}) & block
    ]
    if not inside:
        return
    arrays = [leg.labels for leg, _ in inside] + [leg.addresses for leg, _ in inside]
    spread = np.broadcast_arrays(*arrays, *([both] if both is not None else []))
    flat = np.stack([a.reshape(-1) for a in spread[: len(arrays)]], axis=1)
    if both is not None:
        flat = flat[spread[-1].reshape(-1)]
    labels = unique_rows(flat[:, : len(inside)])[0]
    extra = np.full(len(labels), constant, dtype=np.int64)
    for wanted, attribute in (("scale", "power"), ("sign", "sign_power")):
        terms = [
            (labels[:, i], side * getattr(leg, attribute)) for i, (leg, side) in enumerate(inside)
        ]
        relations.relate(*terms, (extra, -1), scale=wanted == "scale", sign=wanted == "sign")
    _couple_moves(relations, tensor, inside, labels, flat)


def _couple_moves(
    relations: ThreadRelations,
    tensor: str,
    inside: list[tuple[RawLeg, int]],
    labels: IntArray,
    flat: IntArray,
) -> None:
    from invariance.symmetry._structures import SymmetryKind

    sides = {side for _, side in inside}
    first = [i for i, (_, side) in enumerate(inside) if side > 0]
    second = [i for i, (_, side) in enumerate(inside) if side < 0]
    addresses = flat[:, len(inside) :]
    same_places = all(
        np.array_equal(addresses[:, first[0]], addresses[:, i]) for i in first[1:] + second
    ) if first else False  # fmt: skip
    if len(sides) == 1 or not same_places:
        stop = relations.stop(
            tensor, "", "is used twice, in ways that do not move alike", (SymmetryKind.PERMUTATION,)
        )
        relations.pin(labels.reshape(-1), stop, move=True)
        return
    for i in first[1:] + second:
        relations.tie_moves(labels[:, first[0]], labels[:, i])
    relations.block_mixing(labels.reshape(-1))


def signatures(relations: ThreadRelations) -> npt.NDArray[np.uint64]:
    """Sum up what distinguishes every thread: where it was born and what reads it."""
    total = np.zeros(relations.threads, dtype=np.uint64)
    for start, end, born in relations.births:
        total[start:end] = born
    threads = [np.zeros(0, dtype=np.int64)]
    hashes = [np.zeros(0, dtype=np.uint64)]
    for touched, keys in relations.touches:
        live = touched > 0
        threads.append(touched[live])
        hashes.append(keys[live])
    flat, keys = np.concatenate(threads), np.concatenate(hashes)
    with np.errstate(over="ignore"):
        np.add.at(total, flat, keys)
        return mix_hash(7, total.view(np.int64))
