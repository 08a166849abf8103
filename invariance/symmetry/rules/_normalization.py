"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from invariance.symmetry._structures import IntArray, Role
from invariance.symmetry.analysis._context import (
    SCALE,
    SIGN,
    Context,
    NormCall,
    NotUnderstoodError,
    refuse_random,
)
from invariance.symmetry.analysis._entries import ParameterView, Value
from invariance.symmetry.analysis._threads import RawLeg, distinct
from invariance.symmetry.analysis._tracing import Call
from invariance.symmetry.rules._computed import demand, standardised
from invariance.symmetry.rules._parameter_use import use_parameter
from invariance.symmetry.rules._registry import rule
from invariance.symmetry.rules._weight import along, features

EPS_REASON = "absorbs a factor only up to its eps: no scaling into it; permutation still holds"


@rule("batch_norm")
def batch_norm(context: Context, call: Call) -> None:
    """BatchNorm in eval mode: an affine map of every channel, exactly.

    ``y = gamma (x - mu) / sqrt(v + eps) + beta``. A factor ``a`` on ``x`` is taken up by
    ``mu -> a mu`` and ``v -> a^2 (v + eps) - eps``; a factor on ``y`` by gamma and beta, or,
    without them, by ``v`` again. A sign of ``x`` goes to ``mu`` and gamma.
    """
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    x, mean, var, gamma, beta, training = (call.argument(i, n) for i, n in enumerate(names))
    if mean is None or var is None or training:
        _without_statistics(context, call, x, gamma, beta)
        return
    eps = float(call.argument(7, "eps", 1e-5))
    value = context.operand(x)
    dim = 1 if len(value.shape) > 1 else 0
    channels = value.shape[dim]
    inputs, addresses = features(context, call, value, dim)
    plain = value.addresses is None
    outputs = context.relations.fresh(channels, call.node, 0 if plain else addresses)
    context.relations.tie_moves(outputs, inputs)
    context.relations.block_mixing(np.concatenate([inputs, outputs]))
    site = str(call.place)
    tensors: dict[str, str] = {}
    flat = np.zeros(1, dtype=np.int64) if plain else addresses

    def leg(name: str, labels: IntArray, power: int, sign: int, role: Role) -> RawLeg:
        shift = eps if name == tensors.get("running_var") else 0.0
        return RawLeg(name, labels, power, sign, role, flat, shift, site)

    statistics = {"running_mean": mean, "running_var": var}
    for role, tensor in statistics.items():
        name = context.names.get(id(tensor))
        if name is None:
            raise NotUnderstoodError("has running statistics that are not buffers")
        tensors[role] = name
    variance = [leg(tensors["running_var"], inputs, 2, 0, Role.STATISTIC)]
    if gamma is None:
        variance.append(leg(tensors["running_var"], outputs, -2, 0, Role.STATISTIC))
        context.relations.equate(outputs, inputs, scale=False)
    context.relations.use(
        tensors["running_mean"], [leg(tensors["running_mean"], inputs, 1, 1, Role.STATISTIC)]
    )
    context.relations.use(tensors["running_var"], variance)
    for role, tensor in (("weight", gamma), ("bias", beta)):
        if tensor is None:
            continue
        view = context.entry(tensor)
        if not isinstance(view, ParameterView) or view.index is not None:
            raise NotUnderstoodError("has an affine part that is not a parameter of its own")
        legs = [leg(view.name, outputs, 1, 1, Role.PRODUCER)]
        if role == "weight":
            legs.append(leg(view.name, inputs, 0, 1, Role.STATISTIC))
        use_parameter(context, view, legs)
        tensors[role] = view.name
    mean_name = tensors["running_mean"]
    # A subclass's forward may call it, too: what it does beyond is for whoever folds.
    module = f"{call.place.module}.running_mean".removeprefix(".") == mean_name
    name = call.place.module if module else mean_name
    context.norms.append(NormCall(name, module, tensors, eps, call.node, inputs, outputs, channels))
    shape = tuple(call.out.shape)
    out_addresses = None
    if not plain:
        out_addresses = along(addresses, dim, len(shape))
    context.assign(call.out, Value(along(outputs, dim, len(shape)), shape, out_addresses))


def _without_statistics(context: Context, call: Call, x: Any, gamma: Any, beta: Any) -> None:
    if call.argument(5, "training") and call.argument(1, "running_mean") is not None:
        raise refuse_random(call)
    if beta is None and x.dim() == 3 and x.shape[0] == 1 and standardised(context, call, x, gamma):
        return
    _group_norm(context, call, x, None, gamma, beta, "takes its statistics from the batch: "
                "it absorbs a factor only up to its eps")  # fmt: skip


def _affine(
    context: Context, call: Call, tensor: Any, legs: list[tuple[IntArray, int, int, Role]],
    addresses: IntArray,
) -> None:  # fmt: skip
    if tensor is None:
        return
    site = str(call.place)
    demand(
        context,
        call,
        tensor,
        [
            RawLeg("", labels, power, sign, role, addresses, site=site)
            for labels, power, sign, role in legs
        ],
    )


@rule("layer_norm", "rms_norm")
def layer_norm(context: Context, call: Call) -> None:
    """LayerNorm and RMSNorm: permutation through them; their affine part produces anew."""
    x, dims = call.argument(0, "input"), call.argument(1, "normalized_shape")
    gamma = call.argument(2, "weight")
    root_mean_square = call.name == "rms_norm"
    beta = None if root_mean_square else call.argument(3, "bias")
    value = context.operand(x)
    normalized_layer(context, call, value, len(tuple(dims)), gamma, beta, root_mean_square)


def normalized_layer(
    context: Context,
    call: Call,
    value: Value,
    count: int,
    gamma: Tensor | None,
    beta: Tensor | None,
    root_mean_square: bool,
    out: Any = None,
) -> Value:
    """Write down a normalisation over the last ``count`` dimensions; return the result."""
    lead = len(value.shape) - count
    stop = context.stop(call, EPS_REASON, SCALE)
    context.pin(value.labels, stop, scale=True)
    shape = value.shape[lead:]
    cells = value.labels.reshape((-1, *value.labels.shape[lead:]))
    addresses = value.addresses
    block = np.arange(cells.shape[0], dtype=np.int64).reshape(-1, *(1,) * count)
    within: int | IntArray = 0
    if addresses is not None and any(n > 1 for n in addresses.shape[lead:]):
        # Where positions do not differ in their threads, one stands for all.
        slim = addresses[
            tuple(slice(None) if value.labels.shape[d] > 1 else slice(1) for d in range(lead))
        ]
        within = slim.reshape((-1, *slim.shape[lead:]))
    context.relations.touch(cells, call.node, block, within)
    if not value.even:  # positions in front of the normalised ones tell threads apart, too
        context.touch(value, call)
    first = cells.max(axis=0)
    if cells.shape[0] > 1:  # positions differ: the affine part ties them
        context.relations.tie_moves(np.broadcast_to(first, cells.shape), cells)
        context.relations.equate(np.broadcast_to(first, cells.shape), cells)
    fine = gamma is not None or beta is not None
    spread = np.broadcast_to(first, shape) if fine else first
    keys: IntArray | int = 0
    if fine and addresses is None:
        inner = [d for d in range(count) if first.shape[d] == 1]
        sizes = [shape[d] if d in inner else 1 for d in range(count)]
        keys = np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)
    elif addresses is not None:
        keys = addresses.reshape((-1, *addresses.shape[lead:]))[0]
    keys = np.broadcast_to(keys, spread.shape).reshape(-1)
    outputs = context.relations.fresh(spread.size, call.node, keys).reshape(spread.shape)
    context.relations.tie_moves(outputs, spread)
    context.relations.block_mixing(np.concatenate([first.reshape(-1), outputs.reshape(-1)]))
    live = distinct(first[first >= 0])
    if not root_mean_square and live.size > 1:
        context.relations.equate(live[1:], np.broadcast_to(live[0], live[1:].shape), scale=False)
    flat = np.zeros((1,) * count, dtype=np.int64)
    if gamma is None:
        stop = context.stop(call, "has no weight that could take up a factor", SCALE)
        context.pin(outputs, stop, scale=True)
        context.relations.equate(outputs, np.broadcast_to(spread, outputs.shape), scale=False)
    _affine(context, call, gamma,
            [(outputs, 1, 1, Role.PRODUCER), (spread, 0, 1, Role.STATISTIC)], flat)  # fmt: skip
    _affine(context, call, beta, [(outputs, 1, 1, Role.PRODUCER)], flat)
    labels = outputs.reshape((1,) * lead + outputs.shape)
    position = None if addresses is None else value.explicit_addresses()
    result = Value(labels, value.shape, None if fine else position)
    context.assign(call.out if out is None else out, result)
    return result


@rule("group_norm")
def group_norm(context: Context, call: Call) -> None:
    """GroupNorm: channels swap within their group."""
    x, groups = call.argument(0, "input"), int(call.argument(1, "num_groups"))
    gamma, beta = call.argument(2, "weight"), call.argument(3, "bias")
    _group_norm(context, call, x, groups, gamma, beta, EPS_REASON)


@rule("instance_norm")
def instance_norm(context: Context, call: Call) -> None:
    """InstanceNorm by the statistics of the input itself."""
    if not call.argument(5, "use_input_stats", True):
        raise NotUnderstoodError("normalises an instance by running statistics")
    gamma, beta = call.argument(3, "weight"), call.argument(4, "bias")
    _group_norm(context, call, call.argument(0, "input"), None, gamma, beta, EPS_REASON)


def _group_norm(
    context: Context, call: Call, x: Any, groups: int | None, gamma: Any, beta: Any, why: str
) -> None:
    """Normalise groups of channels (``None``: every channel by itself)."""
    value = context.operand(x)
    channels = value.shape[1]
    inputs, _ = features(context, call, value, 1)
    stop = context.stop(call, why, SCALE)
    context.pin(inputs, stop, scale=True)
    group = np.zeros(channels, dtype=np.int64)
    if groups is not None:
        group = np.repeat(np.arange(groups), channels // groups)
        context.relations.touch(inputs, call.node, 5, group)
        # The mean of a group is shared: its channels flip together.
        leader = inputs[(group * (channels // groups))]
        context.relations.equate(inputs, leader, scale=False)
    outputs = context.relations.fresh(channels, call.node, group)
    context.relations.tie_moves(outputs, inputs)
    context.relations.block_mixing(np.concatenate([inputs, outputs]))
    flat = np.zeros(1, dtype=np.int64)
    if gamma is None:
        stop = context.stop(call, "has no weight that could take up a factor", SCALE)
        context.pin(outputs, stop, scale=True)
        context.relations.equate(outputs, inputs, scale=False)
    _affine(context, call, gamma,
            [(outputs, 1, 1, Role.PRODUCER), (inputs, 0, 1, Role.STATISTIC)], flat)  # fmt: skip
    _affine(context, call, beta, [(outputs, 1, 1, Role.PRODUCER)], flat)
    if value.addresses is not None:
        stop = context.stop(call, "normalises what several threads share", SIGN)
        context.pin(np.concatenate([inputs, outputs]), stop, move=True)
    shape = tuple(call.out.shape)
    context.assign(call.out, Value(along(outputs, 1, len(shape)), shape))
