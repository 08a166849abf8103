"""Catches: wrong exit codes, files half written, tracebacks where a sentence belongs."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from invariance.cli._main import main

SMALL = ["report", "--task", "digits", "--n-train", "60", "--n-unseen", "5", "--networks", "4"]


def test_report_writes_what_it_prints(tmp_path, capsys):
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    assert main([*SMALL, *files]) == 0
    out = capsys.readouterr().out
    assert "No cell contradicts its declaration" in out
    assert "Spearman" in out
    plain = json.loads((tmp_path / "r.json").read_text())
    assert plain["task"]["name"] == "digits"
    assert {row["measure"] for row in plain["correlations"]} >= {"hessian_trace", "pair_proxy"}
    for row in plain["correlations"]:
        assert set(row) >= {
            "measure", "target", "n", "rho", "ci_low", "ci_high", "p_value", "rho_after_rescaling",
        }  # fmt: skip
    assert "<svg" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["report", "--task", "mnits"], "Did you mean 'mnist'"),
        (["report", "--task", "digits", "--networks", "2"], "at least 4 networks"),
        (["report", "--task", "digits", "--n-train", "0"], "n_train|training points"),
        (["report", "--task", "digits", "--device", "tpu"], "tpu"),
    ],
)
def test_usage_errors_are_sentences(words, expected, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    import re

    assert re.search(expected, err)


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("place", ["file/report", "."])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    option, place, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    work = "invariance.checking._experiment.run_report"
    monkeypatch.setattr(work, lambda *a, **k: pytest.fail("the work was started"))
    assert main([*SMALL, option, str(tmp_path / place)]) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_lists_are_readable_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["measures"]) == 0
    assert main(["transforms"]) == 0
    out = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    assert "A=layer_scaling   B=neuron_scaling" in out
    assert "float" not in out.split("NeuronScaling(")[1].split(")")[0]
    assert max(len(line) for line in out.splitlines()) <= 80


def test_unknown_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["reprot"])
    assert stop.value.code == 2
    assert "Did you mean 'report'?" in capsys.readouterr().err


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\nimport invariance as inv\n"
        "def model():\n    return inv.models.mlp([4, 6, 3])\n"
        "def whole():\n"
        "    x = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))\n"
        "    return model(), x, torch.arange(9) % 3\n"
        "def text():\n    return 'no model'\n"
    )
    np.savez(tmp_path / "data.npz", x=np.eye(4, dtype=np.float32), y=np.array([0, 1, 2, 0]))
    np.savez(tmp_path / "half.npz", x=np.eye(4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


CHOSEN = ["--measures", "path_norm,hessian_trace", "--transforms", "LayerScaling,permutation"]


@pytest.mark.parametrize(
    "words", [["--model", "mine:whole"], ["--model", "mine:model", "--data", "data.npz"]]
)
def test_report_on_a_network_of_the_users_own(words, own_network, capsys):
    assert main(["report", *words, *CHOSEN, "--json", "new/r.json"]) == 0
    said = capsys.readouterr()
    assert "no folder new; it will be made" in said.err
    assert "multiplied hessian_trace by" in said.out
    plain = json.loads((own_network / "new" / "r.json").read_text())
    assert {row["measure"] for row in plain["rows"]} == {"path_norm", "hessian_trace"}
    assert {row["transform"] for row in plain["rows"]} == {"LayerScaling", "Permutation"}
    assert plain["correlations"] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "mine:text"], "must return a model"),
        (["--model", "mine:model", "--data", "half.npz"], "half.npz"),
        (["--model", "mine:whole", "--data", "data.npz"], "leave --data out"),
        (["--data", "data.npz"], "with --model"),
        (["--transforms", "LayerScalin"], "Did you mean 'LayerScaling'"),
        (["--measures", "hessian_trac"], "Did you mean 'hessian_trace'"),
    ],
)
def test_what_cannot_be_reported_is_said(words, expected, own_network, capsys):
    assert main(["report", *words]) == 2
    assert expected in capsys.readouterr().err


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom invariance.cli._main import main\ntry:\n    main(['--help'])\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_lists(capsys):
    assert main(["measures"]) == 0
    assert main(["transforms"]) == 0
    out = capsys.readouterr().out
    assert "hessian_trace" in out
    assert "LayerScaling" in out


def test_python_dash_m(capsys):
    done = subprocess.run(
        [sys.executable, "-m", "invariance", "--version"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("invariance ")


def test_ctrl_c_ends_cleanly(tmp_path, interruptible):
    """Interrupted while a measure is being computed, however fast the machine is."""
    (tmp_path / "patient.py").write_text(
        "import pathlib, time\n"
        "def patient(model, x, y):\n"
        "    pathlib.Path(__file__).with_name('running').touch()\n"
        "    time.sleep(600)\n"
        "    return 0.0\n"
    )
    target = tmp_path / "r.json"
    process = subprocess.Popen(
        [*interruptible, "check", "patient:patient", "--json", str(target)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not (tmp_path / "running").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, err
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert not target.exists()


def test_an_interrupted_report_leaves_no_file(tmp_path, monkeypatch, capsys):
    from invariance.checking import _experiment as experiment

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run_report", interrupted)
    target = tmp_path / "r.json"
    assert main(["report", "--task", "digits", "--json", str(target)]) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert not target.exists()
