"""Would catch: an exit code that lets a wrong measure through, or a table that is misread."""

from __future__ import annotations

import json

import pytest

from invariance.cli._main import main
from invariance.testing.project._project_table import Project, read_project

MEASURES = '''
import torch
from torch.nn import functional as F

import invariance as inv


def loss(model, x, y):
    return float(F.cross_entropy(model(x), y).detach())


def norm(model, x, y):
    return float(sum(p.detach().square().sum() for p in model.parameters()))


def norms_of_rows(model, x, y):
    """Moved by scalings, not by permutations."""
    return norm(model, x, y)


def product(model, x, y):
    value = 1.0
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            value *= float(parameter.detach().norm())
    return value


def broken(model, x, y):
    return float("nan")


def raises(model, x, y):
    raise ZeroDivisionError("own mistake")


def network():
    model = inv.models.mlp((4, 5, 3), seed=1, dtype=torch.float64).eval()
    source = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, generator=source, dtype=torch.float64)
    return model, x, torch.randint(0, 3, (8,), generator=source)


def not_a_network():
    return 3


VALUE = 3
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a module of measures, under a name of its own."""
    name = f"own_measures_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MEASURES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path, name


def check(project, *words, function="loss", model=True):
    _, name = project
    extra = ["--model", f"{name}:network"] if model else []
    return main(["check", f"{name}:{function}", *extra, *words])


def test_exit_codes(project, capsys):
    assert check(project) == 0
    assert "invariant under LayerScaling" in capsys.readouterr().out
    assert check(project, function="norm") == 1
    out = capsys.readouterr().out
    assert "not invariant under LayerScaling" in out
    assert "replay" in out
    assert check(project, function="broken") == 1
    assert "NaN" in capsys.readouterr().out
    assert check(project, function="raises") == 1
    assert "ZeroDivisionError: own mistake" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nocolon"], "MODULE:FUNCTION"),
        (["no_such_module_here:f"], "no module 'no_such_module_here'"),
        (["{name}:nope"], "no 'nope'"),
        (["{name}:VALUE"], "no function but a int"),
        (["{name}:loss", "--groups", "scaling"], "Unknown group"),
        (["{name}:loss", "--groups", ","], "names no group"),
        (["{name}:loss", "--model", "mpl"], "Did you mean 'mlp'"),
        (["{name}:loss", "--model", "{name}:not_a_network"], "must return"),
        (["{name}:loss", "--model", "{name}:network", "--groups", "batchnorm_fold"], ""),
        (["{name}:loss", "--update"], "say where"),
        (["{name}:loss", "--examples", "0"], "at least 1"),
        (["{name}:loss", "--dtype", "float65", "--model", "{name}:network"], ""),
        ([], "Nothing to check"),
        (["{name}:loss", "--snapshot", "gone.json"], "--update"),
        (["--config", "gone.toml"], "There is no file"),
    ],
)
def test_usage_errors_exit_with_two(project, capsys, words, message):
    _, name = project
    assert main(["check", *(word.format(name=name) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_plain_function_claims_all_scalings_and_groups_narrow_it(project):
    assert check(project, function="product") == 1  # neuron scaling moves it
    assert check(project, "--groups", "layer_scaling,permutation", function="product") == 0
    assert check(project, "--groups", "permutation", function="norm") == 0


def test_registered_measure_is_held_to_its_declaration(project, capsys):
    _, name = project
    assert main(["check", "relative_flatness", "--model", f"{name}:network"]) == 0
    assert "NeuronScaling" not in capsys.readouterr().out
    # Declared laws are checked as well, not skipped.
    assert main(["check", "hessian_trace", "--model", f"{name}:network", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {"law", "invariant"} <= {row["verdict"] for row in rows}


def test_json_has_rows_of_the_contract(project, capsys):
    folder, _ = project
    assert check(project, "--json", "out.json", function="norm") == 1
    content = json.loads((folder / "out.json").read_text())
    assert content["schema"] == 1
    assert content["exit_code"] == 1
    row = content["rows"][0]
    keys = {"measure", "transform", "before", "after", "ratio", "declared", "predicted", "verdict"}
    assert keys <= set(row)
    assert row["verdict"] == "contradicts"
    finding = content["outcomes"][0]["findings"][0]
    assert finding["factor"] == 2.0
    capsys.readouterr()
    check(project, "--json", "-")
    assert json.loads(capsys.readouterr().out)["exit_code"] == 0


def test_file_target(project, monkeypatch):
    folder, name = project
    target = f"{folder / name}.py:loss"
    assert main(["check", target, "--model", f"{name}:network"]) == 0


@pytest.mark.slow
def test_default_networks(project):
    assert check(project, model=False) == 0
    assert check(project, function="norm", model=False) == 1


# -- the table in pyproject.toml ---------------------------------------------------------


def write_table(project, text):
    folder, name = project
    (folder / "pyproject.toml").write_text(text.format(name=name))


def test_measures_of_the_table_are_checked(project, capsys):
    write_table(
        project,
        """
[tool.invariance]
models = ["{name}:network"]
measures = [
    "{name}:loss",
    {{function = "{name}:product", groups = ["layer_scaling"]}},
]
""",
    )
    assert main(["check"]) == 0
    assert capsys.readouterr().out.count("[invariant]") == 2
    write_table(
        project, '[tool.invariance]\nmodels=["{name}:network"]\nmeasures = ["{name}:product"]\n'
    )
    assert main(["check"]) == 1


def test_table_is_found_from_below(project, monkeypatch):
    folder, _ = project
    write_table(project, "[tool.invariance]\nrtol = 0.5\n")
    (folder / "deep" / "er").mkdir(parents=True)
    found = read_project(folder / "deep" / "er")
    assert (found.root, found.defaults["rtol"]) == (folder, 0.5)


def test_no_table_is_an_empty_project(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert isinstance(read_project(tmp_path), Project)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.invariance]\nrtoll = 1.0\n", "Did you mean 'rtol'"),
        ("[tool.invariance]\nrtol = '1'\n", "rtol must be"),
        ("[tool.invariance]\ngroups = ['nope']\n", "Unknown group"),
        ("[tool.invariance]\ngroups = 'layer_scaling'\n", "list of names"),
        ("[tool.invariance]\nmeasures = 'a:b'\n", "must be a list"),
        ("[tool.invariance]\nmeasures = [{{groups = []}}]\n", "a measure is"),
        ("[tool.invariance]\nmeasures = [{{function = 'a:b', x = 1}}]\n", "Unknown key"),
        ("[tool.invariance]\nexamples = 0\n", "positive integer"),
        ("[tool.invariance]\nsnapshot = 3\n", "must be a path"),
        ("[tool.invariance\n", "no valid TOML"),
    ],
)
def test_wrong_tables_are_usage_errors(project, capsys, text, message):
    write_table(project, text)
    assert main(["check"]) == 2
    assert message in capsys.readouterr().err


# -- snapshots ---------------------------------------------------------------------------


def test_snapshot_is_recorded_compared_and_updated(project, capsys):
    folder, name = project
    words = ["--snapshot", "table.json"]
    assert check(project, *words, "--update", function="product") == 0
    recorded = json.loads((folder / "table.json").read_text())["table"]
    (cells,) = recorded.values()
    assert cells["layer_scaling"] == "invariant"
    assert cells["neuron_scaling"].startswith("moves")
    assert cells["batchnorm_fold"] == "does not apply"
    assert check(project, *words, function="product") == 0
    assert "no cell changed" in capsys.readouterr().out
    # The measure's author "simplifies" it: the product of norms becomes their sum.
    source = (folder / f"{name}.py").read_text()
    (folder / f"{name}.py").write_text(
        source.replace("value *= float(parameter", "value += float(parameter")
    )
    import sys

    sys.modules.pop(name)
    assert check(project, *words, function="product") == 1
    out = capsys.readouterr().out
    assert "layer_scaling:\n    - invariant\n    + moves" in out
    assert "Accept with --update" in out
    assert check(project, *words, "--update", function="product") == 0
    assert check(project, *words, function="product") == 0
    sys.modules.pop(name)


@pytest.mark.parametrize(
    "junk", ["", "[]", '{"schema": 9, "table": {}}', '{"table": 3, "schema": 1}']
)
def test_a_file_that_is_no_snapshot_is_a_usage_error(project, capsys, junk):
    folder, _ = project
    (folder / "table.json").write_text(junk)
    assert check(project, "--snapshot", "table.json") == 2
    assert "--update" in capsys.readouterr().err


def test_snapshot_json(project, capsys):
    words = ["--snapshot", "t.json", "--json", "-"]
    assert check(project, *words, "--update") == 0
    content = json.loads(capsys.readouterr().out)
    (row,) = content["rows"].values()
    assert row["cells"]["layer_scaling"]["behaviour"] == "invariant"
