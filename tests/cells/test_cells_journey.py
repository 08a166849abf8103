"""Catches: a call that wanders through the house: every file entered is one to read."""

import sys

import pytest
import torch

import invariance as inv
import invariance.testing

T = inv.transforms
MAP = T.Permutation(seed=0)


def files_entered(call):
    """Files of the package in which a function runs; a first run does all imports."""
    call()
    found = set()

    def seen(frame, event, _):
        path = frame.f_code.co_filename
        if event == "call" and "/invariance/" in path and frame.f_code.co_name != "<module>":
            found.add(path.rpartition("/invariance/")[2])

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


@pytest.fixture(scope="module")
def task():
    x = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % 3
    return inv.data.Task("drawn", 3, x, y, x, y, x, y)


def test_a_check_with_one_measure(task):
    network = inv.models.mlp([4, 5, 3])
    found = files_entered(
        lambda: inv.check(network, task, measures=["parameter_norm"], transforms=[MAP])
    )
    engine = {path for path in found if not path.startswith("symmetry/")}
    # What a network admits is found by fifteen files of symmetry, whoever asks.
    assert len(engine) <= 22, sorted(engine)
    assert len(found) <= 39, sorted(found)


def test_an_assertion_with_one_map(task):
    network, x, y = inv.models.mlp([4, 5, 3]), task.x_train, task.y_train
    found = files_entered(
        lambda: inv.testing.assert_invariant("path_norm", network, x, y, transforms=[MAP])
    )
    assert len(found) <= 42, sorted(found)
