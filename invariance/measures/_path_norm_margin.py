"""Margins in units of the path norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError
from invariance.core._estimate import Estimate
from invariance.core._forward import reading, run
from invariance.core._groups import Group
from invariance.curvature._batches import check_batch
from invariance.curvature.exact._directional import move_like
from invariance.curvature.losses._resolve import resolve_loss
from invariance.measures._path_norm import path_norm
from invariance.measures._registry import measure


@measure(
    # Margins are functions of logit differences; the rest is the path norm's behaviour.
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
def path_norm_margin(
    model: nn.Module, x: Tensor, y: Tensor, *, quantile: float = 0.1, p: float = 2.0
) -> Estimate:
    """Margin of the training set divided by the path norm; larger is better.

    Neyshabur, Bhojanapalli, McAllester & Srebro (2017), "Exploring generalization in deep
    learning", section 2. The margin of a row is its label's logit minus the largest other.

    Args:
        model: A network that :func:`path_norm` accepts.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        quantile: Which quantile of the rows' margins; 0 is the smallest.
        p: Order of the path norm.

    Returns:
        The normalised margin; ``detail`` has the margin and the norm.

    Raises:
        MeasureError: A quantile outside [0, 1], a single class, or a path norm of zero.

    Example:
        Margin 3, path norm 3:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[3.0], [0.0]]])
        >>> round(float(path_norm_margin(model, torch.ones(1, 1).double(), torch.tensor([0]))), 9)
        1.0
    """
    if not 0 <= quantile <= 1:
        raise MeasureError(f"quantile must lie in [0, 1]. Got {quantile}.")
    norm = float(path_norm(model, p=p))
    if norm == 0:
        raise MeasureError("The path norm is zero: every path is cut, and margins have no unit.")
    check_batch(x, y)
    with torch.no_grad(), reading(model, x):
        outputs = run(model, move_like(x, next(iter(model.parameters()))))
    resolve_loss("cross_entropy").check(outputs, y.to(outputs.device))
    if y.is_floating_point() or bool((y < 0).any()) or outputs.shape[1] < 2:
        raise DataError("Margins need integer labels of at least two classes, none ignored.")
    places = y.to(outputs.device).unsqueeze(1)
    own = outputs.gather(1, places).squeeze(1)
    others = outputs.scatter(1, places, float("-inf")).amax(1)
    margin = float(torch.quantile((own - others).cpu().double(), quantile))
    return Estimate(
        margin / norm,
        method=f"{quantile:g}-quantile of the margins over the {p:g}-path norm",
        detail={"margin": margin, "path_norm": norm},
    )
