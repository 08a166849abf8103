"""Update rules for stacked parameters: ``torch.optim``'s SGD and Adam, many networks at once.

Networks step in lockstep, so the step count and the rate are shared. Every operation
treats each entry alike wherever it lies in memory: results do not depend on how many
networks there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from invariance.training._options import Options
from invariance.training.perceptrons._stacked import Stacked


class Rule(ABC):
    """How gradients change parameters.

    Attributes:
        rate: The learning rate of the current step.
    """

    #: State tensors for each parameter.
    n_states = 0
    #: Whether the current pass is at the weights themselves, not near them.
    at_weights = True

    def __init__(self, options: Options) -> None:
        self.decay = options.weight_decay
        self.rate = options.lr
        self._states: dict[int, list[Stacked]] = {}

    def track(self, parameter: Stacked) -> Stacked:
        """Register a parameter, give it zero states, and return it."""
        self._states[id(parameter)] = [parameter.zeros() for _ in range(self.n_states)]
        return parameter

    def states(self) -> list[Stacked]:
        """Return every state tensor, to move and narrow along with the parameters."""
        return [state for states in self._states.values() for state in states]

    def begin_step(self, rate: float) -> None:
        """Announce a step with learning rate ``rate``."""
        self.rate = rate

    @property
    def gradient_scale(self) -> float:
        """What to multiply the loss by, so that updates need no factor of their own."""
        return 1.0

    @abstractmethod
    def product(self, parameter: Stacked, left: Tensor, right: Tensor) -> None:
        """Apply the gradient ``left @ right`` (batched over networks)."""

    @abstractmethod
    def direct(self, parameter: Stacked, gradient: Tensor) -> None:
        """Apply a gradient that is at hand; it may be overwritten."""


class PlainSgd(Rule):
    """``theta <- (1 - rate * decay) theta - rate * gradient``, the rate folded into the loss."""

    @property
    def gradient_scale(self) -> float:
        """The learning rate."""
        return self.rate

    @property
    def shrink(self) -> float:
        """What a step multiplies a parameter by before the gradient is subtracted."""
        return 1.0 - self.rate * self.decay

    def product(self, parameter: Stacked, left: Tensor, right: Tensor) -> None:
        """Update inside the matrix product: no gradient is ever stored."""
        parameter.now.baddbmm_(left, right, beta=self.shrink, alpha=-1.0)

    def direct(self, parameter: Stacked, gradient: Tensor) -> None:
        """Subtract the scaled gradient."""
        if self.decay:
            parameter.now.mul_(self.shrink)
        parameter.now.sub_(gradient)


class MomentumSgd(Rule):
    """``v <- momentum v + gradient + decay theta; theta <- theta - rate v``."""

    n_states = 1

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.momentum = options.momentum

    def product(self, parameter: Stacked, left: Tensor, right: Tensor) -> None:
        """Accumulate the product straight into the velocity."""
        (velocity,) = self._states[id(parameter)]
        velocity.now.baddbmm_(left, right, beta=self.momentum, alpha=1.0)
        self._move(parameter, velocity)

    def direct(self, parameter: Stacked, gradient: Tensor) -> None:
        """Add the gradient to the velocity."""
        (velocity,) = self._states[id(parameter)]
        velocity.now.mul_(self.momentum).add_(gradient)
        self._move(parameter, velocity)

    def _move(self, parameter: Stacked, velocity: Stacked) -> None:
        if self.decay:
            velocity.now.add_(parameter.now, alpha=self.decay)
        parameter.now.add_(velocity.now, alpha=-self.rate)


class Adam(Rule):
    """Adam with bias correction (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1)."""

    n_states = 2

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.betas = options.betas
        self.eps = options.eps
        self._step = 0

    def begin_step(self, rate: float) -> None:
        """Count the step, which the bias corrections need."""
        super().begin_step(rate)
        self._step += 1

    def product(self, parameter: Stacked, left: Tensor, right: Tensor) -> None:
        """Form the gradient, then apply it."""
        self.direct(parameter, torch.bmm(left, right))

    def direct(self, parameter: Stacked, gradient: Tensor) -> None:
        """Update both moments and step."""
        first, second = self._states[id(parameter)]
        beta1, beta2 = self.betas
        if self.decay:
            gradient.add_(parameter.now, alpha=self.decay)
        first.now.lerp_(gradient, 1 - beta1)
        second.now.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction = 1 - beta2**self._step
        # The gradient's memory is free by now: it takes the denominator.
        torch.sqrt(second.now, out=gradient)
        gradient.div_(correction**0.5).add_(self.eps)
        parameter.now.addcdiv_(first.now, gradient, value=-self.rate / (1 - beta1**self._step))


def make_rule(options: Options) -> Rule:
    """Return the update rule that ``options`` ask for."""
    if options.optimizer == "adam":
        return Adam(options)
    return MomentumSgd(options) if options.momentum else PlainSgd(options)
