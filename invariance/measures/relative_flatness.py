"""Relative flatness of a layer (Petzka et al. 2021)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from invariance.core.errors import MeasureError
from invariance.core.estimate import Estimate
from invariance.core.groups import Group
from invariance.core.modules import weight_layers
from invariance.curvature.exact_result import DEFAULT_MEMORY_BUDGET
from invariance.curvature.exact_route import layer_relative_flatness
from invariance.curvature.losses import LossLike
from invariance.measures.registry import measure


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
)
def relative_flatness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layer: int | str | None = -1,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
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
        layer: Index among the weight layers in registration order, or a module's name;
            ``None`` gives all layers as a vector.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.

    Returns:
        The relative flatness; ``parts`` has it by layer.

    Raises:
        MeasureError: There is no such layer.
    """
    names = [name for name, _ in weight_layers(model)]
    chosen = names if layer is None else [pick_layer(names, layer)]
    found = layer_relative_flatness(
        model, x, y, layers=chosen, loss=loss, memory_budget=memory_budget
    )
    return found if layer is None else replace(found, value=found[0])


def pick_layer(names: list[str], layer: int | str) -> str:
    """Return the name of the layer that an index or a name means."""
    if isinstance(layer, str):
        if layer in names:
            return layer
    elif -len(names) <= layer < len(names):
        return names[layer]
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(names)) or "none"
    raise MeasureError(f"There is no weight layer {layer!r}. The model has {listed}.")
