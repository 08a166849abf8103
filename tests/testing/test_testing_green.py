"""Would catch: exit code 0, or a report without contradictions, where nothing was checked."""

import os
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import invariance as inv
from invariance.cli._main import main
from invariance.reporting._words import cell
from invariance.testing.project._verdicts import MeasureOutcome, exit_code

ROOT = Path(__file__).parents[2]

MODULE = '''
import os
import sys
import torch
import invariance as inv

TRIED = []


def right(model, x, y):
    TRIED.append("right")
    return float(torch.nn.functional.cross_entropy(model(x), y).detach())


def wrong(model, x, y):
    TRIED.append("wrong")
    return float(sum(p.detach().square().sum() for p in model.parameters()))


def leaves(model, x, y):
    sys.exit(0)


def leaves_when_scaled(model, x, y):
    """Holds under a layer scaling by powers of two, and leaves before it is seen to move."""
    first = float(next(model.parameters()).detach().norm())
    leaves_when_scaled.first = getattr(leaves_when_scaled, "first", first)
    if first / leaves_when_scaled.first > 100:
        raise SystemExit
    return right(model, x, y)


def fails(model, x, y):
    raise OSError("own mistake")


def ends_at_once(model, x, y):
    os._exit(0)


def ends_when_scaled(model, x, y):
    return os._exit(0) if moved(model) else right(model, x, y)


def refuses_when_scaled(model, x, y):
    if moved(model):
        raise inv.MeasureError("no such \x1b[31mnetwork")
    return right(model, x, y)


def moved(model):
    known = inv.models.mlp((4, 5, 3), seed=1, dtype=torch.float64)
    first, again = (next(net.parameters()).detach().double().norm() for net in (model, known))
    return not torch.allclose(first, again, rtol=1e-4)


def network():
    model = inv.models.mlp((4, 5, 3), seed=1, dtype=torch.float64).eval()
    source = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, generator=source, dtype=torch.float64)
    return model, x, torch.randint(0, 3, (8,), generator=source)


def network_leaves():
    sys.exit(0)


def network_fails():
    raise ValueError("no weights")


def network_of_numbers():
    return 1, 2, 3


def network_in_train_mode():
    model = inv.models.mlp((4, 5, 3), batch_norm=True).train()
    return model, torch.rand(8, 4), torch.zeros(8).long()
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    name = f"green_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    for bad, text in {
        "leaving": "import sys\nsys.exit(0)\n",
        "syntax": "def f(:\n",
        "importing": "import no_such_thing_at_all\n",
        "raising": "raise LookupError('at import')\n",
    }.items():
        (tmp_path / f"{bad}_{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path, name
    for loaded in [entry for entry in sys.modules if entry.endswith(name)]:
        del sys.modules[loaded]


def check(name, *functions, words=()):
    targets = [
        entry.format(name=name) if ":" in entry else f"{name}:{entry}" for entry in functions
    ]
    return main(["check", *targets, "--model", f"{name}:network", *words])


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("leaves", 2, "tried to end the program (sys.exit(0))"),
        ("leaves_when_scaled", 2, "tried to end the program (sys.exit(None))"),
        ("leaving_{name}:f", 2, "tried to end the program"),
        ("ends_at_once", 2, "tried to end the program (sys.exit(0))"),
        ("ends_when_scaled", 2, "tried to end the program (sys.exit(0))"),
        ("refuses_when_scaled", 2, "could not be compared under"),
        ("syntax_{name}:f", 2, "is no valid Python"),
        ("importing_{name}:f", 2, "'no_such_thing_at_all', which is not installed"),
        ("raising_{name}:f", 2, "LookupError: at import"),
        ("gone_{name}:f", 2, "no module"),
        ("rigt", 2, "Did you mean 'right'"),
        ("fails", 1, "OSError: own mistake"),
    ],
)
def test_a_measure_that_cannot_be_tried_is_not_green_and_the_others_are_tried(
    project, capsys, function, code, message
):
    _, name = project
    assert check(name, function, "right") == code
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
    assert "[invariant]" in printed.out
    assert check(name, function, "wrong") == 1  # the broken claim is what counts


def test_a_refusal_of_what_is_not_claimed_leaves_the_claim(project, capsys):
    _, name = project
    assert check(name, "refuses_when_scaled", words=["--groups", "permutation"]) == 0
    assert check(name, "refuses_when_scaled") == 2
    told = capsys.readouterr().err
    assert "no such" in told
    assert "\x1b" not in told


def test_an_assertion_does_not_pass_over_a_map_without_a_value(net):
    model, x, y = net
    known = inv.measures.parameter_norm(model).value

    def shy(model, x, y):
        if abs(float(inv.measures.parameter_norm(model)) / known - 1) > 1e-9:
            raise inv.MeasureError("not this one")
        return float(model(x).detach().sum())

    with pytest.raises(inv.MeasureError, match="A claim holds only where it was tried"):
        inv.testing.assert_invariant(shy, model, x, y, groups=["layer_scaling", "permutation"])
    inv.testing.assert_invariant(shy, model, x, y, groups=["permutation"])


def test_processes_that_the_program_forks_end_as_ever():
    from invariance.core._foreign import no_sudden_end

    with no_sudden_end():
        child = os.fork()
        if child == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        with pytest.raises(SystemExit):
            os._exit(0)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("network_leaves", "tried to end the program"),
        ("network_fails", "ValueError: no weights"),
        ("network_of_numbers", "must return"),
        ("network_in_train_mode", "train mode"),
        ("network_gone", "no 'network_gone'"),
        ("mlpp", "Did you mean 'mlp'"),
    ],
)
def test_a_network_that_cannot_be_had_is_not_green(project, capsys, factory, message):
    _, name = project
    model = factory if factory == "mlpp" else f"{name}:{factory}"
    assert main(["check", f"{name}:right", "--model", model]) == 2
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
    if factory != "network_in_train_mode":  # refused there, and held on the other network
        assert check(name, "right", words=["--model", model]) == 2


def test_the_same_measure_asked_for_twice_has_to_hold_twice(project, capsys):
    folder, name = project
    (folder / "pyproject.toml").write_text(
        f'[tool.invariance]\nmodels = ["{name}:network"]\nmeasures = ["{name}:right", '
        f'{{function = "{name}:right", groups = ["batchnorm_fold"]}}]\n'
    )
    assert main(["check"]) == 2  # there is no BatchNorm to fold
    held = MeasureOutcome("m", "net", "holds", "")
    refused = MeasureOutcome("m", "net", "refused", "", request=1)
    assert exit_code([held]) == 0
    assert exit_code([held, refused]) == 2
    assert exit_code([]) == 2


def test_a_snapshot_with_holes_is_not_recorded(project, capsys):
    folder, name = project
    words = ["--snapshot", "table.json", "--update"]
    assert check(name, "leaves", "right", words=words) == 2
    assert not (folder / "table.json").exists()
    assert check(name, "right", words=words) == 0
    assert check(name, "fails", "right", words=words[:2]) == 2
    assert "own mistake" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--snapshot"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(project, option, capsys):
    _, name = project
    update = ["--update"] if option == "--snapshot" else []
    assert check(name, "wrong", words=[option, f"{name}.py/below", *update]) == 2
    assert "Cannot write" in capsys.readouterr().err
    assert sys.modules.get(name) is None  # the measure was not even imported


# -- streams -----------------------------------------------------------------------------


@contextmanager
def standard_output(kind):
    """A standard output that nobody reads any more, that is full, or that is not there."""
    if kind == "closed":
        yield None
        return
    if kind == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no full device")
    if kind == "full":
        stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
    yield stream
    stream.close()  # fails if what could not be written is still waiting to be


@pytest.mark.parametrize(
    ("kind", "function", "code"),
    [
        ("unread", "wrong", 1),
        ("unread", "right", 0),
        ("closed", "wrong", 1),
        ("closed", "right", 0),
        ("full", "wrong", 1),
        ("full", "right", 2),
    ],
)
@pytest.mark.parametrize("words", [[], ["--json", "-"]])
def test_no_state_of_the_output_changes_the_verdict(
    project, monkeypatch, capsys, kind, function, code, words
):
    with standard_output(kind) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        found = check(project[1], function, words=words)
        assert sys.stdout is stream
        monkeypatch.undo()
    assert found == code
    assert ("No space left" in capsys.readouterr().err) == (kind == "full")


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| true", ">&-", ">&- 2>&-", "2>/dev/full"])
def test_the_interpreter_ends_with_the_verdict(project, redirection):
    words = [sys.executable, "-m", "invariance", "check", f"{project[1]}:wrong"]
    line = f"{' '.join(words)} --model {project[1]}:network {redirection}"
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


def test_letters_that_the_output_lacks_are_escaped(project, monkeypatch):
    import io

    from invariance.cli._streams import Outlet

    raw = io.BytesIO()
    outlet = Outlet(io.TextIOWrapper(raw, encoding="ascii"))
    outlet.write("a \N{GREEK SMALL LETTER ALPHA}")
    outlet.flush()
    assert raw.getvalue() == b"a \\u03b1"


def test_a_deleted_working_directory_is_a_sentence(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["measures"]) == 2
    assert "working directory is gone" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["0", "1", "-3", "many"])
def test_no_width_of_the_terminal_makes_lists_empty(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["transforms"]) == 0
    assert "LayerScaling" in capsys.readouterr().out.replace("\n", "")


# -- the Action --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measures", "arguments", "code"),
    [
        ("{0}:right\n{0}:wrong\n", "", 1),
        ("\n\n{0}:wrong", "", 1),
        ("'{0}:right'", "--groups 'layer_scaling, permutation'\n--seed 1", 0),
        ("{0}:right", "--help", "Nothing was checked: there is no report."),
    ],
)
def test_every_word_of_the_action_counts(project, monkeypatch, measures, arguments, code):
    """The Python of the step, with the command run in this process."""
    code_of_step = re.search(r"-c '\n(.*?)\n *'\n", (ROOT / "action.yml").read_text(), re.DOTALL)
    folder, name = project

    def run(command):
        assert command[1:4] == ["-m", "invariance", "check"]
        try:
            return SimpleNamespace(returncode=main(command[3:]))
        except SystemExit as stop:
            return SimpleNamespace(returncode=stop.code)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("INVARIANCE_MEASURES", measures.format(name))
    monkeypatch.setenv("INVARIANCE_ARGUMENTS", f"--model {name}:network {arguments}")
    monkeypatch.setenv("INVARIANCE_REPORT", "out.json")
    with pytest.raises(SystemExit) as stop:
        exec(textwrap.dedent(code_of_step[1]), {})
    assert (stop.value.code or 0) == code
    assert (folder / "out.json").exists() == isinstance(code, int)


# -- from Python -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    source = torch.Generator().manual_seed(3)
    x = torch.randn(12, 4, generator=source, dtype=torch.float64)
    y = torch.randint(0, 3, (12,), generator=source)
    return inv.models.mlp((4, 5, 3), seed=2, dtype=torch.float64).eval(), x, y


def test_a_check_of_nothing_is_an_error(net):
    model, x, y = net
    with pytest.raises(inv.UsageError, match="no model"):
        inv.check({}, (x, y))
    with pytest.raises(inv.UsageError, match="measures is empty"):
        inv.check(model, (x, y), measures=[])
    with pytest.raises(inv.UsageError, match="transforms is empty"):
        inv.check(model, (x, y), transforms=iter(()))


def test_every_model_gets_the_maps_of_an_iterator(net):
    model, x, y = net
    found = inv.check(
        {"a": model, "b": model},
        (x, y),
        transforms=iter([inv.transforms.Permutation()]),
        measures="parameter_norm",
    )
    assert [row.model for row in found.rows] == ["a", "b"]


def test_a_report_of_refusals_claims_nothing(net):
    model, x, y = net
    found = inv.check(
        model, (x, y), transforms=inv.transforms.FoldBatchNorm(), measures="parameter_norm"
    )
    assert found.rows == ()
    assert "Nothing was compared" in str(found)
    assert "No cell contradicts" not in str(found) + found.to_markdown() + found.to_html()


def test_a_function_without_declarations_is_not_said_to_behave_as_declared(net):
    model, x, y = net

    def own(model, x, y):
        return float(inv.measures.hessian_trace(model, x, y))

    found = inv.check(
        model,
        (x, y),
        transforms=inv.transforms.LayerScaling([256.0, 1 / 256.0]),
        measures=[own, "hessian_trace"],
    )
    mine, registered = found.rows
    assert (mine.claimed, registered.claimed) == (False, True)
    assert mine.declared == "varies"
    assert cell(mine) == f"{cell(registered).removesuffix(' law')} ?"
    assert "Not declared in every cell: own." in str(found)
    assert "not claimed" in found.to_markdown()


def test_a_claim_without_rescalings_is_tried_under_them_all_the_same(net):
    with pytest.raises(inv.testing.NotInvariantError, match="LayerScaling") as caught:
        inv.testing.assert_invariant(inv.measures.hessian_trace, *net)
    assert "claims_only=True" in str(caught.value)
    held = inv.testing.assert_invariant(inv.measures.hessian_trace, *net, claims_only=True)
    assert "LayerScaling" not in {row.transform for row in held.rows}
    assert "not claimed: layer_scaling (law)" in str(held)
    # What claims rescalings is held to its claim, and the rest is said.
    held = inv.testing.assert_invariant(inv.measures.relative_flatness, *net)
    assert "not claimed: neuron_scaling (varies)" in str(held)
    own = inv.testing.assert_invariant(
        lambda m, x, y: float(m(x).softmax(1).detach().square().sum()), *net
    )
    assert "not claimed" not in str(own)


def test_soft_targets_that_name_no_class_are_refused(net):
    model, x, _ = net
    for zeros in (slice(None), slice(3, 4)):
        y = torch.full((12, 3), 1 / 3, dtype=torch.float64)
        y[zeros] = 0.0
        with pytest.raises(inv.DataError, match="all zero"):
            inv.measures.hessian_trace(model, x, y)
