"""Random changes of images against loops over pixels.

Catches: images that wrap around, channels that part, draws that depend on batch or
ensemble, changes that reach the evaluation, a mirrored or off-centre rotation.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from training_reference import assert_same_model, blobs, same_bits

from invariance.core._errors import UsageError
from invariance.core._rng import generator
from invariance.models import cnn, mlp
from invariance.training import fit, fit_ensemble
from invariance.training._augmentation import Augmentation, _turn, image_shape

CPU = torch.device("cpu")


def made(*kinds, features=784, dtype=torch.float32):
    return Augmentation(kinds, features, CPU, dtype)


def images(count, rows, features, seed=0):
    return torch.rand((count, rows, features), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("features", "channels", "side"), [(49, 1, 7), (108, 3, 6)])
def test_shifts_and_flips_pixel_by_pixel(features, channels, side):
    view = made("shift", "flip", features=features).draw([3], 5, 40)
    batch = images(1, 40, features)
    changed = view.apply(batch, slice(0, 40))[0].view(40, channels, side, side)
    draw = generator(3, "augmentation", 5)
    down, right = torch.randint(3, (2, 40), generator=draw) - 1  # side / 14 rounds to 1 at least
    flip = torch.randint(2, (40,), generator=draw)
    assert {int(d) for d in down} == {-1, 0, 1}
    assert {int(f) for f in flip} == {0, 1}
    original = batch[0].view(40, channels, side, side)
    for i in range(40):
        # First shifted, then mirrored.
        shifted = torch.zeros(channels, side, side)
        for y in range(side):
            for x in range(side):
                from_y, from_x = y - int(down[i]), x - int(right[i])
                if 0 <= from_y < side and 0 <= from_x < side:
                    shifted[:, y, x] = original[i, :, from_y, from_x]
        expected = shifted.flip(2) if flip[i] else shifted
        assert torch.equal(changed[i], expected), i


def test_mnist_shifts_by_two_pixels():
    view = made("shift").draw([0], 1, 500)
    dot = torch.zeros(1, 500, 784)
    dot[..., 14 * 28 + 14] = 1.0
    at = view.apply(dot, slice(0, 500))[0].nonzero()[:, 1]
    assert sorted({int(p) // 28 for p in at}) == [12, 13, 14, 15, 16]
    assert sorted({int(p) % 28 for p in at}) == [12, 13, 14, 15, 16]


def test_a_quarter_turn_is_exact_and_turns_as_the_array_does():
    batch = images(1, 6, 2 * 25)[0].view(6, 2, 5, 5).double()
    zero, one = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    still = {"down": zero, "right": zero, "flip": zero.bool()}
    torch.testing.assert_close(_turn(batch, zero, one, **still), torch.rot90(batch, 1, (2, 3)))
    torch.testing.assert_close(_turn(batch, one, zero, **still), batch)


@pytest.mark.parametrize("kinds", [("shift",), ("flip",), ("flip", "shift")])
def test_one_resampling_turns_then_shifts_then_flips(kinds):
    # Ink in the middle alone, so that nothing leaves the image on the way.
    batch = images(1, 25, 400).double().view(1, 25, 20, 20)
    batch[..., :5, :] = batch[..., 15:, :] = batch[..., :5] = batch[..., 15:] = 0.0
    batch = batch.view(1, 25, 400)

    def of(*names):
        return made(*names, features=400, dtype=torch.float64).draw([4], 1, 25)

    turned = of("rotate").apply(batch, slice(0, 25))
    torch.testing.assert_close(
        of("rotate", *kinds).apply(batch, slice(0, 25)), of(*kinds).apply(turned, slice(0, 25))
    )


def test_rotations_are_bilinear_about_the_centre():
    side, features = 9, 81
    angle_view = made("rotate", features=features, dtype=torch.float64).draw([1], 2, 30)
    batch = images(1, 30, features).double()
    changed = angle_view.apply(batch, slice(0, 30))[0].view(30, side, side)
    centre = (side - 1) / 2
    for i in range(0, 30, 7):
        c, s = float(angle_view.cosine[0, i]), float(angle_view.sine[0, i])
        assert abs(math.atan2(s, c)) <= math.radians(15)
        picture = F.pad(batch[0, i].view(side, side), (1, 1, 1, 1))
        for y, x in ((4, 4), (0, 0), (2, 7), (8, 5)):
            u, v = c * (x - centre) - s * (y - centre), s * (x - centre) + c * (y - centre)
            u, v = u + centre + 1, v + centre + 1  # in the padded picture
            u0, v0 = math.floor(u), math.floor(v)
            value = 0.0
            for du in (0, 1):
                for dv in (0, 1):
                    weight = (1 - abs(u - u0 - du)) * (1 - abs(v - v0 - dv))
                    inside = 0 <= v0 + dv < side + 2 and 0 <= u0 + du < side + 2
                    value += weight * float(picture[v0 + dv, u0 + du]) if inside else 0.0
            assert float(changed[i, y, x]) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("kinds", [("shift",), ("flip",), ("rotate",), ("rotate", "shift")])
def test_a_change_depends_on_seed_epoch_and_point_alone(kinds):
    maker = made(*kinds)
    batch = images(2, 20, 784)
    both = maker.draw([7, 8], 3, 20)
    whole = both.apply(batch, slice(0, 20))
    order = torch.stack([torch.randperm(20, generator=generator(s)) for s in (0, 1)])
    picked = batch.gather(1, order[..., None].expand(-1, -1, 784))
    assert torch.equal(
        both.apply(picked, order), whole.gather(1, order[..., None].expand(-1, -1, 784))
    )
    alone = maker.draw([8], 3, 20).apply(batch[1:], slice(0, 20))
    assert torch.equal(alone[0], whole[1])
    assert torch.equal(both.of(1).apply(batch[1:, 4:6], slice(4, 6))[0], whole[1, 4:6])
    assert not torch.equal(maker.draw([7, 8], 4, 20).apply(batch, slice(0, 20)), whole)
    assert not torch.equal(maker.draw([9], 3, 20).apply(batch[1:], slice(0, 20))[0], whole[1])


@pytest.mark.parametrize("batch_size", [8, None])
@pytest.mark.parametrize("kind", ["perceptron", "single", "vectorized"])
def test_training_sees_the_changed_images_and_looks_at_the_unchanged(kind, batch_size):
    task = blobs(20, 16, 4)

    def build(seed):
        if kind == "perceptron":
            return mlp((16, 6, 4), seed=seed)
        return cnn(image_size=4, widths=(3,), hidden=5, n_classes=4, flat_input=True, seed=seed)

    fits = fit_ensemble(
        build, task, seeds=[2, 6], max_epochs=3, batch_size=batch_size, lr=0.2,
        target_accuracy=None, dtype=torch.float64, augmentation=("shift", "rotate"),
        vectorize={"vectorized": True}.get(kind),
    )  # fmt: skip
    for seed, found in zip([2, 6], fits, strict=True):
        model = build(seed).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.2)
        order, x, y = generator(seed, "order"), task.x_train.double(), task.y_train
        maker = made("shift", "rotate", features=16, dtype=torch.float64)
        for epoch in range(1, 4):
            changed = maker.draw([seed], epoch, 20).apply(x[None], slice(0, 20))[0]
            rows = torch.arange(20) if batch_size is None else torch.randperm(20, generator=order)
            for batch in rows.split(batch_size or 20):
                optimizer.zero_grad()
                F.cross_entropy(model(changed[batch]), y[batch]).backward()
                optimizer.step()
        assert_same_model(found.model, model)
        assert found.train_loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-9)


def test_ink_reaches_pixels_that_were_never_used():
    # Without augmentation the weights of such pixels would be left out altogether.
    task = blobs(30, 16, 4)  # feature 3 is always zero
    start = mlp((16, 5, 4), seed=0)
    found = fit(start, task, max_epochs=2, augmentation="shift", target_accuracy=None)
    assert not torch.equal(found.model[0].weight[:, 3], start[0].weight[:, 3])
    plain = fit(start, task, max_epochs=2, target_accuracy=None)
    assert torch.equal(plain.model[0].weight[:, 3], start[0].weight[:, 3])


def test_names_and_shapes():
    task = blobs(20, 16, 4)
    one = fit(mlp((16, 4)), task, max_epochs=1, augmentation="flip")
    same = fit(mlp((16, 4)), task, max_epochs=1, augmentation=["flip"])
    assert same_bits(one.model, same.model)
    assert one.config.augmentation == ("flip",)
    assert (image_shape(784), image_shape(3072), image_shape(64)) == ((1, 28), (3, 32), (1, 8))
    with pytest.raises(UsageError, match="twist"):
        fit(mlp((16, 4)), task, augmentation="twist")
    with pytest.raises(UsageError, match="Got rows of 10 features"):
        fit(mlp((10, 4)), blobs(20, 10, 4), augmentation="shift")
