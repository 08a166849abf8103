"""The loss at the parameters, and at perturbed parameters: shared by several measures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError
from invariance.core._forward import reading, run
from invariance.core._modules import full_precision, require_deterministic
from invariance.curvature._batches import Batches, collect_batches
from invariance.curvature.exact._directional import move_like
from invariance.curvature.losses._resolve import Loss, LossLike, loss_on
from invariance.curvature.products._parameter_space import select_parameters


class PerturbedLoss:
    """The mean loss of a network as a function of its trainable parameters.

    Shapes: ``x (n, ...)``, ``y (n,)``.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, loss: LossLike) -> None:
        require_deterministic(model)
        self.model = model
        self.batches: Batches = collect_batches(x, y)
        self.loss: Loss = loss_on(loss, self.batches, model)
        state = dict(model.named_parameters())
        self.theta = {name: state[name].detach() for name in select_parameters(model).names}

    @full_precision()
    def value(self, theta: Mapping[str, Tensor]) -> float:
        """Return the mean loss at ``theta``."""
        with torch.no_grad():
            total, mass = self._sums(theta)
        return float(total) / float(mass)

    @full_precision()
    def gradient(
        self, theta: Mapping[str, Tensor] | None = None
    ) -> tuple[float, dict[str, Tensor]]:
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

    def _sums(self, theta: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sums of the rows' values and masses."""
        like = next(iter(self.theta.values()))
        total, mass = like.new_zeros(()), like.new_zeros(())
        for bx, by in self.batches:
            with reading(self.model, bx):
                outputs = run(self.model, move_like(bx, like), theta)
            labels = by.to(outputs.device)
            self.loss.check(outputs.detach(), labels)
            rows = self.loss.masses(outputs, labels).sum()
            total = total + self.loss.total(outputs, labels)
            mass = mass + rows
        if float(mass) <= 0:
            raise DataError("No row counts: every label is ignored or has class weight 0.")
        return total, mass
