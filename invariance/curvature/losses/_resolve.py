"""Losses, described so that curvature can be computed exactly: value, gradient, Hessian in f.

Every loss here is a ratio of two sums over rows,

    L = sum_n values_n / sum_n masses_n ,

which is what PyTorch's ``reduction="mean"`` computes: the masses are 1 for a plain mean,
the class weight of the row's label for a weighted cross-entropy, 0 for an ignored row.
Summing both over batches and dividing once weights a ragged last batch exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._errors import DataError, MeasureError, unknown_name
from invariance.core._finite import all_finite
from invariance.core._modules import computes_as_its_class
from invariance.core._reads import Reads, state_of
from invariance.curvature.losses._base import HessianFactor, Loss, check_outputs
from invariance.curvature.losses._cross_entropy import CrossEntropy, softmax_root

__all__ = [
    "CrossEntropy",
    "CustomLoss",
    "HessianFactor",
    "Loss",
    "LossLike",
    "MeanSquaredError",
    "check_batch",
    "resolve_loss",
    "softmax_root",
]

#: What an argument called ``loss`` may be, everywhere in the package.
LossLike: TypeAlias = "str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss"

#: Relative disagreement between a user's mean loss and the mean of its rows, in units of
#: the square root of the machine epsilon, above which it is refused as "not a mean".
_MEAN_TOLERANCE = 10.0


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


@dataclass(frozen=True, eq=False)
class CustomLoss(Loss):
    """A user's ``function(outputs, y) -> scalar`` that is the mean of a loss over rows.

    Derivatives come from autograd on the whole batch, so the function must be written in
    differentiable PyTorch operations; that it is a mean over rows is checked.

    Attributes:
        function: The callable; it must accept a single row.
        watched: Name to each tensor of the measured model, none of which it may depend on: a
            penalty on the parameters is no function of the outputs, and derivatives that pass
            through the outputs miss it.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    watched: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        function = self.function
        return str(getattr(function, "__name__", type(function).__name__))

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse a function that is not a scalar, finite mean over rows."""
        check_outputs(outputs)
        if y.shape[:1] != outputs.shape[:1]:
            raise DataError(f"{outputs.shape[0]} rows of outputs but targets {tuple(y.shape)}.")
        with torch.no_grad():
            value = self.function(outputs.detach(), y)
            if not isinstance(value, Tensor) or value.ndim != 0:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise MeasureError(f"The loss {self.name!r} must return a scalar. Got {got}.")
            if not bool(torch.isfinite(value)):
                raise MeasureError(f"The loss {self.name!r} returned {value.item()}.")
            self._check_mean(float(value), outputs.detach(), y)
            self._check_own(float(value), outputs.detach(), y)

    def _check_mean(self, value: float, outputs: Tensor, y: Tensor) -> None:
        """Refuse a function whose value is not the average of its values on parts."""
        n = outputs.shape[0]
        slack = _MEAN_TOLERANCE * math.sqrt(torch.finfo(outputs.dtype).eps)
        for cut in {1, n // 2} - {0, n}:
            one = float(self.function(outputs[:cut], y[:cut]))
            two = float(self.function(outputs[cut:], y[cut:]))
            average = (cut * one + (n - cut) * two) / n
            scale = max(abs(one), abs(two), abs(value), torch.finfo(outputs.dtype).tiny)
            if not abs(value - average) <= slack * scale:
                raise MeasureError(
                    f"The loss {self.name!r} is not the mean over rows of a loss of one row: on "
                    f"{n} rows it is {value:.6g}, its first {cut} and its other rows average "
                    f"{average:.6g}. Divide by the number of rows, and use no batch statistics."
                )

    def _check_own(self, value: float, outputs: Tensor, y: Tensor) -> None:
        """Refuse a function whose value changes with the model's parameters at fixed outputs."""
        with Reads(self.watched, moved=True) as reads:
            moved = float(self.function(outputs, y))
        if reads.names and moved != value:
            read = ", ".join(map(repr, list(reads.names)[:3]))
            raise MeasureError(
                f"The loss {self.name!r} depends on the model's parameters beyond the outputs: it "
                f"reads {read}{' and others' if len(reads.names) > 3 else ''}. Curvature here is "
                "that of a loss of outputs and targets. Leave the penalty out and add its own "
                "curvature (a weight decay of c |theta|^2 adds 2 c to every diagonal entry)."
            )

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the function's value on each row, ``(n,)``, by calling it row by row."""
        rows = range(outputs.shape[0])
        return torch.stack([self.function(outputs[i : i + 1], y[i : i + 1]) for i in rows])

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each row's value in its outputs, ``(n, K)``."""
        return self._derivatives(outputs, y)[0].detach()

    def hessians(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K, K)``, symmetrised: K backward passes through the rows' gradients."""
        first, leaf = self._derivatives(outputs, y)
        columns = []
        for k in range(leaf.shape[1]):
            column = None
            if first.requires_grad:  # else the loss is linear in the outputs
                cotangent = torch.zeros_like(first)
                cotangent[:, k] = 1
                (column,) = torch.autograd.grad(
                    first, leaf, cotangent, retain_graph=True, allow_unused=True
                )
            columns.append(torch.zeros_like(leaf) if column is None else column)
        second = torch.stack(columns, dim=1)
        return (second + second.mT) / 2

    def _derivatives(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows' gradients with their graph, and the leaf that they are taken in."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            # The function is the mean over rows, so n times its gradient is each row's own.
            mean = self.function(leaf, y)
            (first,) = torch.autograd.grad(mean, leaf, create_graph=True)
            return first * leaf.shape[0], leaf

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return eigenvectors times ``sqrt |eigenvalue|``, with the eigenvalues' signs."""
        eigenvalues, vectors = torch.linalg.eigh(self.hessians(outputs, y))
        root = vectors * eigenvalues.abs().sqrt().unsqueeze(-2)
        signs = torch.where(eigenvalues < 0, -1.0, 1.0).to(outputs.dtype)
        return HessianFactor(root, signs if bool((signs < 0).any()) else None)


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
        return CustomLoss(loss, {k: v for model in models for k, v in state_of(model).items()})
    raise MeasureError(
        "The loss must be a name, a torch.nn loss or a callable (outputs, y) -> scalar. "
        f"Got {type(loss).__name__}."
    )


def _is_as_written(loss: nn.Module, base: type[nn.Module]) -> bool:
    """Whether calling ``loss`` runs the ``forward`` of ``base`` and nothing else."""
    kind = type(loss)
    same = kind.forward is base.forward and kind.__call__ is base.__call__
    return same and computes_as_its_class(loss)


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
    if not all_finite(x):
        raise DataError("x contains NaN or infinity. Remove or impute those entries.")
