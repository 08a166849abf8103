"""Catches: an environment that a library sets, a user's setting that is overridden, a record that
says more than MKL does, and networks that differ by more than round-off in another ensemble."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from invariance.checking._environment import describe_environment
from invariance.core._reproducible import VARIABLE, reproducible_kernels
from invariance.studies._jobs import describe_machine

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")

#: Trains three networks alone and among others, and prints the largest difference.
ALONE_AND_AMONG_OTHERS = """
import json, os, torch
import invariance as inv
from invariance.core._reproducible import reproducible_kernels

draw = torch.Generator().manual_seed(0)
y = torch.arange(150) % 10
x = (torch.rand((10, 64), generator=draw)[y] + 1.5 * torch.rand((150, 64), generator=draw)) / 2
task = inv.Task("blobs", 10, x, y, x[:9], y[:9], x[:0], y[:0])
gaps, sizes = [], (64, 33, 9, 10)
for dtype in (torch.float32, torch.float64):
    options = {"max_epochs": 3, "target_accuracy": None, "dtype": dtype}
    alone = [inv.fit_ensemble(sizes, task, seeds=[s], **options)[0] for s in (4, 9, 1)]
    others = list(range(100, 133))
    many = inv.fit_ensemble(sizes, task, seeds=[*others[:7], 4, 9, 1, *others[7:]], **options)
    pairs = zip(alone, many[7:10], strict=True)
    both = [(one.model.parameters(), other.model.parameters()) for one, other in pairs]
    gaps.append(max(float((a - b).abs().max()) for ps, qs in both for a, b in zip(ps, qs)))
print(json.dumps([gaps, reproducible_kernels(), os.environ.get("MKL_CBWR")]))
"""

#: Runs a command that loads torch, and says what became of the setting.
COMMAND_LINE = """
import json, os, sys
from invariance.cli._main import main
assert "torch" not in sys.modules and main(["transforms"]) == 0
from invariance.core._reproducible import reproducible_kernels
sys.stdout.write("\\n" + json.dumps([os.environ.get("MKL_CBWR"), reproducible_kernels()]))
"""


def in_process(code: str, setting: str | None) -> list:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if setting is not None:
        environment[VARIABLE] = setting
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return json.loads(out.splitlines()[-1])


@needs_mkl
def test_the_tests_run_with_reproducible_kernels():
    assert os.environ[VARIABLE] == "OFF" or reproducible_kernels()


def test_the_library_leaves_the_setting_alone_and_keeps_networks_equal_to_round_off():
    (single, double), on, setting = in_process(ALONE_AND_AMONG_OTHERS, None)
    assert setting is None
    assert not on
    assert single < 1e-5
    assert double < 1e-13


@needs_mkl
def test_any_reproducible_mode_gives_equal_bits():
    assert in_process(ALONE_AND_AMONG_OTHERS, "COMPATIBLE") == [[0.0, 0.0], True, "COMPATIBLE"]


@pytest.mark.parametrize(("given", "found"), [(None, "AUTO"), ("COMPATIBLE", "COMPATIBLE")])
def test_the_command_line_asks_and_never_overrides(given, found):
    has_mkl = torch.backends.mkl.is_available()
    assert in_process(COMMAND_LINE, given) == [found, has_mkl]


@needs_mkl
def test_a_setting_that_came_too_late_is_not_recorded_as_on():
    code = (
        "import os, torch; torch.ones(9, 9) @ torch.ones(9, 9); os.environ['MKL_CBWR'] = 'AUTO'\n"
        "from invariance.core._reproducible import reproducible_kernels\n"
        "print('true' if reproducible_kernels() else 'false')"
    )
    assert in_process(code, None) is False


def test_records_say_whether_it_was_on():
    on = reproducible_kernels()
    assert describe_environment(torch.float64)["reproducible_kernels"] is on
    expected = "reproducible" if on else "as torch chooses"
    assert describe_machine("cpu")["kernels"] == expected
