"""The scaling problem: would catch a wrong sign, a missed leg, a false minimum."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from invariance.core._errors import MeasureError
from invariance.core._rng import generator
from invariance.symmetry.balance._scalings import ScalingDesign, ScalingLeg, minimise_over_scalings


def chain(sizes: list[int], seed: int = 0) -> tuple[dict[str, Tensor], ScalingDesign]:
    """Positive weights of an MLP with biases, spread over decades, and its unit scalings."""
    draw = generator(seed, "chain")
    weights, legs, units, previous = {}, [], 0, None
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        row = torch.exp(2 * torch.randn(fan_out, 1, generator=draw, dtype=torch.float64))
        shape = (fan_out, fan_in)
        weights[f"w{layer}"] = row * torch.rand(shape, generator=draw, dtype=torch.float64)
        weights[f"b{layer}"] = torch.rand(fan_out, generator=draw, dtype=torch.float64)
        if previous is not None:
            legs.append(ScalingLeg(f"w{layer}", previous[None, :], -1))
        if layer < len(sizes) - 2:
            previous = torch.arange(units, units + fan_out)
            units += fan_out
            legs.append(ScalingLeg(f"w{layer}", previous[:, None], 1))
            legs.append(ScalingLeg(f"b{layer}", previous, 1))
    return weights, ScalingDesign(units, tuple(legs))


def objective(weights: dict[str, Tensor], design: ScalingDesign, u: Tensor, power: float) -> Tensor:
    """The sum from its definition, entry by entry."""
    terms = [
        (h * torch.exp(power * design.exponents(name, u, h.shape))).sum()
        for name, h in weights.items()
    ]
    return torch.stack(terms).sum()


@pytest.mark.parametrize("power", [-2.0, 2.0, 1.0])
@pytest.mark.parametrize("sizes", [[3, 4, 2], [5, 7, 6, 4], [2, 3, 1, 3, 2]])
def test_agrees_with_a_general_optimiser(sizes: list[int], power: float) -> None:
    weights, design = chain(sizes, seed=len(sizes))
    result = minimise_over_scalings(weights, design, power=power)

    def value_and_slope(u: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(u, requires_grad=True)
        value = objective(weights, design, point, power)
        (slope,) = torch.autograd.grad(value, point)
        return float(value.detach()), slope.numpy()

    start = np.zeros(design.units)
    reference = minimize(value_and_slope, start, jac=True, method="BFGS", options={"gtol": 1e-7})
    assert result.converged
    assert result.attained
    assert result.value == pytest.approx(reference.fun, rel=1e-9)
    assert result.log_scales.numpy() == pytest.approx(reference.x, abs=1e-4)
    at_result = objective(weights, design, result.log_scales, power)
    assert float(at_result) == pytest.approx(result.value, rel=1e-13)
    _, slope = value_and_slope(result.log_scales.numpy())
    assert np.abs(slope).max() <= 1e-11 * result.value


def test_two_layers_have_the_closed_form() -> None:
    """Theory sheet, section 3: two layers give ``2 sum_j sqrt(in_j out_j)`` plus constants."""
    weights, design = chain([6, 50, 3])
    result = minimise_over_scalings(weights, design)
    incoming = weights["w0"].sum(1) + weights["b0"]
    outgoing = weights["w1"].sum(0)
    expected = 2 * (incoming * outgoing).sqrt().sum() + weights["b1"].sum()
    assert result.value == pytest.approx(float(expected), rel=1e-13)
    scales = 0.25 * (incoming / outgoing).log()
    torch.testing.assert_close(result.log_scales, scales, rtol=0, atol=1e-12)


def test_one_scale_per_layer_without_biases_is_the_geometric_mean() -> None:
    """Theory sheet: minimum sharpness over layer scalings is L (prod Tr_l)^(1/L)."""
    draw = generator(3, "layers")
    sizes = [4, 5, 6, 2]
    weights, legs = {}, []
    for layer in range(3):
        shape = (sizes[layer + 1], sizes[layer])
        weights[f"w{layer}"] = torch.rand(shape, generator=draw, dtype=torch.float64) * 10**layer
        if layer < 2:
            legs.append(ScalingLeg(f"w{layer}", torch.tensor([[layer]]), 1))
        if layer > 0:
            legs.append(ScalingLeg(f"w{layer}", torch.tensor([[layer - 1]]), -1))
    result = minimise_over_scalings(weights, ScalingDesign(2, tuple(legs)))
    product = np.prod([float(h.sum()) for h in weights.values()])
    assert result.value == pytest.approx(3 * product ** (1 / 3), rel=1e-12)


def test_the_value_does_not_depend_on_the_start() -> None:
    weights, design = chain([5, 7, 6, 4])
    before = minimise_over_scalings(weights, design)
    u = 4 * torch.randn(design.units, generator=generator(1, "u"), dtype=torch.float64)
    moved = {
        name: h * torch.exp(-2 * design.exponents(name, u, h.shape)) for name, h in weights.items()
    }
    after = minimise_over_scalings(moved, design)
    assert after.value == pytest.approx(before.value, rel=1e-12)
    torch.testing.assert_close(after.log_scales + u, before.log_scales, rtol=0, atol=1e-10)


def test_conv_like_legs_sum_over_what_scales_alike() -> None:
    """A conv kernel (out, in, 3, 3) counts through its sum over positions."""
    draw = generator(0, "conv")
    first = torch.rand(4, 2, 3, 3, generator=draw, dtype=torch.float64)
    second = torch.rand(3, 4 * 5, generator=draw, dtype=torch.float64)  # behind a flatten
    unit = torch.arange(4)
    legs = (
        ScalingLeg("conv", unit.reshape(4, 1, 1, 1), 1),
        ScalingLeg("fc", unit.repeat_interleave(5)[None, :], -1),
    )
    result = minimise_over_scalings({"conv": first, "fc": second}, ScalingDesign(4, legs))
    incoming, outgoing = first.sum((1, 2, 3)), second.reshape(3, 4, 5).sum((0, 2))
    assert result.value == pytest.approx(float(2 * (incoming * outgoing).sqrt().sum()), rel=1e-13)


class TestUnitsWithoutMinimum:
    """Entries that scaling can drive to zero count as zero; the scale follows a rule."""

    def dead(self) -> tuple[dict[str, Tensor], ScalingDesign]:
        weights, design = chain([5, 7, 6, 4])
        weights["w0"][4] = 0.0  # incoming weights of one unit
        weights["b0"][4] = 0.0
        weights["w1"][:, 2] = 0.0  # outgoing weights of another
        weights["w2"][:, 1] = 0.0
        return weights, design

    def test_the_value_is_the_infimum(self) -> None:
        weights, design = self.dead()
        result = minimise_over_scalings(weights, design)
        assert not result.attained
        assert result.objective > result.value
        # Without those units altogether, the minimum is attained and equal.
        keep0, keep1 = torch.tensor([0, 1, 3, 5, 6]), torch.tensor([0, 2, 3, 4, 5])
        small, small_design = chain([5, 5, 5, 4])
        small["w0"], small["b0"] = weights["w0"][keep0], weights["b0"][keep0]
        small["w1"], small["b1"] = weights["w1"][keep1][:, keep0], weights["b1"][keep1]
        small["w2"], small["b2"] = weights["w2"][:, keep1], weights["b2"]
        reference = minimise_over_scalings(small, small_design)
        assert reference.attained
        assert result.value == pytest.approx(reference.value, rel=1e-12)
        kept = torch.cat([keep0, 7 + keep1])
        torch.testing.assert_close(
            result.log_scales[kept], reference.log_scales, rtol=0, atol=1e-11
        )

    def test_the_rule_is_invariant(self) -> None:
        weights, design = self.dead()
        u = 3 * torch.randn(design.units, generator=generator(5, "u"), dtype=torch.float64)
        results = []
        for shift in (torch.zeros_like(u), u):
            moved = {
                name: h * torch.exp(-2 * design.exponents(name, shift, h.shape))
                for name, h in weights.items()
            }
            result = minimise_over_scalings(moved, design)
            results.append(result.log_scales + shift)
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-10)

    def test_a_unit_that_nothing_touches_stays(self) -> None:
        weights, design = chain([2, 3, 2])
        for name in ("w0", "b0"):
            weights[name][1] = 0.0
        weights["w1"][:, 1] = 0.0
        assert float(minimise_over_scalings(weights, design).log_scales[1]) == 0.0


class TestBeyondDifferences:
    """Designs in which an entry takes other combinations, as keys of an attention do."""

    def turned(self, design: ScalingDesign) -> ScalingDesign:
        """Count the first three units downwards: the same problem, two minus signs an entry."""
        legs = []
        for leg in design.legs:
            low = (leg.unit >= 0) & (leg.unit < 3)
            legs.append(ScalingLeg(leg.parameter, torch.where(low, leg.unit, -1), -leg.sign))
            legs.append(ScalingLeg(leg.parameter, torch.where(low, -1, leg.unit), leg.sign))
        return ScalingDesign(design.units, tuple(legs))

    @pytest.mark.parametrize("power", [-2.0, 2.0])
    def test_same_as_differences_after_renaming(self, power: float) -> None:
        weights, design = chain([5, 7, 6, 4])
        plain = minimise_over_scalings(weights, design, power=power)
        general = minimise_over_scalings(weights, self.turned(design), power=power)
        assert general.converged
        assert general.attained
        assert general.value == pytest.approx(plain.value, rel=1e-13)
        expected = plain.log_scales.clone()
        expected[:3] *= -1
        torch.testing.assert_close(general.log_scales, expected, rtol=0, atol=1e-11)

    def test_same_where_the_infimum_is_not_attained(self) -> None:
        weights, design = TestUnitsWithoutMinimum().dead()
        plain = minimise_over_scalings(weights, design)
        general = minimise_over_scalings(weights, self.turned(design))
        assert not general.attained
        assert general.value == pytest.approx(plain.value, rel=1e-12)
        assert general.objective == pytest.approx(plain.objective, rel=1e-10)

    def test_higher_powers_against_a_general_optimiser(self) -> None:
        draw = generator(4, "powers")
        weights = {
            name: torch.rand(4, 3, generator=draw, dtype=torch.float64) + 0.1 for name in "abc"
        }
        row, column = torch.arange(4)[:, None], torch.arange(3)[None, :]
        design = ScalingDesign(
            4,
            (
                ScalingLeg("a", row, 2),
                ScalingLeg("a", column, 1),
                ScalingLeg("b", row, -1),
                ScalingLeg("c", column, -3),
                ScalingLeg("c", torch.full((1, 1), 3), -1),
            ),
        )
        result = minimise_over_scalings(weights, design)
        assert result.converged

        def value(u: np.ndarray) -> tuple[float, np.ndarray]:
            point = torch.tensor(u, requires_grad=True)
            total = objective(weights, design, point, -2.0)
            return float(total.detach()), torch.autograd.grad(total, point)[0].numpy()

        reference = minimize(value, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-7})
        assert result.value == pytest.approx(reference.fun, rel=1e-9)
        assert np.abs(value(result.log_scales.numpy())[1]).max() < 1e-10 * result.value


def test_wide_and_deep_networks_converge() -> None:
    for sizes in ([64, 900, 900, 10], [10, *[8] * 40, 10]):
        weights, design = chain(sizes)
        result = minimise_over_scalings(weights, design)
        assert result.converged
        assert result.residual <= 1e-12


def test_malformed_input_is_refused() -> None:
    weights, design = chain([3, 4, 2])
    with pytest.raises(MeasureError, match="non-negative finite weights for 'w0'"):
        minimise_over_scalings({**weights, "w0": weights["w0"] - 100.0}, design)
    with pytest.raises(MeasureError, match="non-negative finite weights for 'b1'"):
        minimise_over_scalings({**weights, "b1": weights["b1"] * torch.nan}, design)
    with pytest.raises(MeasureError, match="no such entry"):
        minimise_over_scalings({"w0": weights["w0"]}, design)
    with pytest.raises(MeasureError, match="power other than zero"):
        minimise_over_scalings(weights, design, power=0.0)
    wrong = ScalingDesign(4, (ScalingLeg("w0", torch.arange(3), 1),))
    with pytest.raises(MeasureError, match="broadcasts against it"):
        minimise_over_scalings(weights, wrong)
