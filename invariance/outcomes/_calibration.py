"""Calibration: does a network that says 80 percent turn out right 80 percent of the time?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.outcomes._outputs import check_labels, logits_of


def expected_calibration_error(
    model: nn.Module, x: Tensor, y: Tensor, *, bins: int = 15
) -> Estimate:
    """Expected calibration error: ``sum_b |B_b| / n |acc(B_b) - conf(B_b)|``.

    Guo, Pleiss, Sun & Weinberger (2017), "On calibration of modern neural networks"
    (equation 3): the rows fall into equal-width bins ``((b - 1)/B, b/B]`` by their
    confidence, the largest softmax probability.

    Args:
        model: A module in eval mode that returns ``(n, K)`` logits.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        bins: Number of bins B.

    Returns:
        The error, in [0, 1]; ``detail`` has each bin's ``counts``, ``accuracy`` and
        ``confidence`` (NaN for an empty bin) for a reliability diagram, the mean
        ``overconfidence`` (confidence minus accuracy over all rows), and the ``nll``.

    Raises:
        MeasureError: If ``bins`` is not positive, or the model does not classify.
        DataError: If labels and rows do not match.

    Example:
        A model that says 1/2 for both classes and is right half of the time is calibrated:

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(1, 2).eval()
        >>> _ = model.load_state_dict({"weight": torch.zeros(2, 1), "bias": torch.zeros(2)})
        >>> float(expected_calibration_error(model, torch.rand(4, 1), torch.tensor([0, 0, 1, 1])))
        0.0
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise MeasureError(f"bins must be a positive integer. Got {bins!r}.")
    logits = logits_of(model, x)
    labels = check_labels(y, len(logits), logits.shape[1])
    confidence, label = logits.softmax(1).max(1)
    right = (label == labels).double()
    place = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    counts = torch.bincount(place, minlength=bins)
    hits = torch.bincount(place, weights=right, minlength=bins)
    sums = torch.bincount(place, weights=confidence, minlength=bins)
    return Estimate(
        float((hits - sums).abs().sum() / len(labels)),
        method=f"{bins} equal-width bins of the largest probability",
        detail={
            "counts": tuple(counts.tolist()),
            "accuracy": tuple((hits / counts).tolist()),
            "confidence": tuple((sums / counts).tolist()),
            "overconfidence": float((confidence - right).mean()),
            "nll": float(torch.nn.functional.cross_entropy(logits, labels)),
        },
    )
