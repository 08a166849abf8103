"""Layers of stacked perceptrons with hand-written forward and backward passes.

Activations are ``(networks, rows, width)``. A layer's ``backward`` returns the gradient
by its input and updates its own parameters; the gradient by the input is formed first,
so that it belongs to the weights of the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from invariance.training.perceptrons._stacked import Stacked, Workspace, stack
from invariance.training.perceptrons._update_rules import Rule


class Layer(Protocol):
    """What the engine asks of a layer."""

    def forward(self, z: Tensor, train: bool) -> Tensor:
        """Map the input; keep what the backward pass needs if ``train``."""
        ...

    def backward(self, gradient: Tensor) -> Tensor:
        """Map the gradient back and update the parameters."""
        ...


class Affine:
    """Linear layers ``W x + b``, one a network."""

    def __init__(
        self,
        modules: Sequence[nn.Linear],
        rule: Rule,
        work: Workspace,
        *,
        last: bool,
        columns: Tensor | None = None,
    ) -> None:
        every = slice(None) if columns is None else columns
        self.weight = rule.track(stack(module.weight[:, every] for module in modules))
        self.bias: Stacked | None = None
        if modules[0].bias is not None:
            self.bias = rule.track(stack(module.bias for module in modules))
        self._rule, self._work, self._last, self._columns = rule, work, last, every
        self._x: Tensor | None = None

    def forward(self, z: Tensor, train: bool) -> Tensor:
        """Multiply. The last layer writes its logits class by class.

        A softmax over classes then runs along rows in memory, which is 20 times as fast.
        """
        weight, rows = self.weight.now, z.shape[1]
        bias = None if self.bias is None else self.bias.now
        if train:
            self._x = z
        if self._last:
            out = self._work.take((self, "out"), weight.shape[1], rows)
            _affine(bias, 2, weight, z.transpose(1, 2), out)
            return out.transpose(1, 2)
        out = self._work.take((self, "out"), rows, weight.shape[1])
        _affine(bias, 1, z, weight.transpose(1, 2), out)
        return out

    def backward(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the input, then update."""
        assert self._x is not None
        back = self._work.take((self, "back"), *self._x.shape[1:])
        torch.bmm(gradient, self.weight.now, out=back)
        self.update(gradient)
        return back

    def update(self, gradient: Tensor) -> None:
        """Update weight and bias from the gradient by the output."""
        assert self._x is not None
        self._rule.product(self.weight, gradient.transpose(1, 2), self._x)
        if self.bias is not None:
            self._rule.direct(self.bias, gradient.sum(1))

    def write(self, slot: int, module: nn.Linear) -> None:
        """Copy one network's parameters into ``module``."""
        module.weight[:, self._columns] = self.weight.now[slot]
        if self.bias is not None:
            module.bias.copy_(self.bias.now[slot])

    def stacks(self) -> list[Stacked]:
        """Return what moves along when a network is dropped."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


def _affine(bias: Tensor | None, along: int, left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write ``bias + left @ right``, the bias the same along dimension ``along``."""
    if bias is None:
        torch.bmm(left, right, out=out)
    else:
        torch.baddbmm(bias.unsqueeze(along), left, right, out=out)


class SlopeLayer:
    """PReLU: negative inputs times a learned slope, shared or one a unit."""

    def __init__(self, modules: Sequence[nn.PReLU], rule: Rule) -> None:
        self.weight = rule.track(stack(module.weight for module in modules))
        self._rule = rule
        self._z: Tensor | None = None

    def forward(self, z: Tensor, train: bool) -> Tensor:
        """Apply the slope where the input is negative."""
        self._z = z
        return torch.where(z > 0, z, z * self.weight.now[:, None, :])

    def backward(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the input, then update the slope."""
        assert self._z is not None
        negative = self._z <= 0
        back = torch.where(negative, gradient * self.weight.now[:, None, :], gradient)
        by_slope = torch.where(negative, gradient * self._z, 0.0).sum(1)
        if self.weight.now.shape[1] == 1:
            by_slope = by_slope.sum(1, keepdim=True)
        self._rule.direct(self.weight, by_slope)
        return back

    def write(self, slot: int, module: nn.PReLU) -> None:
        """Copy one network's slope into ``module``."""
        module.weight.copy_(self.weight.now[slot])

    def stacks(self) -> list[Stacked]:
        """Return what moves along when a network is dropped."""
        return [self.weight]


class BatchNorm:
    """BatchNorm over the rows of each network (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

    def __init__(self, modules: Sequence[nn.BatchNorm1d], rule: Rule) -> None:
        first = modules[0]
        self._rule, self._eps, self._momentum = rule, first.eps, first.momentum
        self.gain = self.shift = None
        if first.affine:
            self.gain = rule.track(stack(module.weight for module in modules))
            self.shift = rule.track(stack(module.bias for module in modules))
        self.mean = stack(_given(module.running_mean) for module in modules)
        self.var = stack(_given(module.running_var) for module in modules)
        self._started = int(_given(first.num_batches_tracked))
        self._steps = 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, z: Tensor, train: bool) -> Tensor:
        """Normalise by the batch in training, by the running statistics otherwise."""
        if train:
            mean = z.mean(1)
            centred = z - mean[:, None, :]
            var = centred.square().mean(1)
            if self._rule.at_weights:
                self._track(mean, var, z.shape[1])
        else:
            centred, var = z - self.mean.now[:, None, :], self.var.now
        inverse = (var + self._eps).rsqrt()
        normal = centred.mul_(inverse[:, None, :])
        if train:
            self._kept = (normal, inverse)
        if self.gain is None or self.shift is None:
            return normal.clone() if train else normal
        return normal.mul(self.gain.now[:, None, :]).add_(self.shift.now[:, None, :])

    def backward(self, gradient: Tensor) -> Tensor:
        """Differentiate through the batch statistics, then update."""
        assert self._kept is not None
        normal, inverse = self._kept
        rows = gradient.shape[1]
        by_shift, by_gain = gradient.sum(1), (gradient * normal).sum(1)
        back = gradient - by_shift[:, None, :] / rows
        back.sub_(normal * (by_gain[:, None, :] / rows))
        factor = inverse if self.gain is None else inverse * self.gain.now
        back.mul_(factor[:, None, :])
        if self.gain is not None and self.shift is not None:
            self._rule.direct(self.gain, by_gain)
            self._rule.direct(self.shift, by_shift)
        return back

    def _track(self, mean: Tensor, var: Tensor, rows: int) -> None:
        self._steps += 1
        weight = 1 / (self._started + self._steps) if self._momentum is None else self._momentum
        self.mean.now.mul_(1 - weight).add_(mean, alpha=weight)
        self.var.now.mul_(1 - weight).add_(var, alpha=weight * rows / (rows - 1))

    def write(self, slot: int, module: nn.BatchNorm1d) -> None:
        """Copy one network's parameters and statistics into ``module``."""
        if self.gain is not None and self.shift is not None:
            module.weight.copy_(self.gain.now[slot])
            module.bias.copy_(self.shift.now[slot])
        _given(module.running_mean).copy_(self.mean.now[slot])
        _given(module.running_var).copy_(self.var.now[slot])
        _given(module.num_batches_tracked).fill_(self._started + self._steps)

    def stacks(self) -> list[Stacked]:
        """Return what moves along when a network is dropped."""
        own = [self.mean, self.var]
        return own if self.gain is None or self.shift is None else [*own, self.gain, self.shift]


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # the engine takes only layers that track statistics
    return tensor
