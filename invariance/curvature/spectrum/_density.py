"""The spectral density of a curvature matrix by stochastic Lanczos quadrature.

From a random start vector, m Lanczos steps give the Gauss quadrature of the spectral
measure of that vector: m nodes and weights, exact for polynomials of degree 2 m - 1. The
mean over random vectors estimates the density of all d eigenvalues (Ubaru, Chen & Saad 2017;
Ghorbani, Krishnan & Xiao 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from invariance.core._arguments import as_integer, as_seed
from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.curvature._batches import Data
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._matrix import SymmetricOperator
from invariance.curvature.products._operators import MatrixName, build_operator
from invariance.curvature.spectrum._lanczos_stack import LanczosStack

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """A quadrature of the eigenvalue distribution, with one set of nodes a random probe.

    Attributes:
        nodes: ``(probes, steps)`` Ritz values.
        weights: ``(probes, steps)``; each probe's weights sum to one.
        grid: ``(g,)`` points at which the smoothed density is given.
        density: ``(g,)`` density of eigenvalues, smoothed by Gaussians; integrates to one.
        stderr: ``(g,)`` standard error of ``density`` over the probes.
        width: Standard deviation of the Gaussians.
        dim: Number of eigenvalues, d.
        products: Matrix-vector products used.
        method: How it was computed.
    """

    nodes: Array
    weights: Array
    grid: Array
    density: Array
    stderr: Array
    width: float
    dim: int
    products: int
    method: str = ""

    def mean(self, function: Callable[[Array], Array]) -> Estimate:
        """Estimate the mean of ``function`` over all eigenvalues.

        Args:
            function: Applied to the array of nodes, entry by entry.

        Returns:
            The mean; times ``dim`` it is the trace of the function of the matrix.
        """
        each = (self.weights * function(self.nodes)).sum(1)
        return Estimate(
            float(each.mean()),
            stderr=float(each.std(ddof=1) / math.sqrt(len(each))),
            exact=False,
            method=self.method,
            iterations=self.products,
        )

    def moment(self, order: int) -> Estimate:
        """Estimate the mean of the eigenvalues' ``order``-th power."""
        return self.mean(lambda nodes: nodes**order)


def spectral_density(
    model: nn.Module | SymmetricOperator,
    x: Data | None = None,
    y: Tensor | None = None,
    *,
    probes: int = 8,
    steps: int = 40,
    grid: int = 512,
    width: float | None = None,
    matrix: MatrixName = "hessian",
    loss: LossLike = "cross_entropy",
    seed: int = 0,
    **options: Any,
) -> SpectralDensity:
    """Estimate the density of the eigenvalues of the Hessian, the GGN or a Fisher matrix.

    Args:
        model: A module, or a ready operator.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets of ``x``.
        probes: Random start vectors, at least 2; all advance together.
        steps: Lanczos steps each, fully re-orthogonalised, so no eigenvalue is counted twice.
        grid: Number of points of the smoothed density.
        width: Standard deviation of the smoothing; ``None`` means 1 % of the range.
        matrix: Which matrix.
        loss: The loss.
        seed: Determines the start vectors.
        options: ``parameters``, ``dtype``, ``mode``, ``memory_budget`` of the operator.

    Returns:
        Nodes and weights, and the density on a grid with its standard error.

    Raises:
        MeasureError: Fewer than two probes, no steps, or a width that is not positive.

    Example:
        The density integrates to one:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.spectral_density(model, x, y)
        >>> mass = torch.trapezoid(torch.as_tensor(found.density), torch.as_tensor(found.grid))
        >>> abs(float(mass) - 1) < 0.01
        True
    """
    probes, steps = as_integer(probes, "probes"), as_integer(steps, "steps")
    grid, seed = as_integer(grid, "grid"), as_seed(seed)
    if probes < 2 or steps < 1 or grid < 2:
        raise MeasureError(
            "spectral_density needs probes >= 2 (for a standard error), steps >= 1 and "
            f"grid >= 2. Got {probes}, {steps} and {grid}."
        )
    if width is not None and width <= 0:
        raise MeasureError(f"width must be positive. Got {width}.")
    operator = build_operator(matrix, model, x, y, loss=loss, **options)
    before = operator.products
    start = operator.random_vectors(probes, seed=seed, stream="density")
    process = LanczosStack(operator.rows, start, steps)
    while process.step():
        pass
    values, shares, _ = process.ritz()
    nodes, weights = values.numpy(), shares.numpy()
    spread = float(nodes.max() - nodes.min()) or float(np.abs(nodes).max()) or 1.0
    sigma = 0.01 * spread if width is None else width
    points = np.linspace(nodes.min() - 4 * sigma, nodes.max() + 4 * sigma, grid)
    bells = np.exp(-0.5 * ((points[:, None, None] - nodes) / sigma) ** 2)
    each = (bells * weights).sum(2) / (sigma * math.sqrt(2 * math.pi))
    products = operator.products - before
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        grid=points,
        density=each.mean(1),
        stderr=each.std(1, ddof=1) / math.sqrt(probes),
        width=sigma,
        dim=operator.shape[0],
        products=products,
        method=(
            f"stochastic Lanczos quadrature of the {operator.label}, {probes} probes x "
            f"{process.steps} steps; {operator.method}"
        ),
    )
