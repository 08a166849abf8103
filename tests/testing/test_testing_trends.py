"""Would catch: a power or a sum of powers named wrongly, or named where there is none."""

from __future__ import annotations

import math

import pytest

from invariance.testing import fit_trend
from invariance.testing.blame._trends import FACTORS


def trend(function):
    return fit_trend("layer", FACTORS, [function(a) for a in FACTORS])


@pytest.mark.parametrize("power", [-4, -2, -1, -0.5, 0.5, 1, 2, 3, 1.7])
@pytest.mark.parametrize("sign", [1, -1])
def test_pure_power(power, sign):
    found = trend(lambda a: sign * 3.7 * a**power)
    assert found.exponent == pytest.approx(power, abs=1e-9)
    assert not found.terms
    assert f"alpha^{power:.2f}" in str(found)


def test_constant_is_flat():
    assert trend(lambda a: 2.0).flat
    assert not trend(lambda a: 2.0 * a).flat


@pytest.mark.parametrize(
    "terms",
    [
        {-2: 3.0, 0: 1.0, 2: 0.5},
        {-1: 2.0, 0: 5.0},
        {-2: 1.0, -1: 2.0, 0: 3.0},
        {0: 4.0, 2: 1e-3},
        {-1: 1.0, 1: 1.0},
    ],
)
def test_sum_of_powers(terms):
    found = trend(lambda a: sum(c * a**k for k, c in terms.items()))
    assert found.exponent is None
    assert dict(found.terms) == pytest.approx(terms, rel=1e-6)


def test_neither():
    found = trend(lambda a: math.exp(math.sin(3 * a)))
    assert found.exponent is None
    assert not found.terms
    assert "no power" in str(found)
    assert found.hint == ""


def test_zero_values_are_no_power():
    assert trend(lambda a: max(0.0, a - 1)).exponent is None


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda a: a, "did you mean |w|^2"),
        (lambda a: 1 / a, "did you mean |w|^2"),
        (lambda a: a**-2, "curvature without its |w|^2"),
        (lambda a: a**0.5, "square root"),
        (lambda a: 1 / a**2 + 3 + a**2, "Tr H = A / alpha^2 + C + B alpha^2"),
        (lambda a: 1 / a**2 + 2 / a + 3, "epsilon, or eta"),
        (lambda a: 1 / a**2 + 3, "compensated"),
        (lambda a: 1 / a + 2 + 3 * a, "multiplied"),
    ],
)
def test_hints_name_the_known_mistake(function, words):
    assert words in trend(function).hint
