"""One pass must not miss a NaN, nor take an overflowing sum for one."""

from __future__ import annotations

import math

import pytest
import torch

from invariance.core._modules import all_finite


@pytest.mark.parametrize(
    ("entries", "verdict"),
    [
        ([1.0, -2.0], True),
        ([3e38] * 8, True),  # the sum overflows float32, no entry is infinite
        ([1.0, math.nan], False),
        ([math.inf, -math.inf], False),
        ([-math.inf, 1.0], False),
        ([], True),
    ],
)
def test_floats(entries, verdict):
    assert all_finite(torch.tensor(entries, dtype=torch.float32)) is verdict


def test_integers_and_complex_numbers():
    assert all_finite(torch.tensor([2**62, 2**62, 2**62]))
    assert not all_finite(torch.tensor([complex(0, math.inf)]))
