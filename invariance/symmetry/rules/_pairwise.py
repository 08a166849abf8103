"""Elementwise functions of two tensors: sums, products, maxima, masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from invariance.symmetry._structures import IntArray
from invariance.symmetry.analysis._context import MOVE, SCALE, SIGN, Context, NotUnderstoodError
from invariance.symmetry.analysis._entries import Value, compress
from invariance.symmetry.analysis._threads import OUTSIDE, ZERO, distinct, unique_rows
from invariance.symmetry.analysis._tracing import Call
from invariance.symmetry.rules._computed import deferred
from invariance.symmetry.rules._elementwise import relate
from invariance.symmetry.rules._registry import named, rule


@dataclass(frozen=True, eq=False)
class Pairing:
    """The result of combining two values entry by entry, and the threads that met.

    Attributes:
        result: The result's value, with fresh threads.
        out: ``(m,)`` distinct triples of result thread,
        first: first operand's thread,
        second: and second operand's thread.
        tied: Whether the channels of both correspond one to one.
    """

    result: Value
    out: IntArray
    first: IntArray
    second: IntArray
    tied: bool


def pair(context: Context, call: Call, first: Value, second: Value, *, product: bool) -> Pairing:
    """Combine two values entry by entry (they broadcast) and tie what moves together."""
    ndim = max(len(first.shape), len(second.shape))
    first, second = first.padded(ndim), second.padded(ndim)
    shape = tuple(np.broadcast_shapes(first.shape, second.shape))
    labels = np.broadcast_arrays(first.labels, second.labels)
    tied = _tie_or_pin(context, call, first, second, shape, product=product)
    pairs = np.stack([array.reshape(-1) for array in labels], axis=1)
    unique, inverse = unique_rows(pairs)
    a, b = unique[:, 0], unique[:, 1]
    dead = (a == ZERO) | (b == ZERO) if product else (a == ZERO) & (b == ZERO)
    fixed = (a <= OUTSIDE) & (b <= OUTSIDE) & ~dead
    live = ~dead & ~fixed
    out = np.where(dead, ZERO, OUTSIDE)
    cluster = _clusters(a[live], b[live]) if tied else np.arange(int(live.sum()))
    count = int(cluster.max()) + 1 if cluster.size else 0
    out[live] = context.relations.fresh(count, call.node)[cluster]
    moved = compress(out[inverse].reshape(labels[0].shape))
    result = Value(moved, shape, _joint_addresses(first, second, moved, shape))
    if tied:
        context.relations.tie_moves(out[live], a[live])
        context.relations.tie_moves(out[live], b[live])
    return Pairing(result, out[live], a[live], b[live], tied)


def _clusters(a: IntArray, b: IntArray) -> IntArray:
    """Group pairs that share a thread: those move together anyhow."""
    if a.size == 0:
        return a
    nodes, flat = np.unique(np.concatenate([a, b]), return_inverse=True)
    # OUTSIDE and ZERO must not glue clusters together: give every pair its own copy.
    left, right = flat[: a.size].copy(), flat[a.size :].copy()
    spare = nodes.size + np.arange(a.size)
    left[a <= OUTSIDE] = spare[a <= OUTSIDE]
    right[b <= OUTSIDE] = spare[b <= OUTSIDE]
    size = nodes.size + a.size
    graph = sparse.coo_matrix((np.ones(a.size), (left, right)), shape=(size, size))
    component = csgraph.connected_components(graph, directed=False)[1][left]
    return np.asarray(np.unique(component, return_inverse=True)[1], dtype=np.int64)


def _joint_addresses(
    first: Value, second: Value, labels: IntArray, shape: tuple[int, ...]
) -> IntArray | None:
    if labels.size == 1:
        return None
    if distinct(labels).size == labels.size:
        if first.addresses is None and second.addresses is None:
            return None
        varying = [d for d, n in enumerate(labels.shape) if n > 1]
        explicit = [v.addresses for v in (first, second) if v.addresses is not None]
        if all(array.shape[d] == 1 for array in explicit for d in varying):
            return None
    # One thread fills several cells: tell its entries apart by the operand that does.
    for value in (first, second):
        if value.shape == shape and value.labels.size >= labels.size and value.labels.size > 1:
            addresses = value.explicit_addresses()
            cells = [d for d in value.varying if labels.shape[d] == 1]
            if cells:
                continue
            return addresses
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)


def _tie_or_pin(
    context: Context,
    call: Call,
    first: Value,
    second: Value,
    shape: tuple[int, ...],
    *,
    product: bool,
) -> bool:
    """Decide whether channels correspond; touch, and pin what cannot be followed."""

    def extended(value: Value) -> set[int]:
        return {d for d, n in enumerate(value.shape) if n > 1 or shape[d] == 1}

    vary = [set(first.varying), set(second.varying)]
    extent = [extended(first), extended(second)]
    broadcast = [vary[0] - extent[1], vary[1] - extent[0]]
    if not broadcast[0] and not broadcast[1]:
        keys: list[int | IntArray] = []
        even = first.even and second.even
        for one, value in enumerate((first, second)):
            # Implicit addresses tell the other operand's threads apart where those are finer.
            alike = even and not vary[1 - one] - vary[one]
            nothing = bool((value.labels == ZERO).all())
            keys.append(0 if alike or nothing else value.explicit_addresses())
        context.relations.touch(first.labels, call.node, 1, *keys)
        context.relations.touch(second.labels, call.node, 2, *keys)
        if product:
            context.relations.block_mixing(first.labels)
            context.relations.block_mixing(second.labels)
        return True
    # A product with one number for many channels is linear and alike in these channels.
    for one in (0, 1):
        if not (product and broadcast[one] and not broadcast[1 - one]):
            context.relations.block_mixing((first, second)[one].labels)
    stop = None
    values = (first, second)
    for one, other in ((0, 1), (1, 0)):
        shared = vary[one] & extent[other]
        key: int | IntArray = 0
        if broadcast[one] and shared:
            # One operand is the same for many channels of the other, and differs between
            # blocks of them: channels swap inside their block only.
            key = _index_along(values[one], shared)
        context.touch(values[one], call, one + 1, key)
        blocks = bool(vary[other] & extent[one] & vary[one]) and bool(broadcast[one])
        if blocks or (broadcast[0] and broadcast[1]):
            stop = stop or context.stop(call, "pairs blocks of channels with channels", MOVE)
            context.pin(values[other].labels, stop, move=True)
    return False


def _index_along(value: Value, dims: set[int]) -> IntArray:
    index = np.zeros((1,) * len(value.shape), dtype=np.int64)
    for dim in sorted(dims):
        size = value.labels.shape[dim]
        line = np.arange(size, dtype=np.int64).reshape(
            [size if d == dim else 1 for d in range(len(value.shape))]
        )
        index = index * size + line
    return index


def tie_result(context: Context, call: Call, paired: Pairing) -> None:
    """In a broadcast pairing: the result's threads move with the wider operand's."""
    if paired.tied:
        return
    wide = paired.first if distinct(paired.first).size == paired.out.size else paired.second
    context.relations.tie_moves(paired.out, wide)
    if distinct(wide).size != paired.out.size:
        stop = context.stop(call, "combines every channel with every other", MOVE)
        context.pin(paired.out, stop, move=True)


def constant_operand(
    context: Context, call: Call, value: Value, constant: Any, *, multiply: bool
) -> None:
    """Pin what adding or multiplying by a constant stops."""
    zero = _is_zero(constant)
    varies = False
    if isinstance(constant, Tensor):
        ndim = max(len(value.shape), constant.dim())
        padded = constant.reshape((1,) * (ndim - constant.dim()) + tuple(constant.shape))
        for dim in value.padded(ndim).varying:
            if padded.shape[dim] > 1 and not torch.equal(
                padded.narrow(dim, 0, 1).expand_as(padded), padded
            ):
                varies = True
    if varies:
        word = "multiplies by" if multiply else "adds"
        stop = context.stop(call, f"{word} a constant that differs by channel", MOVE)
        context.pin(value.labels, stop, move=True)
    if not multiply and not zero:
        stop = context.stop(
            call, "adds a constant: no scaling and no sign flip through it", SCALE + SIGN
        )
        context.pin(value.labels, stop, scale=True, sign=True)


def _is_zero(constant: Any) -> bool:
    """Whether a number or a tensor is zero throughout."""
    if isinstance(constant, Tensor):
        return not bool(torch.count_nonzero(constant))
    return bool(constant == 0)


def _operands(call: Call) -> tuple[Any, Any]:
    second = call.argument(1, "other")
    first = call.argument(0, "input")
    return (second, first) if call.name in ("__rsub__", "rsub") else (first, second)


def _with_constant(
    context: Context, call: Call, value: Value, constant: Any, *, multiply: bool, power: int = 1
) -> None:
    constant_operand(context, call, value, constant, multiply=multiply)
    ndim = call.out.dim()
    shape = tuple(call.out.shape)
    alike = not isinstance(constant, Tensor) or constant.numel() == 1
    context.touch(value, call, entrywise=alike)
    wide = value.padded(ndim)
    if multiply and power > 0 and _is_zero(constant):
        context.assign(call.out, Value(np.full((1,) * ndim, ZERO, dtype=np.int64), shape))
        return
    if multiply:
        wide = Value(wide.labels, shape, wide.addresses)
        result = context.renew(wide, call, zero_stays=power > 0)
    else:
        zero = alike and _is_zero(constant)
        result = context.renew(Value(wide.labels, shape, wide.addresses), call, zero_stays=zero)
    context.relations.relate((result.labels, 1), (wide.labels, -power))
    if power != 1:
        context.relations.block_mixing(wide.labels)
    context.assign(call.out, result)


@rule("add", "sub", "subtract", "__add__", "__radd__", "__sub__", "__rsub__", "rsub",
      "__iadd__", "__isub__")  # fmt: skip
@deferred("sum")
def addition(context: Context, call: Call) -> None:
    """Sums: both operands scale, flip and move as one."""
    first, second = _operands(call)
    a, b = context.value(first), context.value(second)
    if a is None or b is None:
        if a is None:
            a, second = b, first
        assert a is not None
        _with_constant(context, call, a, second, multiply=False)
        return
    equal_pair(context, call, a, b)


def equal_pair(context: Context, call: Call, a: Value, b: Value) -> Pairing:
    """Combine two values that have to share one factor; assign the result."""
    paired = pair(context, call, a, b, product=False)
    tie_result(context, call, paired)
    context.relations.equate(paired.out, paired.first)
    context.relations.equate(paired.out, paired.second)
    context.assign(call.out, paired.result)
    return paired


@rule("mul", "multiply", "__mul__", "__rmul__", "__imul__")
@deferred("product")
def multiplication(context: Context, call: Call) -> None:
    """Products: the factors multiply."""
    first, second = _operands(call)
    _product(context, call, first, second, power=1)


@rule("div", "divide", "true_divide", "__truediv__", "__rtruediv__", "__rdiv__", "__itruediv__")
@deferred("quotient")
def division(context: Context, call: Call) -> None:
    """Quotients: the factors divide."""
    if call.kwargs.get("rounding_mode") is not None:
        raise NotUnderstoodError("rounds a quotient")
    first, second = _operands(call)
    if call.name in ("__rtruediv__", "__rdiv__"):
        first, second = second, first
    _product(context, call, first, second, power=-1)


def _product(context: Context, call: Call, first: Any, second: Any, *, power: int) -> None:
    a, b = context.value(first), context.value(second)
    if b is None:
        assert a is not None
        _with_constant(context, call, a, second, multiply=True)
        return
    if a is None:
        _with_constant(context, call, b, first, multiply=True, power=power)
        return
    paired = pair(context, call, a, b, product=True)
    tie_result(context, call, paired)
    context.relations.relate((paired.out, 1), (paired.first, -1), (paired.second, -power))
    if power < 0:
        context.relations.block_mixing(paired.second)
    context.assign(call.out, paired.result)


@rule("maximum", "minimum", "fmax", "fmin", "max", "min")
def extremum(context: Context, call: Call) -> None:
    """The larger (or smaller) of two: positively homogeneous, not odd."""
    first, second = _operands(call)
    if not isinstance(second, Tensor):
        from invariance.symmetry.rules._reduction import extremum_along

        extremum_along(context, call)
        return
    a, b = context.value(first), context.value(second)
    if a is not None and b is not None:
        paired = equal_pair(context, call, a, b)
        stop = context.stop(call, "is not an odd function: no sign flip through it", SIGN)
        context.pin(paired.out, stop, sign=True)
        context.relations.block_mixing(paired.out)
        return
    if a is None:
        a, second = b, first
    assert a is not None
    _with_constant(context, call, a, second, multiply=False)
    result = context.value(call.out)
    assert result is not None
    relate(context, call, result, result, homogeneous=True, odd=False)
    context.relations.block_mixing(result.labels)


@rule("where")
def where(context: Context, call: Call) -> None:
    """A choice by a constant mask between two values of one factor."""
    condition, first, second = (call.argument(i, n) for i, n in enumerate(
        ("condition", "input", "other")))  # fmt: skip
    if call.function is Tensor.where:
        condition, first = first, condition
    if context.entry(condition) is not None:
        named("where_positive")(context, replace(call, args=(condition, first, second)))
        return
    a, b = context.value(first), context.value(second)
    for value in (a, b):
        if value is not None:
            constant_operand(context, call, value, condition, multiply=True)
            context.relations.block_mixing(value.labels)
    if a is None or b is None:
        value, constant = (a, second) if a is not None else (b, first)
        assert value is not None
        _with_constant(context, call, value, constant, multiply=False)
        return
    equal_pair(context, call, a, b)


@rule("masked_fill")
def masked_fill(context: Context, call: Call) -> None:
    """Overwriting by a constant under a constant mask."""
    mask, fill = call.argument(1, "mask"), call.argument(2, "value")
    value = context.value(call.args[0])
    if context.entry(mask) is not None or value is None:
        raise NotUnderstoodError("fills by a mask that depends on the input")
    constant_operand(context, call, value, mask, multiply=True)
    context.relations.block_mixing(value.labels)
    _with_constant(context, call, value, fill, multiply=False)
