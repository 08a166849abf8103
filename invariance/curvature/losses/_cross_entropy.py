"""Softmax cross-entropy with class weights, label smoothing, ignored rows and soft labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from invariance.core._errors import DataError, MeasureError
from invariance.core._finite import all_finite
from invariance.curvature.losses._base import HessianFactor, Loss, check_outputs


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """Softmax cross-entropy as ``torch.nn.CrossEntropyLoss(reduction="mean")`` has it.

    A row with target vector t has value ``-sum_c t_c log p_c``, gradient ``T p - t`` and
    Hessian ``T (diag(p) - p p^T)`` with ``T = sum_c t_c``. For a label y that is
    ``t_c = w_c ((1 - s) [c = y] + s / K)`` with class weights w and label smoothing s.

    Attributes:
        class_weights: ``(K,)`` non-negative class weights, or ``None``.
        label_smoothing: In ``[0, 1]``.
        ignore_index: Rows with this label do not count.
    """

    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise MeasureError(f"label_smoothing must lie in [0, 1]. Got {self.label_smoothing}.")
        weights = self.class_weights
        if weights is not None:
            if weights.ndim != 1 or not bool(torch.isfinite(weights).all()):
                raise MeasureError(
                    "class_weights must be a (K,) tensor of finite numbers. "
                    f"Got shape {tuple(weights.shape)}."
                )
            if bool((weights < 0).any()):
                raise MeasureError(
                    f"class_weights must not be negative. Got {weights.min().item():.4g}."
                )

    @property
    def label_free(self) -> bool:  # type: ignore[override]
        """True without class weights: S depends on the outputs only (and on ignored rows)."""
        return self.class_weights is None

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        extras = [
            text
            for text, present in (
                ("class weights", self.class_weights is not None),
                (f"label smoothing {self.label_smoothing:g}", self.label_smoothing > 0),
            )
            if present
        ]
        return "cross-entropy" + (f" ({', '.join(extras)})" if extras else "")

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse outputs and labels that cross-entropy is not defined on."""
        check_outputs(outputs)
        n, k = outputs.shape
        if self.class_weights is not None and self.class_weights.shape[0] != k:
            raise DataError(
                f"class_weights has {self.class_weights.shape[0]} entries for a model with "
                f"{k} outputs. Give one weight a class."
            )
        if y.is_floating_point():
            if y.shape != outputs.shape:
                raise DataError(
                    f"Class labels must be integers of shape ({n},), or probabilities of shape "
                    f"({n}, {k}). Got {y.dtype} of shape {tuple(y.shape)}; labels need y.long()."
                )
            if not all_finite(y) or bool((y < 0).any()):
                raise DataError("Class probabilities must be finite and not negative.")
            if bool((empty := (y == 0).all(-1)).any()):
                raise DataError(
                    f"Row {int(empty.nonzero()[0, 0])} of the class probabilities is all zero, "
                    "which names no class: its loss would be an exact 0. Leave such rows out."
                )
            return
        if y.dtype == torch.bool:
            raise DataError(
                "Class labels must be integers, from 0 to the number of classes minus 1. Got "
                "torch.bool; for two classes use y.long()."
            )
        if y.shape != (n,):
            raise DataError(
                f"Class labels must have shape ({n},), one a row. Got {tuple(y.shape)}."
            )
        counted = y[y != self.ignore_index]
        if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= k):
            wrong = int(counted.min()) if int(counted.min()) < 0 else int(counted.max())
            raise DataError(
                f"Label {wrong} is out of range: the model has {k} outputs, so labels run from "
                f"0 to {k - 1} (rows labelled {self.ignore_index} are ignored)."
            )

    def _targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n, K)`` target vectors t, zero on ignored rows."""
        k = outputs.shape[-1]
        if y.is_floating_point():
            targets = y.to(outputs)
            keep = None
        else:
            keep = (y != self.ignore_index).unsqueeze(-1)
            # A comparison instead of one_hot: it works inside vmap and for ignored labels.
            targets = (y.unsqueeze(-1) == torch.arange(k, device=y.device)).to(outputs.dtype)
        if self.label_smoothing > 0:
            targets = (1 - self.label_smoothing) * targets + self.label_smoothing / k
        if self.class_weights is not None:
            targets = targets * self.class_weights.to(outputs)
        return targets if keep is None else targets * keep

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n,)`` numerators ``-sum_c t_c log p_c``."""
        return -(self._targets(outputs, y) * F.log_softmax(outputs, dim=-1)).sum(-1)

    def masses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the weight of each row: its label's class weight, 0 for an ignored row."""
        if y.is_floating_point():
            return outputs.new_ones(outputs.shape[:-1])
        keep = y != self.ignore_index
        if self.class_weights is None:
            return keep.to(outputs.dtype)
        return self.class_weights.to(outputs)[torch.where(keep, y, 0)] * keep

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``T p - t`` for each row."""
        targets = self._targets(outputs, y)
        return targets.sum(-1, keepdim=True) * outputs.softmax(-1) - targets

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return a root of ``T (diag p - p p^T)`` with K - 1 columns."""
        if self.class_weights is None and not y.is_floating_point():
            total = (y != self.ignore_index).to(outputs.dtype)
        else:
            total = self._targets(outputs, y).sum(-1)
        return HessianFactor(softmax_root(outputs) * total.sqrt()[..., None, None], None)


def softmax_root(outputs: Tensor) -> Tensor:
    """Return a root of the softmax's covariance ``S = diag(p) - p p^T`` with K - 1 columns.

    With q = sqrt(p), S = diag(q) (I - q q^T) diag(q), and the projection away from the unit
    vector q has as root any orthonormal basis of its complement. The last K - 1 columns of the
    Householder reflection that sends q to the first axis are one, in closed form, so that

        root[0, j] = -q_0 q_j,  root[i, j] = q_i ([i = j] - q_i q_j / (1 + q_0)),  j = 1 .. K-1.

    The usual root with columns ``sqrt(p_c) (e_c - p)`` has one column more, which a curvature
    sweep would carry through every layer. On the diagonal, ``1 - q_i^2 / (1 + q_0)`` is
    computed as ``(q_0 + sum_{c != i} p_c) / (1 + q_0)``: no digits cancel when the network
    is confident (p_i near 1), where float32 would otherwise lose most of the trace.

    Args:
        outputs: ``(..., K)`` logits.

    Returns:
        ``(..., K, K - 1)``.
    """
    k = outputs.shape[-1]
    p = outputs.softmax(-1)
    q = p.sqrt()
    others = p @ (1 - torch.eye(k, dtype=p.dtype, device=p.device))
    head = 1 + q[..., :1]
    tail = q[..., 1:]
    lower = -(tail.square().unsqueeze(-1) * (tail / head).unsqueeze(-2))
    lower.diagonal(dim1=-2, dim2=-1).copy_(tail * (q[..., :1] + others[..., 1:]) / head)
    upper = -(q[..., :1] * tail).unsqueeze(-2)
    return torch.cat([upper, lower], dim=-2)
