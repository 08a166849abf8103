"""Would catch: a planted mistake that gets through, or a corrected form that is rejected."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import invariance as inv

ROOT = Path(__file__).resolve().parents[2]


def load_demo():
    path = ROOT / "demos" / "audit_published_measures.py"
    spec = importlib.util.spec_from_file_location("audit_published_measures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gallery():
    return load_demo().exhibits()


#: What the message must say of each kind of mistake, in the gallery's order.
EXPECTED = [
    r"alpha\^1\.00.*did you mean \|w\|\^2",
    "only the biases are to blame",
    "epsilon, or eta",
    r"alpha\^-4\.00",
    "not invariant under LayerScaling",
    "differs under LayerScaling.*False alarms",
    "ignores the model",
    "added where they should be multiplied",
    r"layer +`linear3`",
    "ZippedRescaling.*does not keep the function",
    "FoldLeavingNorm.*does not keep the function",
    r"mutates the model.*linear1\.weight\.grad",
    "draws from the global RNG",
]


def test_gallery_is_complete(gallery):
    assert len(gallery) == len(EXPECTED)


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_mistake_is_caught_and_its_correction_passes(gallery, number):
    exhibit = gallery[number]
    with pytest.raises(AssertionError, match=f"(?s){EXPECTED[number]}"):
        exhibit.wrong()
    exhibit.right()


def test_check_of_the_first_layers_alone_cannot_notice(gallery):
    """Exhibit 9: the narrow check passes on the wrong measure; that is the mistake."""
    demo = sys.modules["audit_published_measures"]
    narrow = [inv.transforms.LayerScaling([4.0, 0.25, 1.0])]
    model, x, y = demo.network()
    inv.testing.assert_invariant(demo.last_layer_norm, model, x, y, transforms=narrow)


def test_demo_prints_and_exits_with_zero(monkeypatch, capsys):
    demo = load_demo()
    monkeypatch.setattr(sys, "argv", ["audit"])
    monkeypatch.setattr(demo, "exhibits", lambda: demo_subset(demo))
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "caught:" in out
    assert "0 failures of the gate" in out


def demo_subset(demo):
    def fails():
        raise AssertionError("line one\n  layer      `a`")

    return [demo.Exhibit("a mistake", fails, lambda: None)]


# -- the files that other projects' machinery reads ---------------------------------------


def script_of_action():
    text = (ROOT / "action.yml").read_text()
    body = text[text.index("run: |\n") + len("run: |\n") :]
    return re.sub(r"^ {8}", "", body, flags=re.MULTILINE)


@pytest.fixture
def other_project(tmp_path):
    name = f"other_{abs(hash(str(tmp_path))) % 10**8}"
    (tmp_path / f"{name}.py").write_text(
        "import torch, invariance as inv\n"
        "def right(model, x, y):\n"
        "    return float(torch.nn.functional.cross_entropy(model(x), y).detach())\n"
        "def wrong(model, x, y):\n"
        "    return float(sum(p.detach().square().sum() for p in model.parameters()))\n"
        "def net():\n"
        "    model = inv.models.mlp((4, 5, 3), dtype=torch.float64).eval()\n"
        "    return model, torch.rand(8, 4).double(), torch.zeros(8, dtype=torch.int64)\n"
    )
    return tmp_path, name


@pytest.mark.slow
@pytest.mark.parametrize(("function", "code"), [("right", 0), ("wrong", 1)])
def test_script_of_the_action_runs(other_project, function, code):
    import os
    import subprocess

    folder, name = other_project
    environment = {
        **os.environ,
        "INVARIANCE_PYTHON": sys.executable,
        "INVARIANCE_MEASURES": f"{name}:{function}",
        "INVARIANCE_ARGUMENTS": f"--model {name}:net --groups layer_scaling,permutation",
        "INVARIANCE_REPORT": "out.json",
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script_of_action()],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert (folder / "out.json").is_file()


def test_action_passes_inputs_by_environment_only():
    text = (ROOT / "action.yml").read_text()
    assert "${{" not in script_of_action()
    assert "using: composite" in text
    declared = set(re.findall(r"^  (\w+):\n    description", text, re.MULTILINE))
    used = set(re.findall(r"inputs\.(\w+)", text))
    assert used <= declared


def test_hook_runs_the_projects_table(other_project, monkeypatch, capsys):
    from invariance.cli._main import main

    folder, name = other_project
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    (entry,) = re.findall(r"^  entry: (.*)$", text, re.MULTILINE)
    assert re.search(r"^  pass_filenames: false$", text, re.MULTILINE)
    program, *words = entry.split()
    assert program == "invariance"  # the console script of pyproject.toml
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    table = '[tool.invariance]\nmodels = ["{0}:net"]\nmeasures = ["{0}:{1}"]\n'
    for function, code in (("right", 0), ("wrong", 1)):
        (folder / "pyproject.toml").write_text(table.format(name, function))
        assert main(words) == code
