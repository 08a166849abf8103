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
    Sampling,
    entries,
    prepare,
    sampled_words,
    swept_curvature,
)
from invariance.curvature.estimates._sampled import Drawn, Key
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
    sampling: Sampling | None = None,
) -> Estimate:
    """Return the relative flatness of some weight layers.

    Shapes: ``x (n, ...)``.
    """
    weights = {layer: qualified(layer, "weight") for layer in layers}
    prepared = prepare(model, x, y, loss, weights.values())
    swept, rest, why = prepared.split("auto")
    parts: dict[str, float] = {}
    words: list[str] = []
    stderr, converged = 0.0, None
    if swept and sampling is not None:
        drawn = prepared.draw(swept, Wants(relative_flatness=True), _each_layer, sampling)
        parts |= drawn.of("kappa")
        words.append(sampled_words(prepared, drawn))
        if not drawn.exact:
            stderr = max(drawn.error(("kappa", layer)) for layer in parts)
            converged = drawn.converged
    elif swept:
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
        stderr=stderr,
        exact=converged is None,
        converged=converged,
        method=" + ".join(words),
        parts={layer: parts[layer] for layer in layers},
    )


def _each_layer(drawn: Drawn) -> list[tuple[Key, float]]:
    """What must meet the tolerance: every layer for itself."""
    return [(("kappa", layer), value) for layer, value in drawn.of("kappa").items()]


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
