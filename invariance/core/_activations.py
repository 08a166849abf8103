"""What is known of every elementwise function: the one table for all who ask.

Whether a function is piecewise linear decides if curvature has a closed form and if its units
have regions; whether it is positively homogeneous or odd decides which symmetries pass through
it. A function that is missing here is refused everywhere; to add one, add an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Activation:
    """An elementwise function of one tensor.

    Attributes:
        name: Its name in torch.
        kinks: Where its linear pieces meet, ascending; ``None`` if it is curved somewhere (or
            has endlessly many pieces).
        slopes: Slope of each piece, one more than kinks; empty if they are learned.
        right: For each kink, whether the slope *on* it is that of the piece to its right, as
            autograd has it; empty for the left one everywhere.
        homogeneous: ``f(a x) = a f(x)`` for every ``a > 0``.
        odd: ``f(-x) = -f(x)``.
        random: Whether it is random in train mode; the rest describes it in eval mode.
        modules: Its modules, by exact type.
        calls: Names under which functions, methods and ATen operations compute it.
        read: The entry for a module's own arguments, where they matter.
    """

    name: str
    kinks: tuple[float, ...] | None = None
    slopes: tuple[float, ...] = ()
    right: tuple[bool, ...] = ()
    homogeneous: bool = False
    odd: bool = False
    random: bool = False
    modules: tuple[type[nn.Module], ...] = ()
    calls: tuple[str, ...] = ()
    read: Callable[[Any], Activation] | None = None

    @property
    def piecewise_linear(self) -> bool:
        """Whether it has finitely many pieces, all linear."""
        return self.kinks is not None

    @property
    def identity(self) -> bool:
        """Whether it returns its argument."""
        return self.kinks == () and self.slopes == (1.0,)


def clipped(low: float | None, high: float | None) -> Activation:
    """Return ``min(max(x, low), high)``; ``None`` for a bound that is not there."""
    bounds = [bound for bound in (low, high) if bound is not None]
    slopes = (1.0,) if low is None else (0.0, 1.0)
    return Activation(
        "clamp",
        kinks=tuple(map(float, bounds)),
        slopes=slopes if high is None else (*slopes, 0.0),
        right=(False,) * (low is not None) + (True,) * (high is not None),
        homogeneous=all(bound == 0 for bound in bounds),
        odd=not bounds or (len(bounds) == 2 and bounds[0] == -bounds[1]),
    )


def thresholded(level: float, value: float) -> Activation:
    """Return ``x`` above ``level``, else ``value``."""
    return Activation("threshold", (level,), (0.0, 1.0), homogeneous=level == value == 0)


def _shrunk(width: float) -> Activation:
    """Return a function of slope 1 that is zero on ``[-width, width]``."""
    return Activation("shrink", (-width, width), (1.0, 0.0, 1.0), (True, False), odd=True)


def leaky(slope: float) -> Activation:
    """Return ``x`` above zero, else ``slope x``."""
    return Activation("leaky_relu", (0.0,), (slope, 1.0), homogeneous=True, odd=slope == 1)


def _of(known: Activation, name: str, *modules: type[nn.Module], **more: Any) -> Activation:
    """Return ``known`` under the name of a torch function."""
    return replace(known, name=name, modules=modules, calls=(name,), **more)


def _plain(names: str, **facts: Any) -> list[Activation]:
    return [Activation(name, calls=(name,), **facts) for name in names.split()]


_DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip

_LINEAR = Activation("identity", (), (1.0,), homogeneous=True, odd=True)

#: Every entry, for the arguments that torch has as defaults.
TABLE: tuple[Activation, ...] = (
    replace(_LINEAR, modules=(nn.Identity,)),
    replace(_LINEAR, name="dropout", modules=_DROPOUTS, random=True),
    # Piecewise linear.
    _of(leaky(0.0), "relu", nn.ReLU),
    _of(leaky(0.01), "leaky_relu", nn.LeakyReLU, read=lambda m: leaky(m.negative_slope)),
    _of(Activation("", (0.0,), homogeneous=True), "prelu", nn.PReLU),
    replace(
        _of(
            leaky((1 / 8 + 1 / 3) / 2),
            "rrelu",
            nn.RReLU,
            random=True,
            read=lambda m: leaky((m.lower + m.upper) / 2),
        ),
        calls=("rrelu", "rrelu_with_noise"),
    ),
    _of(clipped(0, 6), "relu6", nn.ReLU6, read=lambda m: clipped(m.min_val, m.max_val)),
    _of(clipped(-1, 1), "hardtanh", nn.Hardtanh, read=lambda m: clipped(m.min_val, m.max_val)),
    _of(
        replace(clipped(-3, 3), slopes=(0.0, 1 / 6, 0.0), odd=False), "hardsigmoid", nn.Hardsigmoid
    ),
    _of(_shrunk(0.5), "hardshrink", nn.Hardshrink, read=lambda m: _shrunk(m.lambd)),
    _of(_shrunk(0.5), "softshrink", nn.Softshrink, read=lambda m: _shrunk(m.lambd)),
    _of(
        thresholded(0, 0),
        "threshold",
        nn.Threshold,
        read=lambda m: thresholded(m.threshold, m.value),
    ),
    *_plain("neg negative", kinks=(), slopes=(-1.0,), homogeneous=True, odd=True),
    *_plain("abs absolute", kinks=(0.0,), slopes=(-1.0, 1.0), homogeneous=True),
    # Curved and odd.
    Activation("tanh", odd=True, modules=(nn.Tanh,), calls=("tanh",)),
    Activation("softsign", odd=True, modules=(nn.Softsign,), calls=("softsign",)),
    Activation("tanhshrink", odd=True, modules=(nn.Tanhshrink,), calls=("tanhshrink",)),
    *_plain("sin asin arcsin atan arctan erf sinh asinh sign round trunc", odd=True),
    # Curved, and neither.
    Activation("sigmoid", modules=(nn.Sigmoid,), calls=("sigmoid",)),
    Activation("gelu", modules=(nn.GELU,), calls=("gelu",)),
    Activation("silu", modules=(nn.SiLU,), calls=("silu",)),
    Activation("mish", modules=(nn.Mish,), calls=("mish",)),
    Activation("softplus", modules=(nn.Softplus,), calls=("softplus",)),
    Activation("elu", modules=(nn.ELU,), calls=("elu",)),
    Activation("selu", modules=(nn.SELU,), calls=("selu",)),
    Activation("celu", modules=(nn.CELU,), calls=("celu",)),
    Activation("hardswish", modules=(nn.Hardswish,), calls=("hardswish",)),
    Activation("logsigmoid", modules=(nn.LogSigmoid,), calls=("logsigmoid", "log_sigmoid")),
    *_plain("exp expm1 log log1p log2 log10 cos erfc floor ceil"),
)

#: By exact type of a module.
BY_MODULE: Mapping[type[nn.Module], Activation] = MappingProxyType(
    {module: entry for entry in TABLE for module in entry.modules}
)

#: By name of a function, without the underscores of its private and in-place forms.
BY_CALL: Mapping[str, Activation] = MappingProxyType(
    {call: entry for entry in TABLE for call in entry.calls}
)


def activation_of(module: nn.Module) -> Activation | None:
    """Return what is known of an activation module; ``None`` if it is none that we know.

    Example:
        >>> activation_of(nn.Hardtanh(-2, 2)).kinks
        (-2.0, 2.0)
        >>> activation_of(nn.Hardswish()).piecewise_linear
        False
    """
    known = BY_MODULE.get(type(module))
    if known is None or known.read is None:
        return known
    return replace(known.read(module), name=known.name, random=known.random)
