"""What second derivatives of the network add to the Gauss-Newton matrix: its trace.

The Hessian of ``l(f(theta))`` is ``J^T l'' J`` plus ``sum_k l'_k d^2 f_k``, and the second is the
Hessian of ``<c, f(theta)>`` with the loss's gradient ``c = l'(f)`` held fixed. Near interpolation
c is small, and so is that matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._forward import run
from invariance.core._rng import generator
from invariance.curvature._batches import Batches
from invariance.curvature.estimates._interval import standard_error
from invariance.curvature.estimates._probes import block_sums, random_signs
from invariance.curvature.exact._directional import move_like
from invariance.curvature.losses._base import HessianFactor, Loss
from invariance.curvature.products._operators import HessianOperator

#: Probes that are multiplied at once; no fewer would tell how far they spread.
_AT_ONCE = 4


class Effort(Protocol):
    """How far an estimate goes."""

    @property
    def rtol(self) -> float: ...
    @property
    def budget(self) -> int: ...
    @property
    def seed(self) -> int: ...


class FixedGradient(Loss):
    """``<c, f>`` with the row's target as c: linear in the outputs."""

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return "gradient of the loss, held fixed"

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Accept everything: the targets are our own."""

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``<c, f>`` of each row."""
        return (outputs * y).sum(-1)

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return c."""
        return y.expand_as(outputs)

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return a root without columns."""
        return HessianFactor(outputs.new_zeros(*outputs.shape, 0), None)


@dataclass(frozen=True, eq=False)
class _WithGradients:
    """The rows with the loss's gradient in the outputs in place of their targets."""

    model: nn.Module
    batches: Batches
    loss: Loss
    scale: float

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        like = next(iter(self.model.parameters()))
        for x, y in self.batches:
            with torch.no_grad():
                outputs = run(self.model, move_like(x, like))
                yield x, self.loss.gradients(outputs, y.to(like.device)) * self.scale


def residual_trace(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    names: Sequence[str],
    known: tuple[float, float],
    how: Effort,
) -> Estimate:
    """Estimate the trace of the Hessian minus the Gauss-Newton matrix in ``names``.

    Probes are spent until the sum with what is ``known``, the other trace and its standard error,
    has the relative standard error that is asked for; or, where that other error leaves too
    little of it, until this one is a third of it.
    """
    like = next(iter(model.parameters()))
    mass = 0.0
    for x, y in batches:
        with torch.no_grad():
            mass += float(loss.masses(run(model, move_like(x, like)), y.to(like.device)).sum())
    source = _WithGradients(model, batches, loss, batches.rows / mass)
    held = None if batches.held is None else tuple(source)
    targets = Batches(held, None if held is not None else source, batches.rows)
    operator = HessianOperator(model, targets, loss=FixedGradient(), parameters=names)
    draws = generator(how.seed, "curvature", "residual")
    found: list[Tensor] = []
    while True:
        probes = random_signs(_AT_ONCE, operator.shape[0], draws).to(
            operator.device, operator.dtype
        )
        found.append(block_sums(operator, probes * operator.rows(probes)))
        samples = torch.cat(found)
        each = torch.cat([samples, samples.sum(1, keepdim=True)], dim=1)
        *spread, error = standard_error(each).tolist()
        wanted = how.rtol * abs(known[0] + float(samples.sum(1).mean()))
        left = max(math.sqrt(max(wanted**2 - known[1] ** 2, 0.0)), wanted / 3)
        if error <= left or len(samples) + _AT_ONCE > how.budget:
            break
    parts = dict(zip(operator.names, samples.mean(0).tolist(), strict=True))
    return Estimate(
        sum(parts.values()),
        stderr=error,
        exact=False,
        method=f"second derivatives of the network by {len(samples)} sign probes, "
        f"{operator.method}",
        parts=parts,
        iterations=len(samples),
        detail={"part_stderr": dict(zip(operator.names, spread, strict=True))},
    )
