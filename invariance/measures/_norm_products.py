"""Products of the layers' norms: spectral and Frobenius."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.measures._registry import measure
from invariance.measures.shared._folded_weights import folded_weights

#: A product of norms answers factors on whole layers, and orthogonal maps within one.
#: BatchNorm is folded first. The matrices are read as the layers use them, in any coordinates.
_LAYERWISE = (
    Group.LAYER_SCALING,
    Group.PERMUTATION,
    Group.SIGN_FLIP,
    Group.BATCHNORM_FOLD,
    Group.BATCHNORM_SCALING,
    Group.COORDINATES,
)


@measure(invariant_under=_LAYERWISE)
def spectral_norm_product(model: nn.Module, *, example_input: Tensor | None = None) -> Estimate:
    """Product over layers of the weight's largest singular value.

    The Lipschitz bound of Bartlett, Foster & Telgarsky (2017). A convolution's weight is
    read as the matrix of its unfolded filters. Sums of norms, by contrast, are not even
    invariant under layer scaling.

    Args:
        model: Any network whose BatchNorms, if it has some, follow weight layers.
        example_input: A batch that the model accepts; needed to fold the BatchNorms of a
            convolutional network.

    Returns:
        The product; ``parts`` has each layer's norm.

    Example:
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0]]])
        >>> round(float(spectral_norm_product(model)), 12)
        6.0
    """
    weights = folded_weights(model, example_input)
    return _product(weights, "spectral", lambda weight: torch.linalg.matrix_norm(weight, 2))


@measure(invariant_under=_LAYERWISE)
def frobenius_norm_product(model: nn.Module, *, example_input: Tensor | None = None) -> Estimate:
    """Product over layers of the weight's Frobenius norm.

    Neyshabur, Tomioka & Srebro (2015). Biases are left out.

    Args:
        model: Any network whose BatchNorms, if it has some, follow weight layers.
        example_input: A batch that the model accepts; needed to fold the BatchNorms of a
            convolutional network.

    Returns:
        The product; ``parts`` has each layer's norm.

    Example:
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[3.0], [4.0]], [[2.0, 0.0]]])
        >>> round(float(frobenius_norm_product(model)), 9)
        10.0
    """
    weights = folded_weights(model, example_input)
    return _product(weights, "Frobenius", torch.linalg.matrix_norm)


def _product(
    weights: Mapping[str, Tensor], name: str, norm: Callable[[Tensor], Tensor]
) -> Estimate:
    parts = {layer: float(norm(weight)) for layer, weight in weights.items()}
    if not parts:
        raise MeasureError("The network has no linear or convolutional layer, hence no product.")
    if not all(math.isfinite(value) for value in parts.values()):
        raise MeasureError("A weight contains NaN or infinity: training diverged.")
    return Estimate(
        math.prod(parts.values()),
        method=f"product of {len(parts)} {name} norms, BatchNorm folded",
        parts=parts,
    )
