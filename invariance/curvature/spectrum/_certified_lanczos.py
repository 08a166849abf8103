"""Certified extreme eigenpairs by the Lanczos process: start, iterate, look for copies."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from invariance.curvature.products._matrix import SymmetricOperator
from invariance.curvature.spectrum._certificates import (
    Criterion,
    Eigenpairs,
    bound_errors,
    recompute_residuals,
)
from invariance.curvature.spectrum._lanczos import Lanczos

#: Every 16th row finds the start vector, where there are enough.
_THIN = 16

#: Length of the random part of a start vector, relative to the rest.
_RANDOM_SHARE = 0.1

#: Bytes of Lanczos vectors to keep.
_BASIS_BYTES = 1 << 30


def solve_lanczos(
    operator: SymmetricOperator,
    high: int,
    low: int,
    tolerance: float,
    criterion: Criterion,
    limit: int,
    seed: int,
    *,
    trust: bool,
) -> Eigenpairs:
    """Iterate from one start vector, then look for copies of multiple eigenvalues."""
    before = operator.products
    capacity = max(32, _BASIS_BYTES // (operator.shape[0] * operator.dtype.itemsize))
    found = _converge(operator, high, low, tolerance, criterion, limit, seed, capacity, None, trust)
    if high + low > 1 and found.converged:
        found = _search_copies(operator, found, high, low, tolerance, criterion, limit, seed)
    return dataclasses.replace(found, products=operator.products - before)


def _converge(
    operator: SymmetricOperator,
    high: int,
    low: int,
    tolerance: float,
    criterion: Criterion,
    limit: int,
    seed: int,
    capacity: int,
    deflate: Tensor | None,
    trust: bool = False,
) -> Eigenpairs:
    """Iterate until the recomputed residuals meet the tolerance, or the budget is spent."""
    start = _start(operator, high, low, seed, deflate)
    process = Lanczos(
        operator.rows,
        start,
        n_largest=high,
        n_smallest=low,
        capacity=capacity,
        seed=seed,
        deflate=deflate,
    )
    strictness = 1.0
    free = operator.shape[0] - (0 if deflate is None else deflate.shape[0])
    wanted = min(high + low, free)
    while True:
        grown = process.steps < limit and process.step()
        if process.size < wanted and grown:
            continue
        _, estimates, gaps, scale = process.estimates()
        bounds = bound_errors(estimates, gaps, criterion)
        ready = bool((bounds <= strictness * tolerance * scale).all()) and (
            process.size > wanted or process.exhausted or process.size >= free
        )
        if ready or not grown:
            pairs = process.pairs()
            residuals = (
                pairs.estimates  # the caller certifies, in another precision
                if trust
                else recompute_residuals(operator, pairs.values, pairs.vectors, deflate)
            )
            bounds = bound_errors(residuals, pairs.gaps, criterion)
            met = bool((bounds <= tolerance * pairs.scale).all())
            # Round-off keeps the true residual above the recurrence's estimate: press on,
            # but not below what the precision can hold.
            strictness *= 0.1
            if met or not grown or strictness * tolerance < torch.finfo(operator.dtype).eps:
                return Eigenpairs(
                    pairs.values,
                    pairs.vectors,
                    residuals,
                    bound_errors(residuals, pairs.gaps, "value"),
                    pairs.scale,
                    operator.products,
                    met,
                    "Lanczos",
                )


def _start(
    operator: SymmetricOperator, high: int, low: int, seed: int, deflate: Tensor | None
) -> Tensor:
    """Return a start vector: random, or close to what a share of the rows already shows.

    The extreme eigenvectors of a sixteenth of the rows, at little cost, lie at a modest angle
    to those of all rows, where a random vector starts almost orthogonal to them. A random
    part stays, so that no eigenvector is out of reach.
    """
    random = operator.random_vectors(1, seed=seed, stream=f"start {deflate is not None}")[0]
    if deflate is not None:
        return random
    sample = operator.thinned(_THIN)
    if sample is None:
        return random
    process = Lanczos(sample.rows, random, n_largest=high, n_smallest=low, capacity=64, seed=seed)
    for _ in range(10 + 2 * (high + low)):
        if not process.step():
            break
        _, estimates, _, scale = process.estimates()
        if process.size > high + low and float(estimates.max()) <= 0.2 * scale:
            break
    found = process.pairs().vectors.sum(0)
    start: Tensor = found / found.norm() + _RANDOM_SHARE * random / random.norm()
    return start


def _search_copies(
    operator: SymmetricOperator,
    found: Eigenpairs,
    high: int,
    low: int,
    tolerance: float,
    criterion: Criterion,
    limit: int,
    seed: int,
) -> Eigenpairs:
    """Look for further copies of multiple eigenvalues, which one start vector cannot see.

    The matrix is deflated by the pairs found; an extreme eigenvalue of the rest that beats
    the worst pair found is put in its place, until none does.
    """
    dim = operator.shape[0]
    capacity = max(32, _BASIS_BYTES // (dim * operator.dtype.itemsize))
    for attempt in range(high + low):
        if found.vectors.shape[0] >= dim:
            break
        basis = torch.linalg.qr(found.vectors.mT)[0].mT.contiguous()
        rest = _converge(
            operator,
            min(high, 1),
            min(low, 1),
            max(tolerance, 1e-2),
            "residual",
            limit,
            seed + 1 + attempt,
            capacity,
            basis,
        )
        slack = rest.residuals.max().item() + tolerance * found.scale
        beats_high = high and rest.values[0] > found.values[high - 1] + slack
        beats_low = low and rest.values[-1] < found.values[high] - slack
        if not beats_high and not beats_low:
            break
        rest = _converge(
            operator,
            min(high, 1),
            min(low, 1),
            tolerance,
            criterion,
            limit,
            seed + 1 + attempt,
            capacity,
            basis,
        )
        found = _merge(found, rest, high, low)
    return found


def _merge(one: Eigenpairs, two: Eigenpairs, high: int, low: int) -> Eigenpairs:
    values = torch.cat([one.values, two.values])
    order = values.argsort(descending=True)
    index = torch.cat([order[:high], order[len(order) - low :]])
    return Eigenpairs(
        values[index],
        torch.cat([one.vectors, two.vectors])[index],
        torch.cat([one.residuals, two.residuals])[index],
        # Copies have no gap: only the residual bounds their error.
        torch.cat([one.residuals, two.residuals])[index],
        max(one.scale, two.scale),
        one.products + two.products,
        one.converged and two.converged,
        one.solver,
    )
