"""Catches: a wrong diagonal, a minimum that is none, a push that leaves its loss."""

import pytest
import torch

import invariance as inv
from invariance.papers.ours.intervention import _objectives as objectives


@pytest.fixture(scope="module")
def case():
    model = inv.models.mlp([5, 7, 6, 4], seed=1).double().eval()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 5, generator=draw, dtype=torch.float64)
    y = torch.randint(4, (30,), generator=draw)
    unseen = torch.randn(8, 5, generator=draw, dtype=torch.float64)
    parts = [p.detach() for p in model.parameters()]
    return model, list(zip(parts[::2], parts[1::2], strict=True)), x, y, unseen


def test_diagonals_are_those_of_the_dense_hessian(case):
    _, layers, x, y, _ = case
    parts = [part for pair in layers for part in pair]
    sizes = [part.numel() for part in parts]

    def loss(theta):
        cut = [c.view_as(p) for c, p in zip(theta.split(sizes), parts, strict=True)]
        pairs = list(zip(cut[::2], cut[1::2], strict=True))
        return torch.nn.functional.cross_entropy(objectives.logits_of(pairs, x), y)

    theta = torch.cat([part.flatten() for part in parts])
    dense = torch.autograd.functional.hessian(loss, theta).diagonal()
    found = torch.cat([d.flatten() for pair in objectives.diagonals(layers, x) for d in pair])
    torch.testing.assert_close(found, dense, rtol=1e-10, atol=1e-12)


def test_objectives_are_the_measures(case):
    model, layers, x, y, unseen = case
    v = torch.zeros(1)
    trace = objectives.trace(layers, x, unseen, v).exp()
    assert float(trace) == pytest.approx(float(inv.measures.hessian_trace(model, x, y)), rel=1e-10)
    least = objectives.minimum(layers, x, unseen, v).exp()
    expected = float(inv.measures.minimum_sharpness(model, x, y))
    assert float(least) == pytest.approx(expected, rel=1e-6)


def test_openness_is_by_hand():
    layers = [(torch.tensor([[1.0], [0.0]]).double(), torch.zeros(2).double())]
    train = torch.tensor([[2.0], [-2.0]]).double()  # logits (+-2, 0): rms length sqrt 2
    unseen = torch.tensor([[3.0]]).double()  # gaps 0 and 3
    found = objectives.closed(layers, train, unseen, torch.zeros(1))
    assert float(found) == pytest.approx(1.5 / 2**0.5)


@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_a_push_lowers_its_objective_and_keeps_the_loss(case, name):
    _, layers, x, y, unseen = case
    objective = objectives.OBJECTIVES[name]
    size = sum(part.numel() for pair in layers for part in pair)
    v = torch.linspace(-1, 1, size, dtype=torch.float64)
    before = float(objective(layers, x, unseen, v))
    moved, level, after = objectives.push(
        layers, x, y, unseen, objective, steps=20, rate=0.003, direction=v
    )
    assert float(objective(moved, x, unseen, v)) < before
    assert after == pytest.approx(level, rel=1e-3)
    assert all(not part.requires_grad for pair in moved for part in pair)


def test_every_step_has_one_length(case):
    _, layers, x, y, unseen = case
    norm = torch.cat([part.flatten() for pair in layers for part in pair]).norm()
    size = sum(part.numel() for pair in layers for part in pair)
    v = torch.linspace(-1, 1, size, dtype=torch.float64)
    for objective in objectives.OBJECTIVES.values():
        moved, *_ = objectives.push(
            layers, x, y, unseen, objective, steps=1, rate=0.01, direction=v
        )
        way = sum(
            ((a - b) ** 2).sum()
            for new, old in zip(moved, layers, strict=True)
            for a, b in zip(new, old, strict=True)
        )
        assert float(way.sqrt() / norm) == pytest.approx(0.01, rel=0.2)
