"""Losses that compare every output with a target of its own: regression, counts, yes or no.

Each is the mean over all entries, so one row's value is the mean over its K entries and its
Hessian is diagonal. Where the loss is a negative log-likelihood, every entry is an observation,
and the Fisher information averages over them too.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from invariance.core._errors import DataError
from invariance.core._modules import all_finite
from invariance.curvature._batches import check_outputs
from invariance.curvature.losses._base import HessianFactor, Loss, draw_signs


@dataclass(frozen=True, eq=False)
class Elementwise(Loss):
    """A mean over entries of a function of one output and one target.

    Attributes:
        shape: The shape of one row's outputs as the model gives them, if not ``(K,)``.
    """

    shape: tuple[int, ...] | None = None

    @abstractmethod
    def each(self, f: Tensor, y: Tensor) -> Tensor:
        """Return every entry's value."""

    @abstractmethod
    def first(self, f: Tensor, y: Tensor) -> Tensor:
        """Return every entry's derivative."""

    @abstractmethod
    def second(self, f: Tensor, y: Tensor) -> Tensor:
        """Return every entry's second derivative, which is not negative."""

    def information(self, f: Tensor) -> Tensor:
        """Return every entry's Fisher information."""
        return self.second(f, f)  # of these only where the target does not enter

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse targets of another shape: PyTorch would broadcast them."""
        check_outputs(outputs)
        shape = tuple(outputs.shape) if self.shape is None else (len(outputs), *self.shape)
        if y.shape[0] != shape[0] or y.ndim != len(shape) or y.numel() != outputs.numel():
            hint = "reshape y"
            if y.ndim == 1 and shape[1:] == (1,):
                hint = "use y[:, None]"
            elif shape[1:] == () and y.shape[1:] == (1,):
                hint = "use y.squeeze(1)"
            raise DataError(
                f"Targets of the {self.name} must have the outputs' shape {shape}. "
                f"Got {tuple(y.shape)}; {hint}."
            )
        if not all_finite(y):
            raise DataError("Targets contain NaN or infinity. Remove those rows.")

    def aligned(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the targets as ``(n, K)`` in the outputs' dtype."""
        return y.reshape(outputs.shape).to(outputs)

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean over each row's entries, ``(n,)``."""
        return self.each(outputs, self.aligned(outputs, y)).mean(-1)

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the derivatives over K."""
        return self.first(outputs, self.aligned(outputs, y)) / outputs.shape[-1]

    def curvatures(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the diagonals of the rows' Hessians, ``(n, K)``."""
        return self.second(outputs, self.aligned(outputs, y)) / outputs.shape[-1]

    def informations(self, outputs: Tensor) -> Tensor:
        """Return the diagonals of the rows' Fisher matrices, ``(n, K)``."""
        return self.information(outputs) / outputs.shape[-1]

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return the square root of the diagonal."""
        return HessianFactor(torch.diag_embed(self.curvatures(outputs, y).sqrt()), None)

    def sampled_factor(
        self, outputs: Tensor, y: Tensor, count: int, draws: torch.Generator
    ) -> HessianFactor:
        """Return random signs times the square root of the diagonal."""
        signs = draw_signs((*outputs.shape, count), outputs, draws)
        size = (self.curvatures(outputs, y) / count).sqrt()
        return HessianFactor(signs * size.unsqueeze(-1), None, count)

    def fisher_root(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the square root of the diagonal."""
        return torch.diag_embed(self.informations(outputs).sqrt())


@dataclass(frozen=True, eq=False)
class MeanSquaredError(Elementwise):
    """Mean over rows and outputs of ``(f - y)^2``, as ``torch.nn.MSELoss`` has it.

    As a likelihood: a Gaussian whose variance makes its Fisher matrix the Gauss-Newton matrix.
    """

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return "mean squared error"

    def each(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``(f - y)^2``."""
        return (f - y).square()

    def first(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``2 (f - y)``."""
        return 2.0 * (f - y)

    def second(self, f: Tensor, y: Tensor) -> Tensor:
        """Return 2."""
        return torch.full_like(f, 2.0)


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy(Elementwise):
    """``torch.nn.BCEWithLogitsLoss()``: independent yes-or-no outputs.

    Targets lie in [0, 1]. With p the sigmoid of f the derivative is ``p - y`` and the second
    derivative, and the Fisher information, ``p (1 - p)``.
    """

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return "binary cross-entropy"

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse targets outside [0, 1]."""
        super().check(outputs, y)
        if bool((y < 0).any()) or bool((y > 1).any()):
            raise DataError(
                f"Targets of the {self.name} must lie in [0, 1]. "
                f"Got values from {float(y.min()):g} to {float(y.max()):g}."
            )

    def each(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``ln(1 + e^f) - y f``."""
        return F.binary_cross_entropy_with_logits(f, y, reduction="none")

    def first(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``p - y``."""
        return f.sigmoid() - y

    def second(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``p (1 - p)``."""
        return f.sigmoid() * (-f).sigmoid()


@dataclass(frozen=True, eq=False)
class PoissonLikelihood(Elementwise):
    """``torch.nn.PoissonNLLLoss()``: counts, with f the logarithm of their mean.

    Attributes:
        full: Whether the value has the Stirling term, which depends on the targets alone.
    """

    full: bool = False

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return "Poisson likelihood"

    def each(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``e^f - y f``."""
        return F.poisson_nll_loss(f, y, full=self.full, reduction="none")

    def first(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``e^f - y``."""
        return f.exp() - y

    def second(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``e^f``."""
        return f.exp()
