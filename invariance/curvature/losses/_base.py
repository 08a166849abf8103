"""What a loss is to this package: sums over rows, with exact derivatives in the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from invariance.core._errors import MeasureError


class HessianFactor(NamedTuple):
    """A signed square root of every row's Hessian in f: ``H_n = root diag(signs) root^T``.

    Attributes:
        root: ``(n, K, R)``; its columns are the cotangents of a curvature sweep.
        signs: ``(n, R)`` of +1 and -1, or ``None`` when every sign is +1.
        samples: How many independent draws, each of ``R / samples`` neighbouring columns, the
            columns are; ``H_n`` is then their expectation. ``None`` when nothing was drawn.
    """

    root: Tensor
    signs: Tensor | None
    samples: int | None = None


def draw_signs(shape: tuple[int, ...], like: Tensor, draws: torch.Generator) -> Tensor:
    """Draw independent signs, the same on every device, in the dtype of ``like``."""
    size = torch.Size(shape).numel()
    # 63 signs a draw: one at a time, they would cost as much as the sweep.
    words = torch.empty(-(-size // 63), dtype=torch.int64).random_(generator=draws)
    bits = (words.unsqueeze(1) >> torch.arange(63)) & 1
    return (bits.flatten()[:size] * 2 - 1).view(shape).to(like)


class Loss(ABC):
    """A mean loss of outputs ``(n, K)`` and targets, with exact derivatives in the outputs.

    The numerical methods never validate (they run inside ``vmap``): call :meth:`check`
    first, once per batch.
    """

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

    def total(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the sum of :meth:`values`, in one call where they would take one a row."""
        return self.values(outputs, y).sum()

    def fisher_root(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return a root of every row's Fisher matrix of the outputs.

        Args:
            outputs: ``(n, K)`` network outputs, the parameters of the predictive distribution.
            y: Targets; only their weights enter.

        Returns:
            ``(n, K, R)``.

        Raises:
            MeasureError: The loss is not known to be a negative log-likelihood.
        """
        raise MeasureError(
            f"The loss {self.name!r} names no predictive distribution, so it has no Fisher "
            "information. Use 'cross_entropy', 'mse', or one of torch's NLLLoss, "
            "BCEWithLogitsLoss and PoissonNLLLoss."
        )

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss of one batch, as PyTorch's mean reduction has it."""
        return self.total(outputs, y) / self.masses(outputs, y).sum()

    @abstractmethod
    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K)``, the gradient of each row's value in its outputs."""

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return a signed square root of the Hessian of each row's value in its outputs."""

    def columns(self, outputs: int) -> int:
        """Return how many columns :meth:`hessian_factor` has for ``outputs`` outputs."""
        return outputs

    def sampled_factor(
        self, outputs: Tensor, y: Tensor, count: int, draws: torch.Generator
    ) -> HessianFactor:
        """Return ``count`` random columns a row whose products have H_n as expectation.

        With ``H = R R^T`` and signs s, ``E (R s)(R s)^T = R E(s s^T) R^T = H``. Signs are drawn
        anew for every row, so the rows' errors are independent. A Hessian of both signs is
        drawn part by part, two columns a draw.

        Args:
            outputs: ``(n, K)`` network outputs.
            y: Targets of those rows.
            count: Number of draws a row.
            draws: Source of the signs.

        Returns:
            The factor, with ``samples=count``.
        """
        root, signs, _ = self.hessian_factor(outputs, y)
        mix = draw_signs((*root.shape[::2], count), root, draws) / count**0.5
        if signs is None:
            return HessianFactor(root @ mix, None, count)
        parts = [(root * (signs * side > 0).unsqueeze(-2)) @ mix for side in (1, -1)]
        both = torch.stack(parts, dim=-1).flatten(-2)
        sides = signs.new_tensor([1.0, -1.0]).repeat(count)
        return HessianFactor(both, sides.expand(root.shape[0], 2 * count), count)

    def hessians(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K, K)``, the Hessian of each row's value in its outputs."""
        root, signs, _ = self.hessian_factor(outputs, y)
        right = root if signs is None else root * signs.unsqueeze(-2)
        return root @ right.mT


class Draws:
    """Random mixtures of a root's columns, ``count`` a row; every call draws new ones."""

    def __init__(self, loss: Loss, count: int, draws: torch.Generator) -> None:
        self.loss, self.count, self.draws = loss, count, draws

    def columns(self) -> int:
        """Return how many columns there may be: two a draw for a Hessian of both signs."""
        return 2 * self.count

    def factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Draw the columns of the rows ``outputs (n, K)``."""
        return self.loss.sampled_factor(outputs, y, self.count, self.draws)
