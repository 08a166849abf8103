"""How many files one call enters: a journey that grows is read, and mended, by nobody.

Would catch: a check, a parse or a choice of parameters that is made twice on the way of a plain
perceptron, and a detour through the machinery for other networks.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch

import invariance as inv

ROOT = str(Path(inv.__file__).parent)


def calls_of(function):
    """Return (file, function) to how often it is entered, all modules imported before."""
    entered = Counter()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            entered[frame.f_code.co_filename, frame.f_code.co_name] += 1

    function()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return entered


def test_the_trace_of_a_perceptron_enters_eight_files_and_checks_once():
    model = inv.models.mlp([5, 7, 6, 4])
    x, y = torch.randn(30, 5), torch.randint(0, 4, (30,))
    entered = calls_of(lambda: inv.measures.hessian_trace(model, x, y))
    files = sorted({Path(file).relative_to(ROOT).as_posix() for file, _ in entered})
    assert len(files) <= 8, files
    once = Counter(name for (_, name), count in entered.items() for _ in range(count))
    for name in (
        "resolve_loss", "collect_batches", "check_batch", "parameter_names",
        "require_deterministic", "read_perceptron", "sweep_chunk",
    ):  # fmt: skip
        assert once[name] == 1, name
