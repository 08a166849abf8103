"""The sampled version space against angles, rejection sampling and plane geometry.

Each closed form would miss if the target were uniform on another body, if directions were
weighted by the wrong metric, if labels were read from the wrong side, or if the common
shift of the classes leaked in.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from invariance.core._errors import MeasureError, UsageError
from invariance.weakness.volume._chain_diagnostics import effective_sample_size, split_r_hat
from invariance.weakness.volume._hit_and_run import Cone, truncated_normal
from invariance.weakness.volume._version_space import _frame, entropy, version_space


def reader(d, classes, bias=True, dtype=torch.float64):
    """A network whose last features are its inputs."""
    layer = nn.Linear(d, classes, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, d, generator=torch.Generator().manual_seed(0)))
    return layer.eval()


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def arc_share(train, labels, probe):
    """Two classes, two features, no bias: classifiers are angles; measure arcs on a grid."""
    angle = (np.arange(2_000_000) + 0.5) * (2 * math.pi / 2_000_000)
    v = np.stack([np.cos(angle), np.sin(angle)])
    sign = np.where(np.asarray(labels) == 1, 1.0, -1.0)
    inside = ((np.asarray(train) @ v) * sign[:, None] > 0).all(axis=0)
    return float(((np.asarray(probe) @ v) > 0)[inside].mean())


TRAIN = [[1.0, 0.2], [0.4, 1.5], [-1.0, 0.3]]
LABELS = [1, 1, 0]
PROBES = [[0.1, 1.0], [-0.4, 1.0], [3.0, -0.5], [0.2, 2.0]]


def test_raw_coordinates_give_plane_angles():
    space = version_space(
        reader(2, 2, bias=False),
        tensor(TRAIN),
        torch.tensor(LABELS),
        tensor(PROBES),
        coordinates="raw",
        samples=16_000,
        thin=4,
    )
    expected = [arc_share(TRAIN, LABELS, probe) for probe in PROBES]
    assert min(expected[0], expected[1]) > 0.05
    np.testing.assert_allclose(space.probabilities[:, 1], expected, atol=0.02)
    assert space.dimension == 2
    assert space.lineality == 2
    assert space.converged


def test_whitened_coordinates_give_plane_angles_after_whitening():
    rows = np.asarray(TRAIN)
    whiten = np.linalg.inv(np.linalg.cholesky(rows.T @ rows).T)
    space = version_space(
        reader(2, 2, bias=False),
        tensor(TRAIN),
        torch.tensor(LABELS),
        tensor(PROBES),
        samples=16_000,
        thin=4,
    )
    expected = [arc_share(rows @ whiten, LABELS, probe) for probe in np.asarray(PROBES) @ whiten]
    np.testing.assert_allclose(space.probabilities[:, 1], expected, atol=0.02)
    raw = [arc_share(TRAIN, LABELS, probe) for probe in PROBES]
    assert max(abs(np.subtract(raw, expected))) > 0.05  # so the two could be told apart


def rejection(train, labels, probes, classes, draws, seed, noise_columns=None):
    """Draw standard normal classifiers and keep those that fit: the definition itself."""
    random = np.random.default_rng(seed)
    w = random.standard_normal((draws, classes, train.shape[1]))
    fit = ((w @ train.T).argmax(axis=1) == labels).all(axis=1)
    winners = (w[fit] @ probes.T).argmax(axis=1)
    return np.stack([(winners == k).mean(axis=0) for k in range(classes)], axis=1), fit.sum()


@pytest.fixture
def three_classes():
    random = np.random.default_rng(5)
    train = random.standard_normal((3, 2)) * [1.0, 3.0]
    labels = np.array([0, 1, 2])
    return train, labels, random.standard_normal((6, 2)) * 2


def sampled(train, labels, probes, coordinates, **options):
    options = {"samples": 16_000, "thin": 12, **options}
    return version_space(
        reader(train.shape[1], 3),
        tensor(train),
        torch.tensor(labels),
        tensor(probes),
        coordinates=coordinates,
        **options,
    )


def test_three_classes_agree_with_rejection_sampling(three_classes):
    train, labels, probes = three_classes
    ones = np.ones((len(train), 1))
    augmented = np.hstack([train, ones])
    far = np.hstack([probes, np.ones((len(probes), 1))])
    expected, kept = rejection(augmented, labels, far, 3, 400_000, 0)
    assert kept > 2000
    space = sampled(train, labels, probes, "raw")
    np.testing.assert_allclose(space.probabilities, expected, atol=0.03)

    whiten = np.linalg.inv(np.linalg.cholesky(augmented.T @ augmented).T)
    expected, kept = rejection(augmented @ whiten, labels, far @ whiten, 3, 400_000, 1)
    assert kept > 2000
    space = sampled(train, labels, probes, "whitened")
    np.testing.assert_allclose(space.probabilities, expected, atol=0.03)
    # The labeling entropy of so many samples of few points is not saturated.
    value, saturated = space.labeling_entropy
    assert 0 < value <= space.point_entropy.sum() + 1e-12
    assert not saturated


def test_raw_probes_outside_the_span_keep_their_own_noise():
    # The third feature is zero on all training points but not on the probe.
    train = np.array([[1.0, 0.5, 0.0], [-0.5, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    labels, probes = np.array([0, 1, 2]), np.array([[1.0, 0.2, 1.5], [0.3, 0.9, 0.0]])
    augmented = np.hstack([train, np.ones((3, 1))])
    far = np.hstack([probes, np.ones((2, 1))])
    expected, _ = rejection(augmented, labels, far, 3, 400_000, 2)
    raw = sampled(train, labels, probes, "raw")
    np.testing.assert_allclose(raw.probabilities, expected, atol=0.03)
    assert not raw.free.any()
    white = sampled(train, labels, probes, "whitened", samples=320)
    np.testing.assert_array_equal(white.free, [True, False])
    np.testing.assert_allclose(white.probabilities[0], 1 / 3)
    assert (white.labelings[:, 0] == -1).all()


def features(seed, n=30, u=25, d=4, classes=3):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n + u, d))
    y = (x @ random.standard_normal((d, classes))).argmax(axis=1)
    return x[:n], y[:n], x[n:]


def test_whitening_makes_frames_agree_under_affine_maps_and_raw_ones_not():
    train, _, probes = features(1)
    random = np.random.default_rng(2)
    mix, shift = random.standard_normal((4, 4)), random.standard_normal(4)
    moved = [np.asarray(part) @ mix + shift for part in (train, probes)]
    for coordinates in ("whitened", "raw"):
        one, two = (
            _frame(a, b, bias=True, coordinates=coordinates, tolerance=1e-11)
            for a, b in ((train, probes), moved)
        )
        scale = abs(one.train).max()
        same = abs(one.train - two.train).max() < 1e-9 * scale
        assert same == (coordinates == "whitened")
        if coordinates == "whitened":
            np.testing.assert_allclose(one.probes, two.probes, atol=1e-9 * abs(one.probes).max())
    # A split unit adds a column within the span: the same frame again.
    wide = [np.hstack([part, part[:, :1] * 3.0]) for part in (train, probes)]
    three = _frame(*wide, bias=True, coordinates="whitened", tolerance=1e-11)
    one = _frame(train, probes, bias=True, coordinates="whitened", tolerance=1e-11)
    np.testing.assert_allclose(one.train, three.train, atol=1e-9)


def test_counts_are_affine_invariant_and_raw_volumes_are_not():
    """The judgement asked of this measure, by measurement: in units of its standard error."""
    train, labels, probes = features(3)
    scales = np.array([30.0, 1.0, 0.05, 4.0])
    z = {}
    for coordinates in ("whitened", "raw"):
        one = sampled(train, labels, probes, coordinates, samples=3200, thin=40).weakness()
        two = sampled(
            train * scales, labels, probes * scales, coordinates, samples=3200, thin=40, seed=1
        ).weakness()
        assert one.converged
        assert two.converged
        z[coordinates] = abs(float(one) - float(two)) / math.hypot(one.stderr, two.stderr)
    assert z["whitened"] < 4
    assert z["raw"] > 5


def test_every_sample_fits_the_training_set_and_the_centre_is_the_widest():
    train, labels, probes = features(4)
    both = np.vstack([probes, train])
    space = sampled(train, labels, both, "whitened", samples=640)
    assert (space.labelings[:, len(probes) :] == labels).all()
    assert np.linalg.norm(space.centre) == pytest.approx(1.0)
    # The radius is the distance to the nearest wall, and no nearby classifier has a larger.
    frame = _frame(train, probes, bias=True, coordinates="whitened", tolerance=1e-11)
    unit = frame.train / np.linalg.norm(frame.train, axis=1, keepdims=True)

    def radius(w):
        logits = unit @ w.T
        own = logits[np.arange(len(labels)), labels]
        logits[np.arange(len(labels)), labels] = -np.inf
        return (own - logits.max(axis=1)).min() / math.sqrt(2) / np.linalg.norm(w)

    assert radius(space.centre) == pytest.approx(space.radius, rel=1e-6)
    random = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(50):
            step = random.standard_normal(space.centre.shape)
            step -= step.mean(axis=0)
            other = space.centre + size * step / np.linalg.norm(step)
            assert radius(other) <= space.radius + 1e-8


def test_weakness_lies_between_the_point_count_and_the_pair_proxy():
    from invariance.weakness import pair_proxy

    train, labels, probes = features(5)
    space = sampled(train, labels, probes, "whitened", samples=1600)
    feasible = pair_proxy(reader(4, 3), tensor(train), torch.tensor(labels), tensor(probes)).detail[
        "status"
    ]
    # Every sampled label is a feasible pair: support within what counts certify.
    seen = np.stack([(space.labelings == k).any(axis=0) for k in range(3)], axis=1)
    assert not (seen & (feasible != 1)).any()
    value = float(space.weakness())
    assert len(probes) <= value <= (feasible == 1).sum()
    assert value == pytest.approx(np.exp(entropy(space.probabilities)).sum())


def test_same_seed_same_chains_and_no_side_effects():
    train, labels, probes = features(6)
    model = reader(4, 3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = tensor(train), torch.tensor(labels), tensor(probes)
    before = torch.get_rng_state()
    one, two, other = (
        version_space(model, *inputs, coordinates="raw", samples=160, seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.labelings, two.labelings)
    assert (one.labelings != other.labelings).any()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_truncated_normals_follow_the_truncated_law_far_out_too():
    u = (np.arange(20_000) + 0.5) / 20_000
    for low, high in ((-1.0, 2.0), (0.5, np.inf), (-np.inf, -3.0), (30.0, 31.0), (-40.0, -39.9)):
        drawn = truncated_normal(np.full(u.shape, low), np.full(u.shape, high), u)
        assert (drawn >= low).all()
        assert (drawn <= high).all()
        law = stats.truncnorm(low, high)
        np.testing.assert_allclose(
            [drawn.mean(), drawn.std()], [law.mean(), law.std()], rtol=2e-3, atol=1e-3
        )


def test_the_barrier_hessian_equals_finite_differences():
    random = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 3, 1])
    weight = random.standard_normal((4, 3))
    weight -= weight.mean(axis=0)
    rows = np.stack([np.linalg.lstsq(weight, np.eye(4)[y], rcond=None)[0] for y in labels])
    rows += 0.05 * random.standard_normal(rows.shape)
    cone = Cone(rows, labels, 4)
    v = cone.gauge @ weight

    def barrier(flat):
        gaps = cone.gaps(flat.reshape(1, 3, 3))[0]
        others = gaps[np.arange(4) != labels[:, None]]
        assert (others > 0).all()
        return -np.log(others).sum() + 0.5 * flat @ flat

    flat, h = v.reshape(-1), 1e-4
    eye = np.eye(9) * h
    hessian = np.array(
        [
            [
                barrier(flat + a + b)
                - barrier(flat + a - b)
                - barrier(flat - a + b)
                + barrier(flat - a - b)
                for b in eye
            ]
            for a in eye
        ]
    ) / (4 * h * h)
    np.testing.assert_allclose(
        np.linalg.inv(cone.dikin_covariance(v)), hessian, rtol=1e-4, atol=1e-4
    )


def test_diagnostics_on_known_chains():
    random = np.random.default_rng(0)
    free = random.standard_normal((10, 500))
    assert split_r_hat(free) == pytest.approx(1.0, abs=0.02)
    assert effective_sample_size(free) == pytest.approx(5000, rel=0.15)
    rho = 0.8  # an AR(1) chain is worth (1 - rho) / (1 + rho) of its length
    chain = np.zeros((10, 4000))
    noise = random.standard_normal(chain.shape)
    for t in range(1, 4000):
        chain[:, t] = rho * chain[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    assert effective_sample_size(chain) == pytest.approx(40_000 / 9, rel=0.2)
    stuck = free + np.arange(10)[:, None]
    assert split_r_hat(stuck) > 1.5
    assert effective_sample_size(stuck) < 100
    assert split_r_hat(np.ones((4, 10))) == 1.0
    assert effective_sample_size(np.ones((4, 10))) == 40


def test_bad_version_space_input_is_refused():
    train, labels, probes = features(7)
    with pytest.raises(MeasureError, match=r"not linearly separable.*empty"):
        sampled(
            np.vstack([train, train[:1]]), np.append(labels, (labels[0] + 1) % 3), probes, "raw"
        )
    with pytest.raises(UsageError, match="coordinates 'polar'"):
        sampled(train, labels, probes, "polar")
    with pytest.raises(MeasureError, match="chains >= 2"):
        sampled(train, labels, probes, "raw", chains=1)
