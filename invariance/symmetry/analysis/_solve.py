"""Solve a ledger: which factors and signs are free, and which threads move together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from invariance.symmetry._structures import IntArray
from invariance.symmetry.analysis._threads import Equations, Ledger, RawLeg, Use, mix_hash

Matrix = tuple[tuple[int, ...], ...]


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

    Equalities are merged first; what is left is split into connected components, each of
    which is a small dense system (solved once for every distinct shape).

    Args:
        count: Number of threads.
        equations: The equations.
        pins: Threads whose factor is one.
        modulo_two: Solve over GF(2) (signs) instead of the rationals (log-factors).

    Returns:
        The general solution, with integer exponents.
    """
    equal, rest = [], []
    for block in equations:
        if len(block.coefficients) == 2 and _is_equality(block.coefficients, modulo_two):
            a, b = block.threads[:, 0], block.threads[:, 1]
            keep = (a >= 0) & (b >= 0)
            equal.append((a[keep], b[keep]))
        else:
            rest.append(block)
    root = merge(count, equal)
    size = int(root.max()) + 1 if count else 0
    pinned = np.zeros(size, dtype=bool)
    for threads in pins:
        pinned[root[threads]] = True
    rows = _propagate(rest, root, pinned, modulo_two)
    column = np.full((size, 1), -1, dtype=np.int64)
    exponent = np.zeros((size, 1), dtype=np.int64)
    free = ~pinned
    involved = np.zeros(size, dtype=bool)
    for row in rows:
        involved[list(row)] = True
    plain = np.flatnonzero(free & ~involved)
    column[plain, 0] = np.arange(plain.size)
    exponent[plain, 0] = 1
    total = plain.size
    if rows:
        column, exponent, total = _coupled(rows, column, exponent, total, modulo_two)
    return Solution(total, column[root], exponent[root])


def _is_equality(coefficients: tuple[int, ...], modulo_two: bool) -> bool:
    if modulo_two:
        return all(c % 2 for c in coefficients)
    return sum(coefficients) == 0 and coefficients[0] != 0


def _propagate(
    blocks: list[Equations], root: IntArray, pinned: npt.NDArray[np.bool_], modulo_two: bool
) -> list[dict[int, int]]:
    """Reduce equations to roots, pin what is alone in one, and return those that remain."""
    rows: list[dict[int, int]] = []
    seen = set()
    for block in blocks:
        threads = np.where(block.threads >= 0, root[np.maximum(block.threads, 0)], -1)
        for line in np.unique(threads, axis=0).tolist():
            row: dict[int, int] = {}
            for thread, coefficient in zip(line, block.coefficients, strict=True):
                if thread >= 0:
                    row[thread] = row.get(thread, 0) + coefficient
            if modulo_two:
                row = {thread: 1 for thread, c in row.items() if c % 2}
            else:
                row = {thread: c for thread, c in row.items() if c}
            key = tuple(sorted(row.items()))
            if row and key not in seen:
                seen.add(key)
                rows.append(row)
    changed = True
    while changed:
        changed = False
        remaining = []
        for row in rows:
            live = {thread: c for thread, c in row.items() if not pinned[thread]}
            if len(live) == 1:
                pinned[next(iter(live))] = True
                changed = True
            elif live:
                remaining.append(live)
        rows = remaining
    return rows


def _coupled(
    rows: list[dict[int, int]],
    column: IntArray,
    exponent: IntArray,
    total: int,
    modulo_two: bool,
) -> tuple[IntArray, IntArray, int]:
    """Solve the equations that remain, component by component."""
    variables = np.unique(np.concatenate([list(row) for row in rows]))
    position = {int(v): i for i, v in enumerate(variables)}
    left = [position[t] for row in rows for t in row]
    right = [position[next(iter(row))] for row in rows for _ in row]
    component = merge(variables.size, [(np.array(left), np.array(right))])
    members: dict[int, list[int]] = {}
    for index, label in enumerate(component.tolist()):
        members.setdefault(label, []).append(int(variables[index]))
    grouped: dict[int, list[dict[int, int]]] = {}
    for row in rows:
        grouped.setdefault(int(component[position[next(iter(row))]]), []).append(row)
    cache: dict[tuple[Matrix, int], Matrix] = {}
    terms: dict[int, list[tuple[int, int]]] = {}
    for label, lines in grouped.items():
        inside = members[label]
        place = {thread: i for i, thread in enumerate(inside)}
        matrix = []
        for row in lines:
            entries = [0] * len(inside)
            for thread, c in row.items():
                entries[place[thread]] = c
            matrix.append(tuple(entries))
        key = (tuple(matrix), len(inside))
        if key not in cache:
            cache[key] = null_space(key[0], len(inside), modulo_two)
        for vector in cache[key]:
            for thread, power in zip(inside, vector, strict=True):
                if power:
                    terms.setdefault(thread, []).append((total, power))
            total += 1
    width = max([1, *(len(entry) for entry in terms.values())])
    wide_column = np.full((len(column), width), -1, dtype=np.int64)
    wide_exponent = np.zeros((len(column), width), dtype=np.int64)
    wide_column[:, :1], wide_exponent[:, :1] = column, exponent
    for thread, entry in terms.items():
        for slot, (free, power) in enumerate(entry):
            wide_column[thread, slot] = free
            wide_exponent[thread, slot] = power
    return wide_column, wide_exponent, total


def null_space(matrix: Matrix, width: int, modulo_two: bool) -> Matrix:
    """Return an integer basis of the null space, sparse where it can be.

    Args:
        matrix: Rows of integer coefficients.
        width: Number of unknowns.
        modulo_two: Over GF(2) instead of the rationals.

    Returns:
        Basis vectors with coprime integer entries, first non-zero entry positive.
    """
    work = [[Fraction(c % 2 if modulo_two else c) for c in row] for row in matrix]
    pivots: list[int] = []
    level = 0
    # Pivot from the right: early variables stay free, so that bases read like the network.
    for col in reversed(range(width)):
        pick = next((r for r in range(level, len(work)) if work[r][col]), None)
        if pick is None:
            continue
        work[level], work[pick] = work[pick], work[level]
        scale = work[level][col]
        work[level] = [entry / scale for entry in work[level]]
        for r in range(len(work)):
            if r != level and work[r][col]:
                factor = work[r][col]
                work[r] = [a - factor * b for a, b in zip(work[r], work[level], strict=True)]
                if modulo_two:
                    work[r] = [Fraction(int(a) % 2) for a in work[r]]
        pivots.append(col)
        level += 1
    basis = []
    for free in range(width):
        if free in pivots:
            continue
        vector = [Fraction(0)] * width
        vector[free] = Fraction(1)
        for row, pivot in zip(work, pivots, strict=False):
            vector[pivot] = -row[free]
        scale_up = lcm(*(entry.denominator for entry in vector))
        whole = [int(entry * scale_up) for entry in vector]
        basis.append(tuple(abs(v) % 2 if modulo_two else v for v in whole))
    return tuple(basis)


def couple_uses(ledger: Ledger) -> None:
    """Make all uses of one tensor agree: it has one value, so it takes one factor.

    Two uses demand factors ``F = prod over legs of u ** power`` of every entry; these have to
    be equal. Where the legs lie along separate dimensions, that splits into one equation a
    row and one a column, up to a constant that one may give to the other.
    """
    for tensor, uses in ledger.uses.items():
        for second in uses[1:]:
            _couple(ledger, tensor, uses[0], second)
        for i, one in enumerate(uses[1:], start=1):
            if one.covered is not None or uses[0].covered is not None:
                for other in uses[i + 1 :]:
                    _couple(ledger, tensor, one, other)


def _couple(ledger: Ledger, tensor: str, first: Use, second: Use) -> None:
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
    constants = ledger.fresh(len(blocks), -1_000_000 - ledger.threads)
    for block, constant in zip(blocks, constants, strict=True):
        _couple_block(ledger, tensor, signed, set(block), constant if len(blocks) > 1 else 0, both)
    if len(blocks) > 1:
        ledger.relate(*((constants[i : i + 1], 1) for i in range(len(blocks))))


def _blocks(signed: list[tuple[RawLeg, int]]) -> list[set[int]]:
    """Sets of dimensions such that every leg varies inside one of them."""
    blocks: list[set[int]] = []
    for leg, _ in signed:
        dims = {d for d, n in enumerate(leg.labels.shape) if n > 1} or {0}
        touching = [b for b in blocks if b & dims]
        blocks = [b for b in blocks if not b & dims] + [set(dims).union(*touching)]
    return blocks


def _couple_block(
    ledger: Ledger,
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
    labels = np.unique(flat[:, : len(inside)], axis=0)
    extra = np.full(len(labels), constant, dtype=np.int64)
    for wanted, attribute in (("scale", "power"), ("sign", "sign_power")):
        terms = [
            (labels[:, i], side * getattr(leg, attribute)) for i, (leg, side) in enumerate(inside)
        ]
        ledger.relate(*terms, (extra, -1), scale=wanted == "scale", sign=wanted == "sign")
    _couple_moves(ledger, tensor, inside, labels, flat)


def _couple_moves(
    ledger: Ledger,
    tensor: str,
    inside: list[tuple[RawLeg, int]],
    labels: IntArray,
    flat: IntArray,
) -> None:
    from invariance.symmetry._structures import Kind

    sides = {side for _, side in inside}
    first = [i for i, (_, side) in enumerate(inside) if side > 0]
    second = [i for i, (_, side) in enumerate(inside) if side < 0]
    addresses = flat[:, len(inside) :]
    same_places = all(
        np.array_equal(addresses[:, first[0]], addresses[:, i]) for i in first[1:] + second
    ) if first else False  # fmt: skip
    if len(sides) == 1 or not same_places:
        stop = ledger.stop(
            tensor, "", "is used twice, in ways that do not move alike", (Kind.PERMUTATION,)
        )
        ledger.pin(labels.reshape(-1), stop, move=True)
        return
    for i in first[1:] + second:
        ledger.tie_moves(labels[:, first[0]], labels[:, i])
    ledger.block_mixing(labels.reshape(-1))


def signatures(ledger: Ledger) -> npt.NDArray[np.uint64]:
    """Sum up what distinguishes every thread: where it was born and what reads it."""
    total = np.zeros(ledger.threads, dtype=np.uint64)
    for start, end, born in ledger.births:
        total[start:end] = born
    threads = [np.zeros(0, dtype=np.int64)]
    hashes = [np.zeros(0, dtype=np.uint64)]
    for touched, keys in ledger.touches:
        live = touched > 0
        threads.append(touched[live])
        hashes.append(keys[live])
    flat, keys = np.concatenate(threads), np.concatenate(hashes)
    with np.errstate(over="ignore"):
        np.add.at(total, flat, keys)
        return mix_hash(7, total.view(np.int64))
