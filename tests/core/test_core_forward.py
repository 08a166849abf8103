"""Catches: torch's words for a shape that does not fit, where the data should be named."""

import pytest
import torch
from torch import nn

import invariance as inv
from invariance.core._errors import unknown_name
from invariance.core._forward import reading

MODEL = inv.models.mlp([3, 6, 4, 3]).double()
X, Y = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3
WIDE = torch.randn(9, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "arguments", "culprit"),
    [
        ("activation_patterns", (WIDE,), "x"),
        ("free_regions", (WIDE, X), "x_train"),
        ("free_regions", (X, WIDE), "x_unseen"),
        ("region_class_weakness", (WIDE, X), "x_train"),
        ("pair_proxy", (WIDE, Y, X), "x_train"),
        ("pair_proxy", (X, Y, WIDE), "x_unseen"),
        ("extension_count", (X, Y, WIDE), "x_unseen"),
        ("information_geometric_sharpness", (WIDE, Y), "x"),
        ("path_norm_margin", (WIDE, Y), "x"),
        ("fisher_rao_closed_form", (WIDE, Y), "x"),
        ("gaussian_sharpness", (WIDE, Y), "x"),
        ("sam_sharpness", (WIDE, Y), "x"),
    ],
)
def test_measures_name_the_rows_that_do_not_fit(name, arguments, culprit):
    with pytest.raises(inv.DataError, match=rf"accept {culprit} of shape \(rows, 2\)"):
        getattr(inv.measures, name)(MODEL, *arguments)


def test_bad_rows_are_called_by_the_name_of_their_argument():
    bad = X.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(inv.MeasureError, match=r"^x_unseen holds NaN or infinity .*row 2"):
        inv.measures.pair_proxy(MODEL, X, Y, bad)
    with pytest.raises(inv.MeasureError, match=r"^x_train holds NaN"):
        inv.measures.pair_proxy(MODEL, bad, Y, X)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, NotImplementedError, KeyError])
def test_other_failures_pass_through(kind):
    with pytest.raises(kind), reading(nn.Identity(), X):
        raise kind("no")


def test_plurals_of_what_is_unknown():
    assert "Known losses: a" in str(unknown_name("loss", "b", ["a"]))
    assert "Known kinds of coordinates: a" in str(unknown_name("kind of coordinates", "b", ["a"]))
    assert "Known tasks: a" in str(unknown_name("task", "b", ["a"]))
