"""Compiled training loops of two-layer networks with one output.

Weights lie as ``(F, m)``: one row a feature (the bias is the weight of a constant feature),
so that every loop runs along the m units and vectorises. With one sample a step, ReLU
networks offer three shortcuts, none of which changes a result:

* The ascent of sharpness-aware minimisation on sample x moves unit j's weights along x, so
  its new pre-activation on x is the old one plus ``step * slope_j * |x|^2``: the second
  forward pass needs no product with the weights.
* Only units that are active on x move.
* A unit that no training point activates never moves again (``_advance_sample`` in
  ``_training`` leaves it out).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from invariance.core._compiled import compiled

#: float32 or float64; scalars are cast to it, lest a loop be widened to float64.
Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


@compiled
def next_word(state: Words) -> np.uint64:
    """Advance the splitmix64 generator whose state is ``state[0]`` (Steele et al., 2014)."""
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    mixed: np.uint64 = z ^ (z >> _31)
    return mixed


@compiled
def shuffle(order: Indices, state: Words) -> None:
    """Permute ``order`` in place (Fisher-Yates)."""
    for i in range(order.size - 1, 0, -1):
        j = np.int64(next_word(state) % np.uint64(i + 1))
        order[i], order[j] = order[j], order[i]


@compiled
def preactivate(x: Array, weights: Array, into: Array) -> None:
    """Set ``into = x @ weights``."""
    features, units = weights.shape
    into[:] = 0
    k = 0
    while k + 3 < features:  # four features at a time: fewer passes over ``into``
        p, q, r, s = x[k], x[k + 1], x[k + 2], x[k + 3]
        a, b, c, d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for j in range(units):
            into[j] += p * a[j] + q * b[j] + r * c[j] + s * d[j]
        k += 4
    while k < features:
        p, a = x[k], weights[k]
        for j in range(units):
            into[j] += p * a[j]
        k += 1


@compiled
def respond(
    pre: Array, readout: Array, floor: float, unit: Array, slope: Array
) -> tuple[float, float, float]:
    """Evaluate the output and its derivatives from the pre-activations.

    Shapes: ``pre (m,)``, ``readout (m,)``.
    """
    units = pre.size
    zero = pre.dtype.type(0)
    along, square, steep = zero, zero, zero
    for j in range(units):
        hidden = pre[j] if pre[j] > zero else zero
        unit[j] = hidden
        slope[j] = readout[j] if pre[j] > zero else zero
        along += hidden * readout[j]
        square += hidden * hidden
        steep += slope[j] * slope[j]
    norm = math.sqrt(float(square))
    if floor < 0.0:
        return float(along), float(square), float(steep)
    inside = norm <= floor
    scale = pre.dtype.type(1.0 / (floor if inside else norm))
    output = along * scale
    radial = zero if inside else output
    square, steep = zero, zero
    for j in range(units):
        unit[j] *= scale
        # An inactive unit has unit[j] = slope[j] = 0, and so it stays.
        slope[j] = (slope[j] - radial * unit[j]) * scale
        square += unit[j] * unit[j]
        steep += slope[j] * slope[j]
    return float(output), float(square), float(steep)


@compiled
def move(weights: Array, x: Array, step: float, slope: Array, active: Indices) -> None:
    """Subtract ``step * x_k * slope_j`` from ``weights[k, j]``."""
    features, units = weights.shape
    count = 0
    for j in range(units):
        active[count] = j  # kept where the next line counts it
        count += 1 if slope[j] != 0 else 0
    by_step = weights.dtype.type(step)
    if 8 * count < units:
        for k in range(features):
            by, row = by_step * x[k], weights[k]
            for t in range(count):
                row[active[t]] -= by * slope[active[t]]
    else:
        for k in range(features):
            by, row = by_step * x[k], weights[k]
            for j in range(units):
                row[j] -= by * slope[j]


@compiled
def stochastic_epochs(
    epochs: int,
    x: Array,
    y: Array,
    weights: Array,
    readout: Array,
    lr: float,
    rho: float,
    noise: float,
    floor: float,
    radius: float,
    state: Words,
) -> None:
    """Train with one sample a step, each epoch in a new order, in place.

    A step of 1-SAM goes up by ``rho`` along the normalised gradient of one sample's loss
    (f - y)^2, and then down from where it stood by ``lr`` times the gradient found there.

    Shapes: ``x (n, F)``, ``y (n,)``, ``weights (F, m)``, ``readout (m,)``, ``state (1,)``.
    """
    n, units = x.shape[0], readout.size
    cast = weights.dtype.type
    pre, unit = np.empty_like(readout), np.empty_like(readout)
    slope, moved = np.empty_like(readout), np.empty_like(readout)
    order, active = np.empty(n, np.int64), np.empty(units + 1, np.int64)
    squared = np.empty(n)
    for i in range(n):
        squared[i] = np.sum(x[i] * x[i])
    for _ in range(epochs):
        for i in range(n):
            order[i] = i
        shuffle(order, state)
        for i in order:  # type: ignore[assignment]
            target = y[i]
            if noise != 0.0:
                target += noise if next_word(state) >> np.uint64(63) else -noise
            preactivate(x[i], weights, pre)
            output, square, steep = respond(pre, readout, floor, unit, slope)
            length = math.sqrt(square + squared[i] * steep)
            if rho != 0.0 and length > 0.0 and output != target:
                climb = rho / length if output > target else -rho / length
                along, across = cast(climb), cast(climb * squared[i])
                for j in range(units):
                    pre[j] += across * slope[j]
                    moved[j] = readout[j] + along * unit[j]
                output, square, steep = respond(pre, moved, floor, unit, slope)
            step = 2.0 * lr * (output - target)
            by_step = cast(step)
            for j in range(units):
                readout[j] -= by_step * unit[j]
            move(weights, x[i], step, slope, active)
            if radius > 0.0:
                weights *= cast(radius / math.sqrt(np.sum(weights * weights)))


@compiled
def full_batch_epochs(
    epochs: int,
    x: Array,
    y: Array,
    weights: Array,
    readout: Array,
    lr: float,
    decay: float,
    trace: float,
    floor: float,
) -> None:
    """Train by gradient descent on the whole training set, in place.

    Descends on ``mean (f - y)^2 + decay/2 |theta|^2 + trace * (2/n) sum |grad f|^2``; the
    last sum is the trace of the Hessian of the mean loss where the network interpolates.

    Shapes: ``x (n, F)``, ``y (n,)``, ``weights (F, m)``, ``readout (m,)``.
    """
    n, features = x.shape
    units = readout.size
    cast = weights.dtype.type
    pre, unit, slope = np.empty_like(readout), np.empty_like(readout), np.empty_like(readout)
    into_readout, into_pre = np.empty_like(readout), np.empty_like(readout)
    gradient, active = np.empty_like(weights), np.empty(units + 1, np.int64)
    squared = np.empty(n)
    for i in range(n):
        squared[i] = np.sum(x[i] * x[i])
    keep, rate = cast(1.0 - lr * decay), cast(lr)
    for _ in range(epochs):
        gradient[:] = 0
        into_readout[:] = 0
        for i in range(n):
            preactivate(x[i], weights, pre)
            output = respond(pre, readout, floor, unit, slope)[0]
            pull = cast(2.0 * (output - y[i]) / n)
            for j in range(units):
                into_readout[j] += pull * unit[j]
                into_pre[j] = pull * slope[j]
            if trace != 0.0:
                args = (pre, readout, floor, unit, slope, into_readout, into_pre)
                add_trace_gradient(2.0 * trace / n, output, squared[i], *args)
            move(gradient, x[i], -1.0, into_pre, active)
        for j in range(units):
            readout[j] = keep * readout[j] - rate * into_readout[j]
        for k in range(features):
            row, by = weights[k], gradient[k]
            for j in range(units):
                row[j] = keep * row[j] - rate * by[j]


@compiled
def add_trace_gradient(
    weight: float,
    output: float,
    squared: float,
    pre: Array,
    readout: Array,
    floor: float,
    unit: Array,
    slope: Array,
    into_readout: Array,
    into_pre: Array,
) -> None:
    """Add the gradient of ``weight * |grad f|^2`` for one sample.

    Without normalisation |grad f|^2 = |h|^2 + |x|^2 |a|^2 with a the readouts of the active
    units; with it, N = |h| above the floor, 1 + |x|^2 (|a|^2 - f^2) / N^2.
    """
    units = pre.size
    cast = pre.dtype.type
    zero = cast(0)
    total, reach = zero, zero
    for j in range(units):
        hidden = pre[j] if pre[j] > zero else zero
        own = readout[j] if pre[j] > zero else zero
        total += hidden * hidden
        reach += own * own
    square = float(total)
    norm = math.sqrt(square)
    if floor >= 0.0 and norm > floor:
        excess = squared * (float(reach) - output * output) / (square * square)
        on_readout = cast(weight * 2.0 * squared / norm)
        on_slope = cast(weight * 2.0 * squared * output / square)
        on_hidden = cast(weight * 2.0 * excess)
        for j in range(units):
            hidden = pre[j] if pre[j] > zero else zero
            into_readout[j] += on_readout * slope[j]
            into_pre[j] -= on_slope * slope[j] + on_hidden * hidden
        return
    scale = weight * 2.0 if floor < 0.0 else weight * 2.0 / (floor * floor)
    on_readout, on_hidden = cast(scale * squared), cast(scale)
    for j in range(units):
        into_readout[j] += on_readout * (readout[j] if pre[j] > zero else zero)
        into_pre[j] += on_hidden * (pre[j] if pre[j] > zero else zero)
