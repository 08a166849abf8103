"""Single products with curvature matrices, as plain functions.

For more than one product at the same point build the operator once:
:class:`~invariance.curvature.products._operators.HessianOperator` keeps what the products share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError
from invariance.curvature._batches import Data
from invariance.curvature.products._operators import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
)

#: A flat ``(d,)`` vector, or one tensor a parameter.
Direction: TypeAlias = "Tensor | Mapping[str, Tensor]"


def hessian_vector_product(
    model: nn.Module, x: Data, y: Tensor | None, vector: Direction, **options: Any
) -> dict[str, Tensor]:
    """Multiply the Hessian of the mean loss with a vector.

    Args:
        model: Any module; see :class:`~invariance.curvature.products._operators.CurvatureOperator`.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches with ``y=None``.
        y: Targets of ``x``.
        vector: ``(d,)`` in the order of the model's trainable parameters, or parameter name
            to tensor (absent names count as zero).
        options: ``loss``, ``parameters``, ``dtype``, ``mode``, ``memory_budget``.

    Returns:
        Parameter name to the product's part, in the parameter's shape.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> vector = {"linear1.weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()}
        >>> found = inv.curvature.hessian_vector_product(model, x, y, vector)
        >>> found["linear1.weight"][:, 0].round(decimals=9).tolist()
        [1.0, -1.0]
    """
    return _product(HessianOperator(model, x, y, **options), vector)


def ggn_vector_product(
    model: nn.Module, x: Data, y: Tensor | None, vector: Direction, **options: Any
) -> dict[str, Tensor]:
    """Multiply the generalised Gauss-Newton matrix; as :func:`hessian_vector_product`.

    Example:
        A linear model is its own linearisation: the GGN is the Hessian.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> vector = {"linear1.weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()}
        >>> found = inv.curvature.ggn_vector_product(model, x, y, vector)
        >>> found["linear1.weight"][:, 0].round(decimals=9).tolist()
        [1.0, -1.0]
    """
    return _product(GGNOperator(model, x, y, **options), vector)


def fisher_vector_product(
    model: nn.Module,
    x: Data,
    y: Tensor | None,
    vector: Direction,
    *,
    empirical: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """Multiply the Fisher matrix; as :func:`hessian_vector_product`.

    Args:
        model: Any module.
        x: Inputs or batches.
        y: Targets. The model's own Fisher matrix uses them for their weights only.
        vector: The direction.
        empirical: Use the given targets instead of the model's distribution over them.
        options: As for :func:`hessian_vector_product`.

    Returns:
        Parameter name to the product's part.

    Example:
        For softmax cross-entropy the Fisher matrix is the GGN:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> vector = {"linear1.weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()}
        >>> found = inv.curvature.fisher_vector_product(model, x, y, vector)
        >>> found["linear1.weight"][:, 0].round(decimals=9).tolist()
        [1.0, -1.0]
    """
    kind = EmpiricalFisherOperator if empirical else FisherOperator
    return _product(kind(model, x, y, **options), vector)


def _product(operator: CurvatureOperator, vector: Direction) -> dict[str, Tensor]:
    if isinstance(vector, Tensor):
        return operator.split(operator.matvec(vector))
    if unknown := set(vector) - set(operator.names):
        raise DataError(
            f"The direction names {', '.join(sorted(unknown))}, which the operator does not "
            f"cover. It covers {', '.join(operator.names)}."
        )
    parts = []
    for name, shape in zip(operator.names, operator.space.shapes, strict=True):
        part = vector.get(name)
        if part is not None and part.shape != shape:
            raise DataError(f"{name} has shape {tuple(shape)}. Got {tuple(part.shape)}.")
        parts.append(
            torch.zeros(shape, dtype=operator.dtype, device=operator.device)
            if part is None
            else part.to(operator.device, operator.dtype)
        )
    return operator.split(operator.matvec(operator.space.join(parts)))
