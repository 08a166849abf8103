"""Pooling, sums and means, softmax: functions of many entries."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from invariance.symmetry._structures import IntArray
from invariance.symmetry.analysis._context import MOVE, SCALE, SIGN, Context, NotUnderstoodError
from invariance.symmetry.analysis._entries import Value
from invariance.symmetry.analysis._threads import OUTSIDE, ZERO
from invariance.symmetry.analysis._tracing import Call
from invariance.symmetry.rules._elementwise import relate
from invariance.symmetry.rules._registry import rule


def pool(context: Context, call: Call, space: int, *, odd: bool) -> None:
    """Write down a pooling over the last ``space`` dimensions."""
    value = context.operand(call.argument(0, "input"))
    if any(d >= len(value.shape) - space for d in value.varying):
        raise NotUnderstoodError("pools over the channels of a symmetry")
    if not isinstance(call.out, Tensor):
        raise NotUnderstoodError("returns the indices of its maxima")
    context.touch(value, call)
    result = context.renew(value, call, zero_stays=True)
    relate(context, call, value, result, homogeneous=True, odd=odd)
    if not odd:
        context.relations.block_mixing(value.labels)
    context.assign(call.out, Value(result.labels, tuple(call.out.shape), result.addresses))


@rule("max_pool1d", "adaptive_max_pool1d")
def max_pool_1d(context: Context, call: Call) -> None:
    """Max-pooling over one dimension."""
    pool(context, call, 1, odd=False)


@rule("max_pool2d", "adaptive_max_pool2d")
def max_pool_2d(context: Context, call: Call) -> None:
    """Max-pooling over two dimensions."""
    pool(context, call, 2, odd=False)


@rule("max_pool3d", "adaptive_max_pool3d")
def max_pool_3d(context: Context, call: Call) -> None:
    """Max-pooling over three dimensions."""
    pool(context, call, 3, odd=False)


@rule("avg_pool1d", "adaptive_avg_pool1d")
def mean_pool_1d(context: Context, call: Call) -> None:
    """Average pooling over one dimension."""
    pool(context, call, 1, odd=True)


@rule("avg_pool2d", "adaptive_avg_pool2d")
def mean_pool_2d(context: Context, call: Call) -> None:
    """Average pooling over two dimensions."""
    pool(context, call, 2, odd=True)


@rule("avg_pool3d", "adaptive_avg_pool3d")
def mean_pool_3d(context: Context, call: Call) -> None:
    """Average pooling over three dimensions."""
    pool(context, call, 3, odd=True)


@rule("lp_pool1d", "lp_pool2d")
def norm_pool(context: Context, call: Call) -> None:
    """Power-average pooling: positively homogeneous."""
    pool(context, call, int(call.name[7]), odd=False)


@rule("interpolate", "upsample")
def interpolate(context: Context, call: Call) -> None:
    """Resampling of space: linear in the entries, whatever the mode."""
    value = context.operand(call.argument(0, "input"))
    pool(context, call, len(value.shape) - 2, odd=True)


def reduce(
    context: Context,
    call: Call,
    value: Value,
    dims: tuple[int, ...],
    *,
    keep: bool,
    odd: bool,
    out: Tensor,
) -> None:
    """Write down a positively homogeneous reduction (sum, mean, maximum, norm)."""
    across = [d for d in dims if d in value.varying]
    kept = [d for d in value.varying if d not in dims]
    labels = value.labels
    if across:
        # With dimensions left over, what is summed to one entry moves as one block.
        context.touch(value, call, _index(value, across) if kept else 0)
        moved = np.moveaxis(labels, across, range(len(across)))
        flat = moved.reshape(-1, *moved.shape[len(across) :])
        leader = flat.max(axis=0)
        if not kept:
            leader = leader.reshape((1,) * leader.ndim)
        fresh = context.relations.fresh(leader.size, call.node)
        fresh = fresh.reshape(leader.shape)
        context.relations.equate(np.broadcast_to(fresh, flat.shape), flat, sign=odd)
        context.relations.block_mixing(labels)
        if kept:
            context.relations.tie_moves(np.broadcast_to(fresh, flat.shape), flat)
        if not value.even:
            stop = context.stop(call, "reduces positions that differ by channel", MOVE)
            context.pin(np.concatenate([labels.reshape(-1), fresh.reshape(-1)]), stop, move=True)
        fresh = np.where((flat == ZERO).all(axis=0), ZERO, fresh)
        fresh = np.where((flat <= OUTSIDE).all(axis=0) & (fresh > 0), OUTSIDE, fresh)
        labels = np.expand_dims(fresh, tuple(across))
        result = Value(labels, value.shape, None)
        if not odd:
            _no_sign(context, call, np.concatenate([value.labels.reshape(-1), fresh.reshape(-1)]))
    else:
        context.touch(value, call)
        result = context.renew(value, call, zero_stays=True)
        relate(context, call, value, result, homogeneous=True, odd=odd)
        if not odd:
            context.relations.block_mixing(labels)
        places = result.addresses
        if places is not None and any(places.shape[d] > 1 for d in dims):
            if not value.even:
                stop = context.stop(call, "reduces positions that differ by channel", MOVE)
                context.pin(value.labels, stop, move=True)
            result = Value(result.labels, result.shape)
    _drop(context, result, dims, keep=keep, out=out)


def _drop(
    context: Context, result: Value, dims: tuple[int, ...], *, keep: bool, out: Tensor
) -> None:
    """Assign a reduced value, without the reduced dimensions unless ``keep``."""
    labels, addresses = result.labels, result.addresses
    if not keep:
        labels = labels.reshape([n for d, n in enumerate(labels.shape) if d not in dims])
        if addresses is not None:
            addresses = addresses.reshape(
                [n for d, n in enumerate(addresses.shape) if d not in dims]
            )
    context.assign(out, Value(labels, tuple(out.shape), addresses))


def _index(value: Value, dims: list[int]) -> IntArray:
    shape = [value.labels.shape[d] if d in dims else 1 for d in range(value.labels.ndim)]
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)


def _no_sign(context: Context, call: Call, threads: IntArray) -> None:
    stop = context.stop(call, "is not an odd function: no sign flip through it", SIGN)
    context.pin(threads, stop, sign=True)


def _dims(call: Call, ndim: int, position: int = 1) -> tuple[int, ...]:
    dims = call.argument(position, "dim")
    if dims is None:
        dims = call.kwargs.get("axis")
    if isinstance(dims, int):
        rest = call.args[position + 1 :]
        more = [d for d in rest if isinstance(d, int) and not isinstance(d, bool)]
        dims = (dims, *more) if call.name in ("sum", "mean") else (dims,)
    if dims is None or len(tuple(dims)) == 0:
        return tuple(range(ndim))
    return tuple(sorted(d % ndim for d in dims))


def _keep(call: Call) -> bool:
    flags = [a for a in call.args[1:] if isinstance(a, bool)]
    return bool(call.kwargs.get("keepdim", flags[0] if flags else False))


@rule("sum", "mean", "nansum", "nanmean")
def linear_reduction(context: Context, call: Call) -> None:
    """Sums and means."""
    value = context.operand(call.args[0])
    reduce(context, call, value, _dims(call, len(value.shape)), keep=_keep(call), odd=True,
           out=call.out)  # fmt: skip


@rule("amax", "amin")
def amax(context: Context, call: Call) -> None:
    """Maxima and minima."""
    value = context.operand(call.args[0])
    reduce(context, call, value, _dims(call, len(value.shape)), keep=_keep(call), odd=False,
           out=call.out)  # fmt: skip


def extremum_along(context: Context, call: Call) -> None:
    """``max(dim)`` and ``min(dim)``, which also return where it is."""
    value = context.operand(call.args[0])
    whole = isinstance(call.out, Tensor)
    out = call.out if whole else call.out[0]
    dims = tuple(range(len(value.shape))) if whole else _dims(call, len(value.shape))
    reduce(context, call, value, dims, keep=_keep(call), odd=False, out=out)
    if not whole:
        _outside(context, call.out[1])
        if any(d in value.varying for d in dims):
            stop = context.stop(call, "returns the index of a channel", MOVE)
            context.pin(value.labels, stop, move=True)


def _outside(context: Context, tensor: Tensor) -> None:
    label = np.full((1,) * tensor.dim(), OUTSIDE, dtype=np.int64)
    context.assign(tensor, Value(label, tuple(tensor.shape)))


@rule("softmax", "log_softmax", "softmin", "_softmax")
def softmax(context: Context, call: Call) -> None:
    """Softmax: no scaling, no flips; channels that it normalises together swap."""
    value = context.operand(call.args[0])
    dim = call.argument(1, "dim")
    if dim is None:
        raise NotUnderstoodError("leaves its dimension open")
    softmax_along(context, call, value, int(dim), call.out)


def softmax_along(
    context: Context, call: Call, value: Value, dim: int, out: Tensor | None
) -> Value:
    """Write down a softmax along ``dim`` and return its result."""
    dim %= len(value.shape)
    others = [d for d in value.varying if d != dim]
    context.touch(value, call, _index(value, others) if dim in value.varying else 0)
    result = context.renew(value, call)
    relate(context, call, value, result, homogeneous=False, odd=False)
    context.relations.block_mixing(value.labels)
    if out is not None:
        context.assign(out, result)
    return result


@rule("cumsum")
def running_sum(context: Context, call: Call) -> None:
    """Running sums along positions."""
    value = context.operand(call.args[0])
    dim = call.argument(1, "dim") % len(value.shape)
    _along_positions(context, call, value, dim)
    result = context.renew(value, call, zero_stays=True)
    relate(context, call, value, result, homogeneous=True, odd=True)
    context.assign(call.out, result)


@rule("topk", "sort")
def largest(context: Context, call: Call) -> None:
    """The largest entries along positions, in order; and where they were."""
    value = context.operand(call.args[0])
    dim = call.argument(2 if call.name == "topk" else 1, "dim", -1)
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise NotUnderstoodError("is called in a way that is not understood")
    _along_positions(context, call, value, dim % len(value.shape))
    result = context.renew(value, call, zero_stays=True)
    relate(context, call, value, result, homogeneous=True, odd=False)
    context.relations.block_mixing(value.labels)
    context.assign(call.out[0], Value(result.labels, tuple(call.out[0].shape), result.addresses))
    _outside(context, call.out[1])


def _along_positions(context: Context, call: Call, value: Value, dim: int) -> None:
    """Refuse what runs along channels, or along positions that differ by channel."""
    if dim in value.varying:
        raise NotUnderstoodError("runs along the channels of a symmetry")
    if value.addresses is not None and value.addresses.shape[dim] > 1:
        raise NotUnderstoodError("runs along positions that differ by channel")
    context.touch(value, call)


__all__ = ["SCALE", "extremum_along", "pool", "reduce", "softmax_along"]
