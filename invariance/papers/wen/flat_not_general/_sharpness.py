r"""Exact trace of the Hessian of the study's networks, in closed form.

With the mean squared loss, ``Tr H = (2/n) sum_i |grad f_i|^2 + (2/n) sum_i (f_i - y_i)
Tr grad^2 f_i``. Both second derivatives and gradients of these networks are elementary:

* ``plain``: f is linear in each layer, so ``Tr grad^2 f = 0`` wherever no unit is at its kink.
* ``layer``: with k active units, hidden norm N above the floor and second layer a,
  ``|grad f|^2 = 1 + |x|^2 (|a_active|^2 - f^2) / N^2`` and
  ``Tr grad^2 f = |x|^2 (1 - k) f / N^2``.
* ``batch``: unit j is ``phi = w.x / s`` with ``s^2 = w' M w``, M the mean of x x' over the
  training points that activate it: ``grad phi = x/s - (w.x) M w / s^3`` and
  ``Lap phi = -2 x'Mw/s^3 - (w.x) tr M/s^3 + 3 (w.x) |Mw|^2 / s^5``.

Here x has the constant feature of the bias appended where there is a bias. A unit exactly at
its kink counts as inactive, as in every automatic differentiation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from invariance.papers.wen.flat_not_general._networks import BatchNormalised, SimplifiedLayerNorm


class Sharpness(NamedTuple):
    """What the closed forms give.

    Attributes:
        trace: Trace of the Hessian of the mean loss.
        gauss_newton: Its part ``(2/n) sum |grad f|^2``; both agree where the net interpolates.
        outputs: ``(n,)`` outputs.
    """

    trace: float
    gauss_newton: float
    outputs: Tensor


def sharpness(model: nn.Module, x: Tensor, y: Tensor) -> Sharpness:
    """Compute the trace of the Hessian of ``mean (f - y)^2`` over all parameters.

    Args:
        model: A network of :func:`invariance.papers.wen.flat_not_general._networks.build`.
        x: ``(n, d)`` training inputs.
        y: ``(n,)`` targets.

    Returns:
        The trace, in float64 whatever the network's precision.
    """
    hidden, output = model.get_submodule("hidden"), model.get_submodule("output")
    assert isinstance(hidden, nn.Linear)
    with torch.no_grad():
        inputs = with_bias(x.double(), hidden)
        weights = stacked(hidden)
        readout = torch.as_tensor(output.weight).double()[0]
        if isinstance(model, BatchNormalised):
            outputs, square, curving = _batch(inputs, weights, model.scale.double(), readout)
        else:
            norm = next((m for m in model.modules() if isinstance(m, SimplifiedLayerNorm)), None)
            floor = None if norm is None else norm.floor
            outputs, square, curving = _sample(inputs, weights, readout, floor)
        gauss_newton = 2 * square.mean()
        bending = 2 * ((outputs - y.double()) * curving).mean()
    return Sharpness(float(gauss_newton + bending), float(gauss_newton), outputs)


def stacked(hidden: nn.Linear) -> Tensor:
    """Return ``(m, F)`` first-layer weights in float64, the bias as the last column."""
    parts = [
        hidden.weight,
        *(p[:, None] for name, p in hidden.named_parameters() if name == "bias"),
    ]
    return torch.cat([part.detach().double() for part in parts], 1)


def with_bias(x: Tensor, hidden: nn.Linear) -> Tensor:
    """Return ``x`` with a constant feature appended where ``hidden`` has a bias."""
    return x if hidden.bias is None else torch.cat([x, torch.ones_like(x[:, :1])], 1)


def _sample(
    x: Tensor, weights: Tensor, readout: Tensor, floor: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs, ``|grad f|^2`` and ``Tr grad^2 f`` for each sample."""
    pre = x @ weights.T
    hidden, active = pre.relu(), (pre > 0).double()
    reach = active @ readout.square()
    square, size = hidden.square().sum(1), x.square().sum(1)
    outputs = hidden @ readout
    if floor is None:
        return outputs, square + size * reach, torch.zeros_like(outputs)
    inside = square <= floor**2
    safe = torch.where(inside, 1.0, square)
    outputs = outputs / torch.where(inside, floor, safe.sqrt())
    above = 1 + size * (reach - outputs.square()) / safe
    below = (square + size * reach) / floor**2
    curving = size * (1 - active.sum(1)) * outputs / safe
    return outputs, torch.where(inside, below, above), torch.where(inside, 0.0, curving)


def _batch(
    x: Tensor, weights: Tensor, scale: Tensor, readout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs, ``|grad f|^2`` and ``Tr grad^2 f`` for each training sample."""
    pre = x @ weights.T
    hidden, active = pre.relu(), (pre > 0).double()
    square = hidden.square().mean(0)
    size = torch.where(square > 0, square, 1.0).sqrt()
    unit = hidden / size
    # Mw of every unit, |Mw|^2, tr M, and x'Mw of every sample.
    pulled = (hidden.T @ x) / len(x)
    spread = active.T @ x.square().sum(1) / len(x)
    along = active * (x @ pulled.T)
    pulled_square = pulled.square().sum(1)
    gradient = (
        active * x.square().sum(1)[:, None] / size**2
        - 2 * hidden * along / size**4
        + hidden.square() * pulled_square / size**6
    )
    laplacian = -2 * along / size**3 - hidden * spread / size**3
    laplacian = laplacian + 3 * hidden * pulled_square / size**5
    weight = scale * readout
    outputs = unit @ weight
    by_second = unit.square() @ (scale.square() + readout.square())
    return outputs, by_second + gradient @ weight.square(), laplacian @ weight
