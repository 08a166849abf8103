"""What is known about one intermediate tensor: which thread each of its entries belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invariance.symmetry._structures import IntArray
from invariance.symmetry.analysis._threads import RawLeg, distinct


@dataclass(frozen=True, eq=False)
class Value:
    """The threads of a tensor's entries.

    Attributes:
        labels: Thread of every entry, with the tensor's number of dimensions; a dimension of
            size 1 means "the same all along it".
        shape: The tensor's shape.
        addresses: Tells apart the entries of one thread, like ``labels``; ``None`` means that
            they are told apart by their position along the dimensions that ``labels`` does
            not vary along.
    """

    labels: IntArray
    shape: tuple[int, ...]
    addresses: IntArray | None = None

    @property
    def varying(self) -> tuple[int, ...]:
        """Dimensions along which the threads differ."""
        return tuple(d for d, n in enumerate(self.labels.shape) if n > 1)

    @property
    def even(self) -> bool:
        """Whether the entries of all threads lie alike: same addresses at same positions."""
        if self.addresses is None:
            return True
        pairs = zip(self.labels.shape, self.addresses.shape, strict=True)
        return not any(n > 1 and m > 1 for n, m in pairs)

    def positions(self) -> IntArray:
        """Return a number for every position along dimensions where threads do not differ."""
        shape = [1 if d in self.varying else n for d, n in enumerate(self.shape)]
        return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)

    def with_labels(self, labels: IntArray) -> Value:
        """Return the same positions with other threads."""
        return replace(self, labels=labels)

    def explicit_addresses(self) -> IntArray:
        """Return the addresses, written out where they were implicit."""
        if self.addresses is not None:
            return self.addresses
        return self.positions()

    def padded(self, ndim: int) -> Value:
        """Return the value with leading dimensions of size 1, ``ndim`` in all."""
        extra = (1,) * (ndim - len(self.shape))
        addresses = self.addresses
        return Value(
            self.labels.reshape(extra + self.labels.shape),
            extra + self.shape,
            None if addresses is None else addresses.reshape(extra + addresses.shape),
        )


@dataclass(frozen=True, eq=False)
class ParameterView:
    """A parameter (or a reshaped, sliced, transposed view of it) that no operation has read.

    Attributes:
        name: Qualified name of the parameter.
        shape: Shape of the view.
        full_shape: Shape of the parameter.
        index: Flat index into the parameter of every entry; ``None`` for the whole of it.
    """

    name: str
    shape: tuple[int, ...]
    full_shape: tuple[int, ...]
    index: IntArray | None = None

    def explicit_index(self) -> IntArray:
        """Return the flat indices, written out."""
        if self.index is not None:
            return self.index
        return np.arange(int(np.prod(self.full_shape)), dtype=np.int64).reshape(self.full_shape)


@dataclass(frozen=True, eq=False)
class NormalizedWeight:
    """The result of ``g * v / |v|``, with norms over all dimensions of ``v`` but one.

    Attributes:
        direction: Name of ``v``.
        gain: Name of ``g``.
        dim: The dimension that keeps its own norm; -1 if one norm is taken over all.
        shape: Shape of the weight.
        site: Where it is computed.
    """

    direction: str
    gain: str
    dim: int
    shape: tuple[int, ...]
    site: str


@dataclass(frozen=True, eq=False)
class Computed:
    """A tensor that is computed from parameters alone.

    Attributes:
        shape: Its shape.
        demand: Asks its parameters to follow the threads of legs, which lie as its shape.
        realise: Reads the operation like any other, and assigns its result anew.
    """

    shape: tuple[int, ...]
    demand: Callable[[Sequence[RawLeg]], None]
    realise: Callable[[], None]


def compress(array: IntArray) -> IntArray:
    """Cut every dimension along which ``array`` is constant to size 1."""
    for dim, size in enumerate(array.shape):
        if size <= 1:
            continue
        first = array.take([0], axis=dim)
        if array.strides[dim] == 0 or bool((array == first).all()):
            array = first
    return np.array(array, order="C")


def reshape_labels(array: IntArray, before: tuple[int, ...], after: tuple[int, ...]) -> IntArray:
    """Reshape labels from one shape to another; what is alike along a dimension stays so."""
    spread: list[int] = []
    result: list[int] = []
    left = right = 0
    while left < len(before) or right < len(after):
        # The next dimensions on both sides that hold equally many entries.
        start, begin = left, right
        left, right = min(left + 1, len(before)), min(right + 1, len(after))
        while prod(before[start:left]) != prod(after[begin:right]):
            if prod(before[start:left]) < prod(after[begin:right]):
                left += 1
            else:
                right += 1
        varies = any(n > 1 for n in array.shape[start:left])
        spread += before[start:left] if varies else (1,) * (left - start)
        result += after[begin:right] if varies else (1,) * (right - begin)
    return compress(np.broadcast_to(array, spread).reshape(result))


def expand(array: IntArray, shape: tuple[int, ...]) -> Tensor:
    """Spread labels over the whole shape, without copying, as a tensor."""
    return torch.from_numpy(np.array(array, order="C")).expand(shape)


def restructure(value: Value, move: Callable[[Tensor], Any]) -> Any:
    """Apply a pure rearrangement of entries (view, permute, slice, chunk, ...) to a value."""
    moved_labels = move(expand(value.labels, value.shape))
    moved_addresses = move(expand(value.explicit_addresses(), value.shape))
    return _collect(moved_labels, moved_addresses)


def _collect(labels: Any, addresses: Any) -> Any:
    if not isinstance(labels, Tensor):
        return [_collect(*parts) for parts in zip(labels, addresses, strict=True)]
    implicit = Value(compress(labels.numpy()), tuple(labels.shape))
    no_thread = implicit.labels.size == 1 and int(implicit.labels.reshape(-1)[0]) <= 0
    if no_thread:
        return implicit
    places = compress(addresses.numpy())
    # Leave the addresses out only where positions say the same. A flip or a stride of some
    # channels says something else, and those no longer exchange with the others.
    one_block = distinct(implicit.labels).size == implicit.labels.size
    if one_block and np.array_equal(places, compress(implicit.explicit_addresses())):
        return implicit
    return Value(implicit.labels, implicit.shape, places)


def restructure_view(view: ParameterView, move: Callable[[Tensor], Any]) -> Any:
    """Apply a rearrangement to a parameter that no operation has read yet."""
    moved = move(torch.from_numpy(view.explicit_index()))

    def wrap(index: Any) -> Any:
        if isinstance(index, Tensor):
            return ParameterView(view.name, tuple(index.shape), view.full_shape, index.numpy())
        return [wrap(part) for part in index]

    return wrap(moved)
