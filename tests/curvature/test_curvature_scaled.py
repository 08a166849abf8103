"""The trace of ``D H D``: exact where the diagonal is, else an estimate no rescaling moves.

Would catch: weights that are not squared, an exact part left out of the sum, an estimate
without a standard error, and one whose noise differs on both sides of a rescaling.
"""

from __future__ import annotations

import pytest
import torch
from curvature_cases import CASES
from dense_reference import dense_blocks

from invariance import models
from invariance.core._errors import MeasureError
from invariance.curvature._trace_diagonal import exact_parameters
from invariance.curvature.products._scaled import scaled_trace
from invariance.measures import adaptive_trace, minimum_sharpness
from invariance.symmetry import symmetries
from invariance.symmetry._structures import SymmetryKind
from invariance.transforms import NeuronScaling

SMALL = ("attention", "tied", "layer-norm")


def truth_of(case, scales):
    model, x, y = case.build()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        blocks = dense_blocks(model, x, y, case.reference_loss)
    return {
        name: (scales[name].double().square().flatten() * blocks[name, name].diagonal())
        .sum()
        .item()
        for name in scales
    }


@pytest.mark.parametrize("case", [c for c in CASES if c.architecture in SMALL], ids=lambda c: c.id)
def test_it_is_the_sum_of_squared_scales_times_the_diagonal(case):
    model, x, y = case.build()
    draws = torch.Generator().manual_seed(0)
    scales = {
        name: torch.randn(value.shape, generator=draws, dtype=torch.float64)
        for name, value in model.named_parameters()
    }
    truth = truth_of(case, scales)
    found = scaled_trace(model, x, y, scales=scales, loss=case.loss)
    assert found.exact
    assert found.stderr == 0
    assert dict(found.parts) == pytest.approx(truth, rel=1e-8, abs=1e-10)
    assert float(found) == pytest.approx(sum(truth.values()), rel=1e-8)
    guess = scaled_trace(model, x, y, scales=scales, loss=case.loss, max_products=0, budget=8)
    assert not guess.exact
    assert guess.stderr > 0
    assert abs(float(guess) - float(found)) < 6 * guess.stderr
    known, rest = exact_parameters(model, x, y, max_products=0)
    assert {*known, *rest} == set(truth)
    for name in known:  # what the sweep knows stays exact
        assert guess.parts[name] == pytest.approx(truth[name], rel=1e-8, abs=1e-10)


def test_an_estimate_of_the_adaptive_trace_stays_put_when_a_transformer_is_rescaled():
    model = models.vit(
        in_channels=1, image_size=8, patch=4, width=16, depth=1, heads=2, hidden=32,
        n_classes=3, flat_input=True, seed=0, dtype=torch.float64,
    ).eval()  # fmt: skip
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(12, 64, generator=draws, dtype=torch.float64)
    y = torch.arange(12) % 3
    groups = symmetries(model, x).of(SymmetryKind.SCALING)
    assert groups
    factors = [(torch.rand(g.size, generator=draws) * 3 + 0.1).tolist() for g in groups]
    other = NeuronScaling(factors=factors)(model, x)
    assert max((a - b).abs().max() for a, b in zip(model.parameters(), other.parameters(),
                                                   strict=True)) > 1  # fmt: skip
    before, after = adaptive_trace(model, x, y), adaptive_trace(other, x, y)
    assert not before.exact
    assert before.stderr > 0
    assert float(after) == pytest.approx(float(before), rel=1e-8)
    assert after.stderr == pytest.approx(before.stderr, rel=1e-6)


def test_minimum_sharpness_refuses_a_transformer_before_it_computes():
    model = models.vit(
        in_channels=1, image_size=8, patch=4, width=16, depth=2, heads=2, hidden=32,
        n_classes=3, activation="relu", flat_input=True, seed=0, dtype=torch.float64,
    ).eval()  # fmt: skip
    x = torch.rand(64, 64, dtype=torch.float64)
    with pytest.raises(MeasureError, match=r"can only be estimated") as refusal:
        minimum_sharpness(model, x, torch.arange(64) % 3)
    assert "1,024" in str(refusal.value)
    assert "weight" in str(refusal.value)
