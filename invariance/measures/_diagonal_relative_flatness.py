"""Relative flatness of a layer, diagonal variant: ``sum_s |w_s|^2 Tr H_ss``."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import require_deterministic
from invariance.core._perceptron import qualified
from invariance.curvature._batches import collect_batches
from invariance.curvature._trace_diagonal import hessian_diagonal
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._layer_choice import chosen_layer


@measure(
    # Declared for the last layer. Row factors cancel (hence folding and BatchNorm scaling);
    # column factors do not. A logit shift adds a vector to every w_s, and without the terms
    # between rows that does not cancel.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.BATCHNORM_FOLD,
        Group.BATCHNORM_SCALING,
    ],
)
def diagonal_relative_flatness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layer: int | str = -1,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Estimate:
    """Relative flatness without the terms between rows, ``sum_s |w_s|^2 Tr H_ss``.

    A common simplification of the measure of Petzka et al. (2021).

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        layer: Index among the weight layers in the order of execution, or a module's name.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.

    Returns:
        The sum over the rows (filters) of the layer's weight.

    Example:
        Both rows have ``|w_s|^2 = 2`` and ``Tr H_ss = |x|^2 / 4 = 1``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(diagonal_relative_flatness(model, x, y)), 9)
        4.0
    """
    require_deterministic(model)
    batches = collect_batches(x, y)
    name = qualified(chosen_layer(model, batches, layer), "weight")
    found = hessian_diagonal(
        model, batches, loss=loss, parameters=[name], memory_budget=memory_budget
    )
    rows = model.get_parameter(name).detach().cpu().double().flatten(1)
    traces = found[name].cpu().double().flatten(1).sum(1)
    return Estimate(
        float((rows.square().sum(1) * traces).sum()),
        stderr=0.0 if found.exact else None,
        exact=found.exact,
        method=found.method,
    )
