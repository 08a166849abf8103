"""How far apart the functions of several networks are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.outcomes._outputs import logits_of


def prediction_disagreement(models: Sequence[nn.Module], x: Tensor) -> Estimate:
    """Share of rows on which two networks predict different classes, averaged over pairs.

    Args:
        models: At least two modules in eval mode that return ``(n, K)`` logits.
        x: ``(n, ...)`` inputs.

    Returns:
        The mean over pairs; ``detail["matrix"]`` has every pair, and
        ``detail["per_network"]`` each network's mean over the others.

    Raises:
        MeasureError: If there are fewer than two models, or their classes differ in number.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> first, second = nn.Linear(1, 2).eval(), nn.Linear(1, 2).eval()
        >>> state = {"weight": torch.zeros(2, 1), "bias": torch.tensor([1.0, 0.0])}
        >>> _ = first.load_state_dict(state)
        >>> state = {"weight": torch.zeros(2, 1), "bias": torch.tensor([0.0, 1.0])}
        >>> _ = second.load_state_dict(state)
        >>> float(prediction_disagreement([first, second], torch.rand(3, 1)))
        1.0
    """
    logits = _all_logits(models, x)
    labels = torch.stack([entry.argmax(1) for entry in logits])
    matrix = np.zeros((len(labels), len(labels)))
    for i in range(len(labels) - 1):
        matrix[i, i + 1 :] = (labels[i + 1 :] != labels[i]).double().mean(1).numpy()
    return _pairwise(matrix + matrix.T, "share of rows with different labels")


def jensen_shannon_divergence(models: Sequence[nn.Module], x: Tensor) -> Estimate:
    """Jensen-Shannon divergence of two networks' softmax outputs, averaged over pairs.

    For distributions p and q with mean m it is ``H(m) - (H(p) + H(q)) / 2`` in nats, at most
    ln 2, averaged over rows (Lin 1991, "Divergence measures based on the Shannon entropy").

    Args:
        models: At least two modules in eval mode that return ``(n, K)`` logits.
        x: ``(n, ...)`` inputs.

    Returns:
        The mean over pairs; ``detail["matrix"]`` has every pair, ``detail["per_network"]``
        each network's mean over the others, and ``detail["generalized"]`` the divergence of
        all networks together, ``H(mean p) - mean H(p)``.

    Raises:
        MeasureError: If there are fewer than two models, or their classes differ in number.

    Example:
        Two sure and opposite networks are ``ln 2`` apart:

        >>> import torch
        >>> from torch import nn
        >>> first, second = nn.Linear(1, 2).eval(), nn.Linear(1, 2).eval()
        >>> state = {"weight": torch.zeros(2, 1), "bias": torch.tensor([99.0, 0.0])}
        >>> _ = first.load_state_dict(state)
        >>> state = {"weight": torch.zeros(2, 1), "bias": torch.tensor([0.0, 99.0])}
        >>> _ = second.load_state_dict(state)
        >>> round(float(jensen_shannon_divergence([first, second], torch.rand(3, 1))), 6)
        0.693147
    """
    p = torch.stack(_all_logits(models, x)).softmax(2)
    own = _entropy(p)
    count = len(p)
    matrix = np.zeros((count, count))
    for i in range(count - 1):
        for j in range(i + 1, count):
            mixed = _entropy((p[i] + p[j]) / 2)
            gap = (mixed - (own[i] + own[j]) / 2).clamp(min=0.0)
            matrix[i, j] = float(gap.mean())
    everyone = _entropy(p.mean(0)) - own.mean(0)
    found = _pairwise(matrix + matrix.T, "mean over rows, in nats")
    return Estimate(
        found.value,
        method=found.method,
        detail={**found.detail, "generalized": float(everyone.clamp(min=0.0).mean())},
    )


def _entropy(p: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats."""
    found: Tensor = torch.special.entr(p).sum(-1)
    return found


def _all_logits(models: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    if len(models) < 2:
        raise MeasureError(f"A comparison needs at least two networks. Got {len(models)}.")
    logits = [logits_of(model, x) for model in models]
    if len({entry.shape[1] for entry in logits}) > 1:
        classes = sorted({entry.shape[1] for entry in logits})
        raise MeasureError(f"The networks know different numbers of classes: {classes}.")
    return logits


def _pairwise(matrix: npt.NDArray[np.float64], method: str) -> Estimate:
    count = len(matrix)
    per_network = matrix.sum(1) / (count - 1)
    return Estimate(
        float(per_network.mean()),
        method=f"{method}; mean of {count * (count - 1) // 2} pairs",
        detail={
            "matrix": tuple(tuple(row) for row in matrix.tolist()),
            "per_network": tuple(per_network.tolist()),
        },
    )
