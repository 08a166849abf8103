"""Weights that are computed from parameters: masks, low rank, gains, standardisation.

An operation on parameters alone is not read entry by entry. It is remembered, with what it
asks of its operands when a layer that uses its result asks something of it: a symmetry then
passes through to the parameters where it can be expressed there. Where it cannot, or where
something else than a weight layer reads the result, the operation is read like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invariance.symmetry._structures import IntArray, Role
from invariance.symmetry.analysis._context import MOVE, Context, NotUnderstoodError, Rule
from invariance.symmetry.analysis._entries import (
    Computed,
    ParameterView,
    compress,
    reshape_labels,
)
from invariance.symmetry.analysis._threads import ZERO, RawLeg, distinct
from invariance.symmetry.analysis._tracing import Call, tensors_in
from invariance.symmetry.rules._parameter_use import use_parameter

Legs = Sequence[RawLeg]
Demand = Callable[[Legs], None]


def demand(context: Context, call: Call, tensor: Any, legs: Legs) -> None:
    """Ask that a weight follows threads, down to the parameters that it is computed from."""
    entry = context.entry(tensor)
    if isinstance(entry, ParameterView):
        use_parameter(context, entry, [replace(leg, tensor=entry.name) for leg in legs])
    elif isinstance(entry, Computed):
        entry.demand(legs)
    else:
        raise NotUnderstoodError("is computed in a way that is not known")


def deferred(name: str) -> Callable[[Rule], Rule]:
    """Wrap a rule: on parameters alone, remember the operation called ``name`` instead."""

    def wrap(rule: Rule) -> Rule:
        def wrapped(context: Context, call: Call) -> None:
            made = _DEFERRED[name](context, call) if _on_parameters(context, call) else None
            if made is None:
                rule(context, call)
                return
            shape = tuple(call.out.shape)
            context.assign(call.out, Computed(shape, made, lambda: rule(context, call)))

        wrapped.__doc__ = rule.__doc__
        return wrapped

    return wrap


def _on_parameters(context: Context, call: Call) -> bool:
    """Whether a call reads parameters, and nothing that depends on the input."""
    if call.in_place or "out" in call.kwargs or not isinstance(call.out, Tensor):
        return False
    entries = [context.peek(tensor) for tensor in tensors_in((call.args, call.kwargs))]
    known = [entry for entry in entries if entry is not None]
    return bool(known) and all(isinstance(e, (ParameterView, Computed)) for e in known)


def _dims(leg: RawLeg) -> tuple[int, ...]:
    return tuple(d for d, n in enumerate(leg.labels.shape) if n > 1)


def _product(context: Context, call: Call, power: int = 1) -> Demand | None:
    """Products: one factor may go back and forth between the two."""
    first, second = call.argument(0, "input"), call.argument(1, "other")
    if call.name in ("__rtruediv__", "__rdiv__"):
        return None
    known = [context.peek(first) is not None, context.peek(second) is not None]
    if not all(known):
        weight, constant = (first, second) if known[0] else (second, first)
        if not known[0] and power < 0:
            return None
        return _times_constant(context, call, weight, constant)
    shape = tuple(call.out.shape)
    big, small = (first, second) if tuple(first.shape) == shape else (second, first)
    if tuple(big.shape) != shape or (big is second and power < 0):
        return None
    if tuple(small.shape) == shape and big is not small and small.numel() > 1:
        pad: tuple[int, ...] = shape
    else:
        pad = (1,) * (len(shape) - small.dim()) + tuple(small.shape)
    along = [d for d, n in enumerate(pad) if n > 1]
    if len(along) > 1 and pad != shape:
        return None

    def ask(legs: Legs) -> None:
        if len(along) > 1:  # entry by entry: the second moves along, and keeps its factors
            demand(context, call, big, legs)
            still = [replace(leg, power=0, sign_power=0, role=Role.SLOPE) for leg in legs]
            demand(context, call, small, still)
            return
        count = pad[along[0]] if along else 1
        spare = context.relations.fresh(count, call.node, slot=11)
        labels = spare.reshape([count if d in along else 1 for d in range(len(shape))])
        for leg in legs:
            if along and along[0] in _dims(leg):
                if len(_dims(leg)) > 1:
                    raise NotUnderstoodError("multiplies channels that lie across each other")
                context.relations.tie_moves(labels, leg.labels)
        flat = np.zeros((1,) * len(shape), dtype=np.int64)
        site = f"{call.place} (between)"
        own = RawLeg("", labels, 1, 1, Role.PRODUCER, flat, site=site)
        against = replace(own, power=-power, sign_power=-power, role=Role.CONSUMER)
        demand(context, call, big, [*legs, against])
        cut = slice(len(shape) - small.dim(), None)
        slim = (array.reshape(array.shape[cut]) for array in (labels, flat))
        demand(context, call, small, [replace(own, labels=next(slim), addresses=next(slim))])

    return ask


def _times_constant(context: Context, call: Call, weight: Tensor, constant: Any) -> Demand | None:
    """A mask: a buffer moves along with the weight; any other constant has to be alike."""
    if weight.shape != call.out.shape:
        return None
    name = context.names.get(id(constant)) if isinstance(constant, Tensor) else None

    def ask(legs: Legs) -> None:
        demand(context, call, weight, legs)
        if not isinstance(constant, Tensor) or constant.numel() == 1:
            return
        if name in context.buffers and constant.shape == weight.shape:
            context.answered.add((name, call.node))
            context.relations.use(name, [
                replace(leg, tensor=name, power=0, sign_power=0, role=Role.SLOPE) for leg in legs
            ])  # fmt: skip
            return
        stop = context.stop(call, "multiplies a weight by a constant", MOVE)
        for leg in legs:
            context.pin(leg.labels, stop, move=True)

    return ask


def _quotient(context: Context, call: Call) -> Demand | None:
    """Quotients by a constant or by a parameter."""
    if call.kwargs.get("rounding_mode") is not None:
        return None
    return _product(context, call, power=-1)


def _sum(context: Context, call: Call) -> Demand | None:
    """Sums of two weights of one shape: both are asked the same."""
    first, second = call.argument(0, "input"), call.argument(1, "other")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return None
    if context.peek(first) is None or context.peek(second) is None or first.shape != second.shape:
        return None

    def ask(legs: Legs) -> None:
        for tensor in (first, second):
            demand(context, call, tensor, legs)

    return ask


def _matrix_product(context: Context, call: Call) -> Demand | None:
    """Products of two matrices: the inner index is a set of units of its own."""
    first, second = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    if call.name == "__rmatmul__":
        first, second = second, first
    if context.peek(first) is None or context.peek(second) is None:
        return None
    if first.dim() != 2 or second.dim() != 2:
        return None

    def ask(legs: Legs) -> None:
        inner = context.relations.fresh(first.shape[1], call.node, slot=12)
        flat = np.zeros((1, 1), dtype=np.int64)
        site = f"{call.place} (inner)"
        own = RawLeg("", inner[:, None], 1, 1, Role.PRODUCER, flat, site=site)
        against = replace(own, labels=inner[None, :], power=-1, sign_power=-1, role=Role.CONSUMER)
        if any(len(_dims(leg)) > 1 for leg in legs):
            raise NotUnderstoodError("multiplies matrices whose channels lie across each other")
        demand(context, call, first, [against, *(leg for leg in legs if 1 not in _dims(leg))])
        demand(context, call, second, [own, *(leg for leg in legs if 1 in _dims(leg))])

    return ask


def _rearranged(context: Context, call: Call) -> Demand | None:
    """Views that keep every entry: what is asked of the view is asked of its source."""
    source = call.args[0] if call.args else None
    if not isinstance(source, Tensor) or not isinstance(context.peek(source), Computed):
        return None
    if call.out.numel() != source.numel():
        return None
    size, shape, seen = source.numel(), tuple(source.shape), tuple(call.out.shape)
    if call.name in _RESHAPES:

        def back(array: IntArray) -> IntArray:
            return reshape_labels(array, seen, shape)
    else:
        index = torch.arange(size).reshape(shape)
        flat = call.function(index, *call.args[1:], **call.kwargs).numpy().reshape(-1)
        if (np.bincount(flat, minlength=size) != 1).any():
            return None

        def back(array: IntArray) -> IntArray:
            full = np.full(size, ZERO, dtype=np.int64)
            full[flat] = np.broadcast_to(array, seen).reshape(-1)
            return compress(full.reshape(shape))

    def ask(legs: Legs) -> None:
        demand(context, call, source, [
            replace(leg, labels=back(leg.labels), addresses=back(leg.addresses)) for leg in legs
        ])  # fmt: skip

    return ask


#: Views that keep the order of the entries.
_RESHAPES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze",
     "ravel"}
)  # fmt: skip


def standardised(context: Context, call: Call, weight: Tensor, gain: Tensor | None) -> bool:
    """``gain (w - mean) / (std + eps)`` of every row of a ``(1, rows, entries)`` weight.

    The rows keep their factor only through the gain. All columns share one factor, which the
    gain takes, and one sign, for all enter one mean.
    """
    if not isinstance(context.peek(weight), (ParameterView, Computed)):
        return False
    if gain is not None and not isinstance(context.peek(gain), (ParameterView, Computed)):
        return False
    rows = weight.shape[1]

    def ask(legs: Legs) -> None:
        relations, site = context.relations, str(call.place)
        shared = relations.fresh(1, call.node, slot=13)
        flat = np.zeros((1, 1, 1), dtype=np.int64)
        asked: list[RawLeg] = []
        followed: list[RawLeg] = []
        for leg in legs:
            if _dims(leg) in ((1,), ()):
                asked.append(leg)
                followed.append(replace(leg, power=0))
            else:
                live = distinct(leg.labels[leg.labels >= 0])
                relations.equate(live, np.broadcast_to(shared, live.shape))
                relations.block_mixing(live)
                asked.append(RawLeg(
                    "", shared.reshape(1, 1, 1), leg.power, 0, leg.role, flat, site=site
                ))  # fmt: skip
                followed.append(replace(leg, power=0))
        if gain is None:
            total = [(np.broadcast_to(leg.labels.reshape(-1), (rows,)), leg.power) for leg in asked]
            relations.relate(*total, sign=False)
        else:
            spare = relations.fresh(rows, call.node, slot=14)
            for leg in (leg for leg in asked if 1 in _dims(leg)):
                relations.tie_moves(spare.reshape(1, rows, 1), leg.labels)
            stop = context.stop(call, "standardises a weight", ())
            relations.pin(spare, stop, scale=True)
            own = RawLeg("", spare.reshape(1, rows, 1), 0, 1, Role.PRODUCER, flat, site=site)
            lines = [replace(leg, sign_power=0) for leg in asked]
            demand(context, call, gain, [
                replace(leg, labels=leg.labels.reshape(-1), addresses=np.zeros(1, dtype=np.int64))
                for leg in [*lines, own]
            ])  # fmt: skip
            followed.append(own)
        for leg in followed:
            relations.block_mixing(leg.labels)
        demand(context, call, weight, followed)

    def realise() -> None:
        context.unknown(call, "standardises parameters that something else than a layer reads")

    context.assign(call.out, Computed(tuple(call.out.shape), ask, realise))
    return True


_DEFERRED: dict[str, Callable[[Context, Call], Demand | None]] = {
    "product": _product,
    "quotient": _quotient,
    "sum": _sum,
    "matrix product": _matrix_product,
    "view": _rearranged,
}
