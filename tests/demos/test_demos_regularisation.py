"""Catches: a demo of the regularisation study that no longer runs or saves its figure."""

import importlib
import sys
from pathlib import Path

DEMOS = Path(__file__).parents[2] / "demos"


def test_study_regularisation(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(DEMOS), *sys.path])
    module = importlib.import_module("study_regularisation")
    try:
        found = module.main(["--task", "digits", "--small", "--out", str(tmp_path)])
    finally:
        for name in ("common", "study_regularisation"):
            sys.modules.pop(name, None)
    values = {(e.treatment, e.quantity): [] for e in found}
    for entry in found:
        values[entry.treatment, entry.quantity].append(entry.rank_biserial)
    assert len(values) == 8
    # What rescaling cannot move says the same before and after.
    for method in ("augmentation", "sam"):
        before, after = values[method, "adaptive_trace"]
        assert before is not None
        assert before == after
    assert (tmp_path / "study-regularisation.png").stat().st_size > 5_000
