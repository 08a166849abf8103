"""Activations with hand-written derivatives, in place and batched over networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_aten = torch.ops.aten


@dataclass(frozen=True)
class Formula:
    """One activation and its derivative.

    Attributes:
        forward: ``z -> a``, in new memory.
        in_place: The same in z's memory; ``None`` where the derivative needs z.
        backward: ``(gradient, kept) -> gradient by z``, where ``kept`` is the output a if
            there is an ``in_place``, else the input z. May reuse the gradient's memory.
        exact: Whether each entry is computed alike wherever it lies in a tensor. Where
            torch's vectorised and scalar code round differently, the result of an entry
            depends on its position: such functions are applied one network at a time.
    """

    forward: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor] | None
    backward: Callable[[Tensor, Tensor], Tensor]
    exact: bool


def _relu(module: nn.Module) -> Formula:
    return Formula(
        torch.relu,
        torch.relu_,
        lambda g, a: _aten.threshold_backward.grad_input(g, a, 0, grad_input=g),
        exact=True,
    )


def _leaky_relu(module: nn.LeakyReLU) -> Formula:
    slope = float(module.negative_slope)
    if slope > 0:  # only then does the output's sign tell the input's
        return Formula(
            lambda z: nn.functional.leaky_relu(z, slope),
            lambda z: nn.functional.leaky_relu_(z, slope),
            lambda g, a: torch.where(a > 0, g, g * slope),
            exact=True,
        )
    return Formula(
        lambda z: nn.functional.leaky_relu(z, slope),
        None,
        lambda g, z: torch.where(z > 0, g, g * slope),
        exact=True,
    )


def _tanh(module: nn.Module) -> Formula:
    return Formula(torch.tanh, torch.tanh_, _aten.tanh_backward, exact=True)


def _sigmoid(module: nn.Module) -> Formula:
    return Formula(torch.sigmoid, torch.sigmoid_, _aten.sigmoid_backward, exact=False)


def _elu(module: nn.ELU) -> Formula:
    alpha = float(module.alpha)
    return Formula(
        lambda z: nn.functional.elu(z, alpha),
        None,
        lambda g, z: _aten.elu_backward(g, alpha, 1.0, 1.0, False, z),
        exact=False,
    )


def _gelu(module: nn.GELU) -> Formula:
    how = module.approximate
    return Formula(
        lambda z: nn.functional.gelu(z, approximate=how),
        None,
        lambda g, z: _aten.gelu_backward(g, z, approximate=how),
        exact=False,
    )


def _silu(module: nn.Module) -> Formula:
    return Formula(nn.functional.silu, None, _aten.silu_backward, exact=False)


def _softplus(module: nn.Softplus) -> Formula:
    beta, threshold = float(module.beta), float(module.threshold)
    return Formula(
        lambda z: nn.functional.softplus(z, beta, threshold),
        None,
        lambda g, z: _aten.softplus_backward(g, z, beta, threshold),
        exact=False,
    )


def _by_autograd(module: nn.Module) -> Formula:
    def forward(z: Tensor) -> Tensor:
        result: Tensor = module(z.clone() if getattr(module, "inplace", False) else z)
        return result

    def backward(gradient: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (found,) = torch.autograd.grad(forward(leaf), leaf, gradient)
        return found

    return Formula(forward, None, backward, exact=False)


#: Written by hand for speed and memory; what else is elementwise goes by autograd.
_FORMULAS: dict[type[nn.Module], Callable[..., Formula]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.ELU: _elu,
    nn.GELU: _gelu,
    nn.SiLU: _silu,
    nn.Softplus: _softplus,
}


def formula(module: nn.Module) -> Formula:
    """Return the formula of an elementwise module; by autograd where none is written here."""
    make = _FORMULAS.get(type(module), _by_autograd)
    return make(module)


class ActivationLayer:
    """A parameter-free elementwise layer."""

    def __init__(self, what: Formula, *, in_place: bool) -> None:
        self._what = what
        self._forward = (in_place and what.in_place) or what.forward
        self._kept: Tensor | None = None

    def forward(self, z: Tensor, train: bool) -> Tensor:
        """Map ``(networks, rows, width)`` entry by entry; in place only if ``train``."""
        if not train:
            return self._apply(self._what.forward, z)
        a = self._apply(self._forward, z)
        self._kept = z if self._what.in_place is None else a
        return a

    def backward(self, gradient: Tensor) -> Tensor:
        """Turn the gradient by the output into the gradient by the input."""
        assert self._kept is not None
        return self._apply(self._what.backward, gradient, self._kept)

    def _apply(self, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        """Apply ``function``, network by network where positions in memory matter."""
        if self._what.exact or arguments[0].device.type != "cpu":
            return function(*arguments)
        return torch.stack([function(*entries) for entries in zip(*arguments, strict=True)])
