"""Random probes, and what estimators make of the products with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from invariance.core._rng import generator
from invariance.curvature.products._matrix import SymmetricOperator


class Samples(NamedTuple):
    """What an estimator found.

    Attributes:
        values: ``(n, blocks)`` samples of the trace of every parameter's block.
        fixed: ``(blocks,)``, to be added to every sample: what was found exactly.
        words: How, for ``Estimate.method``.
        covariance: ``(blocks + 1,)`` covariance of two samples, of every block and of the
            whole trace last; ``None`` for independent samples.
    """

    values: Tensor
    fixed: Tensor
    words: str
    covariance: Tensor | None = None


def random_signs(rows: int, dim: int, draws: torch.Generator) -> Tensor:
    """Return ``(rows, d)`` independent signs."""
    return torch.randint(0, 2, (rows, dim), generator=draws, dtype=torch.int8) * 2 - 1


def random_normals(rows: int, dim: int, draws: torch.Generator) -> Tensor:
    """Return ``(rows, d)`` independent standard normals."""
    return torch.randn(rows, dim, generator=draws)


def blocks_of_probes(
    operator: SymmetricOperator,
    count: int,
    seed: int,
    draw: Callable[[int, int, torch.Generator], Tensor],
    stream: str,
) -> Iterator[Tensor]:
    """Draw ``count`` probes in blocks that are multiplied at once; the same on every device."""
    draws = generator(seed, "curvature", stream)
    sizes = [8] * (count // 8) + ([count % 8] if count % 8 else [])
    for size in sizes:
        yield draw(size, operator.shape[0], draws).to(operator.device, operator.dtype)


def block_sums(operator: SymmetricOperator, rows: Tensor) -> Tensor:
    """Sum ``(k, d)`` rows over each parameter's entries: ``(k, blocks)`` in float64."""
    parts = torch.split(rows, list(operator.space.sizes), dim=1)
    return torch.stack([part.sum(1, dtype=torch.float64) for part in parts], dim=1).cpu()
