"""The Hessian in other units: ``D H D`` for a diagonal D, and its trace."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from invariance.core._arguments import as_seed
from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.curvature._batches import Data
from invariance.curvature._trace_diagonal import (
    DEFAULT_MAX_PRODUCTS,
    DEFAULT_PROBES,
    Prepared,
    Sampling,
    assembled,
    exact_parameters,
    hessian_diagonal,
    prepare,
    sampled_words,
)
from invariance.curvature.estimates._sampled import Drawn, Key
from invariance.curvature.estimates._trace import hessian_trace_estimate
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, Wants
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._operators import HessianOperator


class ScaledHessianOperator(HessianOperator):
    """``D H D`` with D the diagonal matrix of ``scale`` (all ones until it is set)."""

    label = "scaled Hessian"
    scale: Tensor | None = None

    def set_scales(self, scales: Mapping[str, Tensor]) -> None:
        """Set D."""
        entries = [
            scales[parameter].detach().expand(shape).to(self.device, self.dtype)
            for parameter, shape in zip(self.names, self.space.shapes, strict=True)
        ]
        self.scale = self.space.join([entry.contiguous() for entry in entries])

    def rows(self, vectors: Tensor) -> Tensor:
        """Multiply with each row of ``(k, d)``; returns ``(k, d)``."""
        if self.scale is None:
            return super().rows(vectors)
        scale = self.scale.to(vectors)
        return super().rows(vectors * scale) * scale.to(self.dtype)


def scaled_trace(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    scales: Mapping[str, Tensor],
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    max_products: int = DEFAULT_MAX_PRODUCTS,
    budget: int = DEFAULT_PROBES,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> Estimate:
    """Return ``Tr D H D = sum_i d_i^2 H_ii``: exact where the diagonal is, else estimated.

    An estimate's probes multiply ``D H D`` itself. So where a map of the network keeps
    that matrix, as every rescaling does when D is the parameters, equal seeds give equal
    estimates: the noise is the same on both sides.

    Shapes: ``x (n, ...)``.
    """
    if sampling is not None:
        return _sampled(prepare(model, x, y, loss, None), scales, sampling)
    seed = as_seed(seed)
    known, rest = exact_parameters(model, x, y, loss=loss, max_products=max_products)
    parts: dict[str, float] = {}
    words: list[str] = []
    stderr: float | None = 0.0
    if known:
        diagonal = hessian_diagonal(
            model,
            x,
            y,
            loss=loss,
            parameters=known,
            memory_budget=memory_budget,
            max_products=max_products,
        )
        for name, values in diagonal.values.items():
            weights = scales[name].detach().cpu().double().square()
            parts[name] = float((weights * values.cpu().double()).sum())
        words.append(diagonal.method)
    if rest:
        operator = ScaledHessianOperator(model, x, y, loss=loss, parameters=rest)
        operator.set_scales(scales)
        found = hessian_trace_estimate(operator, budget=budget, seed=seed)
        parts |= found.parts
        stderr = 0.0 if found.exact else found.stderr
        words.append(found.method)
    return assembled(model, parts, stderr, words)


def _sampled(prepared: Prepared, scales: Mapping[str, Tensor], sampling: Sampling) -> Estimate:
    """Return the same from drawn cotangents."""
    swept, rest, why = prepared.split("sampled")
    if rest:
        raise MeasureError(
            f"method='sampled' needs a network that is piecewise linear in each parameter, or a "
            f"perceptron. This one is not{why}; use method='auto'."
        )
    drawn = prepared.draw(swept, Wants(scales=scales), _whole, sampling)
    found = drawn.of("scaled")
    parts = {name: found[name] for name, _ in prepared.model.named_parameters() if name in found}
    return Estimate(
        sum(parts.values()),
        stderr=drawn.error(("whole scaled", "")),
        exact=drawn.exact,
        method=sampled_words(prepared, drawn),
        parts=parts,
        converged=None if drawn.exact else drawn.converged,
        detail={"draws": drawn.count},
    )


def _whole(drawn: Drawn) -> list[tuple[Key, float]]:
    """What must meet the tolerance: the sum over all parameters."""
    return [(("whole scaled", ""), sum(drawn.of("scaled").values()))]
