"""The sampled root: unbiased as an identity over all sign patterns, honest in its error."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from curvature_cases import CLASSES, Case, dense_hessian, dense_jacobian
from torch import nn

import invariance as inv
from invariance.core._errors import MeasureError, UsageError
from invariance.core._rng import generator
from invariance.curvature._trace_diagonal import Sampling, _whole_trace, prepare
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, Wants
from invariance.curvature.losses import _base, _elementwise, _resolve
from invariance.curvature.losses._base import Draws
from invariance.curvature.losses._resolve import softmax_mix


def all_patterns(width: int) -> torch.Tensor:
    """All sign patterns, ``(width, 2^width)``."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=width))).T


def every_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every row draw each pattern once, instead of some at random."""

    def draw(shape, like, draws):
        patterns = all_patterns(shape[1]).to(like)
        assert shape[2] == patterns.shape[1]
        return patterns.expand(shape)

    for module in (_base, _elementwise, _resolve):
        monkeypatch.setattr(module, "draw_signs", draw)


def indefinite(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A loss whose Hessians in the outputs have both signs."""
    bent = torch.sin(2 * outputs) * outputs.roll(1, 1)
    return (outputs.square() + bent).sum(1).mean()


def wide(classes: int, rows: int, dtype=torch.float64):
    """A perceptron with many classes, and its data."""
    model = inv.models.mlp([6, 9, classes], seed=1).to(dtype).eval()
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 6, generator=draws, dtype=torch.float64).to(dtype)
    return model, 2 * x, torch.randint(0, classes, (rows,), generator=draws)


def image_net(classes: int, activation: type[nn.Module] = nn.ReLU):
    """A convolutional network with many classes, and its data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            activation(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(27, classes),
        )
    draws = torch.Generator().manual_seed(4)
    x = torch.randn(40, 1, 6, 6, generator=draws, dtype=torch.float64)
    return model.double().eval(), x, torch.randint(0, classes, (40,), generator=draws)


class TestMix:
    def test_all_patterns_give_the_covariance(self):
        logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        mix = softmax_mix(logits, all_patterns(5).double().expand(4, 5, 32)) / 32**0.5
        p = logits.softmax(1)
        truth = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        assert torch.allclose(mix @ mix.mT, truth, rtol=0, atol=1e-15)

    def test_a_confident_network_loses_no_digits_in_float32(self):
        logits = torch.tensor([[40.0, 0.0, -3.0]])
        mix = softmax_mix(logits, all_patterns(3).expand(1, 3, 8)) / 8**0.5
        p = logits.double().softmax(1)
        rest = p[0, 1] + p[0, 2]
        assert float((mix[0, 0].double() ** 2).sum()) == pytest.approx(float(rest * p[0, 0]), 1e-5)
        assert float((mix[0, 1].double() ** 2).sum()) == pytest.approx(float(p[0, 1]), 1e-5)


@pytest.mark.parametrize("loss", ["cross-entropy", "weighted", "soft-labels", "mse", "log-cosh"])
@pytest.mark.parametrize("architecture", ["relu", "batch-norm", "conv-max-pool", "residual-concat"])
def test_the_mean_over_all_patterns_is_the_exact_sweep(monkeypatch, architecture, loss):
    case = Case(architecture, loss)
    model, x, y = case.build()
    prepared = prepare(model, x, y, case.loss, None)
    scales = {name: p.detach() + 0.3 for name, p in model.named_parameters()}
    wants = Wants(relative_flatness=True, diagonal=True, scales=scales)
    exact = prepared.sweep(prepared.names, wants, DEFAULT_MEMORY_BUDGET).sums
    every_pattern(monkeypatch)
    rule = Draws(prepared.loss, 2**CLASSES, generator(0))
    found = prepared.sweep(prepared.names, wants, DEFAULT_MEMORY_BUDGET, rule).sums
    hessian = dense_hessian(case)
    total = sum(float(value) for value in found.of("trace").values())
    assert total == pytest.approx(float(hessian.trace()), rel=1e-10)
    for kind in ("trace", "kappa", "scaled"):
        want = exact.of(kind)
        assert want and found.of(kind).keys() == want.keys()
        for name, value in want.items():
            assert float(found.of(kind)[name]) == pytest.approx(float(value), rel=1e-9, abs=1e-14)
    flat = torch.cat([scales[name].flatten() for name in prepared.names])
    scaled = sum(float(value) for value in found.of("scaled").values())
    assert scaled == pytest.approx(float(flat.square() @ hessian.diagonal()), rel=1e-10)
    for name, value in exact.mean_diagonals().items():
        assert torch.allclose(found.mean_diagonals()[name], value, rtol=1e-9, atol=1e-14)


def test_a_smooth_perceptron_keeps_its_second_derivatives(monkeypatch):
    case = Case("tanh", "cross-entropy")
    model, x, y = case.build()
    prepared = prepare(model, x, y, case.loss, None)
    every_pattern(monkeypatch)
    rule = Draws(prepared.loss, 2**CLASSES, generator(0))
    found = prepared.sweep(prepared.names, Wants(), DEFAULT_MEMORY_BUDGET, rule).sums
    total = sum(float(value) for value in found.of("trace").values())
    assert total == pytest.approx(float(dense_hessian(case).trace()), rel=1e-10)


@pytest.mark.parametrize("architecture", ["relu", "conv-max-pool"])
def test_the_variance_is_that_of_a_quadratic_form_in_signs(monkeypatch, architecture):
    """``Var s^T B s = 2 sum_{i != j} B_ij^2`` a row, with ``B = R^T J J^T R``, over n^2."""
    case = Case(architecture, "cross-entropy")
    model, x, y = case.build()
    jacobian, outputs, _ = dense_jacobian(case)
    p = outputs.softmax(1)
    root = torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)
    rows = root.mT @ (jacobian @ jacobian.mT) @ root
    rest = rows - torch.diag_embed(rows.diagonal(dim1=1, dim2=2))
    truth = 2 * float(rest.square().sum())
    prepared = prepare(model, x, y, case.loss, None)
    every_pattern(monkeypatch)
    count = 2**CLASSES
    rule = Draws(prepared.loss, count, generator(0))
    sums = prepared.sweep(prepared.names, Wants(), DEFAULT_MEMORY_BUDGET, rule).sums
    # All patterns once: their mean square over m, times m / (m - 1) for an unknown mean.
    assert float(sums.spreads["whole trace", ""][0]) == pytest.approx(truth / (count - 1), rel=1e-9)


def covered(model, x, y, *, seeds: int, rtol: float = 1.0, loss="cross_entropy") -> float:
    """How often 1.96 standard errors reach from a fixed number of draws to the exact trace."""
    prepared = prepare(model, x, y, loss, None)
    exact = prepared.sweep(prepared.names, Wants(), DEFAULT_MEMORY_BUDGET).sums.of("trace")
    truth = sum(float(value) for value in exact.values())
    hits = 0
    for seed in range(seeds):
        how = Sampling(rtol, 96, seed, DEFAULT_MEMORY_BUDGET)
        drawn = prepared.draw(prepared.names, Wants(), _whole_trace, how)
        assert not drawn.exact
        error = sum(drawn.of("trace").values()) - truth
        hits += abs(error) <= 1.96 * drawn.error(("whole trace", ""))
    return hits / seeds


class TestCoverage:
    # Three binomial standard deviations of 300 trials: 0.95 +- 0.038; of 120: +- 0.06.
    def test_perceptron_of_few_rows(self):
        assert abs(covered(*wide(80, 7), seeds=300) - 0.95) <= 0.038

    def test_perceptron_with_a_tolerance(self):
        assert abs(covered(*wide(120, 40), seeds=200, rtol=0.02) - 0.95) <= 0.047

    def test_convolutions(self):
        assert abs(covered(*image_net(40), seeds=120) - 0.95) <= 0.06

    def test_both_signs(self):
        assert abs(covered(*wide(60, 30), seeds=120, loss=indefinite) - 0.95) <= 0.06


class TestFrontDoors:
    def test_trace(self):
        model, x, y = wide(100, 60)
        exact = inv.curvature.hessian_trace(model, x, y)
        found = inv.curvature.hessian_trace(model, x, y, method="sampled", rtol=0.02)
        assert exact.exact and not found.exact and "sampled" in found.method
        assert 0 < found.stderr <= 0.02 * found.value and found.converged
        assert abs(found.value - exact.value) < 4 * found.stderr
        assert found.parts.keys() == exact.parts.keys()
        for name, error in found.detail["part_stderr"].items():
            assert abs(found.parts[name] - exact.parts[name]) <= 5 * error + 1e-12
        same = inv.measures.hessian_trace(model, x, y, method="sampled", rtol=0.02)
        assert same.value == found.value
        other = inv.curvature.hessian_trace(model, x, y, method="sampled", rtol=0.02, seed=1)
        assert other.value != found.value

    def test_more_draws_for_less_error(self):
        model, x, y = wide(120, 40)
        draws = [
            inv.curvature.hessian_trace(model, x, y, method="sampled", rtol=rtol).detail["draws"]
            for rtol in (0.1, 0.02, 0.012)
        ]
        assert draws[0] < draws[1] < draws[2]

    def test_exact_where_that_is_cheaper(self):
        model, x, y = wide(3, 40)
        found = inv.curvature.hessian_trace(model, x, y, method="sampled")
        exact = inv.curvature.hessian_trace(model, x, y)
        assert found.exact and found.stderr == 0 and found.value == exact.value
        model, x, y = wide(30, 40)
        tight = inv.curvature.hessian_trace(model, x, y, method="sampled", rtol=1e-6)
        assert tight.exact

    def test_a_budget_that_is_too_small_is_told(self):
        model, x, y = wide(300, 40)
        found = inv.curvature.hessian_trace(model, x, y, method="sampled", rtol=1e-5, budget=4)
        assert found.detail["draws"] == 4 and found.converged is False and not found.exact

    @pytest.mark.parametrize("bad", [{"rtol": 0.0}, {"budget": 1}])
    def test_refused(self, bad):
        with pytest.raises(MeasureError):
            inv.curvature.hessian_trace(*wide(30, 40), method="sampled", **bad)

    def test_diagonal(self):
        for model, x, y in (wide(60, 40), image_net(40)):
            exact = inv.curvature.hessian_diagonal(model, x, y)
            found = inv.curvature.hessian_diagonal(model, x, y, method="sampled")
            assert not found.exact and found.stderr is not None
            scores = []
            for name, value in exact.values.items():
                assert found[name].shape == value.shape == found.stderr[name].shape
                known = found.stderr[name] > 1e-9 * value.abs().max()
                scores.append(((found[name] - value) / found.stderr[name])[known])
            spread = torch.cat(scores).square().mean().sqrt()
            assert 0.7 < float(spread) < 1.4

    def test_memory_budget_changes_nothing_but_the_chunks(self):
        model, x, y = wide(60, 50)
        small = inv.curvature.hessian_trace(model, x, y, method="sampled", memory_budget=100_000)
        large = inv.curvature.hessian_trace(model, x, y, method="sampled")
        assert abs(small.value - large.value) < 5 * math.hypot(small.stderr, large.stderr)

    def test_batches_and_an_ignored_row(self):
        model, x, y = wide(60, 40)
        y[3] = -100
        whole = inv.curvature.hessian_trace(model, x, y)
        batches = [(x[:13], y[:13]), (x[13:], y[13:])]
        found = inv.curvature.hessian_trace(model, batches, method="sampled")
        assert abs(found.value - whole.value) < 4 * found.stderr


class TestMeasures:
    def test_relative_flatness(self):
        model, x, y = wide(100, 60)
        exact = inv.measures.relative_flatness(model, x, y, layer=None)
        found = inv.measures.relative_flatness(
            model, x, y, layer=None, method="sampled", rtol=0.03, seed=2
        )
        assert exact.exact and not found.exact and found.converged
        assert found.stderr <= 0.03 * max(found.values)
        for value, truth in zip(found, exact, strict=True):
            assert abs(value - truth) < 4 * found.stderr
        single = inv.measures.relative_flatness(model, x, y, method="sampled", rtol=0.03)
        assert abs(single.value - exact[-1]) < 4 * single.stderr

    @pytest.mark.parametrize("build", [lambda: wide(100, 60), lambda: image_net(60)])
    def test_adaptive_trace(self, build):
        model, x, y = build()
        exact = inv.measures.adaptive_trace(model, x, y)
        found = inv.measures.adaptive_trace(model, x, y, method="sampled", rtol=0.03)
        assert exact.exact and not found.exact and found.stderr <= 0.03 * found.value
        assert abs(found.value - exact.value) < 4 * found.stderr
        assert list(found.parts) == list(exact.parts)

    def test_refused(self):
        with pytest.raises(UsageError):
            inv.measures.adaptive_trace(*wide(30, 10), method="estimate")
        with pytest.raises(MeasureError, match="piecewise linear"):
            inv.measures.adaptive_trace(*image_net(30, nn.GELU), method="sampled")


class TestCurvedNetworks:
    @pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
    @pytest.mark.parametrize("architecture", ["attention", "layer-norm"])
    def test_gauss_newton_and_the_rest_make_the_hessian(self, architecture, loss):
        case = Case(architecture, loss)
        model, x, y = case.build()
        truth = float(dense_hessian(case).trace())
        found = inv.curvature.hessian_trace(
            model, x, y, loss=case.loss, method="sampled", rtol=0.05, budget=400
        )
        assert not found.exact and found.stderr > 0
        assert abs(found.value - truth) < 4 * found.stderr
        assert found.stderr < 0.1 * abs(truth)

    def test_many_classes(self):
        model, x, y = image_net(40, nn.GELU)
        truth = inv.curvature.hessian_trace(model, x, y, method="exact")
        errors = []
        for seed in range(12):
            found = inv.curvature.hessian_trace(model, x, y, method="sampled", rtol=0.05, seed=seed)
            assert not found.exact and "random cotangents" in found.method
            errors.append((found.value - truth.value) / found.stderr)
        assert max(map(abs, errors)) < 4
        assert abs(sum(errors)) / len(errors) ** 0.5 < 3.5

    def test_a_diagonal_is_refused_by_name(self):
        model, x, y = image_net(40, nn.GELU)
        with pytest.raises(MeasureError, match=r"'0\.weight'"):
            inv.curvature.hessian_diagonal(model, x, y, method="sampled")


class TestRememberedLinearity:
    def test_equal_structure_is_analysed_once_and_other_structure_anew(self, monkeypatch):
        from invariance.curvature.exact import _linearity

        seen = []
        analyse = _linearity.analyse_linearity
        monkeypatch.setattr(_linearity, "_known", type(_linearity._known)())
        monkeypatch.setattr(
            _linearity, "analyse_linearity", lambda m, rows: (seen.append(m), analyse(m, rows))[1]
        )
        model, x, _ = image_net(5)
        twin = image_net(5)[0]
        with torch.no_grad():
            twin[0].weight.mul_(2)
        first = _linearity.linearity_of(model, x[:1])
        assert _linearity.linearity_of(twin, x[:1]) is first and len(seen) == 1
        others = [image_net(5, nn.GELU)[0], image_net(6)[0], image_net(5)[0], image_net(5)[0]]
        others[2].train()
        others[3][2].forward = torch.tanh
        for other in others:
            _linearity.linearity_of(other, x[:1])
        assert [any(m is other for m in seen) for other in others] == [True] * 4
        tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
        free = _linearity.linearity_of(tied, torch.ones(1, 4).double())
        tied[2].weight = tied[0].weight
        again = _linearity.linearity_of(tied, torch.ones(1, 4).double())
        assert not free.reasons and again.reasons

    def test_a_users_module_is_read_every_time(self):
        from invariance.curvature.exact._linearity import _structure

        class Switch(nn.Module):
            def forward(self, x):
                return x

        assert _structure(nn.Sequential(nn.Linear(2, 2), Switch()), torch.ones(1, 2)) is None
        assert _structure(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)) is not None
