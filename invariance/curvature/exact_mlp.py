"""The fast path: exact curvature of a multilayer perceptron, or a stack of equal ones.

A hand-written sweep of matrix products, no autograd. With z = W a + b the output of a
layer and R a root of the loss's Hessian in f (``losses.HessianFactor``), the cotangents
``D = R^T df/dz`` of one row satisfy ``H_z = D^T D``, so that for this row (theory: with
everything else fixed, f is piecewise linear in one layer's parameters)

    Tr H_W = |a|^2 |D|^2,   Tr H_b = |D|^2,   diag H_W = (columns' |D|^2) (a^2)^T,
    relative flatness = |a|^2 |D W|^2,

and D of the layer below is ``D W`` times the activation's slopes. ``D W`` is therefore
free in every layer but the first, where only its norm is needed: with W^T = Q T that is
``|D T^T|``, on the narrow side of W.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.curvature.exact_result import Sums, Wants, qualified
from invariance.curvature.exact_steps import Dense, Norm, Slope, Step
from invariance.curvature.losses import HessianFactor, Loss

#: Aim for temporaries of this many bytes a chunk on the CPU: they then stay in its cache.
_CACHE_BYTES = 16 * 2**20

#: Columns a block when multiplying by a triangular matrix, which halves its products.
_TRIANGLE_BLOCK = 64


def bytes_per_row(steps: Sequence[Step], channels: int) -> int:
    """Estimate the temporaries that one row of one model needs in :func:`sweep`, in bytes."""
    widths = [0]
    stored, itemsize = 0, 4
    for step in steps:
        if isinstance(step, Dense):
            out, inputs = step.weight.shape[-2:]
            itemsize = step.weight.element_size()
            stored += inputs
            widths.append(out)
        elif isinstance(step, Norm):
            stored += widths[-1]
        else:
            stored += 2 * widths[-1]
    # Activations and slopes are kept; two cotangent blocks of the widest layers are alive
    # at once, and a squared copy of one for the diagonal; the root holds a few K x K.
    top = sorted(widths)[-2:]
    out = widths[-1]
    return itemsize * (2 * stored + channels * (sum(top) + top[-1]) + 4 * out * out)


def chunk_rows(row_bytes: int, budget: int, device: torch.device) -> int:
    """Return how many rows to sweep at once within ``budget`` bytes (at least one)."""
    target = min(budget, _CACHE_BYTES) if device.type == "cpu" else budget
    return max(1, target // max(row_bytes, 1), min(32, budget // max(row_bytes, 1)))


@dataclass(frozen=True)
class _Trail:
    """What the backward sweep needs of one step's forward pass."""

    step: Step
    inputs: Tensor


def forward(steps: Sequence[Step], x: Tensor) -> tuple[Tensor, list[_Trail]]:
    """Run the steps and keep each one's input.

    Args:
        steps: From :func:`parse_mlp` or a stack of it.
        x: ``(*lead, n, d)`` or ``(n, d)`` rows for all models.

    Returns:
        The outputs ``(*lead, n, K)`` and the trail.
    """
    trail: list[_Trail] = []
    a = x
    for step in steps:
        trail.append(_Trail(step, a))
        if isinstance(step, Dense):
            a = _affine(a, step)
        elif isinstance(step, Norm):
            a = _normalised(a, step)
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


def _normalised(a: Tensor, step: Norm) -> Tensor:
    return (a - step.mean.unsqueeze(-2)) * step.inverse_sd.unsqueeze(-2)


def _activate(module: nn.Module, z: Tensor) -> Tensor:
    """Apply an activation out of place, whatever its ``inplace`` flag."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return z.clamp(module.min_val, module.max_val)
    if isinstance(module, nn.LeakyReLU):
        return F.leaky_relu(z, module.negative_slope)
    return z.relu()


def _slopes(module: nn.Module, z: Tensor) -> Tensor:
    """Return the activation's derivative at ``z``; 0 on a kink of ReLU, as autograd has it."""
    if isinstance(module, nn.Hardtanh):
        return ((z > module.min_val) & (z < module.max_val)).to(z.dtype)
    if isinstance(module, nn.LeakyReLU):
        # Tensors of z's dtype: torch.where makes float32 of two Python numbers.
        return torch.where(z > 0, z.new_ones(()), z.new_tensor(module.negative_slope))
    return (z > 0).to(z.dtype)


def triangular_factor(step: Dense) -> tuple[Tensor, bool]:
    """Return ``(B, triangular)`` with ``|D B| = |D W|`` for all D, on the narrow side of W."""
    weight = step.weight
    if weight.shape[-2] > weight.shape[-1]:
        return weight, False
    factor: Tensor = torch.linalg.qr(weight.mT, mode="r").R
    return factor.mT, True


def _energy(cotangents: Tensor, signs: Tensor | None) -> Tensor:
    """Return the (signed) squared norm of each row's cotangents ``(*lead, n, R, d)``."""
    if signs is None:
        norms: Tensor = torch.linalg.vector_norm(cotangents.flatten(-2), dim=-1)
        return norms.square()
    return (cotangents.square().sum(-1) * signs).sum(-1)


def _product(cotangents: Tensor, matrix: Tensor) -> Tensor:
    """Multiply ``(*lead, n, R, d)`` by ``(*lead, d, m)`` as one matrix product a model."""
    flat = cotangents.flatten(-3, -2) @ matrix
    return flat.view(*cotangents.shape[:-1], matrix.shape[-1])


def _triangle_energy(cotangents: Tensor, factor: Tensor, signs: Tensor | None) -> Tensor:
    """Return ``_energy(D @ factor)`` for a lower triangular factor, skipping its zeros."""
    width = factor.shape[-1]
    total: Tensor | None = None
    for low in range(0, width, _TRIANGLE_BLOCK):
        high = min(low + _TRIANGLE_BLOCK, width)
        part = _energy(_product(cotangents[..., low:], factor[..., low:, low:high]), signs)
        total = part if total is None else total + part
    if total is None:
        raise AssertionError("a layer has at least one output")
    return total


def sweep(
    steps: Sequence[Step],
    trail: Sequence[_Trail],
    factor: HessianFactor,
    wants: Wants,
    triangle: tuple[Tensor, bool] | None,
    sums: Sums,
    first: int,
) -> dict[tuple[str, str], Tensor]:
    """Carry the root of the loss's Hessian back through the steps.

    Args:
        steps: The network.
        trail: From :func:`forward`.
        factor: Root ``(*lead, n, K, R)`` and signs ``(*lead, n, R)``.
        wants: What to compute besides the traces.
        triangle: :func:`triangular_factor` of the first linear layer, if needed.
        sums: Receives the diagonals.
        first: Position of the first step to visit: :func:`first_step`.

    Returns:
        ``(kind, name)`` to this chunk's sums, each of shape ``lead``; kind ``"trace"`` is
        keyed by parameter, ``"kappa"`` by layer.
    """
    out: dict[tuple[str, str], Tensor] = {}
    cotangents, signs = factor.root.mT.contiguous(), factor.signs
    for position in range(len(steps) - 1, first - 1, -1):
        step, inputs = steps[position], trail[position].inputs
        if isinstance(step, Slope):
            cotangents = cotangents * _slopes(step.module, inputs).unsqueeze(-2)
            continue
        squares = _squares(cotangents, signs) if wants.diagonal or isinstance(step, Norm) else None
        if isinstance(step, Norm):
            if squares is None:
                raise AssertionError("computed above")
            _norm_blocks(step, inputs, squares, wants, sums, out)
            scale = step.inverse_sd if step.gain is None else step.inverse_sd * step.gain
            cotangents = cotangents * scale.unsqueeze(-2).unsqueeze(-2)
            continue
        energy = _energy(cotangents, signs) if squares is None else squares.sum(-1)
        norms = torch.linalg.vector_norm(inputs, dim=-1).square()
        out["trace", qualified(step.name, "weight")] = (norms * energy).sum(-1)
        if step.bias is not None:
            out["trace", qualified(step.name, "bias")] = energy.sum(-1)
        if wants.diagonal and squares is not None:
            sums.add_diagonal(qualified(step.name, "weight"), squares.mT @ inputs.square())
            if step.bias is not None:
                sums.add_diagonal(qualified(step.name, "bias"), squares.sum(-2))
        if position > first:
            cotangents = _product(cotangents, step.weight)
            if wants.relative_flatness:
                out["kappa", step.name] = (norms * _energy(cotangents, signs)).sum(-1)
        elif wants.relative_flatness:
            matrix, lower = triangle or triangular_factor(step)
            carried = (
                _triangle_energy(cotangents, matrix, signs)
                if lower
                else _energy(_product(cotangents, matrix), signs)
            )
            out["kappa", step.name] = (norms * carried).sum(-1)
    return out


def _squares(cotangents: Tensor, signs: Tensor | None) -> Tensor:
    """Return the diagonal of ``H_z``, ``(*lead, n, d)``."""
    squares = cotangents.square()
    return (squares if signs is None else squares * signs.unsqueeze(-1)).sum(-2)


def _norm_blocks(
    step: Norm,
    inputs: Tensor,
    squares: Tensor,
    wants: Wants,
    sums: Sums,
    out: dict[tuple[str, str], Tensor],
) -> None:
    """Add the affine blocks of a BatchNorm: f is linear in its gain and in its shift."""
    if step.gain is not None:
        gain = (_normalised(inputs, step).square() * squares).sum(-2)
        out["trace", qualified(step.name, "weight")] = gain.sum(-1)
        if wants.diagonal:
            sums.add_diagonal(qualified(step.name, "weight"), gain)
    if step.shift is not None:
        shift = squares.sum(-2)
        out["trace", qualified(step.name, "bias")] = shift.sum(-1)
        if wants.diagonal:
            sums.add_diagonal(qualified(step.name, "bias"), shift)


def sweep_chunk(
    steps: Sequence[Step],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    wants: Wants,
    triangle: tuple[Tensor, bool] | None,
    sums: Sums,
    first: int,
) -> None:
    """Forward and backward over one chunk of rows; adds to ``sums``.

    Args:
        steps: The network, or a stack of M networks.
        x: ``(n, d)``, or ``(M, n, d)`` for a stack.
        y: ``(n, ...)``, or ``(M, n, ...)`` for a stack, one target a row and network.
        loss: The loss.
        wants: What to compute besides the traces.
        triangle: :func:`triangular_factor` of the first linear layer, if needed.
        sums: Running sums.
        first: Position of the first step to visit: :func:`first_step`.
    """
    outputs, trail = forward(steps, x)
    lead = outputs.shape[:-2]
    flat = outputs.flatten(0, -2)
    labels = y.flatten(0, len(lead)) if lead else y
    loss.check(flat, labels)
    root, signs = loss.hessian_factor(flat, labels)
    rows = outputs.shape[:-1]
    factor = HessianFactor(
        root.reshape(*rows, *root.shape[1:]),
        None if signs is None else signs.reshape(*rows, signs.shape[1]),
    )
    mass = loss.masses(flat, labels).reshape(rows).sum(-1)
    scalars = sweep(steps, trail, factor, wants, triangle, sums, first)
    sums.add_chunk(outputs.shape[-2], mass, scalars)


def first_step(steps: Sequence[Step], names: Collection[str]) -> int:
    """Return the position of the first step that owns one of the parameters ``names``."""
    return next(
        i
        for i, step in enumerate(steps)
        if qualified(step.name, "weight") in names or qualified(step.name, "bias") in names
    )


def first_triangle(step: Step, wants: Wants) -> tuple[Tensor, bool] | None:
    """Factor the first visited layer's weight once, if its relative flatness is wanted."""
    if not wants.relative_flatness or not isinstance(step, Dense):
        return None
    return triangular_factor(step)
