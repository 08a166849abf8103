"""Path norm (Neyshabur et al. 2015), with biases as paths of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import require_deterministic
from invariance.core._perceptron import Dense, Norm, Slope, Step, fold_norms, read_perceptron
from invariance.measures._registry import measure


@measure(
    # Scalings cancel along every path, signs and order do not matter, BatchNorm is folded
    # first, and a dormant unit lies on no path with a nonzero product. Splitting a unit in
    # the fractions c and 1 - c multiplies its paths by c^p + (1 - c)^p, which is 1 for p = 1
    # only.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.BATCHNORM_FOLD,
        Group.BATCHNORM_SCALING,
        Group.DORMANT_UNITS,
    ],
)
def path_norm(model: nn.Module, *, p: float = 2.0) -> Estimate:
    """Path norm ``(sum over paths of prod |w|^p)^(1/p)``, biases starting paths of their own.

    Neyshabur, Tomioka & Srebro (2015), "Norm-based capacity control in neural networks". A
    path runs from an input, or from a bias, to an output. The sum is the network itself with
    every entry replaced by ``|w|^p`` and the activations by the identity, at the all-ones
    input. Eval-mode BatchNorm is folded into the linear layer before it.

    Args:
        model: A multilayer perceptron of linear layers, BatchNorm and activations with
            slopes of at most 1.
        p: The order, at least 1.

    Returns:
        The norm.

    Raises:
        MeasureError: ``p`` below 1, or another kind of network.

    Example:
        Two paths, of weights ``3 1`` and ``2 2``: ``(3^2 + 4^2)^(1/2)``.

        >>> import invariance as inv
        >>> round(float(path_norm(inv.models.from_weights([[[3.0], [2.0]], [[1.0, 2.0]]]))), 9)
        5.0
    """
    if not (p >= 1 and p != float("inf")):
        raise MeasureError(f"The order p of the path norm must be finite and >= 1. Got {p}.")
    require_deterministic(model)
    steps = read_perceptron(model)
    if steps is None:
        raise MeasureError(
            f"path_norm is defined here for multilayer perceptrons. Got {type(model).__name__}."
        )
    total = float(path_sums(fold_norms(steps), p).sum())
    if not total < float("inf"):
        raise MeasureError("The path norm overflows float64: rescale the parameters.")
    return Estimate(total ** (1 / p), method=f"{p:g}-path norm, biases as paths, BatchNorm folded")


def path_sums(steps: Sequence[Step], p: float) -> Tensor:
    """Return ``(K,)`` float64: for each output, the sum of ``prod |w|^p`` over its paths."""
    first = next(step for step in steps if not isinstance(step, Slope))
    width = first.weight.shape[-1] if isinstance(first, Dense) else first.mean.shape[-1]
    carried = torch.ones(width, dtype=torch.float64)
    for step in steps:
        if isinstance(step, Dense):
            carried = step.weight.cpu().double().abs().pow(p) @ carried
            if step.bias is not None:
                carried = carried + step.bias.cpu().double().abs().pow(p)
        elif isinstance(step, Norm):
            scale, offset = (part.cpu().double().abs().pow(p) for part in (step.scale, step.offset))
            carried = scale * carried + offset
    return carried
