"""Extension counts against brute force over all partial labelings, and Cover's theorem."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from active_set_reference import ActiveSet
from separability_reference import separable_by_linprog
from torch import nn

from invariance.core._errors import MeasureError, UsageError
from invariance.weakness.extensions._closure import count_restrictions
from invariance.weakness.extensions._extension_count import extension_count
from invariance.weakness.separability._active_set import EARLY_STOP
from invariance.weakness.separability._certificates import check_witnesses
from invariance.weakness.separability._certified import Proof, prove
from invariance.weakness.separability._conditioning import condition
from invariance.weakness.separability._pair_sweep import REACH, separate_training


def head(d, n_classes, *, bias=True):
    return nn.Sequential(nn.Identity(), nn.Linear(d, n_classes, bias=bias)).double()


def tensors(*arrays):
    return tuple(torch.as_tensor(np.asarray(array)) for array in arrays)


def count_by_brute_force(train, labels, unseen, n_classes, *, bias=True):
    """Every partial labeling by its own linear program: (all, complete)."""
    total = complete = 0
    for choice in itertools.product([None, *range(n_classes)], repeat=len(unseen)):
        named = [j for j, label in enumerate(choice) if label is not None]
        points = np.vstack([train, unseen[named]])
        feasible = separable_by_linprog(
            points, [*labels, *(choice[j] for j in named)], n_classes, bias=bias
        )
        total += feasible
        complete += feasible and len(named) == len(unseen)
    return total, complete


def instance(n, d, n_classes, u, seed):
    rng = np.random.default_rng(seed)
    train, unseen = rng.normal(size=(n, d)), rng.normal(size=(u, d))
    labels = (train @ rng.normal(size=(n_classes, d)).T).argmax(1)
    return train, labels, unseen


@pytest.mark.parametrize(
    ("n", "d", "n_classes", "u", "seed", "bias"),
    [(6, 2, 2, 4, 0, True), (7, 2, 3, 3, 1, True), (5, 3, 3, 3, 2, False), (9, 1, 2, 4, 3, True)],
)
def test_exact_count_is_brute_force(n, d, n_classes, u, seed, bias):
    train, labels, unseen = instance(n, d, n_classes, u, seed)
    total, complete = count_by_brute_force(train, labels, unseen, n_classes, bias=bias)
    estimate = extension_count(
        head(d, n_classes, bias=bias), *tensors(train, labels, unseen), method="exact"
    )
    assert (float(estimate), estimate.detail["complete"]) == (total, complete)
    assert estimate.exact and estimate.stderr == 0.0 and estimate.detail["undecided"] == 0


def test_probes_that_share_a_dead_feature_are_not_jointly_free():
    # Both probes activate the one dead feature: each alone is free, together they are not.
    train = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    labels = [0, 0, 1, 1]
    unseen = np.array([[1.0, 0.5], [2.0, 0.5], [0.0, 0.2]])
    total, complete = count_by_brute_force(train, labels, unseen, 2)
    estimate = extension_count(head(2, 2), *tensors(train, labels, unseen))
    assert (float(estimate), estimate.detail["complete"]) == (total, complete)
    assert estimate.detail["jointly_free"] == 0
    assert total < 3 * 3 * 2


def test_a_jointly_free_probe_multiplies_the_count():
    train, labels, unseen = instance(6, 2, 3, 2, 5)
    alone = extension_count(head(2, 3), *tensors(train, labels, unseen))
    wide = [np.hstack([part, np.zeros((len(part), 2))]) for part in (train, unseen)]
    free = np.array([[0.3, 0.1, 1.0, 0.0], [0.1, 0.7, 1.0, 2.0]])
    both = extension_count(head(4, 3), *tensors(wide[0], labels, np.vstack([wide[1], free])))
    assert both.detail["jointly_free"] == 2
    assert float(both) == float(alone) * 4**2
    assert both.detail["complete"] == alone.detail["complete"] * 3**2


@pytest.mark.parametrize(("n_points", "d"), [(5, 2), (7, 2), (6, 3), (6, 6)])
def test_cover_count_of_dichotomies(n_points, d):
    """C(N, d) = 2 sum_k binom(N - 1, k) linearly separable dichotomies of N points.

    T. Cover, "Geometrical and statistical properties of systems of linear inequalities",
    IEEE Trans. Electronic Computers 14, 1965: N points in general position in R^d, planes
    through the origin. The training set is one more such point: of the C(N + 1, d)
    dichotomies of all, exactly half give it its label, because W and -W swap the labels.
    """
    rng = np.random.default_rng(n_points * 10 + d)
    points = rng.normal(size=(n_points + 1, d))
    estimate = extension_count(
        head(d, 2, bias=False), *tensors(points[:1], [0], points[1:]), method="exact"
    )

    def cover(n):
        return 2 * sum(math.comb(n - 1, k) for k in range(d))

    assert estimate.detail["complete"] == cover(n_points + 1) // 2
    # Partial labelings: each subset of m points is in general position too.
    expected = sum(math.comb(n_points, m) * cover(m + 1) // 2 for m in range(n_points + 1))
    assert float(estimate) == expected


def test_restrictions_by_hand():
    labelings = np.array([[0, 1, 0], [1, 1, 0], [1, 2, 0]])
    seen = {
        tuple(row[j] if keep else None for j, keep in enumerate(mask))
        for row in labelings.tolist()
        for mask in itertools.product([False, True], repeat=3)
    }
    assert count_restrictions(labelings) == len(seen)


def test_the_estimate_is_unbiased_and_exact_for_a_large_pool():
    train, labels, unseen = instance(6, 2, 3, 4, 7)
    inputs = tensors(train, labels, unseen)
    exact = float(extension_count(head(2, 3), *inputs, method="exact"))
    wide = extension_count(head(2, 3), *inputs, method="estimate", pool=10_000)
    assert float(wide) == exact and wide.exact
    narrow = extension_count(head(2, 3), *inputs, method="estimate", pool=1, repeats=300, seed=3)
    assert not narrow.exact and narrow.stderr > 0.0
    assert abs(float(narrow) - exact) < 4.0 * narrow.stderr
    assert 1.0 <= narrow.detail["effective_runs"] <= 300.0


def test_the_estimate_is_seeded():
    inputs = tensors(*instance(6, 2, 3, 5, 8))
    first, again, other = (
        extension_count(head(2, 3), *inputs, method="estimate", pool=3, seed=seed)
        for seed in (0, 0, 1)
    )
    assert float(first) == float(again) != float(other)


def test_many_points_are_declared_unreliable():
    train, labels, unseen = instance(8, 1, 2, 24, 9)
    estimate = extension_count(
        head(1, 2), *tensors(train, labels, unseen), method="estimate", pool=5, repeats=2
    )
    assert estimate.detail["reliable"] is False and "NOT reliable" in estimate.method


def test_an_inseparable_training_set_has_no_extension():
    train = np.array([[0.0], [1.0], [2.0]])
    estimate = extension_count(head(1, 2), *tensors(train, [0, 1, 0], [[0.5]]))
    assert float(estimate) == 0.0 and estimate.detail["policy_feasible"] is False


def test_a_point_at_the_origin_takes_no_label_without_a_bias():
    train, labels, unseen = np.array([[1.0], [2.0]]), [0, 0], np.array([[0.0], [1.0]])
    estimate = extension_count(head(1, 2, bias=False), *tensors(train, labels, unseen))
    assert (float(estimate), estimate.detail["complete"]) == (2.0, 0)


def test_exact_refuses_beyond_its_budget():
    inputs = tensors(*instance(4, 3, 3, 6, 10))
    with pytest.raises(MeasureError, match="more than 5 solves"):
        extension_count(head(3, 3), *inputs, method="exact", budget=5)
    with pytest.raises(UsageError, match="Unknown method 'guess'"):
        extension_count(head(3, 3), *inputs, method="guess")


def test_a_truncated_pool_is_unbiased_too():
    inputs = tensors(*instance(6, 2, 3, 4, 7))
    exact = float(extension_count(head(2, 3), *inputs, method="exact"))
    pooled = extension_count(head(2, 3), *inputs, method="estimate", pool=4, repeats=150, seed=5)
    assert not pooled.exact
    assert abs(float(pooled) - exact) < 4.0 * pooled.stderr < 0.5 * exact


def test_the_tree_is_that_of_the_reference():
    train, labels, unseen = instance(14, 3, 4, 4, 11)
    points = condition(train, unseen).points
    feasible = [()]
    for depth in range(4):
        labelled = np.append(np.arange(14), 14 + np.arange(depth + 1))
        feasible = [
            (*prefix, target)
            for prefix, target in itertools.product(feasible, range(4))
            if ActiveSet(points, 4).separate(labelled, np.append(labels, (*prefix, target)))[0] == 1
        ]
    found = extension_count(head(3, 4), *tensors(train, labels, unseen), method="exact")
    assert found.detail["complete"] == len(feasible) > 1 and found.detail["undecided"] == 0


def test_the_compiled_check_is_the_plain_one():
    from invariance.weakness.extensions._kernels import check_separator, points_of

    train, labels, unseen = instance(30, 4, 3, 12, 12)
    data = condition(train, unseen, bias=True, rank_tolerance=1e-10)
    _, separator, _ = separate_training(data.points, labels, 3)
    points = points_of(data, labels)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, *separator.shape)) * np.geomspace(1e-3, 10.0, 60)[:, None, None]
    # A class that ties with class 0 wherever that one wins: no rounding bound settles it.
    tied = np.vstack([separator, separator[:1]])
    low = np.zeros((60, 1, separator.shape[1]))
    stack = np.concatenate([np.concatenate([separator + noise, low], axis=1), tied[None]])
    stack = np.concatenate([stack, np.full((1, *tied.shape), np.nan)])
    stack = np.concatenate([stack, np.zeros((1, *tied.shape))])
    with np.errstate(invalid="ignore"):
        expected = check_witnesses(
            stack @ data.basis.T, data.equilibrated[:30], labels, data.equilibrated[30:]
        )
    assert 5 < expected.separates.sum() < 60
    scores, given = np.empty((4, 42)), np.empty(12, dtype=np.int64)
    for entry, separates, proved in zip(stack, expected.separates, expected.proved, strict=True):
        assert check_separator(points, entry, scores, given) == separates
        if separates:
            np.testing.assert_array_equal(given, proved)


def test_a_continued_solve_ends_at_the_projection():
    """Warm states must be the projections that a solve from nothing finds."""
    from invariance.weakness.extensions._kernels import expand, points_of
    from invariance.weakness.separability._kernels import first_state

    train, labels, unseen = instance(15, 4, 3, 4, 13)
    data = condition(train, unseen, bias=True, rank_tolerance=1e-10)
    _, separator, _ = separate_training(data.points, labels, 3)
    points, root = points_of(data, labels), first_state(REACH * separator)
    seen = refuted = 0
    stack = [([], root)]
    while stack:
        named, state = stack.pop()
        depth = len(named)
        answer = expand(data, points, named, depth, [0, 1, 2], state)
        cold = expand(data, points, named, depth, [0, 1, 2], root)
        np.testing.assert_array_equal(answer.checked, cold.checked)
        np.testing.assert_array_equal(
            [entry is None for entry in answer.combinations], answer.checked
        )
        for target, entry in enumerate(answer.combinations):
            if entry is not None:
                named_labels = np.append(labels, [label for _, label in named] + [target])
                proofs, _ = prove(data, [entry], [named_labels[entry.points].astype(int)], 3, 1e-10)
                assert proofs[0] != Proof.NOTHING
                refuted += 1
        state = answer.state
        assert (state.multipliers >= -1e-9 * REACH).all()
        # Stationarity: the separator is the start plus multipliers times active rows.
        order = np.append(np.arange(15), 15 + np.arange(depth)).astype(int)
        all_labels = np.append(labels, [label for _, label in named]).astype(int)
        moved = REACH * separator.copy()
        for (point, other), weight in zip(state.active, state.multipliers, strict=True):
            moved[all_labels[point]] += weight * data.points[order[point]]
            moved[other] -= weight * data.points[order[point]]
        np.testing.assert_allclose(state.separator, moved, rtol=1e-6, atol=1e-6)
        scores = data.points[order] @ state.separator.T
        own = scores[np.arange(len(order)), all_labels].copy()
        scores[np.arange(len(order)), all_labels] = -np.inf
        assert (own - scores.max(axis=1)).min() >= 0.99 * EARLY_STOP
        seen += len(state.multipliers)
        if depth < 3:
            stack += [([*named, (depth, t)], state) for t in np.flatnonzero(answer.checked)]
    assert seen > 20 and refuted > 0
