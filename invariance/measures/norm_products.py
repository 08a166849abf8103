"""Products of the layers' norms: spectral and Frobenius."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from invariance.core.errors import MeasureError
from invariance.core.estimate import Estimate
from invariance.core.groups import Group
from invariance.measures.folded_weights import folded_weights
from invariance.measures.registry import measure

#: A product of norms answers factors on whole layers, and orthogonal maps within one.
#: BatchNorm is folded first.
_LAYERWISE = (
    Group.LAYER_SCALING,
    Group.PERMUTATION,
    Group.SIGN_FLIP,
    Group.BATCHNORM_FOLD,
    Group.BATCHNORM_SCALING,
)


@measure(invariant_under=_LAYERWISE)
def spectral_norm_product(model: nn.Module) -> Estimate:
    """Product over layers of the weight's largest singular value.

    The Lipschitz bound of Bartlett, Foster & Telgarsky (2017). A convolution's weight is
    read as the matrix of its unfolded filters. Sums of norms, by contrast, are not even
    invariant under layer scaling.

    Args:
        model: Any network whose BatchNorms, if it has some, follow weight layers.

    Returns:
        The product; ``parts`` has each layer's norm.
    """
    return _product(model, "spectral", lambda weight: torch.linalg.matrix_norm(weight, 2))


@measure(invariant_under=_LAYERWISE)
def frobenius_norm_product(model: nn.Module) -> Estimate:
    """Product over layers of the weight's Frobenius norm.

    Neyshabur, Tomioka & Srebro (2015). Biases are left out.

    Args:
        model: Any network whose BatchNorms, if it has some, follow weight layers.

    Returns:
        The product; ``parts`` has each layer's norm.
    """
    return _product(model, "Frobenius", torch.linalg.matrix_norm)


def _product(model: nn.Module, name: str, norm: Callable[[Tensor], Tensor]) -> Estimate:
    parts = {layer: float(norm(weight)) for layer, weight in folded_weights(model).items()}
    if not parts:
        raise MeasureError(f"{type(model).__name__} has no linear or convolutional layer.")
    if not all(math.isfinite(value) for value in parts.values()):
        raise MeasureError("A weight contains NaN or infinity: training diverged.")
    return Estimate(
        math.prod(parts.values()),
        method=f"product of {len(parts)} {name} norms, BatchNorm folded",
        parts=parts,
    )
