"""Catches: wrong exit codes and places, verdicts that are not shown, tracebacks for users."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from invariance import studies
from invariance.cli import _study_options as study_options
from invariance.cli._main import main
from invariance.core import _files as files
from invariance.studies import catalog

#: A whole study of one's own: the example that the package's documentation shows.
OWN = textwrap.dedent(studies.__doc__.split("::\n")[1].split("\nThe engine does")[0])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's folder with a study in it."""
    (tmp_path / "my_coin.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_coin", None)


def test_a_study_of_ones_own_is_one_file(here, capsys):
    assert main(["study", "my_coin:COIN", "--quick", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "The coin is fair." in out
    assert "supported" in out
    assert str(Path("results", "coin-quick", "results.json")) in out
    plain = json.loads((here / "results" / "coin-quick" / "results.json").read_text())
    assert len(plain["networks"]) == 100
    assert abs(plain["claims"][0]["value"] - 0.5) < 0.1
    assert plain["command"] == "invariance study my_coin:COIN --quick"


def test_options_reach_the_study(here):
    words = "--networks 3 --n-train 5 6 --n-unseen 7 --seed 8 --task x --device cpu --set tosses=9"
    arguments = ["study", "my_coin:COIN", "--quick", "--out", "o", *words.split()]
    assert main([*arguments, "--workers", "1"]) == 0
    plain = json.loads((here / "o" / "results.json").read_text())
    assert plain["options"] == {
        "task": "x", "networks": 3, "n_train": [5, 6], "n_unseen": 7, "seed": 8,
        "device": "cpu", "quick": True, "scale": {"tosses": 9},
    }  # fmt: skip
    assert plain["command"] == (
        "invariance study my_coin:COIN --quick --task x --networks 3 --n-train 5 6 --n-unseen 7 "
        "--seed 8 --device cpu --set tosses=9"
    )


def test_a_second_run_needs_resume(here, capsys):
    run = ["study", "my_coin:COIN", "--quick", "--workers", "1"]
    assert main(run) == 0
    first = Path("results/coin-quick/results.json").read_bytes()
    assert main(run) == 2
    err = capsys.readouterr().err
    assert "--resume" in err
    assert "--out" in err
    assert Path("results/coin-quick/results.json").read_bytes() == first
    assert main([*run, "--resume"]) == 0
    assert main([*run, "--resume", "--out", "somewhere/new"]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nonsense"], r"Unknown study 'nonsense'.*MODULE:ATTRIBUTE"),
        (["my_coin:CION"], r"must name a Study\. Got NoneType.*Studies in my_coin: COIN"),
        (["my_coin:grid"], r"Got function"),
        (["my_dice:COIN"], r"No module 'my_dice'"),
        ([":COIN"], r"not MODULE:ATTRIBUTE"),
        (["my_coin:COIN", "--networks", "0"], r"networks must be a positive"),
        (["my_coin:COIN", "--workers", "0"], r"workers must be a positive"),
        (["my_coin:COIN", "--device", "tpu"], r"tpu"),
        (["my_coin:COIN", "--quick", "--set", "tosses"], r"--set takes NAME=VALUE"),
        (["my_coin:COIN", "--quick", "--set", "toses=1"], r"Did you mean 'tosses'"),
        (["my_coin:COIN", "--quick", "--set", "tosses=1.5"], r"takes int, such as 1\. Got '1.5'"),
        (["my_coin:COIN", "--quick", "--set", "tosses=true"], r"takes int"),
        (["my_coin:COIN", "--set", "tosses=1"], r"Unknown size"),
        (["my_coin:COIN", "--out", "my_coin.py"], r"Cannot use my_coin.py"),
        (["my_coin:COIN", "--scheduler", "x", "--workers", "2"], r"leave it out"),
    ],
)
def test_usage_errors_are_sentences(here, words, expected, capsys):
    assert main(["study", *words]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert re.search(expected, err), err


def test_an_import_error_inside_the_users_module_is_not_hidden(here):
    (here / "broken_coin.py").write_text("import surely_not_installed")
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        main(["study", "broken_coin:COIN"])


def test_known_studies_are_found_by_name():
    for study in catalog.STUDIES:
        assert study_options.find_study(study.name) is study


def test_a_full_disk_is_one_sentence(here, capsys, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert main(["study", "my_coin:COIN", "--quick", "--workers", "1"]) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "Traceback" not in err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(["study", "my_coin:COIN", "--quick", "--workers", "1", "--resume"]) == 0


def test_overview_shows_results_and_what_was_not_run(here, capsys, monkeypatch):
    COIN = study_options.find_study("my_coin:COIN")

    monkeypatch.setattr(catalog, "STUDIES", (COIN,))
    assert main(["studies"]) == 0
    out = capsys.readouterr().out
    assert "coin: A coin" in out
    assert "not run yet: invariance study coin" in out
    assert main(["study", "coin", "--quick", "--workers", "1"]) == 0
    assert main(["study", "coin", "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["studies"]) == 0
    out = capsys.readouterr().out
    assert "The coin is fair." in out
    assert "0.5" in out
    assert "supported" in out
    assert str(Path("results", "coin", "results.json")) in out
    assert "quick" not in out
    shutil.move("results", "elsewhere")
    assert main(["studies", "--results", "elsewhere"]) == 0
    assert str(Path("elsewhere", "coin", "results.json")) in capsys.readouterr().out
    assert main(["studies", "--results", "nowhere"]) == 2


TRAIN = 'def train(configs, context):  # one batch of one cell; here a "network" is one toss\n'


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_promptly_and_says_how_to_go_on(here, workers, interruptible):
    assert TRAIN in OWN
    (here / "slow_coin.py").write_text(
        OWN.replace(
            TRAIN,
            "import pathlib, time\n" + TRAIN + "    if configs[0].seed:\n"
            "        pathlib.Path(__file__).with_name('running').touch()\n"
            "        time.sleep(600)\n",
        )
    )
    command = [*interruptible, "study", "slow_coin:COIN", "--out", "o"]
    process = subprocess.Popen(
        [*command, "--networks", "100", "--workers", str(workers)],
        cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        weights = here / "o" / "weights"
        while not ((here / "running").exists() and len(list(weights.glob("*.safetensors"))) == 50):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, err
    assert "50 of 100 networks are kept in o; go on with --resume" in err
    assert "Traceback" not in err
