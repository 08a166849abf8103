"""Certificates re-verified by code that shares nothing with the package's own checks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from invariance.weakness.separability._active_set import Combination
from invariance.weakness.separability._certificates import check_witnesses, norm_bounds
from invariance.weakness.separability._certified import CertificateBook, Proof, Status, prove
from invariance.weakness.separability._conditioning import condition
from invariance.weakness.separability._exact_proofs import is_exactly_infeasible
from invariance.weakness.separability._separability import settle_pairs


@pytest.fixture(scope="module")
def settled():
    rng = np.random.default_rng(0)
    train = np.maximum(rng.normal(size=(40, 4)) @ rng.normal(size=(4, 5)), 0.0)
    unseen = np.maximum(rng.normal(size=(12, 4)) @ rng.normal(size=(4, 5)), 0.0)
    labels = (train @ rng.normal(size=(5, 4)) + rng.normal(size=4)).argmax(1)
    data = condition(train, unseen)
    return data, labels, settle_pairs(data, labels, 4)


def test_witnesses_hold_in_rational_arithmetic(settled):
    data, labels, verdicts = settled
    rows = [[Fraction(float(v)) for v in row] for row in data.equilibrated]
    feasible = np.argwhere(verdicts.status == 1)
    assert len(feasible) > 10
    for probe, target in feasible[::5]:
        witness = verdicts.witnesses[verdicts.witness_of[probe, target]]
        exact = [[Fraction(float(v)) for v in row] for row in witness]
        cases = [*zip(rows[: len(labels)], labels, strict=True)]
        cases.append((rows[len(labels) + probe], target))
        for row, label in cases:
            logits = [sum(w * v for w, v in zip(line, row, strict=False)) for line in exact]
            assert all(logits[label] > value for c, value in enumerate(logits) if c != label)


def test_combinations_vanish(settled):
    data, labels, verdicts = settled
    assert len(verdicts.combinations) > 5
    for (probe, target), entry in verdicts.combinations.items():
        assert (entry.weights >= 0).all() and entry.weights.sum() > 0
        total = np.zeros((4, data.points.shape[1]))
        for point, other, weight in zip(entry.points, entry.others, entry.weights, strict=True):
            if point < len(labels):
                label = labels[point]
            else:
                assert point == len(labels) + probe  # no other probe may be used
                label = target
            assert label != other
            total[label] += weight * data.points[point]
            total[other] -= weight * data.points[point]
        ratio = entry.weights.sum() / np.linalg.norm(total)
        assert ratio >= 1e10
        # The package's bound adds a rounding allowance, so it may not claim more.
        assert verdicts.norm_bound_of[probe, target] <= ratio * (1 + 1e-9)


def test_margins_are_those_of_the_witness(settled):
    data, labels, verdicts = settled
    probe, target = np.argwhere(verdicts.status == 1)[3]
    witness = verdicts.witnesses[verdicts.witness_of[probe, target]]
    rows = data.equilibrated[[*range(len(labels)), len(labels) + probe]]
    named = np.append(labels, target)
    logits = rows @ witness.T
    own = logits[np.arange(len(named)), named].copy()
    logits[np.arange(len(named)), named] = -np.inf
    margins = (own - logits.max(1)) / np.linalg.norm(rows, axis=1) / np.linalg.norm(witness)
    assert verdicts.margin_of[probe, target] == pytest.approx(margins.min(), rel=1e-6, abs=1e-14)


def test_a_wrong_witness_is_refused():
    train, probes = np.array([[1.0, 1.0], [-1.0, 1.0]]), np.array([[2.0, 1.0]])
    good = np.array([[1.0, 0.0], [-1.0, 0.0]])
    check = check_witnesses(np.stack([good, -good]), train, np.array([0, 1]), probes)
    assert check.separates.tolist() == [True, False]
    assert check.proved.tolist() == [[0], [-1]]


def test_a_margin_within_round_off_is_no_proof():
    train = np.array([[1.0, 1.0], [1.0 + 2.0**-52, 1.0]])
    steep = np.array([[-1.0, 1.0 + 2.0**-53], [1.0, -1.0 - 2.0**-53]])
    check = check_witnesses(steep[None], train, np.array([0, 1]), train)
    assert not check.separates[0]


def test_nan_is_no_proof():
    train = np.eye(2)
    witness = np.full((1, 2, 2), np.nan)
    assert not check_witnesses(witness, train, np.array([0, 1]), train).separates[0]


def test_a_negative_multiplier_is_refused():
    points = np.array([[1.0, 0.0], [1.0, 0.0]])
    entry = Combination(np.array([0, 1]), np.array([1, 1]), np.array([1.0, -1.0]))
    assert norm_bounds([entry], [np.array([0, 0])], points, 2)[0] == 0.0


def test_a_combination_that_vanishes_only_nearly_is_refused():
    # Points one ulp apart with different labels: |A^T y| is 1e-16, yet they are separable.
    points = np.array([[1.0, 1.0], [1.0 + 2.0**-52, 1.0]])
    entry = Combination(np.array([0, 1]), np.array([1, 0]), np.array([1.0, 1.0]))
    labels = np.array([0, 1])
    assert norm_bounds([entry], [labels], points, 2)[0] > 1e12
    assert not is_exactly_infeasible(entry, labels, points)
    same = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert is_exactly_infeasible(entry, labels, same)


@pytest.mark.parametrize("with_flint", [True, False])
def test_rational_arithmetic_with_and_without_flint(with_flint, monkeypatch):
    if not with_flint:
        import sys

        monkeypatch.setitem(sys.modules, "flint", None)
    # 1/3 and 2/3 are rounded: the middle of the outer points is not exactly the middle.
    points = np.array([[0.0, 1.0], [1.0, 1.0], [0.5, 1.0], [0.5 + 2.0**-53, 1.0]])
    inside = Combination(np.array([0, 1, 2]), np.array([1, 1, 0]), np.array([0.5, 0.5, 1.0]))
    assert is_exactly_infeasible(inside, np.array([0, 0, 1]), points)
    outside = Combination(np.array([0, 2]), np.array([1, 0]), np.array([1.0, 1.0]))
    assert not is_exactly_infeasible(outside, np.array([0, 1]), points)


def test_infeasibility_by_the_rank_rule_alone_is_marked():
    # Two features that agree to 1e-13: only the cut coordinates make the probe infeasible.
    rng = np.random.default_rng(2)
    train = rng.normal(size=(30, 2))
    labels = (train[:, 0] > 0).astype(int)
    probe = train[labels == 0].mean(0, keepdims=True)
    double = [
        np.hstack([part, part[:, :1] * (1 + 1e-14 * rng.normal(size=(len(part), 1)))])
        for part in (train, probe)
    ]
    verdicts = settle_pairs(condition(*double), labels, 2)
    assert verdicts.status.tolist() == [[1, -1]]
    assert verdicts.retained_only == {(0, 1)}
    plain = settle_pairs(condition(train, probe), labels, 2)
    assert plain.status.tolist() == [[1, -1]] and not plain.retained_only


def test_a_book_does_not_take_a_false_combination():
    data = condition(np.array([[0.0], [1.0], [3.0]]), np.array([[2.0]]))
    labels = np.array([0, 0, 1])
    book = CertificateBook(data, labels, 2, 1e-10)
    false = Combination(np.array([0, 3]), np.array([1, 0]), np.array([1.0, 1.0]))
    book.add_combinations({(0, 1): false})
    assert book.status[0, 1] == Status.UNDECIDED
    proofs, _ = prove(data, [false], [np.array([0, 1])], 2, 1e-10)
    assert proofs == [Proof.NOTHING]


def test_a_margin_that_rounding_made_up_is_no_proof():
    # Summed in order, 1e16 + 1 + 1 is 1e16: class 1 seems to lead by 2 and trails by 0.5.
    witness = np.array([[1e16, 1.0, 1.0], [1e16, 1.5, 0.0]])
    point = np.ones((1, 3))
    check = check_witnesses(witness[None], point, np.array([1]), point)
    assert not check.separates[0] and check.proved[0, 0] == -1
