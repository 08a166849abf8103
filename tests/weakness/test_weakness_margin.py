"""The pair proxy with a margin: invariant, Lipschitz, and equal to a dense reference.

Would catch: a unit with outgoing weights of 1e-9 that brings an inflated count back, a
normalisation that a map of the parameters can move, a margin that is not the largest.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from separability_reference import feasible_pairs_by_linprog
from torch import nn

from invariance.core._errors import MeasureError
from invariance.core._groups import Group
from invariance.measures._registry import get_measure
from invariance.transforms import DormantUnits, LayerScaling, LogitShift, NeuronScaling, SplitUnits
from invariance.weakness import margin_pair_proxy, pair_proxy, repaired_pair_proxy


@pytest.fixture(scope="module")
def case():
    """Few classes on the plane, labelled by the network itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x, unseen = torch.randn(25, 2).double(), torch.randn(6, 2).double()
    return model, x, model(x).argmax(1), unseen


def rows_of(model, x, unseen):
    with torch.no_grad():
        logits = torch.cat([model(x), model(unseen)]).numpy()
    logits = logits - logits.mean(1, keepdims=True)
    return logits / np.sqrt((logits[: len(x)] ** 2).sum(1).mean())


def largest_margin(rows, labels, n_classes):
    """The distance of the origin from the convex hull of all (e_y - e_c) z, by NNLS.

    min over y >= 0 of ``|A^T y|^2 + (sum(y) - 1)^2`` is ``d^2 / (1 + d^2)``.
    """
    z = np.hstack([rows, np.ones((len(rows), 1))])
    system = []
    for row, label in zip(z, labels, strict=True):
        for other in set(range(n_classes)) - {int(label)}:
            entry = np.zeros((n_classes, z.shape[1]))
            entry[label], entry[other] = row, -row
            system.append(np.append(entry.ravel(), 1.0))
    goal = np.zeros(len(system[0]))
    goal[-1] = 1.0
    value = nnls(np.array(system).T, goal, maxiter=100_000)[1] ** 2
    return np.sqrt(value / (1.0 - value))


def test_margins_are_the_distances_of_a_dense_reference(case):
    model, x, y, unseen = case
    found = margin_pair_proxy(model, x, y, unseen).detail
    rows, labels = rows_of(model, x, unseen), y.tolist()
    expected = np.array(
        [
            [largest_margin(np.vstack([rows[:25], row]), [*labels, c], 3) for c in range(3)]
            for row in rows[25:]
        ]
    )
    np.testing.assert_allclose(found["margins"], expected, rtol=1e-5, atol=1e-6)
    assert found["policy_margin"] == pytest.approx(largest_margin(rows[:25], labels, 3), rel=1e-5)
    feasible = feasible_pairs_by_linprog(rows[:25], labels, rows[25:], 3)
    np.testing.assert_array_equal(found["margins"] > 1e-6, feasible)
    assert 6 < feasible.sum() < 18 and found["undecided"] == 0


@pytest.mark.parametrize(
    "transform",
    [
        LayerScaling([50.0, 0.02]),
        NeuronScaling(spread=10.0, seed=1),
        LogitShift(seed=3),
        SplitUnits(3, seed=4),
        DormantUnits(5, seed=5),
    ],
    ids=lambda transform: transform.name,
)
def test_unchanged_under_every_map(case, transform):
    model, x, y, unseen = case
    before = margin_pair_proxy(model, x, y, unseen)
    after = margin_pair_proxy(transform(model, x[:3]), x, y, unseen)
    np.testing.assert_allclose(after.detail["margins"], before.detail["margins"], atol=1e-6)
    assert float(after) == pytest.approx(float(before), rel=1e-4)
    assert get_measure("margin_pair_proxy").declared(list(Group)) == "invariant"


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1e-2])
def test_a_margin_moves_by_no_more_than_the_stated_constant(case, size):
    """Units with small outgoing weights, which the counts over a span count in full."""
    model, x, y, unseen = case
    wide = DormantUnits(6, seed=6)(model, x[:3])
    weight = wide[2].weight
    with torch.no_grad():
        spare = (weight == weight[:1]).all(0)
        weight[:, spare] += size * torch.randn(3, int(spare.sum()), dtype=torch.float64)
    before = margin_pair_proxy(model, x, y, unseen)
    after = margin_pair_proxy(wide, x, y, unseen)
    points = torch.cat([x, unseen])
    with torch.no_grad():
        moved = wide(points) - model(points)
    moved = float((moved - moved.mean(1, keepdim=True)).norm(dim=1).max())
    gap = np.abs(after.detail["margins"] - before.detail["margins"]).max()
    # The constant holds along the way: take the larger end. 1e-6 is the solver's.
    steepest = max(before.detail["lipschitz"], after.detail["lipschitz"])
    assert gap <= 1.05 * steepest * moved + 1e-6
    assert abs(float(after) - float(before)) <= 18 * (gap / 0.02) + 1e-3
    if size == 1e-9:
        assert float(repaired_pair_proxy(wide, x, y, unseen)) > float(
            repaired_pair_proxy(model, x, y, unseen)
        )
        assert float(pair_proxy(wide, x, y, unseen)) > float(before)
        assert float(after) == pytest.approx(float(before), abs=1e-3)


def test_it_says_what_cannot_be_measured(case):
    model, x, y, unseen = case
    with pytest.raises(MeasureError, match="tau must be positive"):
        margin_pair_proxy(model, x, y, unseen, tau=0.0)
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent[2].weight.zero_()
        silent[2].bias.fill_(1.0)
    with pytest.raises(MeasureError, match="same for all classes"):
        margin_pair_proxy(silent, x, y, unseen)
    wrong = (y + (torch.arange(25) % 2)) % 3
    assert float(margin_pair_proxy(model, x, wrong, unseen)) == 0.0
