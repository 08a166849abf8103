"""Curvature in the space of outputs: products with the K x K matrix of every row.

A generalised Gauss-Newton or Fisher matrix is ``J^T B J`` with J the Jacobian of the
outputs and B block-diagonal over rows. This file is B; the engines supply J.

* ``ggn``: B_n is the Hessian of the row's loss in its outputs (Schraudolph 2002).
* ``fisher``: B_n = E_{y ~ p(y | f_n)} [c c^T] with c the gradient of ``-log p(y | f_n)`` in f,
  for losses that are negative log-likelihoods (Martens 2020, section 5).
* ``empirical_fisher``: B_n = c c^T with the given target, so that the matrix is the mean of
  the outer products of the rows' gradients.

A row of weight (mass) m counts as m rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from invariance.core._errors import MeasureError
from invariance.curvature.losses._custom import CustomLoss
from invariance.curvature.losses._resolve import CrossEntropy, Loss, MeanSquaredError

OutputMatrixKind: TypeAlias = Literal["ggn", "fisher", "empirical_fisher"]

#: Maps ``(..., n, K)`` to ``(..., n, K)``.
OuterProduct: TypeAlias = Callable[[Tensor], Tensor]


def outer_product(
    kind: OutputMatrixKind, loss: Loss, outputs: Tensor, y: Tensor, total_mass: float
) -> OuterProduct:
    """Return the product with B, divided by the total mass.

    Shapes: ``outputs (n, K)``.
    """
    if kind == "empirical_fisher":
        return _rank_one(loss, outputs, y, total_mass)
    if isinstance(loss, CrossEntropy):
        p = outputs.softmax(-1)
        if kind == "ggn":
            mass = loss._targets(outputs, y).sum(-1, keepdim=True)
        else:
            mass = loss.masses(outputs, y).unsqueeze(-1)
        weight = p * (mass / total_mass)
        return lambda u: weight * (u - (p * u).sum(-1, keepdim=True))
    if isinstance(loss, MeanSquaredError):
        # The likelihood is a Gaussian of variance K / 2, so its Fisher matrix is the GGN.
        scale = 2.0 / (outputs.shape[-1] * total_mass)
        return lambda u: u * scale
    if kind == "fisher":
        raise MeasureError(
            f"The loss {loss.name!r} is not known to be a negative log-likelihood, so it has no "
            "model Fisher matrix. Use the GGN or the empirical Fisher matrix."
        )
    return _by_autograd(loss, outputs, y, total_mass)


def summed(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """Return the sum of the rows' values.

    A user's mean over rows is called once, on all of them: it need not work inside ``vmap``.
    """
    if isinstance(loss, CustomLoss):
        return loss.function(outputs, y) * outputs.shape[0]
    return loss.values(outputs, y).sum()


def row_gradients(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """Return ``(n, K)``, the gradient of each row's value in its outputs."""
    if not isinstance(loss, CustomLoss):
        return loss.gradients(outputs, y)
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(summed(loss, leaf, y), leaf)
    return gradient


def _by_autograd(loss: Loss, outputs: Tensor, y: Tensor, total_mass: float) -> OuterProduct:
    """Return the product with the Hessian of any loss, from the graph of its gradient."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        value = summed(loss, leaf, y) / total_mass
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
    gradients = row_gradients(loss, outputs, y)
    masses = loss.masses(outputs, y)
    inverse = torch.where(masses > 0, 1 / masses, torch.zeros_like(masses)) / total_mass
    scaled = gradients * inverse.unsqueeze(-1)
    return lambda u: scaled * (gradients * u).sum(-1, keepdim=True)
