"""Many classes: the last layer is passed without a root, and gives the same numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from dense_reference import dense_blocks, dense_relative_flatness
from torch import nn
from torch.nn import functional as F

import invariance as inv
from invariance.curvature import exact_curvature, hessian_diagonal, hessian_trace
from invariance.curvature.exact import _mlp
from invariance.curvature.losses._resolve import softmax_root, softmax_root_times


def network(widths: list[int], act: type[nn.Module] = nn.ReLU, scale: float = 1.0) -> nn.Module:
    """A perceptron whose logits are ``scale`` times as large."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(widths) + widths[-1])
        layers: list[nn.Module] = []
        for into, out in itertools.pairwise(widths):
            layers += [nn.Linear(into, out), nn.BatchNorm1d(out), act()]
        model = nn.Sequential(*layers[:-2]).double().eval()
    with torch.no_grad():
        model[-1].weight *= scale
    return model


def data(width: int, classes: int, rows: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels."""
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(rows, width, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, classes, (rows,), generator=draws)


NETWORKS = {
    "one layer": ([4, 12], nn.ReLU, 1.0),
    "narrow": ([4, 5, 3, 12], nn.ReLU, 1.0),
    "narrow below a wide one": ([3, 7, 3, 11], nn.ReLU, 2.0),
    "wide": ([3, 9, 5], nn.ReLU, 1.0),
    "one unit": ([3, 4, 1, 6], nn.ReLU, 1.0),
    "saturated": ([4, 5, 3, 9], nn.ReLU, 60.0),
    "smooth": ([3, 4, 2, 8], nn.Tanh, 1.0),
    "two classes": ([3, 4, 2], nn.ReLU, 3.0),
}


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("loss", ["plain", "weighted"])
def test_the_last_layer_without_a_root_against_the_dense_hessian(monkeypatch, case, loss):
    widths, act, scale = NETWORKS[case]
    model, (x, y) = network(widths, act, scale), data(widths[0], widths[-1])
    weights = torch.linspace(0.5, 2, widths[-1], dtype=torch.float64)
    chosen = nn.CrossEntropyLoss(weights) if loss == "weighted" else nn.CrossEntropyLoss()
    monkeypatch.setattr(_mlp, "_MANY", 0)
    found = exact_curvature(model, x, y, loss=chosen, relative_flatness=True, diagonal=True)
    blocks = dense_blocks(model, x, y, chosen)
    floor = 1e-13 * sum(float(blocks[name, name].trace()) for name in found.traces)
    for name, value in found.traces.items():
        truth = blocks[name, name].diagonal()
        assert value == pytest.approx(float(truth.sum()), rel=1e-10, abs=floor)
        assert torch.allclose(found.diagonal[name].flatten(), truth, rtol=1e-9, atol=floor)
    for layer, value in found.relative_flatness.items():
        truth = dense_relative_flatness(
            model.get_submodule(layer), blocks[f"{layer}.weight", f"{layer}.weight"]
        )
        assert value == pytest.approx(truth, rel=1e-9, abs=1e-13 * abs(truth) + floor)


@pytest.mark.parametrize("case", NETWORKS)
def test_the_two_ways_past_the_last_layer_agree(monkeypatch, case):
    widths, act, scale = NETWORKS[case]
    model, (x, y) = network(widths, act, scale), data(widths[0], widths[-1])
    with_root = exact_curvature(model, x, y, relative_flatness=True, diagonal=True)
    monkeypatch.setattr(_mlp, "_MANY", 0)
    without = exact_curvature(model, x, y, relative_flatness=True, diagonal=True)
    for name, value in with_root.traces.items():
        assert without.traces[name] == pytest.approx(value, rel=1e-11)
        assert torch.allclose(
            without.diagonal[name], with_root.diagonal[name], rtol=1e-9, atol=1e-13 * abs(value)
        )
    for name, value in with_root.relative_flatness.items():
        assert without.relative_flatness[name] == pytest.approx(value, rel=1e-11)


def test_the_number_of_classes_decides():
    model, (x, y) = network([5, 9, 4, 60]), data(5, 60)
    truth = dense_blocks(model, x, y, F.cross_entropy)
    want = sum(float(truth[name, name].trace()) for name, _ in model.named_parameters())
    assert float(hessian_trace(model, x, y)) == pytest.approx(want, rel=1e-11)
    single = hessian_trace(model.float(), x.float(), y)
    assert float(single) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("likeliest", [0, 2])
def test_a_confident_network_loses_no_digits_in_float32(likeliest):
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]], dtype=torch.float64)
    logits[0, likeliest] = 25.0
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = softmax_root(logits).mT @ weight
    found = softmax_root_times(logits.float(), weight.float()).double()
    assert torch.allclose(found, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))
    same = softmax_root_times(logits, weight)
    assert torch.allclose(same, truth, rtol=1e-9, atol=1e-12 * float(truth.abs().max()))


def test_chunks_of_rows_and_memory():
    model, (x, y) = network([6, 20, 8, 200]), data(6, 200, rows=50)
    whole = hessian_diagonal(model, x, y)
    pieces = hessian_diagonal(model, x, y, memory_budget=200_000)
    for name, value in whole.values.items():
        assert torch.allclose(pieces[name], value, rtol=1e-11)
    ensemble = inv.curvature.hessian_trace_ensemble([model, model], x, y)
    assert ensemble.trace[1] == pytest.approx(whole.trace, rel=1e-11)
