"""Relative flatness of a layer (Petzka et al. 2021)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import require_deterministic, weight_layers
from invariance.curvature._batches import collect_batches
from invariance.curvature._trace_diagonal import DEFAULT_PROBES, DEFAULT_RTOL, as_sampling
from invariance.curvature.exact._flatness import layer_relative_flatness
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._layer_choice import chosen_layer, executed_layers


@measure(
    # Declared for the last layer, the default. Its rows, uniform column scalings and
    # orthogonal feature maps do not matter; scaling single features (neuron scaling),
    # doubling one (unit split) or adding one (dormant unit) changes |phi|^2.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.LOGIT_SHIFT,
        Group.BATCHNORM_FOLD,
        Group.BATCHNORM_SCALING,
    ],
    streams=True,
)
def relative_flatness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layer: int | str | None = -1,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    method: Literal["auto", "sampled"] = "auto",
    rtol: float = DEFAULT_RTOL,
    budget: int = DEFAULT_PROBES,
    seed: int = 0,
) -> Estimate:
    """Relative flatness of a weight layer: ``sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}``.

    Petzka, Kamp, Adilova, Sminchisescu & Boley (2021), "Relative flatness and
    generalization" (their kappa_Tr), with w_s the rows of the layer's weight and
    H_{s,s'} the blocks of its Hessian; biases do not enter. A convolution's rows are its
    filters, unfolded to vectors; with groups, every group is a matrix of its own and the
    groups add up.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        layer: Index among the weight layers in the order of execution (as ``LayerScaling``
            counts them), or a module's name; ``None`` gives all layers as a vector.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.
        method: ``"auto"``, or ``"sampled"``: from a few random cotangents a row, with a standard
            error (see :func:`~invariance.measures.hessian_trace`).
        rtol: For ``"sampled"``: the relative standard error to reach.
        budget: For ``"sampled"``: most draws a row.
        seed: Seed of the draws.

    Returns:
        The relative flatness; ``parts`` has it by layer.

    Raises:
        MeasureError: There is no such layer, or an index is given for a network in which a
            layer is never called.

    Example:
        ``|x|^2 (sum_c p_c |w_c|^2 - |sum_c p_c w_c|^2)`` with ``p = (1/2, 1/2)``, ``4 (2 - 1)``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(relative_flatness(model, x, y)), 9)
        4.0
    """
    require_deterministic(model)
    batches = collect_batches(x, y)
    if layer is None:
        called = executed_layers(model, batches)
        chosen = called + [name for name, _ in weight_layers(model) if name not in called]
    else:
        chosen = [chosen_layer(model, batches, layer)]
    found = layer_relative_flatness(
        model,
        batches,
        layers=chosen,
        loss=loss,
        memory_budget=memory_budget,
        sampling=as_sampling(method, rtol, budget, seed, memory_budget),
    )
    return found if layer is None else replace(found, value=found[0])
