"""The loss at the parameters, and at perturbed parameters: shared by several measures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError
from invariance.core._forward import reading, run
from invariance.core._modules import full_precision, lifted, require_deterministic
from invariance.core._reads import Narrowing
from invariance.curvature._batches import Batches, collect_batches
from invariance.curvature.exact._directional import move_like
from invariance.curvature.losses._resolve import Loss, LossLike, loss_on
from invariance.curvature.products._parameter_space import select_parameters

#: A rise below this many units of round-off of the loss itself is not told from none.
_RESOLVED = 2.0**10

#: Share of a perturbation that rounding may change.
_LOST = 2.0**-10

Vector = Mapping[str, Tensor]


class PerturbedLoss:
    """The mean loss of a network as a function of its trainable parameters, in float64.

    A perturbation is small beside the parameters, and its rise beside the loss: float32 keeps
    few of their digits, and half precision none.

    Shapes: ``x (n, ...)``, ``y (n,)``.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, loss: LossLike) -> None:
        require_deterministic(model)
        self.model = lifted(model, torch.float64)
        self.batches: Batches = collect_batches(x, y)
        self.loss: Loss = loss_on(loss, self.batches, model)
        state = dict(self.model.named_parameters())
        self.theta = {name: state[name].detach() for name in select_parameters(model).names}
        self._eps: float | None = None

    @property
    def eps(self) -> float:
        """Unit of round-off of the outputs: that of the narrowest dtype they pass through."""
        if self._eps is None:
            row = move_like(self.batches.first()[0][:1], next(iter(self.theta.values())))
            with torch.no_grad(), reading(self.model, row), Narrowing() as narrowing:
                run(self.model, row)
            self._eps = torch.finfo(narrowing.dtype or torch.float64).eps
        return self._eps

    def resolves(self, rise: float, base: float) -> bool:
        """Whether a rise of the loss stands out from the round-off of its two values."""
        return abs(rise) >= _RESOLVED * self.eps * abs(base)

    def moved(self, step: Vector) -> dict[str, Tensor]:
        """Return the parameters moved by ``step``; refuse a step that rounding would change."""
        moved = {name: value + step[name] for name, value in self.theta.items()}
        lost = size = 0.0
        for name, value in self.theta.items():
            unit = value.abs() * self.eps if self.eps > torch.finfo(value.dtype).eps else 0.0
            lost += float(((moved[name] - value - step[name]).abs() + unit).square().sum())
            size += float(step[name].square().sum())
        if size and lost > _LOST**2 * size:
            raise MeasureError(
                f"The perturbation, of norm {math.sqrt(size):.3g}, is so small beside the "
                "parameters that rounding changes it by more than a thousandth. Take a larger "
                "radius, or the Hessian itself: hessian_quadratic_form, hessian_trace."
            )
        return moved

    @full_precision()
    def value(self, theta: Vector) -> float:
        """Return the mean loss at ``theta``."""
        with torch.no_grad():
            total, mass = self._sums(theta)
        return float(total) / float(mass)

    @full_precision()
    def gradient(self, theta: Vector | None = None) -> tuple[float, dict[str, Tensor]]:
        """Return the mean loss at ``theta`` (the parameters by default), and its gradient."""
        at = self.theta if theta is None else theta
        leaves = {name: at[name].detach().clone().requires_grad_() for name in self.theta}
        with torch.enable_grad():
            total, mass = self._sums(leaves)
            mean = total / mass
        found = torch.autograd.grad(mean, list(leaves.values()), allow_unused=True)
        return float(mean.detach()), {
            name: torch.zeros_like(leaves[name]) if part is None else part
            for name, part in zip(leaves, found, strict=True)
        }

    def _sums(self, theta: Vector) -> tuple[Tensor, Tensor]:
        """Return the sums of the rows' values and masses."""
        like = next(iter(self.theta.values()))
        total, mass = like.new_zeros(()), like.new_zeros(())
        for bx, by in self.batches:
            with reading(self.model, bx):
                outputs = run(self.model, move_like(bx, like), theta)
            labels = move_like(by, outputs)
            try:
                self.loss.check(outputs.detach(), labels)
            except RuntimeError as error:
                raise MeasureError(
                    f"The loss {self.loss.name!r} cannot be computed on float64 outputs, which "
                    f"perturbations need: {error}. Let it convert its tensors: weight.to(outputs)."
                ) from error
            rows = self.loss.masses(outputs, labels).sum()
            total = total + self.loss.total(outputs, labels)
            mass = mass + rows
        if float(mass) <= 0:
            raise DataError("No row counts: every label is ignored or has class weight 0.")
        return total, mass
