"""Everything that takes a model gives the CPU's results on a device that is not the CPU.

Catches: a tensor made on the CPU that meets the model's, ``.numpy()`` of a device tensor, a
factory without ``device=``, a result that depends on the device's kind, and (by the counts)
code that waits for the device in a loop.
"""

from __future__ import annotations

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from second_device import DEVICE, Far, MixedDevices, SecondDevice, fetch, send
from torch import nn

import invariance as inv
from invariance.training import _fit as fit_module

T = inv.transforms

GIVEN = ("x", "y", "x_train", "y_train", "x_unseen")


def points(*shape):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12, *shape, generator=draw)
    unseen = torch.randn(4, *shape, generator=draw)
    return {"x": x, "x_train": x, "x_unseen": unseen} | dict.fromkeys(
        ("y", "y_train"), torch.arange(12) % 3
    )


def convolutional():
    torch.manual_seed(0)
    parts = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    return nn.Sequential(*parts).eval()


def smooth():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 3))


class Attention(nn.Module):
    """One head over two tokens, and a residual stream."""

    def __init__(self):
        super().__init__()
        self.mix, self.out, self.head = nn.Linear(3, 9), nn.Linear(3, 3), nn.Linear(6, 3)

    def forward(self, x):
        q, k, v = self.mix(x)[:, None].chunk(3, -1)
        read = nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.head((x + self.out(read)).flatten(1))


def attention():
    torch.manual_seed(0)
    return Attention()


NETWORKS = {
    "perceptron": (lambda: inv.models.mlp((5, 4, 3), seed=1), (5,)),
    "batch norm": (lambda: inv.models.mlp((5, 4, 3), seed=1, batch_norm=True).eval(), (5,)),
    "convolutional": (convolutional, (1, 4, 4)),
    "smooth": (smooth, (5,)),
    "attention": (attention, (2, 3)),
}

#: Measures of hundreds of forward passes, which is slow under the second device.
SLOW = (
    "adaptive_gaussian_sharpness",
    "adaptive_worst_case_sharpness",
    "gaussian_sharpness",
    "worst_case_sharpness",
)


def numbers(found):
    """Every number of a result, in one float64 vector."""
    if isinstance(found, inv.measures.CurvatureProfile):
        found = [found.trace, found.adaptive_trace, found.relative_flatness]
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list | tuple):
        return torch.cat([numbers(part) for part in found])
    value = fetch(getattr(found, "value", found))
    return (
        torch.as_tensor(value if torch.is_tensor(value) else np.array(value)).double().reshape(-1)
    )


@pytest.mark.parametrize("name", sorted({*inv.measures.__all__} - {"CurvatureProfile"}))
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_measure_gives_the_same_on_another_device(kind, name):
    if name in SLOW and kind != "perceptron":
        pytest.skip("one network is enough for what takes hundreds of passes")
    measure = getattr(inv.measures, name)
    make, shape = NETWORKS[kind]
    given = points(*shape)
    wanted = [key for key in inspect.signature(measure).parameters if key in GIVEN]
    model, data = make(), [given[key] for key in wanted]
    if name in SLOW and "samples" in inspect.signature(measure).parameters:
        measure = partial(measure, samples=8)
    try:
        expected = measure(model, *data)
    except inv.InvarianceError as refusal:
        with SecondDevice(), pytest.raises(type(refusal)):
            measure(send(model), *map(send, data))
        return
    with SecondDevice():
        found = measure(send(model), *map(send, data))
    # Round-off sends a random walk elsewhere: an estimate is compared within its own error.
    error = getattr(expected, "stderr", None) or 0.0
    torch.testing.assert_close(numbers(found), numbers(expected), rtol=1e-4, atol=max(error, 1e-6))


MAPS = {
    "LayerScaling": T.LayerScaling([2.0, 0.5]),
    "NeuronScaling": T.NeuronScaling(),
    "Permutation": T.Permutation(),
    "SignFlip": T.SignFlip(),
    "LinearMixing": T.LinearMixing(),
    "LogitShift": T.LogitShift(),
    "FoldBatchNorm": T.FoldBatchNorm(),
    "BatchNormScaling": T.BatchNormScaling(3.0),
    "SplitUnits": T.SplitUnits(1),
    "DormantUnits": T.DormantUnits(1),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_map_gives_the_same_network_on_another_device(kind, name):
    make, shape = NETWORKS[kind]
    model, x = make(), points(*shape)["x"][:2]
    try:
        expected = MAPS[name](model, x)
    except inv.TransformError:
        with SecondDevice(), pytest.raises(inv.TransformError):
            MAPS[name](send(model), send(x))
        return
    with SecondDevice():
        found = MAPS[name](send(model), send(x)).state_dict()
        for key, value in expected.state_dict().items():
            assert isinstance(found[key], Far), key
            torch.testing.assert_close(fetch(found[key]), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
def test_symmetries_are_found_on_another_device(kind):
    make, shape = NETWORKS[kind]
    model, x = make(), points(*shape)["x"][:2]
    with SecondDevice():
        assert str(inv.symmetries(send(model), send(x))) == str(inv.symmetries(model, x))


@pytest.fixture
def small_task():
    given = points(5)
    x, y, unseen = given["x"].abs() / 5, given["y"], given["x_unseen"].abs() / 5
    return inv.Task("points", 3, x, y, x, y, unseen, y[:4], "made here")


TRAINING = {
    "sgd": {},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.01, "batch_size": 5},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "sam": {"sam_rho": 0.05},
}


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("kind", ["perceptron", "batch norm", "smooth"])
def test_training_ends_where_the_cpu_does(kind, name, small_task, monkeypatch):
    monkeypatch.setattr(fit_module, "resolve_device", torch.device)
    model, options = NETWORKS[kind][0](), {"max_epochs": 3, "target_accuracy": None}
    options |= TRAINING[name]
    expected = inv.fit(model, small_task, **options)
    with SecondDevice():
        found = inv.fit(model, small_task, device="meta", **options)
    for key, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[key], value, rtol=1e-4, atol=1e-6)


def test_training_waits_for_epochs_not_for_steps(small_task, monkeypatch):
    monkeypatch.setattr(fit_module, "resolve_device", torch.device)
    counts = []
    for batch in (12, 1):  # one step an epoch, and twelve
        with SecondDevice() as device:
            inv.fit(
                NETWORKS["perceptron"][0](),
                small_task,
                device="meta",
                batch_size=batch,
                max_epochs=4,
                target_accuracy=None,
            )
            counts.append(sum(device.syncs.values()))
    assert counts[1] <= counts[0] + 4, counts


def test_a_report_and_the_gate_say_the_same(small_task):
    model = NETWORKS["perceptron"][0]()
    chosen = {
        "measures": ["hessian_trace", "relative_flatness", "pair_proxy"],
        "transforms": [T.LayerScaling([2.0, 0.5]), T.Permutation()],
    }
    expected = inv.check(model, small_task, **chosen)
    with SecondDevice():
        found = inv.check(send(model), small_task, **chosen)
        given = points(5)
        inv.testing.assert_invariant(
            inv.measures.relative_flatness, send(model), send(given["x"]), send(given["y"])
        )
    told = [
        [(row.measure, row.transform, row.verdict) for row in r.rows] for r in (expected, found)
    ]
    assert told[0] == told[1]


def test_a_hessian_product_never_waits():
    model, given = inv.models.mlp((5, 4, 3), seed=1), points(5)
    with SecondDevice() as device:
        operator = inv.curvature.HessianOperator(send(model), send(given["x"]), send(given["y"]))
        v = send(torch.ones(operator.shape[0]))
        operator.matvec(v)
        device.syncs.clear()
        operator.matvec(v)
        assert not device.syncs, device.syncs


class TestTheDevice:
    def test_tensors_of_two_devices_do_not_mix(self):
        with SecondDevice(), pytest.raises(MixedDevices, match="aten::add met a tensor"):
            send(torch.ones(2)) + torch.ones(2)

    def test_numbers_of_the_device_are_not_arrays(self):
        with SecondDevice(), pytest.raises(TypeError, match="second device to numpy"):
            send(torch.ones(2)).numpy()

    def test_waiting_is_counted(self):
        with SecondDevice() as device:
            far = torch.arange(3.0, device=DEVICE)
            assert (far.sum().item(), far.cpu().tolist()) == (3.0, [0.0, 1.0, 2.0])
            assert sum(device.syncs.values()) == 2
            assert torch.tensor([1.0], device=DEVICE).tolist() == [1.0]

    def test_views_write_through(self):
        with SecondDevice():
            far = torch.zeros(2, 3, device=DEVICE)
            far[0].add_(1)
            far.view(-1)[4:] = 5.0
            assert fetch(far).tolist() == [[1, 1, 1], [0, 5, 5]]
