"""Losses, described so that curvature can be computed exactly: value, gradient, Hessian in f.

Every loss here is a ratio of two sums over rows,

    L = sum_n values_n / sum_n masses_n ,

which is what PyTorch's ``reduction="mean"`` computes: the masses are 1 for a plain mean,
the class weight of the row's label for a weighted cross-entropy, 0 for an ignored row.
Summing both over batches and dividing once weights a ragged last batch exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._errors import DataError, MeasureError, unknown_name
from invariance.core._modules import all_finite, computes_as_its_class, origin
from invariance.core._reads import state_of
from invariance.curvature._batches import check_outputs
from invariance.curvature.losses._base import HessianFactor, Loss, draw_signs
from invariance.curvature.losses._custom import CustomLoss

__all__ = [
    "CrossEntropy",
    "CustomLoss",
    "HessianFactor",
    "Loss",
    "LossLike",
    "MeanSquaredError",
    "resolve_loss",
    "softmax_root",
]

#: What an argument called ``loss`` may be, everywhere in the package.
LossLike: TypeAlias = "str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss"


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
        scale = self._totals(outputs, y).sqrt()[..., None, None]
        return HessianFactor(softmax_root(outputs) * scale, None)

    def _totals(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``T``, the sum of each row's target vector."""
        if self.class_weights is None and not y.is_floating_point():
            return (y != self.ignore_index).to(outputs.dtype)
        return self._targets(outputs, y).sum(-1)

    def columns(self, outputs: int) -> int:
        """Return ``K - 1``."""
        return outputs - 1

    def sampled_factor(
        self, outputs: Tensor, y: Tensor, count: int, draws: torch.Generator
    ) -> HessianFactor:
        """Return random columns of ``sqrt T (diag(q) - p q^T)``, ``q = sqrt p``: n K numbers."""
        signs = draw_signs((*outputs.shape, count), outputs, draws)
        scale = (self._totals(outputs, y) / count).sqrt()[..., None, None]
        return HessianFactor(softmax_mix(outputs, signs) * scale, None, count)


@dataclass(frozen=True, eq=False)
class MeanSquaredError(Loss):
    """Mean over rows and outputs of ``(f - y)^2``, as ``torch.nn.MSELoss`` has it."""

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return "mean squared error"

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse targets of another shape: PyTorch would broadcast them."""
        check_outputs(outputs)
        if y.shape != outputs.shape:
            raise DataError(
                f"Targets of the mean squared error must have the outputs' shape "
                f"{tuple(outputs.shape)}. Got {tuple(y.shape)}; reshape y."
            )
        if not all_finite(y):
            raise DataError("Targets contain NaN or infinity. Remove those rows.")

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean over outputs of the squared difference, ``(n,)``."""
        return (outputs - y.to(outputs)).square().mean(-1)

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``2 (f - y) / K``."""
        return (outputs - y.to(outputs)) * (2.0 / outputs.shape[-1])

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return ``sqrt(2 / K)`` times the identity for every row."""
        n, k = outputs.shape
        root = math.sqrt(2.0 / k) * torch.eye(k, dtype=outputs.dtype, device=outputs.device)
        return HessianFactor(root.expand(n, k, k), None)

    def sampled_factor(
        self, outputs: Tensor, y: Tensor, count: int, draws: torch.Generator
    ) -> HessianFactor:
        """Return random signs times ``sqrt(2 / K)``."""
        signs = draw_signs((*outputs.shape, count), outputs, draws)
        return HessianFactor(signs * math.sqrt(2.0 / outputs.shape[-1] / count), None, count)


def resolve_loss(
    loss: str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss, *models: nn.Module
) -> Loss:
    """Turn what a user may pass as ``loss`` into a :class:`Loss`.

    Args:
        loss: ``"cross_entropy"``, ``"mse"``, ``torch.nn.CrossEntropyLoss(...)``,
            ``torch.nn.MSELoss()``, their functional forms, a callable
            ``(outputs, y) -> scalar mean over rows``, or a :class:`Loss`. A subclass of a
            torch loss with a ``forward`` of its own is a callable like any other.
        models: What is measured: a callable whose value depends on their parameters at fixed
            outputs is refused when it is checked.

    Returns:
        The loss, with exact derivatives in the outputs.

    Raises:
        UsageError: An unknown name.
        MeasureError: A reduction other than the mean, or not a loss at all.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(2, 4).double(), torch.tensor([0, 3])
        >>> loss = resolve_loss("cross_entropy")
        >>> round(float(loss.mean(logits, labels)), 6)  # ln 4
        1.386294
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        named: dict[str, Loss] = {"cross_entropy": CrossEntropy(), "mse": MeanSquaredError()}
        if loss not in named:
            raise unknown_name("loss", loss, named)
        return named[loss]
    if getattr(loss, "reduction", "mean") != "mean":
        raise MeasureError(
            f"The loss must average over rows: use reduction='mean'. Got {loss.reduction!r}."  # type: ignore[union-attr]
        )
    if isinstance(loss, nn.CrossEntropyLoss) and _is_as_written(loss, nn.CrossEntropyLoss):
        return CrossEntropy(loss.weight, loss.label_smoothing, loss.ignore_index)
    if (isinstance(loss, nn.MSELoss) and _is_as_written(loss, nn.MSELoss)) or loss is F.mse_loss:
        return MeanSquaredError()
    if loss is F.cross_entropy:
        return CrossEntropy()
    if callable(loss):
        return CustomLoss(
            loss, {k: v for model in models for k, v in state_of(origin(model)).items()}
        )
    raise MeasureError(
        "The loss must be a name, a torch.nn loss or a callable (outputs, y) -> scalar. "
        f"Got {type(loss).__name__}."
    )


def _is_as_written(loss: nn.Module, base: type[nn.Module]) -> bool:
    """Whether calling ``loss`` runs the ``forward`` of ``base`` and nothing else."""
    kind = type(loss)
    same = kind.forward is base.forward and kind.__call__ is base.__call__
    return same and computes_as_its_class(loss)


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

    Shapes: ``outputs (..., K)``; returns ``(..., K, K - 1)``.
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


def softmax_mix(outputs: Tensor, signs: Tensor) -> Tensor:
    """Return ``(diag(q) - p q^T) s`` with ``q = sqrt(p)``, a root of the softmax's covariance.

    In the likeliest class, ``1 - p`` is summed from the other classes: no digits cancel when the
    network is confident.

    Shapes: ``outputs (..., K)``, ``signs (..., K, m)``; returns ``(..., K, m)``.
    """
    p = outputs.softmax(-1)
    mixed = p.sqrt().unsqueeze(-1) * signs
    top = p.argmax(-1, keepdim=True)
    place = top.unsqueeze(-1).expand(*top.shape, signs.shape[-1])
    head, likeliest = mixed.gather(-2, place), p.gather(-1, top).unsqueeze(-1)
    rest = p.scatter(-1, top, 0.0).sum(-1)[..., None, None]
    others = mixed.scatter(-2, place, 0.0).sum(-2, keepdim=True)
    mixed = torch.addcmul(mixed, p.unsqueeze(-1), head + others, value=-1)
    return mixed.scatter(-2, place, head * rest - likeliest * others)
