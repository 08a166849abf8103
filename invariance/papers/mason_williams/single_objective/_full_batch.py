"""Full-batch Adam on stacked ReLU perceptrons with squared error, derivatives by hand.

A hundred thousand steps on ten thousand points: nothing may be allocated in a step, and
nothing computed that is not needed. All parameters of a network lie in one vector, so that
Adam is a handful of operations however many layers there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from invariance.core._errors import ModelError
from invariance.core._perceptron import Dense, Slope, read_perceptron

#: How often progress is told, in steps.
_TELL_EVERY = 200


def fit_full_batch(
    models: Sequence[nn.Sequential],
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    lr: float,
    marks: Sequence[int],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    tell: Callable[[float], object] | None = None,
) -> list[list[dict[str, Tensor]]]:
    """Train M perceptrons of one shape, each on its own points.

    Shapes: ``x (M, n, d)``, ``y (M, n, K)``.
    """
    names, shapes = _shapes(models)
    theta = torch.stack([_flat(model) for model in models]).to(x)
    gradient, first, second = (torch.zeros_like(theta) for _ in range(3))
    scratch = torch.empty_like(theta)
    parameters, gradients = _views(theta, shapes), _views(gradient, shapes)
    network = _Stack(x, y, parameters, gradients)
    kept: list[list[dict[str, Tensor]]] = [[] for _ in models]
    wanted = set(marks)
    for epoch in range(1, epochs + 1):
        network.backward()
        first.lerp_(gradient, 1 - betas[0])
        second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        torch.sqrt(second, out=scratch)
        scratch.div_(math.sqrt(1 - betas[1] ** epoch)).add_(eps)
        theta.addcdiv_(first, scratch, value=-lr / (1 - betas[0] ** epoch))
        if epoch in wanted:
            for slot, states in enumerate(kept):
                states.append(
                    {
                        name: part[slot].detach().cpu().clone()
                        for name, part in zip(names, parameters, strict=True)
                    }
                )
        if tell is not None and (epoch % _TELL_EVERY == 0 or epoch == epochs):
            tell(epoch / epochs)
    return kept


class _Stack:
    """Forward and backward passes of stacked perceptrons in buffers of their own."""

    def __init__(
        self, x: Tensor, y: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        self._x, self._y = x, y
        self._weights, self._biases = parameters[0::2], parameters[1::2]
        self._weight_gradients, self._bias_gradients = gradients[0::2], gradients[1::2]
        count, rows = x.shape[:2]
        widths = [weight.shape[1] for weight in self._weights]
        self._values = [x.new_empty(count, rows, width) for width in widths]
        self._deltas = [x.new_empty(count, rows, width) for width in widths]
        self._scale = 2.0 / (rows * widths[-1])

    def backward(self) -> None:
        """Write the gradient of the mean squared error into the gradients' views."""
        last = len(self._weights) - 1
        below = self._x
        for layer, (weight, bias, value) in enumerate(
            zip(self._weights, self._biases, self._values, strict=True)
        ):
            torch.baddbmm(bias.unsqueeze(1), below, weight.mT, out=value)
            if layer < last:
                value.relu_()
            below = value
        delta = self._deltas[last]
        torch.sub(self._values[last], self._y, out=delta)
        delta.mul_(self._scale)
        for layer in range(last, -1, -1):
            below = self._values[layer - 1] if layer else self._x
            delta = self._deltas[layer]
            self._weight_gradients[layer].copy_(torch.bmm(delta.mT, below))
            torch.sum(delta, 1, out=self._bias_gradients[layer])
            if layer:
                lower = self._deltas[layer - 1]
                torch.bmm(delta, self._weights[layer], out=lower)
                torch.ops.aten.threshold_backward.grad_input(lower, below, 0, grad_input=lower)


def _shapes(models: Sequence[nn.Sequential]) -> tuple[list[str], list[torch.Size]]:
    first = models[0]
    steps = read_perceptron(first) or ()
    good = len(steps) % 2 == 1 and all(
        (isinstance(step, Dense) and step.bias is not None)
        if place % 2 == 0
        else (isinstance(step, Slope) and step.activation.name == "relu")
        for place, step in enumerate(steps)
    )
    shapes = [p.shape for p in first.parameters()]
    if not good or any([p.shape for p in m.parameters()] != shapes for m in models):
        raise ModelError(
            "Expected perceptrons of one shape: Linear layers with biases and ReLU in turn. "
            f"Got {first!r}."
        )
    return [name for name, _ in first.named_parameters()], shapes


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _views(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = torch.split(flat, [shape.numel() for shape in shapes], dim=1)
    return [part.view(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)]
