"""Catches: an index that means one layer to a measure and another to a transform."""

import pytest
import torch
from torch import nn

from invariance import measures as M
from invariance import transforms as T
from invariance.core._errors import MeasureError
from invariance.models import mlp


class Backwards(nn.Module):
    """Registers its last layer first, and its first layer last."""

    def __init__(self, unused=False):
        super().__init__()
        self.out = nn.Linear(6, 3)
        self.inner = nn.Linear(7, 6)
        self.first = nn.Linear(4, 7)
        if unused:
            self.spare = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.inner(self.first(x).relu()).relu())


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = Backwards().double().eval()
    return model, torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3


MEASURES = (M.relative_flatness, M.diagonal_relative_flatness, M.standardized_relative_flatness)


@pytest.mark.parametrize("measure", MEASURES)
def test_layers_are_counted_in_the_order_of_execution(measure, problem):
    model, x, y = problem
    for index, name in enumerate(("first", "inner", "out")):
        by_name = float(measure(model, x, y, layer=name))
        assert float(measure(model, x, y, layer=index)) == by_name
        assert float(measure(model, x, y, layer=index - 3)) == by_name
    assert not any(list(m._forward_pre_hooks) for m in model.modules())


def test_a_layer_scaling_counts_them_alike(problem):
    """Scale the first and undo it in the second: what the second index means loses it."""
    model, x, y = problem
    scaled = T.LayerScaling([4.0, 0.25, 1.0])(model, x)
    assert torch.equal(scaled.first.weight, 4 * model.first.weight)
    every = M.relative_flatness(model, x, y, layer=None)
    assert list(every.parts) == ["first", "inner", "out"]
    assert [float(v) for v in every] == [
        float(M.relative_flatness(model, x, y, layer=i)) for i in range(3)
    ]


@pytest.mark.parametrize("measure", MEASURES)
def test_an_index_is_refused_where_a_layer_is_never_called(measure):
    torch.manual_seed(0)
    model = Backwards(unused=True).double().eval()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    with pytest.raises(MeasureError, match=r"'spare' is never called .* Give the layer's name"):
        measure(model, x, y)
    assert float(measure(model, x, y, layer="out")) > 0


def test_a_layer_that_is_not_there_is_named(problem):
    model, x, y = problem
    with pytest.raises(MeasureError, match=r"no weight layer 3. The model has 0: first, 1: inner"):
        M.relative_flatness(model, x, y, layer=3)
    with pytest.raises(MeasureError, match=r"no weight layer 'last'"):
        M.relative_flatness(model, x, y, layer="last")
    with pytest.raises(MeasureError, match=r"no weight layer 1.5"):
        M.relative_flatness(model, x, y, layer=1.5)


def test_a_plain_sequence_needs_no_run():
    model = mlp((4, 5, 3), seed=0).eval()
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    assert float(M.relative_flatness(model, x, y)) == float(
        M.relative_flatness(model, x, y, layer="linear2")
    )
