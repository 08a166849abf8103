"""Compiled training loops of the network with simplified BatchNorm.

Output on x: ``sum_j a_j g_j relu(w_j.x) / s_j`` with ``s_j^2 = mean_k relu(w_j.x_k)^2`` over the
training set. Its gradient with respect to ``w_j`` is zero when unit j is silent on x, so a
step with one sample concerns its active units alone; but each of those needs the whole
training set, which makes a step about a hundred times as expensive as without the norm.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from invariance.core._compiled import compiled
from invariance.papers.wen.flat_not_general._kernels import (
    Array,
    Indices,
    Words,
    preactivate,
    shuffle,
)

if TYPE_CHECKING:
    from invariance.papers.wen.flat_not_general._training import Phase, Recipe


def advance(
    recipe: Recipe,
    phase: Phase,
    epochs: int,
    x: Array,
    y: Array,
    weights: Array,
    scale: Array,
    readout: Array,
    state: Words,
) -> None:
    """Train for some epochs in place, by 1-SAM, plain SGD, or gradient descent with decay.

    Shapes: ``x (n, F)``, ``y (n,)``, ``weights (F, m)``, ``scale (m,)``, ``readout (m,)``, ``state
    (1,)``.
    """
    if recipe.algorithm == "gd":
        full_batch_epochs(epochs, x, y, weights, scale, readout, phase.lr, recipe.weight_decay)
    else:
        rho = phase.rho if recipe.algorithm == "sam" else 0.0
        stochastic_epochs(epochs, x, y, weights, scale, readout, phase.lr, rho, state)


@compiled
def statistics(x: Array, weights: Array, pulled: Array, square: Array, pre: Array) -> None:
    """Set ``square_j = mean_k h_kj^2`` and ``pulled[:, j] = mean_k h_kj x_k`` over all of ``x``."""
    n, features = x.shape
    units = square.size
    zero, share = square.dtype.type(0), square.dtype.type(1.0 / n)
    square[:] = zero
    pulled[:] = zero
    for k in range(n):
        preactivate(x[k], weights, pre)
        for j in range(units):
            pre[j] = share * pre[j] if pre[j] > zero else zero
            square[j] += pre[j] * pre[j] * n
        for f in range(features):
            by, row = x[k, f], pulled[f]
            for j in range(units):
                row[j] += by * pre[j]


@compiled
def respond(
    x: Array,
    i: int,
    weights: Array,
    scale: Array,
    readout: Array,
    unit: Array,
    gradient: Array,
    square: Array,
    pre: Array,
) -> tuple[float, float]:
    """Evaluate sample ``i``: output, and the squared norm of its gradient.

    Shapes: ``x (n, F)``, ``weights (F, k)``, ``scale (k,)``, ``readout (k,)``, ``gradient (F, k)``,
    ``square (k,)``, ``pre (k,)``.
    """
    features, units = weights.shape
    zero, one = pre.dtype.type(0), pre.dtype.type(1)
    statistics(x, weights, gradient, square, pre)
    preactivate(x[i], weights, pre)
    output, total = zero, zero
    for j in range(units):
        if pre[j] > zero and square[j] > zero:
            rate = one / math.sqrt(square[j])
            unit[j] = pre[j] * rate
            square[j] = scale[j] * readout[j] * rate  # of x
            pre[j] = -scale[j] * readout[j] * unit[j] * rate * rate  # of the pull
        else:
            unit[j], square[j], pre[j] = zero, zero, zero
        output += scale[j] * readout[j] * unit[j]
        total += unit[j] * unit[j] * (scale[j] * scale[j] + readout[j] * readout[j])
    for f in range(features):
        by, row = x[i, f], gradient[f]
        for j in range(units):
            row[j] = by * square[j] + row[j] * pre[j]
            total += row[j] * row[j]
    return float(output), float(total)


@compiled
def stochastic_epochs(  # noqa: PLR0912
    epochs: int,
    x: Array,
    y: Array,
    weights: Array,
    scale: Array,
    readout: Array,
    lr: float,
    rho: float,
    state: Words,
) -> None:
    """Train with one sample a step: 1-SAM, or plain SGD with ``rho`` 0, in place."""
    n, features = x.shape
    units = readout.size
    cast = weights.dtype.type
    order, active = np.empty(n, np.int64), np.empty(units + 1, np.int64)
    all_pre = np.empty_like(readout)
    for _ in range(epochs):
        for i in range(n):
            order[i] = i
        shuffle(order, state)
        for i in order:  # type: ignore[assignment]
            preactivate(x[i], weights, all_pre)
            count = list_active(all_pre, active)
            own = np.empty((features, count), weights.dtype)
            moved, gradient = np.empty_like(own), np.empty_like(own)
            g, a = np.empty(count, weights.dtype), np.empty(count, weights.dtype)
            unit, square, pre = np.empty_like(g), np.empty_like(g), np.empty_like(g)
            for t in range(count):
                g[t], a[t] = scale[active[t]], readout[active[t]]
            for f in range(features):
                for t in range(count):
                    own[f, t] = weights[f, active[t]]
            output, total = respond(x, i, own, g, a, unit, gradient, square, pre)
            if rho != 0.0 and total > 0.0 and output != y[i]:
                climb = rho / math.sqrt(total)
                up = cast(climb if output > y[i] else -climb)
                for f in range(features):
                    for t in range(count):
                        moved[f, t] = own[f, t] + up * gradient[f, t]
                for t in range(count):
                    g[t], a[t] = g[t] + up * a[t] * unit[t], a[t] + up * g[t] * unit[t]
                output, total = respond(x, i, moved, g, a, unit, gradient, square, pre)
            step = cast(2.0 * lr * (output - y[i]))
            for t in range(count):
                scale[active[t]] -= step * a[t] * unit[t]
                readout[active[t]] -= step * g[t] * unit[t]
            for f in range(features):
                for t in range(count):
                    weights[f, active[t]] -= step * gradient[f, t]


@compiled
def list_active(pre: Array, active: Indices) -> int:
    """Write the indices of the positive entries of ``pre`` to ``active``; return their number."""
    count = 0
    for j in range(pre.size):
        active[count] = j  # kept where the next line counts it
        count += 1 if pre[j] > 0 else 0
    return count


@compiled
def full_batch_epochs(
    epochs: int,
    x: Array,
    y: Array,
    weights: Array,
    scale: Array,
    readout: Array,
    lr: float,
    decay: float,
) -> None:
    """Descend on ``mean (f - y)^2 + decay/2 |theta|^2`` with all samples a step, in place."""
    n, features = x.shape
    units = readout.size
    cast = weights.dtype.type
    zero, keep, rate = cast(0), cast(1.0 - lr * decay), cast(lr)
    pulled, gradient = np.empty_like(weights), np.empty_like(weights)
    square, pre = np.empty_like(readout), np.empty_like(readout)
    size, share = np.empty_like(readout), np.empty_like(readout)
    for _ in range(epochs):
        statistics(x, weights, pulled, square, pre)
        for j in range(units):
            size[j] = 1.0 / math.sqrt(square[j]) if square[j] > zero else zero
        gradient[:] = zero
        share[:] = zero  # sum_i r_i h_ij
        for i in range(n):
            preactivate(x[i], weights, pre)
            output = zero
            for j in range(units):
                hidden = pre[j] if pre[j] > zero else zero
                output += hidden * size[j] * scale[j] * readout[j]
            pull = cast(2.0 * (float(output) - y[i]) / n)
            for j in range(units):
                share[j] += pull * pre[j] if pre[j] > zero else zero
                pre[j] = pull if pre[j] > zero else zero
            for f in range(features):
                by, row = x[i, f], gradient[f]
                for j in range(units):
                    row[j] += by * pre[j]
        for f in range(features):
            for j in range(units):
                by_unit = scale[j] * readout[j] * size[j]
                slope = gradient[f, j] - share[j] * size[j] * size[j] * pulled[f, j]
                weights[f, j] = keep * weights[f, j] - rate * by_unit * slope
        for j in range(units):
            along = share[j] * size[j]
            g, a = scale[j], readout[j]
            scale[j] = keep * g - rate * a * along
            readout[j] = keep * a - rate * g * along
