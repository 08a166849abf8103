"""Curvature in the space of outputs: products with the K x K matrix of every row.

A generalised Gauss-Newton or Fisher matrix is ``J^T B J`` with J the Jacobian of the
outputs and B block-diagonal over rows. This file is B; the engines supply J.

* ``ggn``: B_n is the Hessian of the row's loss in its outputs (Schraudolph 2002).
* ``fisher``: B_n = E_{y ~ p(y | f_n)} [c c^T] with c the gradient of ``-log p(y | f_n)`` in f,
  for losses that are negative log-likelihoods (Martens 2020, section 5).
* ``empirical_fisher``: B_n = c c^T with the given target, so that the matrix is the mean of
  the outer products of the rows' gradients.

A row of weight (mass) m counts as m rows, and every position or entry that a loss averages over
as a row of its own, except in the empirical matrix of an elementwise loss, whose rows are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from invariance.curvature.losses._elementwise import Elementwise
from invariance.curvature.losses._positions import Positionwise
from invariance.curvature.losses._resolve import (
    CrossEntropy,
    Loss,
    NegativeLogLikelihood,
    SumReduced,
)

OutputMatrixKind: TypeAlias = Literal["ggn", "fisher", "empirical_fisher"]

#: Maps ``(..., n, K)`` to ``(..., n, K)``.
OuterProduct: TypeAlias = Callable[[Tensor], Tensor]


def outer_product(
    kind: OutputMatrixKind, loss: Loss, outputs: Tensor, y: Tensor, total_mass: float
) -> OuterProduct:
    """Return the product with B, divided by the total mass.

    Shapes: ``outputs (n, K)``.
    """
    if isinstance(loss, SumReduced):
        factor = loss.scale(outputs) ** (2 if kind == "empirical_fisher" else 1)
        return outer_product(kind, loss.inner, outputs, y, total_mass / factor)
    if isinstance(loss, Positionwise):
        single = outer_product(kind, loss.inner, *loss.positions(outputs, y), total_mass)
        return lambda u: loss.merge(single(loss.split(u, y)), y)
    if kind == "empirical_fisher":
        return _rank_one(loss, outputs, y, total_mass)
    if isinstance(loss, NegativeLogLikelihood):
        if kind == "ggn":
            return torch.zeros_like
        weight = loss.masses(outputs, y).unsqueeze(-1) * outputs.exp() / total_mass
        return lambda u: u * weight
    if isinstance(loss, CrossEntropy):
        p = outputs.softmax(-1)
        if kind == "ggn":
            mass = loss._targets(outputs, y).sum(-1, keepdim=True)
        else:
            mass = loss.masses(outputs, y).unsqueeze(-1)
        weight = p * (mass / total_mass)
        return lambda u: weight * (u - (p * u).sum(-1, keepdim=True))
    if isinstance(loss, Elementwise):
        found = loss.curvatures(outputs, y) if kind == "ggn" else loss.informations(outputs)
        scale = found / total_mass
        return lambda u: u * scale
    if kind == "fisher":
        root = loss.fisher_root(outputs, y)  # refused where there is no likelihood
        return lambda u: (root @ (root.mT @ u.unsqueeze(-1))).squeeze(-1) / total_mass
    return _by_autograd(loss, outputs, y, total_mass)


def _by_autograd(loss: Loss, outputs: Tensor, y: Tensor, total_mass: float) -> OuterProduct:
    """Return the product with the Hessian of any loss, from the graph of its gradient."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        value = loss.total(leaf, y) / total_mass
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    if not gradient.requires_grad:  # a loss that is linear in the outputs
        return torch.zeros_like

    def product(u: Tensor) -> Tensor:
        flat = u.reshape(-1, *leaf.shape) if u.ndim > leaf.ndim else u
        (moved,) = torch.autograd.grad(
            gradient, leaf, flat, retain_graph=True, is_grads_batched=u.ndim > leaf.ndim
        )
        return moved.reshape(u.shape)

    return product


def _rank_one(loss: Loss, outputs: Tensor, y: Tensor, total_mass: float) -> OuterProduct:
    """Return the product with ``c c^T / m`` for every row of mass m > 0."""
    gradients = loss.gradients(outputs, y)
    masses = loss.masses(outputs, y)
    inverse = torch.where(masses > 0, 1 / masses, torch.zeros_like(masses)) / total_mass
    scaled = gradients * inverse.unsqueeze(-1)
    return lambda u: scaled * (gradients * u).sum(-1, keepdim=True)
