"""Matrix products of two intermediate values, or of one and a parameter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from invariance.symmetry._structures import IntArray
from invariance.symmetry.analysis._context import MOVE, Context, NotUnderstoodError
from invariance.symmetry.analysis._entries import Computed, ParameterView, Value
from invariance.symmetry.analysis._threads import OUTSIDE, ZERO, distinct, unique_rows
from invariance.symmetry.analysis._tracing import Call
from invariance.symmetry.rules._computed import deferred
from invariance.symmetry.rules._pairwise import pair, tie_result
from invariance.symmetry.rules._registry import named, rule
from invariance.symmetry.rules._weight import (
    along,
    features,
    linear_map,
    use_bias,
    use_weight,
)


def contract(
    context: Context,
    call: Call,
    first: Value,
    letters: str,
    second: Value,
    second_letters: str,
    out: str,
    shape: tuple[int, ...],
) -> Value:
    """Write down ``einsum(letters, second_letters -> out)`` and return its result.

    Where the contracted index runs over channels, both operands' channels pair up: they move
    together, and their factors multiply to one factor of the result.
    """
    gone = [c for c in dict.fromkeys(letters + second_letters) if c not in out]
    if any(c not in letters or c not in second_letters for c in gone):
        raise NotUnderstoodError("sums an operand by itself")
    every = out + "".join(gone)
    spread = [_arrange(v, c, every) for v, c in ((first, letters), (second, second_letters))]
    kept = len(out)
    contracted = any(s.labels.shape[d] > 1 for s in spread for d in range(kept, len(every)))
    moving = [
        s.addresses is not None and any(n > 1 for n in s.addresses.shape[kept:]) for s in spread
    ]
    if any(moving):
        stop = context.stop(call, "contracts positions that differ by channel", MOVE)
        for value in spread:
            context.pin(value.labels, stop, move=True)
    if not contracted:
        slim = [_first(s, kept) for s in spread]
        paired = pair(context, call, slim[0], slim[1], product=True)
        tie_result(context, call, paired)
        context.relations.relate((paired.out, 1), (paired.first, -1), (paired.second, -1))
        return Value(paired.result.labels, shape, paired.result.addresses)
    return _contract_channels(context, call, spread[0], spread[1], kept, shape)


def _arrange(value: Value, letters: str, every: str) -> Value:
    """Lay a value's dimensions out in the order ``every``, size 1 where it has none."""
    if len(set(letters)) != len(letters):
        raise NotUnderstoodError("takes a diagonal")
    order = [letters.index(c) for c in every if c in letters]
    sizes = [value.shape[letters.index(c)] if c in letters else 1 for c in every]

    def arranged(array: IntArray) -> IntArray:
        moved = array.transpose(order)
        missing = tuple(d for d, c in enumerate(every) if c not in letters)
        return np.expand_dims(moved, missing)

    addresses = None if value.addresses is None else arranged(value.addresses)
    return Value(arranged(value.labels), tuple(sizes), addresses)


def _first(value: Value, kept: int) -> Value:
    """Drop contracted dimensions along which nothing differs."""
    index = (slice(None),) * kept + (0,) * (len(value.shape) - kept)
    addresses = None if value.addresses is None else value.addresses[index]
    return Value(value.labels[index], value.shape[:kept], addresses)


def _contract_channels(
    context: Context, call: Call, first: Value, second: Value, kept: int, shape: tuple[int, ...]
) -> Value:
    a, b = np.broadcast_arrays(first.labels, second.labels)
    grid = a.shape[:kept]
    blocks: IntArray = np.arange(int(np.prod(grid)), dtype=np.int64)
    blocks = blocks.reshape(grid + (1,) * (a.ndim - kept))
    out = context.relations.fresh(blocks.size, call.node, np.arange(blocks.size))
    result = np.broadcast_to(out.reshape(blocks.shape), a.shape)
    shaped = [*map(int, a.shape[:kept]), *(1,) * (a.ndim - kept)]
    for slot, value in enumerate((first, second)):
        own = tuple(
            n if value.labels.shape[d] > 1 or d >= kept else 1 for d, n in enumerate(shaped)
        )
        index = np.arange(int(np.prod(own)), dtype=np.int64).reshape(own)
        context.touch(value, call, slot, index)
    live = (a != ZERO) & (b != ZERO)
    context.relations.tie_moves(a[live], b[live])
    triples = np.stack([result[live], a[live], b[live]], axis=1)
    triples = unique_rows(triples)[0]
    context.relations.relate((triples[:, 0], 1), (triples[:, 1], -1), (triples[:, 2], -1))
    if out.size > 1:
        stop = context.stop(call, "contracts channels block by block", MOVE)
        context.relations.pin(out, stop, move=True)
    mixed = np.intersect1d(a, b)
    if mixed.size or not _pairs_once(a[live], b[live]):
        context.relations.block_mixing(np.concatenate([a.reshape(-1), b.reshape(-1)]))
    context.relations.block_mixing(out)
    labels = out.reshape(grid)
    if not triples.size:
        labels = np.full(grid, OUTSIDE, dtype=np.int64)
    return Value(labels, shape)


def _pairs_once(a: IntArray, b: IntArray) -> bool:
    """Whether every thread of ``a`` meets one thread of ``b``, and the other way round."""
    pairs = unique_rows(np.stack([a.reshape(-1), b.reshape(-1)], axis=1))[0]
    return distinct(pairs[:, 0]).size == len(pairs) == distinct(pairs[:, 1]).size


@rule("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv")
@deferred("matrix product")
def matmul(context: Context, call: Call) -> None:
    """Matrix products; with a parameter on one side they are linear layers."""
    a, b = call.args[0], call.argument(1, "other", call.kwargs.get("mat2"))
    if call.name == "__rmatmul__":
        a, b = b, a
    left, right = context.entry(a), context.entry(b)
    weights = (ParameterView, Computed)
    both = isinstance(left, weights) and isinstance(right, weights)
    if right is not None and not isinstance(right, Value) and b.dim() == 2 and not both:
        _times_weight(context, call, a, b, None)
        return
    if isinstance(left, weights) and a.dim() == 2 and b.dim() >= 2 and not both:
        value = context.operand(b)
        inputs, addresses = features(context, call, value, -2)
        outputs = context.relations.fresh(a.shape[0], call.node)
        use_weight(context, call, a, outputs[:, None], inputs[None, :], addresses[None, :])
        ndim = call.out.dim()
        context.assign(call.out, Value(along(outputs, ndim - 2, ndim), tuple(call.out.shape)))
        return
    if a.dim() < 2 or b.dim() < 2:
        named("mv_by_matmul")(context, replace(call, args=(a, b), kwargs={}))
        return
    first, second = context.operand(a), context.operand(b)
    ndim = call.out.dim()
    lead = "abcdefgh"[: ndim - 2]
    context.assign(
        call.out,
        contract(
            context,
            call,
            first.padded(ndim),
            lead + "tz",
            second.padded(ndim),
            lead + "zs",
            lead + "ts",
            tuple(call.out.shape),
        ),
    )


def _times_weight(context: Context, call: Call, x: Tensor, weight: Tensor, bias: Any) -> None:
    """``x W + b`` with the parameter ``W`` of shape (in, out)."""
    value = context.operand(x)
    inputs, addresses = features(context, call, value, -1)
    outputs = context.relations.fresh(weight.shape[1], call.node)
    use_weight(context, call, weight, outputs[None, :], inputs[:, None], addresses[:, None])
    use_bias(context, call, bias, outputs)
    ndim = call.out.dim()
    context.assign(call.out, Value(along(outputs, ndim - 1, ndim), tuple(call.out.shape)))


@rule("addmm")
def addmm(context: Context, call: Call) -> None:
    """``bias + x W`` (transformers' Conv1D)."""
    bias, x, weight = call.args[:3]
    if call.kwargs or context.entry(weight) is None or bias.dim() != 1:
        raise NotUnderstoodError("is not a plain linear layer")
    if isinstance(context.entry(weight), Value):
        raise NotUnderstoodError("multiplies by a computed weight")
    _times_weight(context, call, x, weight, bias)


@rule("einsum")
def einsum(context: Context, call: Call) -> None:
    """An einsum without an ellipsis."""
    equation, operands = call.args[0], list(call.args[1:])
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        raise NotUnderstoodError("is not an explicit einsum")
    equation = equation.replace(" ", "")
    if len(operands) > 2:
        named("einsum_of_many")(context, replace(call, args=(equation, *operands)))
        return
    if len(operands) != 2:
        raise NotUnderstoodError("is an einsum of one operand")
    inputs, out = equation.split("->")
    first, second = inputs.split(",")
    for (tensor, letters), (other, other_letters) in (
        ((operands[1], second), (operands[0], first)),
        ((operands[0], first), (operands[1], second)),
    ):
        view = context.entry(tensor)
        if isinstance(view, ParameterView) and tensor.dim() == 2:
            gone = [c for c in letters if c not in out]
            free = [c for c in letters if c in out]
            lone = len(gone) == len(free) == 1 and free[0] not in other_letters
            if lone and gone[0] in other_letters:
                _einsum_weight(
                    context, call, tensor, letters, other, other_letters, out, free[0], gone[0]
                )
                return
    context.assign(
        call.out,
        contract(
            context,
            call,
            context.operand(operands[0]),
            first,
            context.operand(operands[1]),
            second,
            out,
            tuple(call.out.shape),
        ),
    )


def _einsum_weight(
    context: Context,
    call: Call,
    weight: Tensor,
    letters: str,
    x: Tensor,
    x_letters: str,
    out: str,
    free: str,
    gone: str,
) -> None:
    inputs, addresses = features(context, call, context.operand(x), x_letters.index(gone))
    row, column = letters.index(free), letters.index(gone)
    outputs = context.relations.fresh(weight.shape[row], call.node)
    use_weight(
        context,
        call,
        weight,
        along(outputs, row, 2),
        along(inputs, column, 2),
        along(addresses, column, 2),
    )
    shape = tuple(call.out.shape)
    context.assign(call.out, Value(along(outputs, out.index(free), len(shape)), shape))


__all__ = ["contract", "linear_map"]
