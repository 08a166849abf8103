"""Weight layers: linear, convolutions, embeddings. Rows are produced, columns consumed."""

from __future__ import annotations

from typing import Any

import numpy as np

from invariance.symmetry._structures import IntArray, Role
from invariance.symmetry.analysis._context import (
    MOVE,
    SCALE,
    SIGN,
    Context,
    NotUnderstoodError,
    WeightCall,
)
from invariance.symmetry.analysis._entries import (
    Computed,
    NormalizedWeight,
    ParameterView,
    Value,
    compress,
)
from invariance.symmetry.analysis._threads import OUTSIDE, RawLeg, distinct, unique_rows
from invariance.symmetry.analysis._tracing import Call
from invariance.symmetry.rules._computed import demand
from invariance.symmetry.rules._parameter_use import use_parameter
from invariance.symmetry.rules._registry import rule


def features(context: Context, call: Call, value: Value, dim: int) -> tuple[IntArray, IntArray]:
    """Read the features along ``dim``, one weight entry (or more) each.

    What differs along the other dimensions meets the same weight, so it has to scale, flip
    and move as one.

    Shapes: returns ``(n,)``.
    """
    dim %= len(value.shape)
    context.touch(value, call)
    labels = np.moveaxis(value.labels, dim, 0)
    columns = labels.reshape(labels.shape[0], -1)
    first = columns.max(axis=1)
    if columns.shape[1] > 1:
        pairs = np.stack([np.broadcast_to(first[:, None], columns.shape), columns], axis=-1)
        unique = unique_rows(pairs.reshape(-1, 2))[0]
        context.relations.tie_moves(unique[:, 0], unique[:, 1])
        context.relations.equate(unique[:, 0], unique[:, 1])
    addresses = np.zeros(1, dtype=np.int64)
    if value.addresses is not None:
        cells = np.moveaxis(value.addresses, dim, 0)
        addresses = cells.reshape(cells.shape[0], -1)[:, 0]
    size = value.shape[dim]
    return np.broadcast_to(first, (size,)), np.broadcast_to(addresses, (size,))


def along(array: IntArray, dim: int, ndim: int) -> IntArray:
    """Lay a vector along one of ``ndim`` dimensions."""
    return array.reshape([-1 if d == dim else 1 for d in range(ndim)])


def use_weight(
    context: Context,
    call: Call,
    weight: Any,
    out_labels: IntArray,
    in_labels: IntArray,
    in_addresses: IntArray,
) -> str | None:
    """Note that a weight maps input threads to output threads."""
    site = str(call.place)
    entry = context.entry(weight)
    flat = np.zeros((1,) * weight.dim(), dtype=np.int64)
    if isinstance(entry, ParameterView):
        legs = [
            RawLeg(entry.name, out_labels, 1, 1, Role.PRODUCER, flat, site=site),
            RawLeg(entry.name, in_labels, -1, -1, Role.CONSUMER, in_addresses, site=site),
        ]
        use_parameter(context, entry, legs)
        return entry.name if entry.index is None else None
    both = np.concatenate([distinct(out_labels), distinct(in_labels)])
    if isinstance(entry, NormalizedWeight) and entry.dim == _only_dim(out_labels):
        # W = g v / |v| by rows: g scales the rows; the norm of a row allows no factor on a
        # column, except one for all, which g takes; it allows signs and permutations.
        uniform = context.relations.fresh(1, call.node, slot=7)
        spare = context.relations.fresh(weight.shape[entry.dim], call.node, slot=8)
        live = distinct(in_labels[in_labels >= 0])
        context.relations.equate(live, np.broadcast_to(uniform, live.shape), sign=False)
        stop = context.stop(
            call, "has a normalised weight: one factor for all its inputs together", SCALE
        )
        context.relations.remark(live, stop)
        rows = np.where(np.arange(weight.dim()) == entry.dim, weight.shape[entry.dim], 1)
        gain_rows = out_labels.reshape(rows)
        gain = [
            RawLeg(entry.gain, gain_rows, 1, 1, Role.PRODUCER, flat, site=site),
            RawLeg(entry.gain, uniform.reshape(flat.shape), -1, 0, Role.CONSUMER, flat, site=site),
        ]
        direction = [
            RawLeg(entry.direction, out_labels, 0, 0, Role.PRODUCER, flat, site=site),
            RawLeg(entry.direction, spare.reshape(rows), 1, 0, Role.PRODUCER, flat, site=site),
            RawLeg(entry.direction, in_labels, 0, -1, Role.CONSUMER, in_addresses, site=site),
        ]
        context.relations.tie_moves(spare.reshape(rows), out_labels)
        stop = context.stop(call, "has a weight norm that flips with its weight", SIGN)
        context.pin(spare, stop, sign=True)
        context.relations.block_mixing(both)
        context.note_use(entry.direction)
        context.note_use(entry.gain)
        context.relations.use(entry.gain, gain)
        context.relations.use(entry.direction, direction)
        return None
    if isinstance(entry, Computed):
        legs = [
            RawLeg("", out_labels, 1, 1, Role.PRODUCER, flat, site=site),
            RawLeg("", in_labels, -1, -1, Role.CONSUMER, in_addresses, site=site),
        ]
        _ask_or_pin(context, call, weight, legs)
        return None
    reason = (
        "has a constant weight: nothing can take up a change of its inputs or outputs"
        if entry is None
        else "has a weight that is computed from parameters in a way that is not known "
        "(parametrization): its inputs and outputs stay as they are"
    )
    stop = context.stop(call, reason, SCALE + SIGN + MOVE)
    context.pin(both, stop, scale=True, sign=True, move=True)
    if isinstance(entry, Value):
        context.pin(entry.labels, stop, scale=True, sign=True, move=True)
    elif isinstance(entry, NormalizedWeight):
        context.note_use(entry.direction)
        context.note_use(entry.gain)
    return None


def _ask_or_pin(context: Context, call: Call, weight: Any, legs: list[RawLeg]) -> None:
    """Ask a computed weight to follow; where it cannot, everything stays as it is."""
    start = context.relations.threads
    try:
        demand(context, call, weight, legs)
    except NotUnderstoodError as error:
        stop = context.stop(
            call,
            f"has a weight that {error}: its inputs and outputs stay as they are",
            SCALE + SIGN + MOVE,
        )
        born = np.arange(start, context.relations.threads)
        for threads in (born, *(leg.labels for leg in legs)):
            context.pin(threads, stop, scale=True, sign=True, move=True)
        value = context.operand(weight)
        context.pin(value.labels, stop, scale=True, sign=True, move=True)


def _only_dim(labels: IntArray) -> int:
    dims = [d for d, n in enumerate(labels.shape) if n > 1]
    return dims[0] if len(dims) == 1 else 0 if not dims else -2


def use_bias(context: Context, call: Call, bias: Any, out: IntArray) -> str | None:
    """Note that a bias is added to the output threads ``out``, ``(n,)``."""
    if bias is None:
        return None
    entry = context.entry(bias)
    if isinstance(entry, ParameterView):
        leg = RawLeg(
            entry.name, out, 1, 1, Role.PRODUCER, np.zeros(1, dtype=np.int64), site=str(call.place)
        )
        use_parameter(context, entry, [leg])
        return entry.name if entry.index is None else None
    if isinstance(entry, Computed) and bias.dim() == 1:
        flat = np.zeros(1, dtype=np.int64)
        leg = RawLeg("", out, 1, 1, Role.PRODUCER, flat, site=str(call.place))
        _ask_or_pin(context, call, bias, [leg])
        return None
    if isinstance(entry, Computed):
        entry = context.operand(bias)
    if isinstance(entry, Value):
        context.relations.equate(np.broadcast_to(entry.labels.reshape(-1), out.shape), out)
        context.relations.tie_moves(np.broadcast_to(entry.labels.reshape(-1), out.shape), out)
        context.relations.block_mixing(np.concatenate([entry.labels.reshape(-1), out]))
        return None
    stop = context.stop(call, "adds a constant bias", SCALE + SIGN + MOVE)
    context.pin(out, stop, scale=True, sign=True, move=True)
    return None


@rule("linear")
def linear(context: Context, call: Call) -> None:
    """``x W^T + b``."""
    x, weight, bias = (call.argument(i, n) for i, n in enumerate(("input", "weight", "bias")))
    linear_map(context, call, x, weight, bias)


def linear_map(
    context: Context, call: Call, x: Any, weight: Any, bias: Any, out_tensor: Any = None
) -> Value:
    """Write down a linear layer and return its output's value."""
    value = context.operand(x)
    inputs, addresses = features(context, call, value, -1)
    outputs = context.relations.fresh(weight.shape[0], call.node)
    name = use_weight(context, call, weight, outputs[:, None], inputs[None, :], addresses[None, :])
    bias_name = use_bias(context, call, bias, outputs)
    shape = (*value.shape[:-1], weight.shape[0])
    result = Value(along(outputs, len(shape) - 1, len(shape)), shape)
    _note(context, call, name, bias_name, inputs, outputs, exact_shift=True)
    target = call.out if out_tensor is None else out_tensor
    if target is not False:
        context.assign(target, result)
    return result


def _note(
    context: Context,
    call: Call,
    weight: str | None,
    bias: str | None,
    inputs: IntArray,
    outputs: IntArray,
    *,
    exact_shift: bool,
    groups: int = 1,
) -> None:
    module = call.place.kind is not None
    name = call.place.module if module else (weight or str(call.place))
    context.weights.append(
        WeightCall(name, module, weight, bias, call.node, inputs, outputs, exact_shift, groups)
    )


@rule("conv1d", "conv2d", "conv3d")
def convolution(context: Context, call: Call) -> None:
    """Convolutions with any grouping."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, _, padding, _, groups = (call.argument(i, n) for i, n in enumerate(names))
    groups = groups or 1
    space = weight.dim() - 2
    value = context.operand(x)
    inputs, addresses = features(context, call, value, -space - 1)
    if groups > 1:
        result, outputs, name = _grouped(
            context, call, weight, inputs, addresses, groups, transposed=False
        )
    else:
        outputs = result = context.relations.fresh(weight.shape[0], call.node)
        name = use_weight(
            context,
            call,
            weight,
            along(outputs, 0, weight.dim()),
            along(inputs, 1, weight.dim()),
            along(addresses, 1, weight.dim()),
        )
    bias_name = use_bias(context, call, bias, result)
    pads = padding if isinstance(padding, (tuple, list)) else (padding or 0,)
    exact = padding == "valid" or not (isinstance(padding, str) or any(pads))
    _note(context, call, name, bias_name, inputs, outputs, exact_shift=exact, groups=groups)
    shape = tuple(call.out.shape)
    context.assign(call.out, Value(along(result, len(shape) - space - 1, len(shape)), shape))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(context: Context, call: Call) -> None:
    """Transposed convolutions: inputs along the weight's first dimension."""
    x, weight, bias = (call.argument(i, n) for i, n in enumerate(("input", "weight", "bias")))
    groups = call.argument(6, "groups", 1)
    space = weight.dim() - 2
    inputs, addresses = features(context, call, context.operand(x), -space - 1)
    if groups > 1:
        result, outputs, name = _grouped(
            context, call, weight, inputs, addresses, groups, transposed=True
        )
    else:
        outputs = result = context.relations.fresh(weight.shape[1], call.node)
        name = use_weight(
            context,
            call,
            weight,
            along(outputs, 1, weight.dim()),
            along(inputs, 0, weight.dim()),
            along(addresses, 0, weight.dim()),
        )
    bias_name = use_bias(context, call, bias, result)
    _note(context, call, name, bias_name, inputs, outputs, exact_shift=False, groups=groups)
    shape = tuple(call.out.shape)
    context.assign(call.out, Value(along(result, len(shape) - space - 1, len(shape)), shape))


def _grouped(
    context: Context,
    call: Call,
    weight: Any,
    inputs: IntArray,
    addresses: IntArray,
    groups: int,
    *,
    transposed: bool,
) -> tuple[IntArray, IntArray, str | None]:
    """Grouped convolution: channels swap within their group; depthwise ones with each other."""
    own = inputs.size // groups
    made = weight.shape[1] if transposed else weight.shape[0] // groups
    depthwise = own == 1 and made == 1
    group_in = np.repeat(np.arange(groups), own)
    group_out = np.repeat(np.arange(groups), made)
    context.relations.touch(inputs, call.node, 3, 0 if depthwise else group_in)
    outputs = context.relations.fresh(groups * made, call.node, 0 if depthwise else group_out)
    extra = (1,) * (weight.dim() - 2)
    if transposed:
        out_labels = outputs.reshape(groups, 1, made)
        out_labels = np.broadcast_to(out_labels, (groups, own, made)).reshape(-1, made, *extra)
        in_labels, in_addresses = (a.reshape(-1, 1, *extra) for a in (inputs, addresses))
    else:
        out_labels = outputs.reshape(-1, 1, *extra)
        in_labels, in_addresses = (
            np.broadcast_to(a.reshape(groups, 1, own), (groups, made, own)).reshape(-1, own, *extra)
            for a in (inputs, addresses)
        )
    if depthwise:
        context.relations.tie_moves(outputs, inputs)
        out_labels, in_labels = compress(out_labels), compress(in_labels)
    elif own == 1:
        stop = context.stop(call, "makes several channels of each", MOVE)
        context.pin(np.concatenate([inputs, outputs]), stop, move=True)
    context.relations.block_mixing(np.concatenate([inputs, outputs]))
    name = use_weight(context, call, weight, out_labels, in_labels, in_addresses)
    return outputs, outputs, name


@rule("embedding")
def embedding(context: Context, call: Call) -> None:
    """Rows of a table: the columns are the channels."""
    index, weight = call.argument(0, "input"), call.argument(1, "weight")
    if call.argument(3, "max_norm") is not None:
        raise NotUnderstoodError("renormalises rows of its table while it runs")
    entry = context.entry(weight)
    if not isinstance(entry, ParameterView) or not _is_index(context, index):
        raise NotUnderstoodError("looks up rows of something that is not a parameter")
    outputs = context.relations.fresh(weight.shape[1], call.node)
    flat = np.zeros((1, 1), dtype=np.int64)
    leg = RawLeg(entry.name, outputs[None, :], 1, 1, Role.PRODUCER, flat, site=str(call.place))
    use_parameter(context, entry, [leg])
    shape = tuple(call.out.shape)
    context.assign(call.out, Value(along(outputs, len(shape) - 1, len(shape)), shape))


@rule("embedding_bag")
def embedding_bag(context: Context, call: Call) -> None:
    """Sums, means or maxima of rows of a table."""
    index, weight = call.argument(0, "input"), call.argument(1, "weight")
    entry, mode = context.entry(weight), call.argument(6, "mode", "mean")
    if call.argument(3, "max_norm") is not None:
        raise NotUnderstoodError("renormalises rows of its table while it runs")
    if not isinstance(entry, ParameterView) or not _is_index(context, index):
        raise NotUnderstoodError("looks up rows of something that is not a parameter")
    samples = context.value(call.argument(8, "per_sample_weights"))
    if samples is not None and (samples.labels > OUTSIDE).any():
        raise NotUnderstoodError("weighs rows by something that depends on parameters")
    outputs = context.relations.fresh(weight.shape[1], call.node)
    flat = np.zeros((1, 1), dtype=np.int64)
    leg = RawLeg(entry.name, outputs[None, :], 1, 1, Role.PRODUCER, flat, site=str(call.place))
    use_parameter(context, entry, [leg])
    if mode == "max":
        stop = context.stop(call, "is not an odd function: no sign flip through it", SIGN)
        context.pin(outputs, stop, sign=True)
    context.assign(call.out, Value(along(outputs, 1, 2), tuple(call.out.shape)))


@rule("bilinear")
def bilinear(context: Context, call: Call) -> None:
    """``y_o = x1^T W_o x2 + b_o``: both inputs are consumed."""
    names = ("input1", "input2", "weight", "bias")
    first, second, weight, bias = (call.argument(i, n) for i, n in enumerate(names))
    read = [features(context, call, context.operand(x), -1) for x in (first, second)]
    outputs = context.relations.fresh(weight.shape[0], call.node)
    flat = np.zeros((1, 1, 1), dtype=np.int64)
    legs = [RawLeg("", along(outputs, 0, 3), 1, 1, Role.PRODUCER, flat, site=str(call.place))]
    for dim, (labels, addresses) in enumerate(read, start=1):
        site = f"{call.place} (input {dim})"
        lines = along(labels, dim, 3), along(addresses, dim, 3)
        legs.append(RawLeg("", lines[0], -1, -1, Role.CONSUMER, lines[1], site=site))
    context.relations.touch(read[0][0], call.node, 1)
    context.relations.touch(read[1][0], call.node, 2)
    if isinstance(context.entry(weight), (ParameterView, Computed)):
        _ask_or_pin(context, call, weight, legs)
    else:
        raise NotUnderstoodError("has a weight that is not a parameter")
    use_bias(context, call, bias, outputs)
    shape = tuple(call.out.shape)
    context.assign(call.out, Value(along(outputs, len(shape) - 1, len(shape)), shape))


def _is_index(context: Context, index: Any) -> bool:
    value = context.value(index)
    return value is None or bool((value.labels <= OUTSIDE).all())


@rule("_weight_norm")
def weight_norm(context: Context, call: Call) -> None:
    """``g v / |v|``: remembered until a layer reads it."""
    v, g, dim = call.argument(0, "v"), call.argument(1, "g"), call.argument(2, "dim", 0)
    direction, gain = context.entry(v), context.entry(g)
    views = (direction, gain)
    if not all(isinstance(view, ParameterView) and view.index is None for view in views):
        raise NotUnderstoodError("normalises a weight that is not a parameter of its own")
    assert isinstance(direction, ParameterView)
    assert isinstance(gain, ParameterView)
    entry = NormalizedWeight(direction.name, gain.name, dim, tuple(v.shape), str(call.place))
    context.assign(call.out, entry)
