"""Adversarial instances against rational arithmetic: decided or undecided, never wrong.

Would catch: a tolerance that calls a margin of 1e-12 infeasible, a solver status taken
for a verdict, a rank rule that loses a direction, a free probe that is not seen.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from active_set_reference import ActiveSet, status_of_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from separability_reference import separable_exactly

from invariance.weakness.separability import _separability as separability
from invariance.weakness.separability._certificates import check_witnesses
from invariance.weakness.separability._certified import TRAINING_SET
from invariance.weakness.separability._conditioning import condition
from invariance.weakness.separability._pair_sweep import separate_training
from invariance.weakness.separability._separability import Status, settle_pairs


def settle(train, labels, unseen, n_classes, **options):
    data = condition(np.asarray(train, float), np.asarray(unseen, float), **options)
    return settle_pairs(data, np.asarray(labels, dtype=np.int64), n_classes)


def exact_table(train, labels, unseen, n_classes):
    table = np.zeros((len(unseen), n_classes), dtype=bool)
    for probe, point in enumerate(unseen):
        for target in range(n_classes):
            table[probe, target] = separable_exactly([*train, point], [*labels, target], n_classes)
    return table


def assert_never_wrong(train, labels, unseen, n_classes):
    """Compare with exact arithmetic; return how many pairs stayed undecided.

    Where the rank rule treats features that agree to 1e-11 as one, an infeasible verdict is
    about the retained coordinates, and says so.
    """
    verdicts = settle(train, labels, unseen, n_classes)
    exact = exact_table(train, labels, unseen, n_classes)
    feasible, infeasible = verdicts.status == 1, verdicts.status == -1
    for key in verdicts.retained_only - {TRAINING_SET}:
        infeasible[key] = False
    assert not (feasible & ~exact).any(), "called feasible, is infeasible"
    assert not (infeasible & exact).any(), "called infeasible, is feasible"
    policy = separable_exactly(train, labels, n_classes)
    if TRAINING_SET not in verdicts.retained_only:
        assert verdicts.policy != (Status.INFEASIBLE if policy else Status.FEASIBLE)
    return int((verdicts.status == 0).sum())


@pytest.mark.parametrize("seed", range(12))
def test_small_integer_grids_are_decided_completely(seed):
    # Few distinct coordinates: coincident points, common rays, dead and constant columns.
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 4))
    train = rng.integers(-1, 3, size=(int(rng.integers(2, 7)), 2)).astype(float)
    rule = rng.normal(size=(n_classes, 3))
    labels = (train @ rule[:, :2].T + rule[:, 2]).argmax(1)
    unseen = rng.integers(-2, 4, size=(4, 2)).astype(float)
    assert assert_never_wrong(train, labels, unseen, n_classes) == 0


@pytest.mark.parametrize("seed", range(6))
def test_random_labels_on_grids_are_often_inseparable_and_always_right(seed):
    rng = np.random.default_rng(100 + seed)
    train = rng.integers(0, 3, size=(5, 2)).astype(float)
    labels = rng.integers(0, 3, size=5)
    unseen = rng.integers(0, 3, size=(2, 2)).astype(float)
    assert assert_never_wrong(train, labels, unseen, 3) == 0


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-10, 1e-12, 1e-14, 2.0**-52])
def test_a_thin_gap_is_never_called_infeasible(gap):
    # On a line, labels 0 then 1: a probe just right of the last 0 can be either.
    train, labels = [[-1.0], [0.0], [1.0], [2.0]], [0, 0, 1, 1]
    undecided = assert_never_wrong(train, labels, [[gap], [-gap], [0.0], [1.0 - gap]], 2)
    if gap >= 1e-9:
        assert undecided == 0


@pytest.mark.parametrize("scale", [1e-6, 1e-9, 1e-11, 1e-13, 1e-15])
@pytest.mark.parametrize("seed", range(3))
def test_nearly_degenerate_cones(scale, seed):
    # Points of a grid moved by a hair: what was on the boundary is on either side of it.
    rng = np.random.default_rng(seed)
    train = rng.integers(-1, 2, size=(5, 2)) + scale * rng.integers(-3, 4, size=(5, 2))
    labels = (train[:, 0] + 0.3 * train[:, 1] > 0.1).astype(int)
    unseen = rng.integers(-1, 2, size=(3, 2)) + scale * rng.integers(-3, 4, size=(3, 2))
    undecided = assert_never_wrong(train, labels, unseen, 2)
    if scale >= 1e-9:
        assert undecided == 0


def test_a_probe_on_a_training_point_keeps_its_label():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(20, 3))
    labels = (train @ rng.normal(size=(4, 3)).T).argmax(1)
    status = settle(train, labels, train, 4).status
    np.testing.assert_array_equal(status, np.where(labels[:, None] == np.arange(4), 1, -1))


def test_identical_training_points_with_two_labels_are_inseparable():
    verdicts = settle([[0.1, 0.7], [0.1, 0.7], [3.0, 1.0]], [0, 1, 1], [[5.0, 5.0]], 2)
    assert verdicts.policy == Status.INFEASIBLE
    assert (verdicts.status == Status.INFEASIBLE).all()


def test_one_class_of_training_points_leaves_what_lies_outside_their_cone():
    # All training points have class 0 of 3: one classifier puts every class but 0 last.
    train = np.array([[0.0], [1.0]])
    status = settle(train, [0, 0], [[0.5], [2.0]], 3).status
    np.testing.assert_array_equal(status, [[1, -1, -1], [1, 1, 1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_from_1e_minus_6_to_1e_plus_6_do_not_matter(dtype):
    rng = np.random.default_rng(1)
    train, unseen = rng.normal(size=(15, 4)), rng.normal(size=(10, 4))
    labels = (train @ rng.normal(size=(3, 4)).T).argmax(1)
    plain = settle(train, labels, unseen, 3).status
    scales = np.array([1e-6, 1.0, 1e3, 1e6])
    np.testing.assert_array_equal(settle(train * scales, labels, unseen * scales, 3).status, plain)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_unchanged_by_random_invertible_affine_maps(seed):
    rng = np.random.default_rng(seed)
    n, d, n_classes = int(rng.integers(3, 25)), int(rng.integers(1, 6)), int(rng.integers(2, 5))
    train, unseen = rng.normal(size=(n, d)), rng.normal(size=(6, d))
    labels = (train @ rng.normal(size=(n_classes, d)).T).argmax(1)
    before = settle(train, labels, unseen, n_classes)
    left, _ = np.linalg.qr(rng.normal(size=(d, d)))
    matrix = left * np.exp(rng.uniform(-3, 3, size=d))
    shift = rng.normal(size=d)
    after = settle(train @ matrix + shift, labels, unseen @ matrix + shift, n_classes)
    np.testing.assert_array_equal(after.status, before.status)
    assert (before.status != 0).all()


@pytest.mark.parametrize(("n", "d"), [(3, 8), (5, 5), (40, 3)])
def test_fewer_and_more_points_than_features(n, d):
    rng = np.random.default_rng(n)
    train, unseen = rng.normal(size=(n, d)), rng.normal(size=(5, d))
    labels = (train @ rng.normal(size=(3, d)).T).argmax(1)
    verdicts = settle(train, labels, unseen, 3)
    if n <= d:  # the training points span less than the space: every probe is free
        assert verdicts.free.all() and (verdicts.status == 1).all()
    else:
        assert not verdicts.free.any() and (verdicts.status != 0).all()


def test_a_constant_feature_is_the_bias_until_a_probe_differs():
    rng = np.random.default_rng(3)
    train = np.hstack([rng.normal(size=(12, 2)), np.full((12, 1), 0.7)])
    labels = (train[:, 0] > 0).astype(int)
    same, other = np.array([[0.3, 0.1, 0.7]]), np.array([[0.3, 0.1, 0.8]])
    verdicts = settle(train, labels, np.vstack([same, other]), 2)
    assert verdicts.free.tolist() == [False, True]
    assert (verdicts.status[1] == 1).all()


def test_duplicated_features_up_to_single_precision_do_not_add_a_direction():
    # What splitting a unit does: the same feature twice, equal up to round-off.
    rng = np.random.default_rng(4)
    train, unseen = rng.normal(size=(30, 3)), rng.normal(size=(8, 3))
    labels = (train @ rng.normal(size=(3, 3)).T).argmax(1)
    before = settle(train, labels, unseen, 3).status

    def split(points):
        noise = 1.0 + 6e-8 * rng.uniform(-1, 1, size=(len(points), 1))
        return np.hstack([points, points[:, :1] * noise])

    after = settle(split(train), labels, split(unseen), 3, rank_tolerance=2e-6)
    np.testing.assert_array_equal(after.status, before)
    assert not after.free.any()


def test_the_compiled_solver_gives_the_verdicts_of_the_reference():
    rng = np.random.default_rng(5)
    train, unseen = rng.normal(size=(40, 4)), rng.normal(size=(15, 4))
    labels = (train @ rng.normal(size=(5, 4)).T).argmax(1)
    data = condition(train, unseen)
    status = settle_pairs(data, labels, 5).status
    np.testing.assert_array_equal(status, status_of_pairs(data.points, labels, 5))
    assert {1, -1} == set(status.ravel().tolist())


def test_threads_do_not_change_the_verdicts():
    rng = np.random.default_rng(6)
    train, unseen = rng.normal(size=(30, 3)), rng.normal(size=(120, 3))
    labels = (train @ rng.normal(size=(4, 3)).T).argmax(1)
    data = condition(train, unseen)
    one, two = (settle_pairs(data, labels, 4, workers=workers) for workers in (1, 2))
    np.testing.assert_array_equal(one.status, two.status)


def test_the_separator_meets_the_optimality_conditions():
    rng = np.random.default_rng(8)
    train = np.hstack([rng.normal(size=(60, 4)), np.ones((60, 1))])
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    labels = (train @ rng.normal(size=(5, 4))).argmax(1)
    state = ActiveSet(train, 4)
    state.separate(np.arange(60), labels, stop=1.0 - 1e-9)
    total = np.zeros((4, 5))
    for point, other, weight in zip(state._points, state._others, state._multipliers, strict=True):
        total[labels[point]] += weight * train[point]
        total[other] -= weight * train[point]
    assert (state._multipliers > -1e-9 * state._multipliers.max()).all()
    np.testing.assert_allclose(total, state.separator, rtol=1e-7, atol=1e-7 * abs(total).max())
    _, separator, _ = separate_training(train, labels, 4)
    np.testing.assert_allclose(separator, state.separator, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_classes", [3, 40])
def test_blocks_of_probes_do_not_change_the_verdicts(n_classes, monkeypatch):
    rng = np.random.default_rng(9)
    train, unseen = rng.normal(size=(120, 4)), rng.normal(size=(60, 4))
    labels = (train @ rng.normal(size=(n_classes, 4)).T).argmax(1)
    data = condition(train, unseen)
    whole = settle_pairs(data, labels, n_classes)
    monkeypatch.setattr(separability, "BLOCK", 7)
    parts = settle_pairs(data, labels, n_classes, keep_witnesses=False)
    np.testing.assert_array_equal(whole.status, parts.status)
    assert (whole.status != 0).all() and not len(parts.witnesses)
    # A witness is proved for the pair that it owns, by another check than the sweep's own.
    check = check_witnesses(
        whole.witnesses, data.equilibrated[:120], labels, data.equilibrated[120:]
    )
    for probe, target in np.argwhere(whole.status == 1):
        owner = whole.witness_of[probe, target]
        assert check.separates[owner] and check.proved[owner, probe] == target


def test_free_probes_are_proved_by_the_witnesses_that_are_kept():
    rng = np.random.default_rng(10)
    train = np.hstack([rng.normal(size=(12, 3)), np.zeros((12, 1))])
    unseen = np.hstack([rng.normal(size=(6, 3)), rng.normal(size=(6, 1))])
    wide = rng.normal(size=(12, 20)), rng.normal(size=(6, 20))  # more features than points
    labels = (train[:, :3] @ rng.normal(size=(4, 3)).T).argmax(1)
    for data in (condition(train, unseen), condition(*wide)):
        verdicts = settle_pairs(data, labels, 4)
        assert verdicts.free.all() and (verdicts.status == 1).all()
        rows = np.hstack([data.equilibrated[:12], np.zeros((12, data.dead.shape[1]))])
        points = np.hstack([data.equilibrated[12:], data.dead])
        check = check_witnesses(verdicts.witnesses, rows, labels, points)
        for probe, target in np.ndindex(6, 4):
            owner = verdicts.witness_of[probe, target]
            assert check.separates[owner] and check.proved[owner, probe] == target
            margin = min(check.margin[owner], check.probe_margin[owner, probe])
            assert verdicts.margin_of[probe, target] == pytest.approx(margin, rel=1e-6)
