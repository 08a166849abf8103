"""Losses that a user wrote: any mean over rows, with derivatives by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invariance.core._errors import DataError, MeasureError
from invariance.core._reads import Reads
from invariance.curvature._batches import check_outputs
from invariance.curvature.losses._base import HessianFactor, Loss

#: Relative disagreement between a user's mean loss and the mean of its rows, in units of
#: the square root of the machine epsilon, above which it is refused as "not a mean".
_MEAN_TOLERANCE = 10.0


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
