"""The forward pass over the steps of a multilayer perceptron, or a stack of equal ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.curvature.exact._steps import SMOOTH, Dense, Norm, Step


@dataclass(frozen=True)
class Trail:
    """What the backward sweep needs of one step's forward pass."""

    step: Step
    inputs: Tensor


def forward(steps: Sequence[Step], x: Tensor) -> tuple[Tensor, list[Trail]]:
    """Run the steps and keep each one's input.

    Args:
        steps: From :func:`parse_mlp` or a stack of it.
        x: ``(*lead, n, d)`` or ``(n, d)`` rows for all models.

    Returns:
        The outputs ``(*lead, n, K)`` and the trail.
    """
    trail: list[Trail] = []
    a = x
    for step in steps:
        trail.append(Trail(step, a))
        if isinstance(step, Dense):
            a = _affine(a, step)
        elif isinstance(step, Norm):
            a = normalised(a, step)
            if step.gain is not None:
                a = a * step.gain.unsqueeze(-2)
            if step.shift is not None:
                a = a + step.shift.unsqueeze(-2)
        else:
            a = _activate(step.module, a)
    return a, trail


def _affine(a: Tensor, step: Dense) -> Tensor:
    weight, bias = step.weight, step.bias
    if weight.ndim == 2:
        return F.linear(a, weight, bias)
    if a.ndim == 2:
        a = a.expand(weight.shape[0], *a.shape)
    if bias is None:
        return torch.bmm(a, weight.mT)
    return torch.baddbmm(bias.unsqueeze(-2), a, weight.mT)


def normalised(a: Tensor, step: Norm) -> Tensor:
    """Return a BatchNorm's input in units of its statistics, before gain and shift."""
    return (a - step.mean.unsqueeze(-2)) * step.inverse_sd.unsqueeze(-2)


def _activate(module: nn.Module, z: Tensor) -> Tensor:
    """Apply an activation out of place, whatever its ``inplace`` flag."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return z.clamp(module.min_val, module.max_val)
    if isinstance(module, nn.LeakyReLU):
        return F.leaky_relu(z, module.negative_slope)
    if isinstance(module, SMOOTH):
        result: Tensor = module(z.clone())
        return result
    return z.relu()


def slopes(module: nn.Module, z: Tensor) -> Tensor:
    """Return the activation's derivative at ``z``; 0 on a kink of ReLU, as autograd has it."""
    if isinstance(module, nn.Hardtanh):
        return ((z > module.min_val) & (z < module.max_val)).to(z.dtype)
    if isinstance(module, nn.LeakyReLU):
        # Tensors of z's dtype: torch.where makes float32 of two Python numbers.
        return torch.where(z > 0, z.new_ones(()), z.new_tensor(module.negative_slope))
    return (z > 0).to(z.dtype)
