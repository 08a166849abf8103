"""The demos of the four studies run, print verdicts, and write figures."""

import importlib
import sys
from pathlib import Path

import pytest

DEMOS = Path(__file__).parents[2] / "demos"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("study_reparameterisation", "labels changed 0"),
        pytest.param("study_vanishing_advantage", "as trained", marks=pytest.mark.slow),
        ("study_model_selection", "worth choosing"),
        ("study_pair_proxy", "relative error"),
    ],
)
def test_a_demo_runs_and_shows_its_figures(name, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(DEMOS), *sys.path])
    demo = importlib.import_module(name)
    try:
        outcome = demo.main(["--small", "--task", "digits", "--out", str(tmp_path)])
    finally:
        for module in ("common", name):
            sys.modules.pop(module, None)
    said = capsys.readouterr().out
    assert says in said
    assert "verdict" in said
    shown = [
        Path(line.removeprefix("figure: ")) for line in said.splitlines() if "figure: " in line
    ]
    assert shown and all(path.exists() for path in shown)
    assert len(shown) == len(outcome.results["figures"])
