"""A task refuses bad tensors by name and keeps what it was made from apart."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from invariance.core._errors import DataError
from invariance.data import Task


def parts(**change):
    good = {
        "name": "t",
        "n_classes": 3,
        "x_train": torch.rand(5, 2),
        "y_train": torch.tensor([0, 1, 2, 0, 1]),
        "x_test": torch.rand(2, 2),
        "y_test": torch.tensor([2, 0]),
        "x_unseen": torch.rand(0, 2),
        "y_unseen": torch.empty(0, dtype=torch.int64),
    }
    return {**good, **change}


def test_holds_copies():
    given = parts()
    task = Task(**given)
    given["x_train"].fill_(7.0)
    given["y_test"].fill_(1)
    assert task.x_train.max() <= 1
    assert task.y_test.tolist() == [2, 0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"
    assert repr(task) == "Task('t', 3 classes, 2 features, 5 train, 2 test, 0 unseen)"


def test_drops_a_graph():
    x = torch.rand(5, 2, requires_grad=True)
    assert not Task(**parts(x_train=x * 2)).x_train.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_classes": 1}, "n_classes must be at least 2"),
        ({"n_classes": 3.0}, "n_classes must be an int"),
        ({"x_train": [[1.0, 2.0]]}, r"x_train must be a torch\.Tensor. Got list"),
        ({"x_train": torch.rand(5, 1, 2)}, r"x_train must have shape.*Got \(5, 1, 2\)"),
        ({"x_test": torch.rand(2, 3)}, "x_test has 3 features, but x_train has 2"),
        ({"x_train": torch.ones(5, 2, dtype=torch.uint8)}, r"x_train must be floating.*uint8"),
        ({"y_train": torch.tensor([0, 1])}, r"y_train must hold one label.*\(5,\)"),
        ({"y_test": torch.tensor([0, 1], dtype=torch.int32)}, r"y_test must be int64"),
        ({"y_test": torch.tensor([0, 3])}, r"y_test\[1\] is 3, outside 0 \.\. 2"),
        ({"y_test": torch.tensor([-1, 0])}, r"y_test\[0\] is -1"),
        ({"x_test": torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])}, "x_test.*first is row 1"),
        ({"x_train": torch.full((5, 2), float("inf"))}, "x_train holds NaN or inf.* 5 of 5"),
        (
            {"x_train": torch.rand(0, 2), "y_train": torch.empty(0, dtype=torch.int64)},
            "x_train is empty",
        ),
    ],
)
def test_bad_tensors_are_named(change, message):
    with pytest.raises(DataError, match=message):
        Task(**parts(**change))
