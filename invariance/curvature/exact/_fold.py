"""BatchNorm folded into the linear layer before it, on the steps of a parsed MLP."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from invariance.curvature.exact._steps import Dense, Norm, Step


def fold_steps(steps: Sequence[Step]) -> list[Step]:
    """Replace every linear layer followed by an eval-mode BatchNorm by one linear layer.

    With ``s = gain / sqrt(var + eps)``: ``W' = diag(s) W`` and ``b' = shift + s (b - mean)``.

    Args:
        steps: From :func:`~invariance.curvature.exact._mlp.parse_mlp`.

    Returns:
        Steps of the same function. A BatchNorm that follows no linear layer stays.
    """
    folded: list[Step] = []
    for step in steps:
        before = folded[-1] if folded else None
        if isinstance(step, Norm) and isinstance(before, Dense):
            scale = step.inverse_sd if step.gain is None else step.inverse_sd * step.gain
            bias = -step.mean if before.bias is None else before.bias - step.mean
            shifted = scale * bias
            folded[-1] = Dense(
                before.name,
                scale.unsqueeze(-1) * before.weight,
                shifted if step.shift is None else shifted + step.shift,
            )
        else:
            folded.append(step)
    return folded


def affine_of(step: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(scale, offset)`` of a BatchNorm read as ``scale * z + offset``."""
    scale = step.inverse_sd if step.gain is None else step.inverse_sd * step.gain
    offset = -step.mean * scale
    return scale, offset if step.shift is None else offset + step.shift
