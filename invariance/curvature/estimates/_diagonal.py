"""The diagonal of a matrix from products with it: exact on a basis, or estimated."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from invariance.core._arguments import as_seed
from invariance.core._errors import MeasureError
from invariance.core._rng import generator
from invariance.curvature.products._matrix import SymmetricOperator

#: Basis vectors or probes that are multiplied at once.
_AT_ONCE = 32


def basis_diagonal(operator: SymmetricOperator) -> dict[str, Tensor]:
    """Return the exact diagonal by one product an entry: parameter name to its part."""
    dim = operator.shape[0]
    diagonal = torch.empty(dim, dtype=operator.dtype, device=operator.device)
    for low in range(0, dim, _AT_ONCE):
        places = torch.arange(low, min(low + _AT_ONCE, dim), device=operator.device)
        basis = torch.zeros(len(places), dim, dtype=operator.dtype, device=operator.device)
        basis[torch.arange(len(places)), places] = 1
        diagonal[places] = operator.rows(basis)[torch.arange(len(places)), places]
    return operator.split(diagonal)


def estimate_diagonal(
    operator: SymmetricOperator, *, budget: int = 96, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Estimate the diagonal as the mean of ``v * A v`` over random signs v.

    Bekas, Kokiopoulou & Saad (2007), "An estimator for the diagonal of a matrix". Unbiased,
    since ``E v_i v_j = [i = j]``; entry i has variance ``sum_{j != i} A_ij^2`` a probe.
    """
    if budget < 2:
        raise MeasureError(f"A standard error needs at least 2 probes. Got budget={budget}.")
    draws = generator(as_seed(seed), "curvature", "diagonal")
    mean = torch.zeros(operator.shape[0], dtype=operator.dtype, device=operator.device)
    spread = torch.zeros_like(mean)
    count = 0
    while count < budget:
        size = min(_AT_ONCE, budget - count)
        signs = torch.randint(0, 2, (size, operator.shape[0]), generator=draws) * 2 - 1
        probes = signs.to(mean)
        for sample in probes * operator.rows(probes):  # Welford: no cancelling sums of squares
            count += 1
            step = sample - mean
            mean += step / count
            spread += step * (sample - mean)
    # An entry's samples are symmetric about their mean: only Student's quantile widens them.
    student = stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975)
    stderr = (spread / (count - 1) / count).sqrt() * float(student)
    return operator.split(mean), operator.split(stderr)
