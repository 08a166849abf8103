"""Every outcome against its definition, row by row in NumPy, and against SciPy's own images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import jensenshannon
from torch import nn

from invariance import outcomes as O
from invariance.core._errors import DataError, MeasureError, UsageError
from invariance.models import mlp
from invariance.outcomes._adversarial import _sign
from invariance.outcomes._corruptions import BLUR, OCCLUSION, ROTATION, rotation_matrix


def images(rows=40, side=6, seed=0, channels=1):
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, channels * side * side, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, 3, (rows,), generator=draws)


def network(seed=0, features=36):
    model = mlp((features, 8, 3), seed=seed, dtype=torch.float64).eval()
    with torch.no_grad():
        model[-1].weight.mul_(5.0)
    return model


def probabilities(model, x):
    logits = model(x).detach().numpy()
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_bin_by_bin(bins):
    model, (x, y) = network(), images(200)
    p = probabilities(model, x)
    total, counts = 0.0, []
    for b in range(bins):
        members = [i for i in range(200) if b / bins < p[i].max() <= (b + 1) / bins]
        counts.append(len(members))
        if members:
            hit = np.mean([p[i].argmax() == int(y[i]) for i in members])
            sure = np.mean([p[i].max() for i in members])
            total += len(members) / 200 * abs(hit - sure)
    found = O.expected_calibration_error(model, x, y, bins=bins)
    assert float(found) == pytest.approx(total, rel=1e-12)
    assert list(found.detail["counts"]) == counts
    nll = -np.mean(np.log(p[np.arange(200), y.numpy()]))
    assert found.detail["nll"] == pytest.approx(nll, rel=1e-12)


def test_calibration_error_of_a_certain_network_is_its_error():
    x, y = images(50)
    model = nn.Sequential(nn.Linear(36, 3).double())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    expected = float((y != 0).double().mean())
    assert float(O.expected_calibration_error(model, x, y)) == pytest.approx(expected)


def test_disagreement_and_divergence_pair_by_pair():
    models, (x, _) = [network(seed) for seed in range(3)], images()
    p = [probabilities(model, x) for model in models]
    apart, far = np.zeros((3, 3)), np.zeros((3, 3))
    for i, j in itertools.product(range(3), repeat=2):
        apart[i, j] = np.mean([a.argmax() != b.argmax() for a, b in zip(p[i], p[j], strict=True)])
        if i != j:
            # SciPy's distance is the square root of the divergence.
            far[i, j] = np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p[i], p[j], strict=True)])
    pairs = np.triu_indices(3, 1)
    for found, matrix in (
        (O.prediction_disagreement(models, x), apart),
        (O.jensen_shannon_divergence(models, x), far),
    ):
        assert float(found) == pytest.approx(matrix[pairs].mean(), rel=1e-9)
        np.testing.assert_allclose(found.detail["matrix"], matrix, rtol=1e-9)
        np.testing.assert_allclose(found.detail["per_network"], matrix.sum(1) / 2, rtol=1e-9)


def test_divergence_of_two_is_the_generalized_one_and_at_most_ln_2():
    x, _ = images()
    found = O.jensen_shannon_divergence([network(0), network(1)], x)
    assert found.detail["generalized"] == pytest.approx(float(found), rel=1e-12)
    one = nn.Sequential(nn.Linear(36, 3).double())
    with torch.no_grad():
        one[0].weight.zero_()
        one[0].bias.copy_(torch.tensor([1e3, 0.0, 0.0]))
    other = nn.Sequential(nn.Linear(36, 3).double())
    with torch.no_grad():
        other[0].weight.zero_()
        other[0].bias.copy_(torch.tensor([0.0, 1e3, 0.0]))
    assert float(O.jensen_shannon_divergence([one, other], x)) == pytest.approx(math.log(2))
    assert float(O.jensen_shannon_divergence([one, one], x)) == 0.0
    assert float(O.prediction_disagreement([one, other], x)) == 1.0


@pytest.mark.parametrize("level", range(5))
def test_rotation_is_scipys(level):
    x = images(7, side=9)[0].view(7, 9, 9).numpy()
    for sign in (-1, 1):
        ours = (rotation_matrix(9, math.radians(sign * ROTATION[level])) @ x.reshape(7, 81).T).T
        scipys = [
            ndimage.rotate(
                image, sign * ROTATION[level], reshape=False, order=1, mode="grid-constant"
            )
            for image in x
        ]
        np.testing.assert_allclose(ours.reshape(7, 9, 9), scipys, atol=1e-12)


def test_rotation_goes_both_ways():
    x = images(40, side=9)[0]
    made = O.corrupt(x, "rotation", 3)
    ways = [
        x @ torch.from_numpy(rotation_matrix(9, math.radians(a)).toarray()).T for a in (-30, 30)
    ]
    hit = torch.stack([(made - way).abs().amax(1) < 1e-12 for way in ways])
    assert bool((hit.sum(0) == 1).all())
    assert 8 < int(hit[0].sum()) < 32


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_and_contrast_image_by_image(channels):
    x = images(5, side=10, channels=channels)[0]
    blurred = O.corrupt(x, "blur", 4).view(5, channels, 10, 10).numpy()
    dull = O.corrupt(x, "contrast", 5)
    for i, image in enumerate(x.view(5, channels, 10, 10).numpy()):
        for c in range(channels):
            expected = ndimage.gaussian_filter(image[c], BLUR[3] * 10, mode="nearest")
            np.testing.assert_allclose(blurred[i, c], expected, atol=1e-12)
        expected = image.mean() + 0.15 * (image - image.mean())
        np.testing.assert_allclose(dull[i].view(channels, 10, 10), expected, atol=1e-12)


def test_occlusion_is_one_black_square_of_the_right_size():
    x = images(60, side=10)[0] + 0.0
    x = x.clamp(min=0.01)
    places = set()
    for strength in O.STRENGTHS:
        made = O.corrupt(x, "occlusion", strength).view(60, 10, 10)
        size = round(OCCLUSION[strength - 1] * 10)
        for before, after in zip(x.view(60, 10, 10), made, strict=True):
            rows, columns = np.nonzero((after == 0).numpy())
            assert len(rows) == size * size
            assert np.ptp(rows) == np.ptp(columns) == size - 1
            assert bool(((after == before) | (after == 0)).all())
            places.add((strength, int(rows.min()), int(columns.min())))
        ends = {(row, row + size) for s, row, _ in places if s == strength}
        assert min(ends)[0] == 0 and max(ends)[1] == 10  # every place is possible
    assert len(places) > 100  # it lies somewhere else in every image


def test_noise_has_its_deviation_and_the_same_direction_at_every_strength():
    x = torch.full((200, 100), 0.5, dtype=torch.float64)
    weak, strong = (O.corrupt(x, "noise", strength) - 0.5 for strength in (1, 2))
    assert float(weak.std()) == pytest.approx(0.08, rel=0.02)
    inside = (strong.abs() < 0.499) & (weak.abs() < 0.499)
    assert torch.allclose(strong[inside] / weak[inside], torch.tensor(1.5, dtype=torch.float64))


@pytest.mark.parametrize("kind", sorted(O.CORRUPTIONS))
def test_corruptions_are_seeded_bounded_and_ever_stronger(kind):
    x = images(30, side=8)[0]
    kept = x.clone()
    distances = []
    for strength in O.STRENGTHS:
        made = O.corrupt(x, kind, strength, seed=3)
        assert torch.equal(made, O.corrupt(x, kind, strength, seed=3))
        assert made.shape == x.shape and made.dtype == x.dtype
        assert float(made.min()) >= 0 and float(made.max()) <= 1
        distances.append(float((made - x).norm()))
    assert distances == sorted(distances)
    assert torch.equal(x, kept)
    if kind in ("noise", "rotation", "occlusion"):
        assert not torch.equal(O.corrupt(x, kind, 3, 3), O.corrupt(x, kind, 3, 4))
    as_images = O.corrupt(x.view(-1, 1, 8, 8), kind, 5, seed=3)
    assert torch.equal(as_images.flatten(1), made)


def test_corruption_accuracy_is_the_mean_of_plain_accuracies():
    model, (x, y) = network(), images(60)
    found = O.corruption_accuracy(model, x, y, kinds=("noise", "blur"), strengths=(1, 5), seed=2)
    table = {
        kind: [
            float((model(O.corrupt(x, kind, s, 2)).argmax(1) == y).double().mean()) for s in (1, 5)
        ]
        for kind in ("noise", "blur")
    }
    assert {k: list(v) for k, v in found.detail["table"].items()} == table
    assert float(found) == pytest.approx(np.mean(list(table.values())))
    assert found.parts["blur"] == pytest.approx(np.mean(table["blur"]))
    assert found.detail["clean"] == float((model(x).argmax(1) == y).double().mean())
    suite = O.corruption_suite(x, kinds=iter(["noise", "blur"]), strengths=iter([1, 5]), seed=2)
    assert O.corruption_accuracy(model, x, y, suite=suite) == found


def fgsm_by_hand(model, x, y, epsilon):
    right = 0
    for row, label in zip(x, y, strict=True):
        leaf = row[None].clone().requires_grad_()
        nn.functional.cross_entropy(model(leaf), label[None]).backward()
        moved = (row + epsilon * leaf.grad[0].sign()).clamp(0, 1)
        right += int(model(row[None]).argmax() == label and model(moved[None]).argmax() == label)
    return right / len(x)


def trained(seed=0):
    x, _ = images(120, seed=5)
    y = (x[:, :12].sum(1) > x[:, 12:24].sum(1)).long() + (x[:, 30] > 0.9).long()
    model = mlp((36, 10, 3), seed=seed, dtype=torch.float64)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval(), x, y


def test_fgsm_row_by_row():
    model, x, y = trained()
    values = []
    for epsilon in (0.0, 0.02, 0.05):
        found = O.adversarial_accuracy(model, x, y, epsilon=epsilon)
        assert float(found) == pytest.approx(fgsm_by_hand(model, x, y, epsilon))
        values.append(float(found))
    assert values[0] == found.detail["clean"] > values[1] > values[2]


def test_pgd_is_the_iteration_written_out_and_stays_in_the_ball():
    model, x, y = trained()
    epsilon, steps = 0.05, 4
    from invariance.core._rng import generator

    noise = torch.rand(x.shape, generator=generator(7, "pgd"), dtype=torch.float64)
    at = (x + epsilon * (2 * noise - 1)).clamp(0, 1)
    right = model(x).argmax(1) == y
    for step in range(steps + 1):
        right &= model(at).argmax(1) == y
        assert float((at - x).abs().max()) <= epsilon + 1e-12
        if step < steps:
            leaf = at.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
            at = at + 2.5 * epsilon / steps * torch.autograd.grad(loss, leaf)[0].sign()
            at = torch.minimum(torch.maximum(at, x - epsilon), x + epsilon).clamp(0, 1)
    found = O.adversarial_accuracy(model, x, y, epsilon=epsilon, attack="pgd", steps=4, seed=7)
    assert float(found) == pytest.approx(float(right.double().mean()))
    assert float(found) <= float(O.adversarial_accuracy(model, x, y, epsilon=epsilon))


def test_a_linear_network_is_broken_exactly_where_theory_says():
    # Two classes: the attack lowers the margin by epsilon |w|_1, away from the box's edges.
    draws = torch.Generator().manual_seed(0)
    x = 0.5 + 0.1 * (torch.rand(100, 9, generator=draws, dtype=torch.float64) - 0.5)
    model = nn.Sequential(nn.Linear(9, 2).double())
    with torch.no_grad():
        model[0].bias.sub_(model(x).mean(0))
    out = model(x).detach()
    y = out.argmax(1)
    w = (model[0].weight[1] - model[0].weight[0]).detach()
    margin = (out[:, 1] - out[:, 0]).abs()
    epsilon = float(margin.median() / w.abs().sum())
    expected = float((margin > epsilon * w.abs().sum()).double().mean())
    for attack in O.ATTACKS:
        found = O.adversarial_accuracy(model, x, y, epsilon=epsilon, attack=attack, steps=20)
        assert float(found) == pytest.approx(expected, abs=0.011)


def test_round_off_has_no_sign():
    gradient = torch.tensor([[1.0, 1e-17, -1e-3, 0.0], [1e-17, -1e-17, 0.0, 0.0]]).double()
    assert _sign(gradient).tolist() == [[1.0, 0.0, -1.0, 0.0], [1.0, -1.0, 0.0, 0.0]]


def test_refusals():
    model, (x, y) = network(), images()
    with pytest.raises(UsageError, match=r"fog.*noise, blur"):
        O.corrupt(x, "fog", 1)
    with pytest.raises(UsageError, match="strength must be one of"):
        O.corrupt(x, "blur", 6)
    with pytest.raises(DataError, match="35 values is no square"):
        O.corrupt(x[:, :35], "blur", 1)
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        O.corrupt(x * 255, "blur", 1)
    with pytest.raises(DataError, match="not empty"):
        O.corrupt(x[:0], "blur", 1)
    with pytest.raises(DataError, match=r"square. Got 4 x 9"):
        O.corrupt(x.view(-1, 1, 4, 9), "blur", 1)
    with pytest.raises(UsageError, match="at least one"):
        O.corruption_accuracy(model, x, y, kinds=())
    with pytest.raises(UsageError, match=r"cw.*fgsm, pgd"):
        O.adversarial_accuracy(model, x, y, attack="cw")
    with pytest.raises(DataError, match="where the attack stays"):
        O.adversarial_accuracy(model, x - 1, y)
    with pytest.raises(MeasureError, match="epsilon"):
        O.adversarial_accuracy(model, x, y, epsilon=float("nan"))
    with pytest.raises(MeasureError, match="steps"):
        O.adversarial_accuracy(model, x, y, steps=0)
    with pytest.raises(MeasureError, match="bins"):
        O.expected_calibration_error(model, x, y, bins=0)
    with pytest.raises(DataError, match=r"y\[0\] is 9"):
        O.expected_calibration_error(model, x, torch.full_like(y, 9))
    with pytest.raises(DataError, match="integer labels"):
        O.expected_calibration_error(model, x, y[:-1])
    with pytest.raises(MeasureError, match="two networks"):
        O.prediction_disagreement([model], x)
    with pytest.raises(MeasureError, match=r"different numbers.*\[3, 4\]"):
        O.jensen_shannon_divergence([model, mlp((36, 4), dtype=torch.float64)], x)
    with pytest.raises(MeasureError, match=r"K of at least 2. Got \(40, 1\)"):
        O.expected_calibration_error(nn.Linear(36, 1).double(), x, y)
    with pytest.raises(MeasureError, match="train mode"):
        O.expected_calibration_error(mlp((36, 4, 3), batch_norm=True), x, y)
    with pytest.raises(DataError, match="does not accept x"):
        O.expected_calibration_error(model, x[:, :20], y)
