"""Catches: ambiguous floats, mutable results, results that do not survive a process pool."""

import dataclasses
import pickle

import numpy as np
import pytest

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate


def test_scalar_is_a_float():
    estimate = Estimate(np.float64(2.5), method="closed form")
    assert float(estimate) == 2.5
    assert isinstance(estimate.value, float)
    assert str(estimate) == "2.5 (exact; closed form)"


def test_no_standard_error_is_not_zero():
    assert Estimate(1.0).stderr == 0.0
    assert str(Estimate(1.0, exact=False)) == "1 (standard error unknown)"
    assert Estimate(1.0, exact=False).stderr is None
    assert str(Estimate(1.0, stderr=0.0, exact=False)) == "1 (+- 0)"


def test_vector_indexes_and_iterates_but_is_no_float():
    estimate = Estimate([3.0, 1.0])
    assert list(estimate) == [3.0, 1.0]
    assert estimate[1] == 1.0
    assert len(estimate) == 2
    assert np.asarray(estimate).tolist() == [3.0, 1.0]
    with pytest.raises(MeasureError, match="holds 2 values"):
        float(estimate)


def test_nothing_can_be_changed():
    estimate = Estimate([3.0, 1.0], parts={"a": 1.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.value = 1.0
    with pytest.raises(ValueError, match="read-only"):
        estimate.value[0] = 7.0
    with pytest.raises(TypeError):
        estimate.parts["a"] = 2.0


def test_pickles():
    estimate = Estimate([3.0, 1.0], stderr=0.1, exact=False, parts={"a": 1.0}, residual=1e-9)
    back = pickle.loads(pickle.dumps(estimate))
    assert list(back) == list(estimate)
    assert (back.stderr, back.exact, dict(back.parts), back.residual) == (
        0.1,
        False,
        {"a": 1.0},
        1e-9,
    )


def test_a_tensor_loses_its_graph():
    import torch

    assert float(Estimate(torch.tensor(2.0, requires_grad=True) * 3)) == 6.0


def test_what_is_not_known_is_not_exact():
    for value in (float("nan"), [1.0, float("nan")]):
        assert not Estimate(value).exact
        assert Estimate(value).stderr is None
    stopped = Estimate(1.0, converged=False)
    assert not stopped.exact
    assert stopped.stderr is None
    assert Estimate(1.0, stderr=0.5, converged=False).stderr == 0.5
    assert Estimate(1.0, converged=True).exact
    assert Estimate(float("inf")).exact
