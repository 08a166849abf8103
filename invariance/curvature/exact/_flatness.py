"""Relative flatness of chosen layers: by the exact sweep, or from a block of the Hessian."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._perceptron import qualified
from invariance.curvature._batches import Data
from invariance.curvature._trace_diagonal import (
    DEFAULT_MAX_PRODUCTS,
    Prepared,
    entries,
    prepare,
    swept_curvature,
)
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, Wants
from invariance.curvature.losses._resolve import LossLike


def layer_relative_flatness(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    layers: Sequence[str],
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    max_products: int = DEFAULT_MAX_PRODUCTS,
) -> Estimate:
    """Return the relative flatness of some weight layers.

    Shapes: ``x (n, ...)``.
    """
    weights = {layer: qualified(layer, "weight") for layer in layers}
    prepared = prepare(model, x, y, loss, weights.values())
    swept, rest, why = prepared.split("auto")
    parts: dict[str, float] = {}
    words: list[str] = []
    if swept:
        wants = Wants(relative_flatness=True)
        result = swept_curvature(prepared, swept, wants, memory_budget)
        parts |= result.relative_flatness
        words.append(result.method)
    for layer in (layer for layer, weight in weights.items() if weight in rest):
        size = entries(model, [weights[layer]])
        if size > max_products:
            raise MeasureError(
                f"The relative flatness of {layer!r} needs {size} Hessian-vector products{why}. "
                f"Raise max_products (now {max_products}), or choose a layer in which the "
                "network is piecewise linear, such as the last."
            )
        parts[layer] = _flatness_by_products(prepared, layer, weights[layer])
        words.append(f"{size} exact Hessian-vector products{why}")
    values = [parts[layer] for layer in layers]
    return Estimate(
        values,  # type: ignore[arg-type]
        method=" + ".join(words),
        parts={layer: parts[layer] for layer in layers},
    )


def _flatness_by_products(prepared: Prepared, layer: str, weight: str) -> float:
    """Form the weight's Hessian block, and sum ``<w_s, w_s'> Tr H_{s,s'}`` over its rows."""
    block = prepared.operator([weight]).to_dense()
    model = prepared.model
    module = model.get_submodule(layer)
    groups = int(getattr(module, "groups", 1))
    rows = model.get_parameter(weight).detach()
    rows = rows.reshape(groups, rows.shape[0] // groups, -1).to(block)
    _, out, depth = rows.shape
    total = 0.0
    for g in range(groups):
        span = slice(g * out * depth, (g + 1) * out * depth)
        within = block[span, span].reshape(out, depth, out, depth)
        traces = within.diagonal(dim1=1, dim2=3).sum(-1)
        total += float((traces * (rows[g] @ rows[g].mT)).sum())
    return total
