"""Trace estimates for networks that admit no exact sweep: unbiased, seeded, with an error bar.

* ``"hutchinson"``: mean of ``v^T A v`` over random signs v (Hutchinson 1990). The error
  falls like one over the square root of the budget.
* ``"hutchpp"``: the trace on a sketched range exactly, the rest by Hutchinson (Meyer, Musco,
  Musco & Woodruff 2021).
* ``"xtrace"``: the same idea with every probe in both roles, leave-one-out (Epperly, Tropp
  & Webber 2024). The best of the three on spectra that decay.

All three come with parts: an unbiased estimate of the trace of every parameter's block.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from invariance.core._arguments import as_integer, as_seed
from invariance.core._errors import MeasureError, unknown_name
from invariance.core._estimate import Estimate
from invariance.core._intake import takes_any
from invariance.curvature._batches import Data
from invariance.curvature.estimates._interval import standard_error
from invariance.curvature.estimates._probes import (
    Samples,
    block_sums,
    blocks_of_probes,
    random_signs,
)
from invariance.curvature.estimates._sketch import hutchpp, xtrace
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._matrix import SymmetricOperator
from invariance.curvature.products._operators import MatrixName, build_operator

Estimator: TypeAlias = Literal["hutchinson", "hutchpp", "xtrace"]


#: A standard error from fewer samples than this is not trusted to stop early.
_FEWEST = 16

_TOO_FEW = {"hutchinson": 2, "hutchpp": 6, "xtrace": 4}


@takes_any(streams=True)
def hessian_trace_estimate(
    model: nn.Module | SymmetricOperator,
    x: Data | None = None,
    y: Tensor | None = None,
    *,
    estimator: Estimator = "xtrace",
    budget: int = 96,
    relative_error: float | None = None,
    matrix: MatrixName = "hessian",
    loss: LossLike = "cross_entropy",
    seed: int = 0,
    **options: Any,
) -> Estimate:
    """Estimate the trace of the Hessian, the GGN or a Fisher matrix from products.

    Args:
        model: A module, or a ready operator.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets of ``x``.
        estimator: ``"hutchinson"``, ``"hutchpp"`` or ``"xtrace"``.
        budget: Matrix-vector products to spend at most.
        relative_error: For ``"hutchinson"``: stop when the standard error falls below this
            share of the estimate (never before 16 probes).
        matrix: Which matrix.
        loss: The loss.
        seed: Determines the probes.
        options: ``parameters``, ``dtype``, ``mode``, ``memory_budget`` of the operator.

    Returns:
        The estimate; ``parts`` holds every parameter's block, whose own standard errors are
        in ``detail["part_stderr"]``. A budget of at least d products gives the exact trace.

    Raises:
        MeasureError: A budget that is too small for the estimator.
        UsageError: An unknown estimator, or a budget or seed that is no integer.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.hessian_trace_estimate(model, x, y, budget=96)  # d = 4: all of it
        >>> round(found.value, 9), found.exact
        (2.0, True)
    """
    if estimator not in _TOO_FEW:
        raise unknown_name("estimator", estimator, _TOO_FEW)
    budget, seed = as_integer(budget, "budget"), as_seed(seed)
    if budget < _TOO_FEW[estimator]:
        raise MeasureError(
            f"{estimator} needs a budget of at least {_TOO_FEW[estimator]} products. Got {budget}."
        )
    if relative_error is not None and estimator != "hutchinson":
        raise MeasureError("relative_error applies to estimator='hutchinson' only.")
    operator = build_operator(matrix, model, x, y, loss=loss, **options)
    before = operator.products
    if budget >= operator.shape[0]:
        return _exact(operator)
    if estimator == "hutchinson":
        samples = _hutchinson(operator, budget, relative_error, seed)
    else:
        run = hutchpp if estimator == "hutchpp" else xtrace
        samples = run(operator, budget, seed)
    return _summary(operator, samples, operator.products - before)


def _exact(operator: SymmetricOperator) -> Estimate:
    """A budget of d products pays for the matrix itself."""
    diagonal = operator.to_dense().diagonal().double().cpu()
    parts = {
        name: float(diagonal[start:stop].sum())
        for name, (start, stop) in operator.space.blocks().items()
    }
    return Estimate(
        math.fsum(parts.values()),
        method=f"diagonal of the {operator.label} from {len(diagonal)} products; {operator.method}",
        parts=parts,
        iterations=len(diagonal),
        detail=operator.notes(),
    )


def _hutchinson(
    operator: SymmetricOperator, budget: int, relative_error: float | None, seed: int
) -> Samples:
    found: list[Tensor] = []
    count = 0
    for probes in blocks_of_probes(operator, budget, seed, random_signs, "hutchinson"):
        found.append(block_sums(operator, probes * operator.rows(probes)))
        count += len(probes)
        if relative_error is not None and count >= _FEWEST:
            totals = torch.cat(found).sum(1)
            if float(standard_error(totals)) <= relative_error * abs(float(totals.mean())):
                break
    samples = torch.cat(found)
    return Samples(samples, torch.zeros_like(samples[0]), f"Hutchinson, {count} sign probes")


def _summary(operator: SymmetricOperator, samples: Samples, products: int) -> Estimate:
    means = samples.values.mean(0) + samples.fixed
    each = torch.cat([samples.values, samples.values.sum(1, keepdim=True)], dim=1)
    *spread, stderr = standard_error(each, samples.covariance).tolist()
    return Estimate(
        float(means.sum()),
        stderr=stderr,
        exact=False,
        method=f"trace of the {operator.label}: {samples.words}, {products} products; "
        f"{operator.method}",
        parts=dict(zip(operator.names, means.tolist(), strict=True)),
        iterations=products,
        detail={
            "part_stderr": dict(zip(operator.names, spread, strict=True)),
            **operator.notes(),
        },
    )
