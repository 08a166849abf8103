"""How much of a difference float error explains: measured, not chosen.

A verdict needs a tolerance. Ours is what the measure itself does when nothing but
round-off changes: its value is recomputed with every parameter moved by at most one
unit in the last place, several times, and with the rows of its data in another order. Both leave
the exact value alone (to first order in the machine epsilon), so whatever moves is
float error amplified by the measure's own conditioning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._errors import InvarianceError
from invariance.core._estimate import Estimate
from invariance.core._modules import clone, model_dtype
from invariance.core._rng import generator
from invariance.measures._registry import Measure

#: The largest of a few probes underestimates the worst case, and the transform's own
#: rounding comes on top; this factor covers both. Planted mistakes are larger by orders
#: of magnitude (the smallest in the literature, a BatchNorm left in place, is 5e-6).
SAFETY = 32.0

#: Perturbed models that are looked at. One alone may move an ill-conditioned value by chance
#: far less than another does: the share of a random direction along the sensitive one is below
#: a thirtieth of its typical size in 1 of 40 draws, and that of all of three in 1 of 50,000.
JITTERS = 3

#: Rounding of the final sum itself, in units of the machine epsilon.
FLOOR = 64.0


def float_error(
    measure: Measure,
    model: nn.Module,
    inputs: Mapping[str, Any],
    value: Estimate,
    *,
    seed: int = 0,
) -> float:
    """Measure how far round-off alone moves ``measure`` at ``model``."""
    epsilon = torch.finfo(model_dtype(model)).eps
    base = float(value)
    floor = FLOOR * epsilon * abs(base) + (value.residual or 0.0)
    if measure.discrete or measure.cost == "sampling" or value.residual is not None:
        # A count does not drift, a jittered chain of samples is another chain, and the
        # certified residual of an iterative solver dwarfs its round-off.
        return floor
    moved = [0.0]
    probes = [(jitter(model, seed, number), dict(inputs)) for number in range(JITTERS)]
    if inputs:
        probes.append((model, _reordered(inputs, seed)))
    for probe, data in probes:
        try:
            moved.append(abs(float(measure(probe, **data)) - base))
        except InvarianceError:
            continue  # a perturbed model may fall outside what a measure accepts
    return SAFETY * max(moved) + floor


def jitter(model: nn.Module, seed: int, number: int = 0) -> nn.Module:
    """Return a copy whose parameters each moved by about one unit in the last place."""
    copied = clone(model)
    source = generator(seed, "jitter", number)
    with torch.no_grad():
        for parameter in copied.parameters():
            # Every one of them: a value may hang on a single parameter.
            signs = torch.randint(0, 2, parameter.shape, generator=source).to(parameter) * 2 - 1
            parameter.add_(parameter * signs * torch.finfo(parameter.dtype).eps)
    return copied


def _reordered(inputs: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Shuffle the rows of all tensors, those of equal length alike (x with its y)."""
    orders: dict[int, Tensor] = {}
    shuffled: dict[str, Any] = {}
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            shuffled[name] = value
            continue
        rows = value.shape[0]
        if rows not in orders:
            orders[rows] = torch.randperm(rows, generator=generator(seed, "rows", rows))
        shuffled[name] = value[orders[rows].to(value.device)]
    return shuffled
