"""How a value moves with the factor of a scaling: a power, a sum of powers, or neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: Factors at which a trend is sampled: powers of two, so the outputs stay bitwise equal.
FACTORS = tuple(2.0**k for k in range(-4, 5))

#: Integer powers that a sum of powers may use. Second derivatives bring -2 and 2; products
#: of a norm with them, or norms of two layers, up to 4.
POWERS = (-4, -3, -2, -1, 0, 1, 2, 3, 4)

#: A fit must reproduce every sample to this relative error to be called exact.
EXACT = 1e-6

#: A single power is still worth naming if it explains log-values to this residual.
ROUGH = 0.02

#: A term counts if it makes up this share of the value at some sample.
SHARE = 1e-6


@dataclass(frozen=True)
class Trend:
    """How a measure moves along one scaling.

    Attributes:
        site: Where the scaling acts.
        factors: ``(m,)`` the factors alpha.
        values: ``(m,)`` the measure's values.
        exponent: The power of alpha if one power describes the values, else ``None``.
        spread: Largest residual of the power's fit in the logarithm.
        terms: Power to coefficient, if a sum of integer powers describes them exactly.
    """

    site: str
    factors: tuple[float, ...]
    values: tuple[float, ...]
    exponent: float | None
    spread: float
    terms: Mapping[int, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))

    def __reduce__(self) -> tuple[Any, ...]:
        # MappingProxyType does not pickle; rebuild from a plain dictionary.
        fit = (self.site, self.factors, self.values, self.exponent, self.spread)
        return (type(self), (*fit, dict(self.terms)))

    @property
    def flat(self) -> bool:
        """True if the value does not move."""
        return self.exponent is not None and abs(self.exponent) < 1e-9

    def __str__(self) -> str:
        if self.exponent is not None:
            about = "" if self.spread <= EXACT else "about "
            return f"moves as {about}alpha^{self.exponent:.2f}"
        if self.terms:
            return f"moves as {_formula(self.terms)}"
        low, high = min(self.values), max(self.values)
        return f"follows no power of alpha: from {low:.4g} to {high:.4g}"

    @property
    def hint(self) -> str:
        """What a known mistake with this trend is, as a question; ``""`` if none is known."""
        return _hint(self)


def fit_trend(site: str, factors: Sequence[float], values: Sequence[float]) -> Trend:
    """Fit one power of alpha, and failing that a sum of integer powers.

    Args:
        site: Where the scaling acts.
        factors: At least three positive factors.
        values: The measure's finite values there.

    Returns:
        The trend.

    Example:
        >>> trend = fit_trend("linear1", [2.0, 3.0, 4.0], [0.25, 1 / 9, 1 / 16])
        >>> round(trend.exponent, 9)
        -2.0
    """
    a, v = np.asarray(factors, dtype=np.float64), np.asarray(values, dtype=np.float64)
    exponent, spread = _power(a, v)
    terms = {} if exponent is not None and spread <= EXACT else _sum_of_powers(a, v)
    if terms:
        exponent = None
    return Trend(
        site=site,
        factors=tuple(map(float, a)),
        values=tuple(map(float, v)),
        exponent=exponent,
        spread=spread,
        terms=terms,
    )


def _power(a: FloatArray, v: FloatArray) -> tuple[float | None, float]:
    """Fit ``log |v| = slope log a + constant``; ``None`` if that does not describe it."""
    if np.all(v == v[0]):
        return 0.0, 0.0
    if np.any(v == 0) or len(set(np.sign(v))) > 1:
        return None, math.inf
    x, y = np.log(a), np.log(np.abs(v))
    slope, constant = np.polyfit(x, y, 1)
    spread = float(np.abs(y - slope * x - constant).max())
    if spread > ROUGH:
        return None, spread
    # A value that hardly moves and one that moves by a tiny power look alike; only a slope
    # well above its own residual is one.
    if abs(slope) * float(x.max() - x.min()) < 4 * spread:
        return None, spread
    rounded = float(round(slope))
    return (rounded if abs(slope - rounded) < EXACT else float(slope)), spread


def _sum_of_powers(a: FloatArray, v: FloatArray) -> dict[int, float]:
    """Fit ``v = sum_k c_k a^k``, smallest set of powers first; empty if none is exact."""
    scale = np.abs(v).max()
    if scale == 0 or np.any(v == 0):
        return {}
    for powers in ((-2, 0, 2), (-1, 0, 1), (-2, -1, 0, 1, 2), POWERS[1:-1]):
        if len(powers) >= len(a):
            continue
        # Relative errors: every sample counts alike, although the values span decades.
        design = np.stack([a**k / np.abs(v) for k in powers], axis=1)
        norms = np.linalg.norm(design, axis=0)
        solution, *_ = np.linalg.lstsq(design / norms, np.sign(v), rcond=None)
        coefficients = solution / norms
        if np.abs(design @ coefficients - np.sign(v)).max() > EXACT:
            continue
        share = np.abs(design * coefficients).max(axis=0)
        return {
            k: float(c) for k, c, s in zip(powers, coefficients, share, strict=True) if s > SHARE
        }
    return {}


def _formula(terms: Mapping[int, float]) -> str:
    written: list[str] = []
    for power, coefficient in terms.items():
        size = f"{abs(coefficient):.4g}"
        alpha = {0: "", 1: " alpha", -1: " / alpha"}.get(
            power, f" alpha^{power}" if power > 0 else f" / alpha^{-power}"
        )
        sign = " - " if coefficient < 0 else (" + " if written else "")
        written.append(f"{sign}{size}{alpha}")
    return "".join(written).strip()


def _hint(trend: Trend) -> str:
    if trend.exponent is not None:
        return _power_hint(trend.exponent)
    powers = set(trend.terms)
    if powers == {-1, 0, 1}:
        return "are layers' norms added where they should be multiplied?"
    odd = {power for power in powers if power % 2}
    if odd and 0 in powers:
        return (
            "a constant plus odd powers: is something added to |theta| (an epsilon, or eta), or "
            "is |w| written for |w|^2 in one of several terms?"
        )
    if powers in ({-2, 0}, {0, 2}):
        return (
            "a part of it is compensated and a part is not: is one kind of parameter (biases, "
            "BatchNorm, one layer) left without its |w|^2?"
        )
    if powers and powers <= {-4, -2, 0, 2, 4}:
        return (
            "a sum over layers whose terms scale oppositely, as a raw Hessian trace or norm does "
            "(Tr H = A / alpha^2 + C + B alpha^2): did you mean to weight each layer's term with "
            "its own |w|^2, or to multiply the layers' norms instead of adding them?"
        )
    return ""


def _power_hint(exponent: float) -> str:
    size = abs(exponent)
    if abs(size - 1) < 0.02:
        return "did you mean |w|^2? One more factor of |w| (or of its inverse) would cancel it."
    if abs(size - 2) < 0.02:
        return (
            "is it curvature without its |w|^2, or |w|^2 without its curvature? Their product "
            "does not move."
        )
    if abs(size - 0.5) < 0.02:
        return "is there a square root on one factor only?"
    if size > 2.02 and abs(size - round(size)) < 0.02:
        return "is a factor of |w| squared twice, or counted for several layers?"
    return ""
