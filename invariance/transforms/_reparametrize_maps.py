"""Charts: ways to write one weight tensor in other coordinates.

A chart builds, for a given tensor, a module with ``forward(eta) -> theta`` and
``right_inverse(theta) -> eta``, as :mod:`torch.nn.utils.parametrize` wants it. Both are
smooth, so derivatives of any order pass through ``forward``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from invariance.core._errors import TransformError


class Coordinates(ABC):
    """A family of charts, one for each weight tensor."""

    @abstractmethod
    def chart(self, name: str, tensor: Tensor) -> nn.Module:
        """Build the chart of one tensor.

        Args:
            name: The tensor's qualified name, for error messages.
            tensor: Its present value, which the chart must be able to express.

        Returns:
            A module with ``forward`` and ``right_inverse``.

        Raises:
            TransformError: If the tensor lies outside the chart.
        """


@dataclass(frozen=True)
class WeightNorm(Coordinates):
    """Rows as length times direction, ``w = g v / |v|`` (Salimans and Kingma, 2016).

    Not a bijection: the length of ``v`` is free. It starts as the length of the row.
    """

    def chart(self, name: str, tensor: Tensor) -> nn.Module:
        """Build the chart; refuses vectors and rows of zeros, which have no direction."""
        if tensor.dim() < 2:
            raise TransformError(
                f"Weight normalisation needs rows, so at least 2 dimensions. Got {name!r} of "
                f"shape {tuple(tensor.shape)}: name only weights of weight layers."
            )
        zero = (tensor.flatten(1).abs().amax(1) == 0).nonzero().flatten().tolist()
        if zero:
            raise TransformError(
                f"Weight normalisation writes a row as g v / |v|, but row {zero[0]} of {name!r} "
                "is zero and has no direction. Remove that unit first (reduce_width)."
            )
        return _RowNorm()


@dataclass(frozen=True)
class ExpLog(Coordinates):
    """Logarithms of the absolute values, ``w = sign * exp(eta)``, with the signs fixed."""

    def chart(self, name: str, tensor: Tensor) -> nn.Module:
        """Build the chart; refuses tensors with zeros, whose logarithm does not exist."""
        zeros = int((tensor == 0).sum())
        if zeros:
            raise TransformError(
                f"Exponential coordinates need weights other than zero. Got {zeros} zeros in "
                f"{name!r}: leave it out with only=(...)."
            )
        return _SignedExp(tensor)


@dataclass(frozen=True)
class Dinh(Coordinates):
    """The radial map ``eta = (|w - c|^2 + offset)^power (w - c)``, one norm per tensor.

    Dinh, Pascanu, Bengio and Bengio, "Sharp Minima Can Generalize For Deep Nets" (2017),
    section 5: at ``w = c`` the Hessian is multiplied by ``offset^(-2 power)``, so with the
    centre at a minimum it can be made as sharp or as flat as one likes.

    Attributes:
        power: ``a > -1/2``, so that the map is a bijection of the whole space.
        offset: ``b > 0``.
        center: ``"origin"``, or ``"here"`` for the tensor's present value.
    """

    power: float = 0.5
    offset: float = 1.0
    center: Literal["origin", "here"] = "origin"

    def __post_init__(self) -> None:
        if not (self.power > -0.5 and self.offset > 0):
            raise TransformError(
                "Dinh's map is a bijection only for power > -1/2 and offset > 0. "
                f"Got power={self.power}, offset={self.offset}."
            )
        if self.center not in ("origin", "here"):
            raise TransformError(f"center must be 'origin' or 'here'. Got {self.center!r}.")

    def chart(self, name: str, tensor: Tensor) -> nn.Module:
        """Build the chart; it exists for every tensor."""
        del name
        here = self.center == "here"
        return _Radial(self.power, self.offset, tensor if here else torch.zeros_like(tensor))


@dataclass(frozen=True)
class Diffeomorphism(Coordinates):
    """A user's own smooth map.

    Attributes:
        decode: ``eta -> w``, differentiable by autograd, of one tensor to one tensor.
        encode: ``w -> eta``, its inverse.
    """

    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        decode, encode = (getattr(f, "__qualname__", repr(f)) for f in (self.decode, self.encode))
        return f"Diffeomorphism({decode}, {encode})"

    def chart(self, name: str, tensor: Tensor) -> nn.Module:
        """Build the chart; refuses maps that do not lead back to the tensor."""
        chart = _Custom(self.decode, self.encode)
        with torch.no_grad():
            back = self.decode(self.encode(tensor))
        scale = float(tensor.abs().max()) if tensor.numel() else 0.0
        tolerance = 1e3 * torch.finfo(tensor.dtype).eps * max(scale, 1e-30)
        if back.shape != tensor.shape or not bool(((back - tensor).abs() <= tolerance).all()):
            raise TransformError(
                f"decode(encode(w)) must give back w = {name!r}. Got another tensor: the two "
                "functions are not inverse to each other there."
            )
        return chart


class _RowNorm(nn.Module):
    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / _row_norm(v))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _row_norm(weight), weight.clone()


def _row_norm(tensor: Tensor) -> Tensor:
    """Return the norm of each row, ``(out, 1, ...)``."""
    return tensor.square().sum(dim=tuple(range(1, tensor.dim())), keepdim=True).sqrt()


class _SignedExp(nn.Module):
    sign: Tensor

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("sign", torch.sign(tensor.detach()))

    def forward(self, eta: Tensor) -> Tensor:
        return self.sign * torch.exp(eta)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.abs().log()


class _Radial(nn.Module):
    center: Tensor

    def __init__(self, power: float, offset: float, center: Tensor) -> None:
        super().__init__()
        self.power, self.offset = power, offset
        self.register_buffer("center", center.detach().clone())

    def forward(self, eta: Tensor) -> Tensor:
        s = self._radius_squared(eta.square().sum())
        return self.center + eta * (s + self.offset) ** (-self.power)

    def right_inverse(self, weight: Tensor) -> Tensor:
        moved = weight - self.center
        return moved * (moved.square().sum() + self.offset) ** self.power

    def _radius_squared(self, q: Tensor) -> Tensor:
        """Solve ``s (s + b)^(2a) = q`` for ``s = |w - c|^2``, differentiably."""
        a, b = self.power, self.offset
        with torch.no_grad():
            # In t = log s the equation is monotone and convex or concave: Newton from
            # anywhere converges; a fixed count keeps it free of data-dependent control flow.
            goal = q.clamp_min(torch.finfo(q.dtype).tiny).log()
            t = goal - 2 * a * math.log(b)
            for _ in range(50):
                share = torch.exp(t) / (torch.exp(t) + b)
                t = t - (t + 2 * a * torch.log(torch.exp(t) + b) - goal) / (1 + 2 * a * share)
            s = torch.where(q > 0, torch.exp(t), torch.zeros_like(t))
        # Newton steps from the root keep its value, and give its derivatives: the first of
        # order one, the second of orders up to three.
        for _ in range(2):
            value = s * (s + b) ** (2 * a) - q
            s = s - value / ((s + b) ** (2 * a - 1) * (s + b + 2 * a * s))
        return s


class _Custom(nn.Module):
    def __init__(
        self, decode: Callable[[Tensor], Tensor], encode: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.decode, self.encode = decode, encode

    def forward(self, eta: Tensor) -> Tensor:
        return self.decode(eta)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self.encode(weight)
