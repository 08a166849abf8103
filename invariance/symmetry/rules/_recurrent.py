"""Recurrent layers: their hidden units swap, flip where the cell is odd, scale where it is ReLU."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from invariance.symmetry._structures import IntArray, Role
from invariance.symmetry.analysis._context import SCALE, SIGN, Context, NotUnderstoodError
from invariance.symmetry.analysis._entries import Value
from invariance.symmetry.analysis._threads import ZERO, RawLeg
from invariance.symmetry.analysis._tracing import Call
from invariance.symmetry.rules._computed import demand
from invariance.symmetry.rules._registry import rule
from invariance.symmetry.rules._weight import along, features, use_bias, use_weight

#: For each cell: its gates in the order of the weight's rows, odd (tanh) or not (sigmoid).
_GATES = {
    "rnn_tanh": (True,),
    "rnn_relu": (False,),
    "lstm": (False, False, True, False),
    "gru": (False, False, True),
}


@rule("rnn_tanh", "rnn_relu", "lstm", "gru")
def recurrent(context: Context, call: Call) -> None:
    """All layers and directions of ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``."""
    x, states, weights = call.args[:3]
    if not isinstance(weights, (tuple, list)):
        raise NotUnderstoodError("reads packed sequences")
    bias, layers, _, _, both_ways = call.args[3:8]
    states = list(states) if isinstance(states, (tuple, list)) else [states]
    ways = 2 if both_ways else 1
    each = 4 if bias else 2
    if len(weights) != layers * ways * each:
        raise NotUnderstoodError("projects its hidden state")
    starts = [context.operand(state) for state in states]
    inputs, addresses = features(context, call, context.operand(x), -1)
    finals: list[tuple[IntArray, IntArray]] = []
    for layer in range(layers):
        made = []
        for way in range(ways):
            place = (layer * ways + way) * each
            hidden, cell = _cell(
                context, call, list(weights[place : place + each]), inputs, addresses, place
            )
            for threads, start in zip((hidden, cell), starts, strict=False):
                _tie_to_start(context, call, threads, start)
            made.append(hidden)
            finals.append((hidden, cell))
        inputs = np.concatenate(made)
        addresses = np.zeros(inputs.size, dtype=np.int64)
    output, *rest = call.out
    shape = tuple(output.shape)
    context.assign(output, Value(along(inputs, len(shape) - 1, len(shape)), shape))
    for which, final in enumerate(rest):
        labels = np.stack([pair[which] for pair in finals])
        wide = labels.reshape(len(finals), *(1,) * (final.dim() - 2), -1)
        # A thread lies in one row of the stack alone.
        context.assign(final, Value(wide, tuple(final.shape)))


def _tie_to_start(context: Context, call: Call, threads: IntArray, start: Value) -> None:
    """The first state is read like any later one."""
    if (start.labels == ZERO).all():
        return
    stop = context.stop(call, "starts from a state that is not zero", SCALE + SIGN)
    context.pin(threads, stop, scale=True, sign=True, move=True)
    context.pin(start.labels, stop, scale=True, sign=True, move=True)


def _cell(
    context: Context,
    call: Call,
    weights: list[Tensor],
    inputs: IntArray,
    addresses: IntArray,
    place: int,
) -> tuple[IntArray, IntArray]:
    """Write down one layer in one direction; return the threads of its states."""
    name = call.name
    gates = _GATES[name]
    from_input, from_state, *biases = weights
    size = from_state.shape[1]
    relations = context.relations
    hidden = relations.fresh(size, call.node, place, slot=20)
    cell = relations.fresh(size, call.node, place, slot=21) if name == "lstm" else hidden
    before = relations.fresh(
        size * len(gates), call.node, place * 8 + np.repeat(np.arange(len(gates)), size), slot=22
    )
    for threads in (cell, *before.reshape(len(gates), size)):
        relations.tie_moves(threads, hidden)
    relations.touch(inputs, call.node, 30 + place)
    relations.touch(hidden, call.node, 31 + place)
    flat = np.zeros((1, 1), dtype=np.int64)
    use_weight(context, call, from_input, before[:, None], inputs[None, :], addresses[None, :])
    site = f"{call.place} (state)"
    demand(context, call, from_state, [
        RawLeg("", before[:, None], 1, 1, Role.PRODUCER, flat, site=site),
        RawLeg("", hidden[None, :], -1, -1, Role.CONSUMER, flat, site=site),
    ])  # fmt: skip
    for bias in biases:
        use_bias(context, call, bias, before)
    relations.block_mixing(np.concatenate([hidden, cell, before]))
    if name == "rnn_relu":
        relations.equate(before, hidden, sign=False)
        stop = context.stop(call, "is not an odd function: no sign flip through it", SIGN)
        context.pin(np.concatenate([before, hidden]), stop, sign=True)
        return hidden, cell
    stop = context.stop(call, "has gates that are not positively homogeneous", SCALE)
    context.pin(np.concatenate([before, hidden, cell]), stop, scale=True)
    for odd, threads in zip(gates, before.reshape(len(gates), size), strict=True):
        if odd:
            relations.equate(threads, hidden, scale=False)
            relations.equate(cell, hidden, scale=False)
        else:
            context.pin(threads, context.stop(call, "has gates that are not odd", SIGN), sign=True)
    return hidden, cell
