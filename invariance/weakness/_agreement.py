"""Ensemble agreement: does the rest of an ensemble know what one network gets wrong?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError
from invariance.core._estimate import Estimate
from invariance.core._forward import reading, run
from invariance.core._modules import model_device
from invariance.weakness.patterns._activation_layers import require_eval
from invariance.weakness.patterns._patterns import as_rows

_BATCH = 8192


def predictions(model: nn.Module, x: Tensor, *, batch_size: int = _BATCH) -> Tensor:
    """Return the arg-max class of every row, ``(n,)`` int64 on the CPU.

    Shapes: ``x (n, ...)``.
    """
    require_eval(model)
    rows, device = as_rows(model, x, "x_unseen"), model_device(model)
    labels = []
    with torch.no_grad():
        for batch in torch.split(rows, batch_size):
            with reading(model, batch, "x_unseen"):
                out = run(model, batch.to(device))
            if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != batch.shape[0]:
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise MeasureError(f"The model must return (n, K) logits. Got {got}.")
            if not bool(torch.isfinite(out).all()):
                raise MeasureError("The model returns NaN or infinite logits.")
            labels.append(out.argmax(dim=1).cpu())
    return torch.cat(labels)


def ensemble_agreement(models: Sequence[nn.Module], x_unseen: Tensor, y_unseen: Tensor) -> Estimate:
    """Among the points that a network gets wrong, the fraction that the others get right.

    For network i with error set E_i over the unseen points, the value is the mean over
    E_i of the fraction of the other networks whose label is right. Low values mean that
    all networks fail on the same, inherently hard points. Source: Bennett, arXiv
    2605.05209 ("ensemble agreement").

    A function of predictions alone, hence unchanged by every function-preserving map,
    dormant units included.

    Args:
        models: At least two modules in eval mode.
        x_unseen: ``(u, ...)`` unseen points.
        y_unseen: ``(u,)`` their labels.

    Returns:
        A vector estimate, one value a network; NaN for a network that makes no mistake
        (the fraction is then undefined), listed in ``detail["undefined"]``.
        ``detail["errors"]`` counts each network's mistakes, and ``detail["pooled"]`` is
        the fraction over all (network, mistake) pairs together.

    Raises:
        MeasureError: If there are fewer than two models, or one does not classify.
        DataError: If labels and points do not match.

    Example:
        Each of two opposite classifiers is right where the other is wrong.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> other = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.eye(2).double(), torch.tensor([0, 0])
        >>> inv.weakness.ensemble_agreement([model, other], x, y).value.tolist()
        [1.0, 1.0]
    """
    if len(models) < 2:
        raise MeasureError(f"Agreement needs at least two networks. Got {len(models)}.")
    if y_unseen.ndim != 1 or y_unseen.shape[0] != x_unseen.shape[0] or y_unseen.is_floating_point():
        raise DataError(
            f"y_unseen must be ({x_unseen.shape[0]},) integer labels, one a row of x_unseen. "
            f"Got {tuple(y_unseen.shape)} {y_unseen.dtype}."
        )
    target = y_unseen.cpu()
    right = torch.stack([predictions(model, x_unseen) == target for model in models]).numpy()
    wrong = ~right
    errors = wrong.sum(axis=1)
    # others[i, j]: how many networks other than i are right on j; i itself is wrong there.
    rescued = (wrong * right.sum(axis=0)[None, :]).sum(axis=1) / (len(models) - 1)
    with np.errstate(invalid="ignore"):
        values = np.where(errors > 0, rescued / np.maximum(errors, 1), np.nan)
    total = int(errors.sum())
    return Estimate(
        values,
        method=f"share of the other {len(models) - 1} networks that are right on its mistakes",
        detail={
            "errors": tuple(int(count) for count in errors),
            "undefined": tuple(int(i) for i in np.flatnonzero(errors == 0)),
            "pooled": float(rescued.sum() / total) if total else float("nan"),
        },
    )
