"""The Frobenius norm of a curvature matrix: its size when every eigenvalue counts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._arguments import as_integer, as_seed
from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._intake import takes_any
from invariance.curvature._batches import Data
from invariance.curvature.estimates._interval import standard_error
from invariance.curvature.estimates._probes import block_sums, blocks_of_probes, random_signs
from invariance.curvature.estimates._sketch import sketch
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._matrix import SymmetricOperator
from invariance.curvature.products._operators import MatrixName, build_operator

#: Up to this many parameters the norm is summed from the whole matrix.
EXACT_DIM = 1024


@takes_any(streams=True)
def hessian_norm(
    model: nn.Module | SymmetricOperator,
    x: Data | None = None,
    y: Tensor | None = None,
    *,
    budget: int = 96,
    exact: bool | None = None,
    matrix: MatrixName = "hessian",
    loss: LossLike = "cross_entropy",
    seed: int = 0,
    **options: Any,
) -> Estimate:
    """Compute the Frobenius norm of the Hessian, the GGN or a Fisher matrix.

    Exact for small networks. Otherwise ``|A|^2 = |A Q|^2 + E |A P g|^2`` with Q from a
    sketch of A's range, ``P = I - Q Q^T`` and random signs g: the large eigenvalues, which
    dominate the norm, are found and only the rest is sampled. The square is unbiased; the
    standard error of the norm is that of the square divided by twice the norm.

    Args:
        model: A module, or a ready operator.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets of ``x``.
        budget: Products to spend when it is estimated: a third for each step.
        exact: Sum all entries, for d products; ``None`` means up to 1,024 parameters.
        matrix: Which matrix.
        loss: The loss.
        seed: Determines the draws.
        options: ``parameters``, ``dtype``, ``mode``, ``memory_budget`` of the operator.

    Returns:
        The norm; ``detail["squared_rows"]`` splits its square by parameter (the rows of the
        matrix that belong to it).

    Raises:
        MeasureError: A budget below 6.
        UsageError: A budget or seed that is no integer.

    Example:
        ``H`` has rank one here, so its norm is its only eigenvalue:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(inv.curvature.hessian_norm(model, x, y)), 9)
        2.0
    """
    budget, seed = as_integer(budget, "budget"), as_seed(seed)
    operator = build_operator(matrix, model, x, y, loss=loss, **options)
    if budget < 6:
        raise MeasureError(f"hessian_norm needs a budget of at least 6 products. Got {budget}.")
    dim = operator.shape[0]
    if exact or (exact is None and dim <= max(EXACT_DIM, budget)):
        return _exact(operator)
    before = operator.products
    third = budget // 3
    basis, moved = sketch(operator, third, seed, "norm")
    fixed = block_sums(operator, moved.square()).sum(0)
    found, images = [], []
    for probes in blocks_of_probes(operator, budget - 2 * third, seed, random_signs, "norm rest"):
        rest = probes - (probes @ basis.mT) @ basis
        images.append(operator.rows(rest))
        found.append(block_sums(operator, images[-1].square()))
    samples = torch.cat(found)
    squares = fixed + samples.mean(0)
    value = math.sqrt(float(squares.sum()))
    spread = float(standard_error(samples.sum(1), _missing_variance(torch.cat(images), samples)))
    products = operator.products - before
    return Estimate(
        value,
        stderr=spread / (2 * value) if value > 0 else 0.0,
        exact=False,
        method=(
            f"Frobenius norm of the {operator.label}: sketch of rank {len(basis)} and "
            f"{len(samples)} sign probes, {products} products; {operator.method}"
        ),
        iterations=products,
        detail={
            "squared_rows": dict(zip(operator.names, squares.tolist(), strict=True)),
            **operator.notes(),
        },
    )


def _missing_variance(images: Tensor, samples: Tensor) -> Tensor:
    """Return by how much the samples' variance of the mean falls short of what products say.

    ``|A P g|^2 = g^T B g`` with ``B = P A^2 P`` has variance at most ``2 |B|_F^2``, and the inner
    products of two images, ``g_i^T B g_j``, have mean square ``|B|_F^2``: many more of them than
    samples.
    """
    n = len(samples)
    gram = (images @ images.mT).cpu().double()
    pairs = (gram.square().sum() - gram.diagonal().square().sum()) / (n * (n - 1))
    return (2 * pairs - samples.sum(1).var()).clamp_min(0) / n


def _exact(operator: SymmetricOperator) -> Estimate:
    dim = operator.shape[0]
    squares = torch.zeros(len(operator.names), dtype=torch.float64)
    for start in range(0, dim, 256):
        unit = torch.zeros(min(256, dim - start), dim, dtype=operator.dtype, device=operator.device)
        unit.diagonal(start).fill_(1)
        squares += block_sums(operator, operator.rows(unit).square()).sum(0)
    return Estimate(
        math.sqrt(float(squares.sum())),
        method=f"Frobenius norm of the {operator.label} from all columns; {operator.method}",
        iterations=dim,
        detail={
            "squared_rows": dict(zip(operator.names, squares.tolist(), strict=True)),
            **operator.notes(),
        },
    )
