"""Frozen features: read from the last linear layer that runs, leaving no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from invariance.core._errors import MeasureError
from invariance.weakness._features import check_labels, frozen_features


class Swapped(nn.Module):
    """Registers its head first and runs it last."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.body = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3))).log_softmax(-1)


class Tokens(nn.Module):
    """A one-block transformer that classifies its first token."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.block(x)[:, 0])


def test_the_layer_is_found_by_execution():
    model, x = Swapped(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    read = frozen_features(model, x)
    assert (read.layer, read.n_classes, read.bias) == ("head", 2, True)
    with torch.no_grad():
        expected = torch.relu(model.body(x)).numpy()
    np.testing.assert_allclose(read.values[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("build", "shape", "d"),
    [(Swapped, (6, 4), 3), (Convolutional, (6, 1, 5, 5), 3), (Tokens, (6, 4, 8), 8)],
)
def test_reads_any_architecture_and_leaves_no_trace(build, shape, d, dtype):
    model = build().to(dtype).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    read = frozen_features(model, x, x[:2])
    assert [value.shape for value in read.values] == [(6, d), (2, d)]
    np.testing.assert_allclose(read.values[1], read.values[0][:2], rtol=1e-12, atol=1e-14)
    assert read.epsilon == torch.finfo(dtype).eps
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def test_native_precision_is_the_networks_own():
    model, x = Swapped(), torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    native = frozen_features(model, x, precision="native").values[0]
    np.testing.assert_array_equal(native, native.astype(np.float32))


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Softmin(-1)), torch.ones(3, 2), "something acts after"),
        (nn.Sequential(nn.Conv1d(1, 2, 1)), torch.ones(3, 1, 4), "No nn.Linear layer ran"),
        (nn.Linear(2, 1), torch.ones(3, 2), "K >= 2"),
        (nn.Linear(2, 3), torch.ones(0, 2), "at least one row"),
        (nn.Linear(2, 3), torch.ones(3, 2, dtype=torch.int64), "floating-point rows"),
        (nn.Linear(2, 3), torch.full((3, 2), torch.inf), "NaN or infinity"),
        (nn.Linear(2, 3), torch.ones(3, 4, 2), "one feature vector a point"),
        (nn.Sequential(nn.Dropout(), nn.Linear(2, 3)), torch.ones(3, 2), "train mode"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), "weights", "is nan|is inf"),
    ],
)
def test_refuses_what_it_cannot_read(model, x, message):
    if isinstance(x, str):  # the input is fine, the parameters are not
        with torch.no_grad():
            model[0].weight.fill_(torch.nan)
        x = torch.ones(3, 2)
    with pytest.raises(MeasureError, match=message):
        frozen_features(model, x)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "0..2"),
        (torch.tensor([-1, 0]), "0..2"),
        (torch.tensor([0.0, 1.0]), "integer"),
        (torch.tensor([0]), "shape"),
    ],
)
def test_refuses_bad_labels(labels, message):
    with pytest.raises(MeasureError, match=message):
        check_labels(labels, 2, 3)
