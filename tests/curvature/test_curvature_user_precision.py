"""Information-geometric sharpness in every precision and scale, and an autocast around it all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from user_models import CLASSES, FEATURES, ROWS, Skip, built, data

import invariance as inv
from invariance.core._errors import MeasureError
from invariance.core._modules import clone


def geometric_reference(model, x, y):
    """``g^T F^+ g`` of the summed loss from dense matrices, scaled columns and all."""
    names = [name for name, _ in model.named_parameters()]
    state = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda s: torch.func.functional_call(model, s, (x,)))(state)
    jacobian = torch.cat([jacobian[name].flatten(2) for name in names], 2)
    p = model(x).detach().softmax(1)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = torch.einsum("nkd,nkl,nle->de", jacobian, s, jacobian)
    g = torch.einsum("nk,nkd->d", p - F.one_hot(y, p.shape[1]), jacobian)
    return float(g @ torch.linalg.pinv(fisher, rtol=1e-10, hermitian=True) @ g)


@pytest.mark.parametrize("rows", [3, ROWS])  # of full rank, and not (59 parameters)
def test_information_geometric_sharpness_in_every_precision_and_scale(rows):
    measure = inv.measures.information_geometric_sharpness
    x, y = data()
    x, y = x[:rows].repeat(rows // 3, 1), y[:rows].repeat(rows // 3)
    model = built(Skip())
    expected = geometric_reference(model, x, y)
    found = measure(model, x, y)
    assert found.exact
    assert float(found) == pytest.approx(expected, rel=1e-7)
    chain = built(nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES)))
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        small = clone(chain).to(dtype)
        before = float(measure(small, x, y))
        for factor in (2.0**20, 1e6, 1e-6):
            moved = inv.transforms.LayerScaling([factor, 1 / factor])(small, x[:2].to(dtype))
            assert float(measure(moved, x, y)) == pytest.approx(before, rel=close)


@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_the_residual_of_information_geometric_sharpness_covers_round_off(factor):
    # Inputs that are almost on a line leave directions that round-off turns.
    measure = inv.measures.information_geometric_sharpness
    draws = torch.Generator().manual_seed(5)
    x, y = data()
    x = x[:, :1] * x[:1] + 1e-5 * torch.randn(x.shape, generator=draws, dtype=x.dtype)
    chain = built(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)))
    with torch.no_grad():
        chain[2].weight.mul_(factor**0.25)
    x, y = x.repeat(4, 1), torch.cat([y.roll(places) for places in range(4)])
    found = measure(chain, x, y)
    assert found.detail["rank"] < found.detail["rows"]
    moved = []
    for _ in range(20):
        order = torch.randperm(len(y), generator=draws)
        near = clone(chain)
        with torch.no_grad():
            for p in near.parameters():
                p.mul_(1 + torch.randn(p.shape, generator=draws, dtype=p.dtype) * 2.0**-53)
        moved.append(abs(float(measure(near, x[order], y[order])) - float(found)))
    assert max(moved) <= found.residual <= 1e-6 * float(found)


def test_information_geometric_sharpness_at_the_edges():
    measure = inv.measures.information_geometric_sharpness
    x, y = data()
    model = built(Skip())
    with torch.no_grad():
        model.last.weight.mul_(30)
    p = model(x).detach().softmax(1)
    assert float(p.max()) > 1 - 1e-12  # zero in float32
    own = p.gather(1, y[:, None])[:, 0]
    found = measure(clone(model).float(), x[:2], y[:2])
    assert float(found) == pytest.approx(float(((1 - own) / own)[:2].sum()), rel=1e-3)
    with torch.no_grad():
        model.last.weight.mul_(1e4)
    with pytest.raises(MeasureError, match="probability that is zero in float64"):
        measure(model, x, y)
    single = built(nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, 1)))
    assert float(measure(single, x, torch.zeros_like(y))) == 0.0


@pytest.mark.parametrize("chain", [False, True])
def test_an_autocast_outside_changes_nothing(chain):
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    model = built(model if chain else Skip()).float()
    x, y = data()
    x = x.float()
    measured = inv.measures
    for measure in (
        measured.hessian_trace,
        measured.hessian_eigenvalues,
        measured.hessian_norm,
        measured.adaptive_trace,
        measured.relative_flatness,
        measured.sam_sharpness,
        measured.gaussian_sharpness,
        measured.worst_case_sharpness,
    ):
        plain = float(measure(model, x, y))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = float(measure(model, x, y))
            assert torch.is_autocast_enabled("cpu")
        assert inside == pytest.approx(plain, rel=1e-5), measure.__name__
