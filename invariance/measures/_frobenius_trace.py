"""Layerwise trace times squared norm: ``sum_l |W_l|_F^2 Tr H_l``."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import weight_layers
from invariance.core._perceptron import qualified
from invariance.curvature._trace_diagonal import hessian_trace
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure


@measure(
    # A factor on a whole layer cancels between |W|^2 and Tr H, one on a row or column does
    # not (so neither folding nor neuron scaling). With |W| in place of |W|^2 no factor would.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.BATCHNORM_SCALING,
    ],
)
def frobenius_trace(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Estimate:
    """Sum over weight layers of ``|W_l|_F^2 Tr H_l``, biases left out.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.

    Returns:
        The sum; ``parts`` has every layer's product.

    Raises:
        MeasureError: A network without weight layers.

    Example:
        ``|W|_F^2 = 4`` times ``Tr H = 2``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(frobenius_trace(model, x, y)), 9)
        8.0
    """
    layers = [name for name, _ in weight_layers(model)]
    if not layers:
        raise MeasureError(f"{type(model).__name__} has no linear or convolutional layer.")
    names = {layer: qualified(layer, "weight") for layer in layers}
    trace = hessian_trace(
        model, x, y, loss=loss, parameters=list(names.values()), memory_budget=memory_budget
    )
    parts = {
        layer: float(model.get_parameter(name).detach().cpu().double().square().sum())
        * trace.parts[name]
        for layer, name in names.items()
    }
    return Estimate(
        sum(parts.values()),
        stderr=0.0 if trace.exact else None,
        exact=trace.exact,
        method=trace.method,
        parts=parts,
    )
