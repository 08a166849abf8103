"""Losses, described so that curvature can be computed exactly: value, gradient, Hessian in f.

Every loss here is a ratio of two sums over rows,

    L = sum_n values_n / sum_n masses_n ,

which is what PyTorch's ``reduction="mean"`` computes: the masses are 1 for a plain mean,
the class weight of the row's label for a weighted cross-entropy, 0 for an ignored row.
Summing both over batches and dividing once weights a ragged last batch exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core.errors import DataError, MeasureError, unknown_name

#: What an argument called ``loss`` may be, everywhere in the package.
LossLike: TypeAlias = "str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss"

#: Relative disagreement between a user's mean loss and the mean of its rows, in units of
#: the square root of the machine epsilon, above which it is refused as "not a mean".
_MEAN_TOLERANCE = 10.0


class HessianFactor(NamedTuple):
    """A signed square root of every row's Hessian in f: ``H_n = root diag(signs) root^T``.

    Attributes:
        root: ``(n, K, R)``; its columns are the cotangents of a curvature sweep.
        signs: ``(n, R)`` of +1 and -1, or ``None`` when every sign is +1.
    """

    root: Tensor
    signs: Tensor | None


class Loss(ABC):
    """A mean loss of outputs ``(n, K)`` and targets, with exact derivatives in the outputs.

    The numerical methods never validate (they run inside ``vmap``): call :meth:`check`
    first, once per batch.
    """

    #: True if the row's Hessian in f does not depend on the targets.
    label_free: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Name for ``Estimate.method``."""

    @abstractmethod
    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse outputs and targets that the loss is not defined on.

        Args:
            outputs: ``(n, K)`` network outputs.
            y: Targets of those rows.

        Raises:
            DataError: Wrong shape, NaN or infinity, empty, label out of range.
        """

    @abstractmethod
    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n,)`` numerators; differentiable and usable inside ``vmap``."""

    def masses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n,)`` weights whose sum divides the sum of :meth:`values`."""
        return outputs.new_ones(outputs.shape[0])

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss of one batch, as PyTorch's mean reduction has it."""
        return self.values(outputs, y).sum() / self.masses(outputs, y).sum()

    @abstractmethod
    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K)``, the gradient of each row's value in its outputs."""

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return a signed square root of the Hessian of each row's value in its outputs."""

    def hessians(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K, K)``, the Hessian of each row's value in its outputs."""
        root, signs = self.hessian_factor(outputs, y)
        right = root if signs is None else root * signs.unsqueeze(-2)
        return root @ right.mT


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
        _check_outputs(outputs)
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
            if not bool(torch.isfinite(y).all()) or bool((y < 0).any()):
                raise DataError("Class probabilities must be finite and not negative.")
            return
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


@dataclass(frozen=True, eq=False)
class MeanSquaredError(Loss):
    """Mean over rows and outputs of ``(f - y)^2``, as ``torch.nn.MSELoss`` has it."""

    label_free = True

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return "mean squared error"

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse targets of another shape: PyTorch would broadcast them."""
        _check_outputs(outputs)
        if y.shape != outputs.shape:
            raise DataError(
                f"Targets of the mean squared error must have the outputs' shape "
                f"{tuple(outputs.shape)}. Got {tuple(y.shape)}; reshape y."
            )
        if y.is_floating_point() and not bool(torch.isfinite(y).all()):
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


@dataclass(frozen=True, eq=False)
class CustomLoss(Loss):
    """A user's ``function(outputs, y) -> scalar`` that is the mean of a loss over rows.

    Derivatives come from ``torch.func``, one row at a time inside ``vmap``, so the function
    must be written in differentiable PyTorch operations.

    Attributes:
        function: The callable; it must accept a single row.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        function = self.function
        return str(getattr(function, "__name__", type(function).__name__))

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse a function that is not a scalar, finite mean over rows."""
        _check_outputs(outputs)
        if y.shape[:1] != outputs.shape[:1]:
            raise DataError(f"{outputs.shape[0]} rows of outputs but targets {tuple(y.shape)}.")
        with torch.no_grad():
            value = self.function(outputs.detach(), y)
            if not isinstance(value, Tensor) or value.ndim != 0:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise MeasureError(f"The loss {self.name!r} must return a scalar. Got {got}.")
            if not bool(torch.isfinite(value)):
                raise MeasureError(f"The loss {self.name!r} returned {value.item()}.")
            rows = self.values(outputs.detach(), y)
        slack = _MEAN_TOLERANCE * math.sqrt(torch.finfo(outputs.dtype).eps)
        scale = float(rows.abs().mean())
        if abs(float(value) - float(rows.mean())) > slack * max(
            scale, torch.finfo(rows.dtype).tiny
        ):
            raise MeasureError(
                f"The loss {self.name!r} is not the mean over rows of a loss of one row: on "
                f"{outputs.shape[0]} rows it is {float(value):.6g}, its rows average "
                f"{float(rows.mean()):.6g}. Divide by the number of rows, and use no batch "
                "statistics."
            )

    def _row(self, output: Tensor, target: Tensor) -> Tensor:
        return self.function(output.unsqueeze(0), target.unsqueeze(0))

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the function's value on each row, ``(n,)``."""
        return torch.func.vmap(self._row)(outputs, y)

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each row's value in its outputs, ``(n, K)``."""
        gradients: Tensor = torch.func.vmap(torch.func.grad(self._row))(outputs, y)
        return gradients

    def hessians(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K, K)``, symmetrised."""
        second: Tensor = torch.func.vmap(torch.func.jacrev(torch.func.grad(self._row)))(outputs, y)
        return (second + second.mT) / 2

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return eigenvectors times ``sqrt |eigenvalue|``, with the eigenvalues' signs."""
        eigenvalues, vectors = torch.linalg.eigh(self.hessians(outputs, y))
        root = vectors * eigenvalues.abs().sqrt().unsqueeze(-2)
        signs = torch.where(eigenvalues < 0, -1.0, 1.0).to(outputs.dtype)
        return HessianFactor(root, signs if bool((signs < 0).any()) else None)


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


def resolve_loss(loss: str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss) -> Loss:
    """Turn what a user may pass as ``loss`` into a :class:`Loss`.

    Args:
        loss: ``"cross_entropy"``, ``"mse"``, ``torch.nn.CrossEntropyLoss(...)``,
            ``torch.nn.MSELoss()``, their functional forms, a callable
            ``(outputs, y) -> scalar mean over rows``, or a :class:`Loss`.

    Returns:
        The loss, with exact derivatives in the outputs.

    Raises:
        UsageError: An unknown name.
        MeasureError: A reduction other than the mean, or not a loss at all.
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
    if isinstance(loss, nn.CrossEntropyLoss):
        return CrossEntropy(loss.weight, loss.label_smoothing, loss.ignore_index)
    if isinstance(loss, nn.MSELoss) or loss is F.mse_loss:
        return MeanSquaredError()
    if loss is F.cross_entropy:
        return CrossEntropy()
    if callable(loss):
        return CustomLoss(loss)
    raise MeasureError(
        "The loss must be a name, a torch.nn loss or a callable (outputs, y) -> scalar. "
        f"Got {type(loss).__name__}."
    )


def check_batch(x: Tensor, y: Tensor) -> None:
    """Refuse data that no loss can be measured on.

    Args:
        x: Inputs, first dimension the rows.
        y: Targets, first dimension the rows.

    Raises:
        DataError: Not tensors, empty, unequal lengths, NaN or infinity in ``x``.
    """
    for label, tensor in (("x", x), ("y", y)):
        if not isinstance(tensor, Tensor):
            raise DataError(f"{label} must be a torch tensor. Got {type(tensor).__name__}.")
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise DataError(f"{label} is empty (shape {tuple(tensor.shape)}). Give some rows.")
    if x.shape[0] != y.shape[0]:
        raise DataError(f"x has {x.shape[0]} rows and y has {y.shape[0]}. They must agree.")
    if (x.is_floating_point() or x.is_complex()) and not bool(torch.isfinite(x).all()):
        raise DataError("x contains NaN or infinity. Remove or impute those entries.")


def _check_outputs(outputs: Tensor) -> None:
    """Refuse outputs that are not a finite, non-empty ``(n, K)`` matrix."""
    if outputs.ndim != 2 or 0 in outputs.shape:
        raise DataError(
            "The model's outputs must have shape (n, K), rows by classes. "
            f"Got {tuple(outputs.shape)}; flatten or average the other dimensions."
        )
    if not bool(torch.isfinite(outputs).all()):
        raise DataError(
            "The model's outputs contain NaN or infinity: its parameters overflowed, or training "
            "diverged. Curvature is not defined there."
        )
