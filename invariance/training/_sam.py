"""Sharpness-aware minimisation: the step that climbs before the step that descends.

SAM (Foret et al. 2021, arXiv 2010.01412) replaces the gradient at the weights w by that at
``w + rho g / |g|``, g the gradient of the same batch at w. Adaptive SAM (Kwon et al. 2021,
arXiv 2102.11600) climbs within an ellipsoid of the weights' own size,
``w + rho T^2 g / |T g|`` with ``T = |w| + eta``.

Two departures of the adaptive form from its reference code, which leaves biases unscaled
and adds ``eta = 0.01``: here every trained parameter is scaled, biases and BatchNorm's gains
and shifts too, and eta is 0 unless it is asked for. Then a function-preserving scaling
``w -> D w`` takes g to ``D^-1 g``, T to ``D T``, and the point climbed to to D times itself:
the climb sees the function alone. With unscaled biases, or with any eta > 0, it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invariance.training._options import Options
from invariance.training.perceptrons._stacked import Stacked
from invariance.training.perceptrons._update_rules import Rule


def climb(weights: Sequence[Tensor], gradients: Sequence[Tensor], options: Options) -> list[Tensor]:
    """Return what to add to the weights: each network climbs by its own gradient's norm.

    Shapes: ``weights (networks, ...)``.
    """
    sizes: Sequence[Tensor | None] = [None] * len(weights)
    steep: Sequence[Tensor] = gradients
    if options.sam_adaptive:
        sizes = [weight.abs().add_(options.sam_eta) for weight in weights]
        steep = [g * size for g, size in zip(gradients, sizes, strict=True) if size is not None]
    # Each network's squares are summed by themselves, tensor by tensor in a fixed order.
    total: Tensor | None = None
    for entry in steep:
        square = entry.square().flatten(1).sum(1)
        total = square if total is None else total + square
    assert total is not None  # models without parameters are refused before
    factor = torch.where(total > 0, options.sam_rho / total.sqrt(), 0.0)
    out = []
    for entry, size in zip(steep, sizes, strict=True):
        by_network = factor.view(-1, *[1] * (entry.ndim - 1))
        out.append(entry * by_network if size is None else entry.mul_(by_network).mul_(size))
    return out


class Climbing(Rule):
    """Another rule, fed with the gradient at the point climbed to.

    A step is two passes over one batch. In the first, gradients are kept; then
    :meth:`climb` moves the weights. In the second, each parameter is put back from a copy,
    bit for bit, right before the other rule updates it: momentum and weight decay belong
    to the weights themselves.

    Attributes:
        at_weights: Whether the current pass is the first, at the weights themselves.
            BatchNorm tracks its statistics then and only then: once a step.
    """

    n_states = 2  # the gradient, and the weights before the climb

    def __init__(self, inner: Rule, options: Options) -> None:
        super().__init__(options)
        self._inner, self._options = inner, options
        self._parameters: list[Stacked] = []
        self.at_weights = True

    def track(self, parameter: Stacked) -> Stacked:
        """Register a parameter with both rules."""
        self._parameters.append(parameter)
        self._inner.track(parameter)
        return super().track(parameter)

    def states(self) -> list[Stacked]:
        """Return the states of both rules."""
        return [*super().states(), *self._inner.states()]

    def begin_step(self, rate: float) -> None:
        """Announce a step, which starts with the first pass."""
        self._inner.begin_step(rate)
        self.at_weights = True

    def climb(self) -> None:
        """End the first pass: keep the weights and climb."""
        kept = [self._states[id(parameter)] for parameter in self._parameters]
        moves = climb(
            [parameter.now for parameter in self._parameters],
            [gradient.now for gradient, _ in kept],
            self._options,
        )
        for parameter, (_, before), move in zip(self._parameters, kept, moves, strict=True):
            before.now.copy_(parameter.now)
            parameter.now.add_(move)
        self.at_weights = False

    @property
    def gradient_scale(self) -> float:
        """One on the way up, whose length does not depend on it; then the other rule's."""
        return 1.0 if self.at_weights else self._inner.gradient_scale

    def product(self, parameter: Stacked, left: Tensor, right: Tensor) -> None:
        """Keep the gradient ``left @ right``, or put the weights back and apply it."""
        gradient, before = self._states[id(parameter)]
        if self.at_weights:
            torch.bmm(left, right, out=gradient.now)
        else:
            parameter.now.copy_(before.now)
            self._inner.product(parameter, left, right)

    def direct(self, parameter: Stacked, gradient: Tensor) -> None:
        """Keep the gradient, or put the weights back and apply it."""
        kept, before = self._states[id(parameter)]
        if self.at_weights:
            kept.now.copy_(gradient)
        else:
            parameter.now.copy_(before.now)
            self._inner.direct(parameter, gradient)
