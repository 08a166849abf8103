"""The demos run at their small size, write a figure, and show what they say they show."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

DEMOS = Path(__file__).resolve().parents[2] / "demos"


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMOS))
    names = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - names:
        if name in ("common", "weakness_scope", "finite_stack_theory"):
            del sys.modules[name]


def test_weakness_scope_moves_the_plain_counts_and_not_the_repaired(demo, tmp_path):
    found = demo("weakness_scope").main(["--small", "--task", "digits", "--out", str(tmp_path)])
    base = found["as trained"]
    for name, counts in found.items():
        for label in ("pairs", "patterns", "regions"):
            assert counts[f"{label}, repaired"] == base[f"{label}, repaired"], name
            if "dormant" not in name:
                assert counts[label] == base[label], name
    most = found["4 dormant"]
    assert sum(most["patterns"]) > sum(base["patterns"])
    assert sum(most["pairs"]) > sum(base["pairs"])
    assert (tmp_path / "weakness-scope.png").stat().st_size > 10_000


def test_stack_theory_demo_agrees_with_its_words(demo, tmp_path, capsys):
    results = demo("finite_stack_theory").main(["--small", "--out", str(tmp_path)])
    assert all(r.difference["extent"] > r.half_width["extent"] > 0 for r in results)
    assert all(r.difference["decided"] < 0 for r in results)
    assert "1/32768" in capsys.readouterr().out  # {q, r} survives twice as often as {p}
    assert (tmp_path / "finite-stack-theory.png").stat().st_size > 10_000
