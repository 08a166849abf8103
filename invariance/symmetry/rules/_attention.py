"""Attention: queries and keys are contracted, so are values and the output projection."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from invariance.symmetry._structures import IntArray
from invariance.symmetry.analysis._context import Context, NotUnderstoodError, refuse_random
from invariance.symmetry.analysis._entries import Value, restructure
from invariance.symmetry.analysis._threads import OUTSIDE
from invariance.symmetry.analysis._tracing import Call
from invariance.symmetry.rules._contraction import contract
from invariance.symmetry.rules._reduction import softmax_along
from invariance.symmetry.rules._registry import rule
from invariance.symmetry.rules._weight import along, features, use_bias, use_weight


def attend(context: Context, call: Call, q: Value, k: Value, v: Value) -> Value:
    """Write down ``softmax(q k^T) v`` over the last two dimensions; return its result."""
    ndim = len(q.shape)
    lead = "abcdefgh"[: ndim - 2]
    queries, keys = q.shape[-2], k.shape[-2]
    scores_shape = (*q.shape[:-2], queries, keys)
    scores = contract(context, call, q, lead + "tz", k, lead + "sz", lead + "ts", scores_shape)
    weights = softmax_along(context, call, scores, -1, None)
    shape = (*q.shape[:-1], v.shape[-1])
    return contract(context, call, weights, lead + "ts", v, lead + "sz", lead + "tz", shape)


@rule("scaled_dot_product_attention")
def scaled_dot_product(context: Context, call: Call) -> None:
    """Fused attention."""
    names = ("query", "key", "value", "attn_mask")
    query, key, value, mask = (call.argument(i, n) for i, n in enumerate(names))
    if call.argument(4, "dropout_p", 0.0) > 0:
        raise refuse_random(call)
    if isinstance(mask, Tensor) and context.entry(mask) is not None:
        bias = context.value(mask)
        assert bias is not None
        stop = context.stop(call, "adds it to the scores of a softmax", ())
        context.pin(bias.labels, stop, scale=True, sign=True, move=True)
    q, k, v = (context.operand(tensor) for tensor in (query, key, value))
    if call.kwargs.get("enable_gqa"):
        repeats = q.shape[-3] // k.shape[-3]
        k, v = (restructure(x, lambda t: t.repeat_interleave(repeats, -3)) for x in (k, v))
    context.assign(call.out, attend(context, call, q, k, v))


@rule("multi_head_attention_forward")
def multi_head(context: Context, call: Call) -> None:
    """``nn.MultiheadAttention``: the module's projections around fused attention."""
    names = (
        "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight",
        "in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight",
        "out_proj_bias", "training", "key_padding_mask", "need_weights", "attn_mask",
        "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight",
    )  # fmt: skip
    given = {name: call.argument(i, name) for i, name in enumerate(names)}
    if given["bias_k"] is not None or given["add_zero_attn"]:
        raise NotUnderstoodError("appends rows to its keys and values")
    if given["training"] and given["dropout_p"] > 0:
        raise refuse_random(call)
    tensors = [given["query"], given["key"], given["value"]]
    values = [context.operand(tensor) for tensor in tensors]
    projected = _projections(context, call, given, tensors, values)
    heads = given["num_heads"]
    attended = []
    for value, threads in zip(values, projected, strict=True):
        grid = threads.reshape(1, heads, 1, -1)
        length = value.shape[0]
        batch = value.shape[1] if len(value.shape) == 3 else 1
        attended.append(Value(grid, (batch, heads, length, grid.shape[-1])))
    result = attend(context, call, *attended)
    flat = Value(result.labels.reshape(1, 1, -1), (1, 1, projected[2].size))
    inputs, addresses = features(context, call, flat, -1)
    weight = given["out_proj_weight"]
    outputs = context.relations.fresh(weight.shape[0], call.node, slot=2)
    use_weight(context, call, weight, outputs[:, None], inputs[None, :], addresses[None, :])
    use_bias(context, call, given["out_proj_bias"], outputs)
    first, rest = call.out[0], call.out[1]
    ndim = first.dim()
    context.assign(first, Value(along(outputs, ndim - 1, ndim), tuple(first.shape)))
    if rest is not None:
        label = np.full((1,) * rest.dim(), OUTSIDE, dtype=np.int64)
        context.assign(rest, Value(label, tuple(rest.shape)))


def _projections(
    context: Context, call: Call, given: dict[str, object], tensors: list[Tensor],
    values: list[Value],
) -> list[IntArray]:  # fmt: skip
    bias = given["in_proj_bias"]
    if given["use_separate_proj_weight"]:
        made = []
        for slot, (name, value) in enumerate(
            zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), values, strict=True)
        ):
            weight = given[name]
            assert isinstance(weight, Tensor)
            inputs, addresses = features(context, call, value, -1)
            outputs = context.relations.fresh(weight.shape[0], call.node, slot, slot=3)
            use_weight(context, call, weight, outputs[:, None], inputs[None, :], addresses[None, :])
            made.append(outputs)
        use_bias(context, call, bias, np.concatenate(made))
        return made
    weight = given["in_proj_weight"]
    assert isinstance(weight, Tensor)
    block = weight.shape[0] // 3
    outputs = context.relations.fresh(3 * block, call.node, np.repeat(np.arange(3), block), slot=3)
    read = [features(context, call, value, -1) for value in values]
    if tensors[0] is tensors[1] is tensors[2]:
        labels, addresses = read[0][0][None, :], read[0][1][None, :]
    else:
        labels = np.concatenate([np.broadcast_to(r[0], (block, r[0].size)) for r in read])
        addresses = np.arange(3 * block, dtype=np.int64)[:, None] + np.zeros_like(labels)
    use_weight(context, call, weight, outputs[:, None], labels, addresses)
    use_bias(context, call, bias, outputs)
    return [outputs[:block], outputs[block : 2 * block], outputs[2 * block :]]
