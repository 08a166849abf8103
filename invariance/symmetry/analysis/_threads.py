"""The bookkeeping of an analysis: threads, and what ties or stops them.

A **thread** is one channel of one intermediate value: all the entries of that value which a
symmetry would have to scale, flip and move together. Every operation that changes values
gives its result fresh threads and writes into the :class:`ThreadRelations` how they relate to those
of its operands; :mod:`invariance.symmetry.analysis._solve` then solves them as a whole.

Four things may be done to a thread, each with its own relations:

* scale: the log-factors ``u`` obey homogeneous linear equations over the rationals,
* sign: the signs obey the like equations over GF(2),
* move: threads tied to one another move together (a permutation moves whole classes);
  what distinguishes threads is summed up in a signature, and only classes with equal
  signatures may change places,
* mix: blocked by everything that is not linear and alike for all channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from invariance.symmetry._structures import IntArray, Role, Stop, SymmetryKind

UIntArray = npt.NDArray[np.uint64]

#: The thread of everything that no symmetry may touch: inputs, outputs, constants.
OUTSIDE = 0
#: The label of entries that are zero whatever the parameters are: any factor suits them.
ZERO = -1


def mix_hash(*parts: int | IntArray | UIntArray) -> UIntArray:
    """Hash integers (arrays broadcast) to 64 bits, deterministically (splitmix64)."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            word = np.asarray(part).astype(np.int64).view(np.uint64)
            state = state * np.uint64(0x100000001B3) + word + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state, dtype=np.uint64)


def distinct(array: IntArray) -> IntArray:
    """Return the distinct entries in order.

    ``np.unique`` hashes them since NumPy 2.3, which takes minutes for a million numbers in
    a row.
    """
    ordered = np.sort(array, axis=None)
    if not ordered.size:
        return ordered
    return np.asarray(ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])])


def unique_rows(table: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct rows of a table in order, and the place of every row among them.

    What ``np.unique(axis=0)`` does by comparing rows, done by sorting one number a row.

    Shapes: ``table (m, k)``.
    """
    if not table.size:
        unique, inverse = np.unique(table, axis=0, return_inverse=True)
        return unique, inverse.reshape(-1)
    low = table.min(axis=0)
    spans = [int(b) - int(a) + 1 for a, b in zip(low, table.max(axis=0), strict=True)]
    if prod(spans) < 2**62:
        key = np.zeros(len(table), dtype=np.int64)
        for column, span in enumerate(spans):
            key = key * span + (table[:, column] - low[column])
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        return table[first], inverse.reshape(-1)
    order = np.lexsort(table.T[::-1])
    ordered = table[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    inverse = np.empty(len(table), dtype=np.int64)
    inverse[order] = np.cumsum(new) - 1
    return ordered[new], inverse


@dataclass(frozen=True, eq=False)
class RawLeg:
    """A use of a tensor in terms of threads; a ``Leg`` is its final form.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        labels: Thread of each entry, broadcasting against the tensor; ``ZERO`` for none.
        power: Exponent of the thread's factor.
        sign_power: Exponent of the thread's sign.
        role: What the tensor is to the thread.
        addresses: Tells apart the entries of one thread.
        shift: See :class:`~invariance.symmetry._structures.Leg`.
        site: Place of the use.
    """

    tensor: str
    labels: IntArray
    power: int
    sign_power: int
    role: Role
    addresses: IntArray
    shift: float = 0.0
    site: str = ""


@dataclass(frozen=True, eq=False)
class Use:
    """One reading of a tensor: its legs, and which entries it covers (``None``: all)."""

    legs: list[RawLeg]
    covered: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Equations:
    """Equations ``sum_k coefficients[k] * u[threads[:, k]] = 0``, one a row.

    Attributes:
        threads: ``(m, k)``; entries ``<= 0`` count as factor one.
        coefficients: ``(k,)``.
    """

    threads: IntArray
    coefficients: tuple[int, ...]


@dataclass
class Pins:
    """Threads that may not undergo something, with the index of the stop that says why."""

    scale: list[tuple[IntArray, int]] = field(default_factory=list)
    sign: list[tuple[IntArray, int]] = field(default_factory=list)
    move: list[tuple[IntArray, int]] = field(default_factory=list)


class ThreadRelations:
    """Everything that the operations of one forward pass wrote down."""

    def __init__(self) -> None:
        self.threads = 1  # thread 0 is OUTSIDE
        self.stops: list[Stop] = []
        self._stop_index: dict[Stop, int] = {}
        self.pins = Pins()
        self.move_ties: list[tuple[IntArray, IntArray]] = []
        self.scale_equations: list[Equations] = []
        self.sign_equations: list[Equations] = []
        self.mix_blocked: list[IntArray] = []
        self.births: list[tuple[int, int, UIntArray]] = []
        self.touches: list[tuple[IntArray, UIntArray]] = []
        self.uses: dict[str, list[Use]] = {}
        self.remarks: list[tuple[IntArray, int]] = []
        self.reads: list[tuple[IntArray, int]] = []
        outside = np.array([OUTSIDE])
        none = self.stop("input and output", "", "are what has to be kept", tuple(SymmetryKind))
        for pins in (self.pins.scale, self.pins.sign, self.pins.move):
            pins.append((outside, none))

    # -- threads ---------------------------------------------------------------------

    def fresh(self, count: int, node: int, keys: IntArray | int = 0, slot: int = 0) -> IntArray:
        """Give birth to ``count`` threads in operation ``node``.

        Shapes: returns ``(count,)``.
        """
        start = self.threads
        self.threads += count
        born = np.broadcast_to(mix_hash(1, node, slot, keys), (count,))
        self.births.append((start, self.threads, born))
        return np.arange(start, self.threads, dtype=np.int64)

    def touch(self, threads: IntArray, node: int, *keys: int | IntArray) -> None:
        """Note that operation ``node`` reads ``threads`` (alike where the keys are equal)."""
        threads, *broadcast = np.broadcast_arrays(threads, *keys)
        flat = threads.reshape(-1)
        hashes = np.broadcast_to(
            mix_hash(2, node, *(key.reshape(-1) for key in broadcast)), flat.shape
        )
        self.touches.append((flat, hashes))
        self.reads.append((flat, node))

    # -- relations -------------------------------------------------------------------

    def tie_moves(self, first: IntArray, second: IntArray) -> None:
        """Threads at equal positions move together."""
        first, second = np.broadcast_arrays(first, second)
        keep = (first >= 0) & (second >= 0) & (first != second)
        if keep.any():
            self.move_ties.append((first[keep], second[keep]))

    def relate(
        self,
        *terms: tuple[IntArray, int],
        scale: bool = True,
        sign: bool = True,
    ) -> None:
        """Write ``sum coefficient * u = 0`` for threads at equal positions."""
        arrays = np.broadcast_arrays(*(threads for threads, _ in terms))
        stacked = np.stack([array.reshape(-1) for array in arrays], axis=1)
        equations = Equations(stacked, tuple(coefficient for _, coefficient in terms))
        if scale:
            self.scale_equations.append(equations)
        if sign:
            self.sign_equations.append(equations)

    def equate(
        self, first: IntArray, second: IntArray, *, scale: bool = True, sign: bool = True
    ) -> None:
        """Threads at equal positions have one factor (and one sign)."""
        first, second = np.broadcast_arrays(first, second)
        keep = (first >= 0) & (second >= 0) & (first != second)
        if keep.any():
            self.relate((first[keep], 1), (second[keep], -1), scale=scale, sign=sign)

    # -- stops -----------------------------------------------------------------------

    def stop(self, place: str, operation: str, reason: str, kinds: Iterable[SymmetryKind]) -> int:
        """Register a stop and return its index."""
        stop = Stop(place, operation, reason, tuple(kinds))
        if stop not in self._stop_index:
            self._stop_index[stop] = len(self.stops)
            self.stops.append(stop)
        return self._stop_index[stop]

    def pin(
        self,
        threads: IntArray,
        stop: int,
        *,
        scale: bool = False,
        sign: bool = False,
        move: bool = False,
    ) -> None:
        """Forbid scaling, flipping or moving the threads, for the reason ``stop``."""
        flat = threads[threads > 0]
        for wanted, pins in (
            (scale, self.pins.scale),
            (sign, self.pins.sign),
            (move, self.pins.move),
        ):
            if wanted and flat.size:
                pins.append((flat, stop))
        self.block_mixing(flat)

    def block_mixing(self, threads: IntArray) -> None:
        """Forbid mixing the threads linearly."""
        self.mix_blocked.append(np.asarray(threads).reshape(-1))

    # -- uses ------------------------------------------------------------------------

    def use(
        self, tensor: str, legs: list[RawLeg], covered: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Note one use of a parameter or buffer; its legs' factors multiply."""
        self.uses.setdefault(tensor, []).append(Use(legs, covered))

    def remark(self, threads: IntArray, stop: int) -> None:
        """Note that threads are constrained (not pinned) at ``stop``."""
        self.remarks.append((threads, stop))
