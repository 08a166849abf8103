"""Catches: wrong exit codes and places, verdicts that are not shown, tracebacks for users."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from invariance import papers, studies
from invariance.cli import _study_options as study_options
from invariance.cli._main import main
from invariance.core import _files as files

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
        (["my_coin:COIN", "--networks", "0"], r"networks must be an integer of at least 1"),
        (["my_coin:COIN", "--workers", "0"], r"workers must be a positive"),
        (["my_coin:COIN", "--n-unseen", "-1"], r"n_unseen must be an integer of at least 0"),
        (["my_coin:COIN", "--n-train", "5", "0"], r"n_train must be an integer of at least 1"),
        (["my_coin:COIN", "--quick", "--set", "tosses=NaN"], r"takes int, such as 1\. Got 'NaN'"),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import surely_not_installed", r"imports 'surely_not_installed', which is not installed"),
        ("def broken(:\n", r"is no valid Python: .*broken_coin\.py, line 1"),
        ("\n\n1 / 0", r"raised ZeroDivisionError: division by zero \(.*broken_coin\.py, line 3\)"),
        ("import sys\nsys.exit(0)", r"tried to end the program \(sys\.exit\(0\)\)"),
        ("raise KeyError('x' * 3)", r"raised KeyError"),
        ("from my_coin import *\nfrom invariance.studies import *\nCOIN = Study(name='../a', "
         "title='', paper='', question='', full=1, quick=1, grid=1, train=1, measure=1, analyse=1)",
         r"name must be at most 64 letters.*'\.\./a'"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_imported_is_one_sentence(here, text, expected, capsys):
    (here / "broken_coin.py").write_text(text)
    try:
        assert main(["study", "broken_coin:COIN"]) == 2
    finally:
        sys.modules.pop("broken_coin", None)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert re.search(expected, err), err


#: What a study may do wrong: one of its functions, and a line at its beginning.
STEPS = ("def grid(options):", "def train(configs, context):", "def measure(configs, trained",
         "def analyse(records, options):")  # fmt: skip


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import sys; sys.exit(0)", r"tried to end the program \(sys\.exit\(0\)\)"),
        ("1 / 0", r"raised ZeroDivisionError: division by zero"),
        ("raise MemoryError('3 GiB')", r"Memory ran out \(3 GiB\).*--workers"),
    ],
)
def test_what_a_studys_functions_raise_is_one_sentence(here, workers, step, line, expected, capsys):
    lines = OWN.splitlines()
    (index,) = [number for number, text in enumerate(lines) if text.startswith(step)]
    lines.insert(index + 1, f"    {line}")
    (here / "bad_coin.py").write_text("\n".join(lines))
    try:
        words = ["study", "bad_coin:COIN", "--quick", "--out", "o", "--workers", str(workers)]
        assert main(words) == 2
    finally:
        sys.modules.pop("bad_coin", None)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert re.search(expected, err), err
    if step not in STEPS[:1]:
        assert "bad_coin.py" in err or "Memory" in err or "while" in err, err


def test_seeds_of_any_size_are_seeds(here):
    for seed in (-1, 10**30, -(10**30)):
        words = ["study", "my_coin:COIN", "--quick", "--networks", "2", "--workers", "1"]
        assert main([*words, "--seed", str(seed), "--out", str(seed)]) == 0
        plain = json.loads((here / str(seed) / "results.json").read_text())
        assert [network["seed"] for network in plain["networks"]] == [seed, seed + 1]


def test_text_of_a_study_commands_neither_the_terminal_nor_the_page(here, capsys):
    title = "A \x1b[31mcoin\x07 <script>alert(1)</script>"
    text = OWN.replace('title="A coin"', f"title={title!r}")
    text = text.replace('"The coin is fair."', repr("It\x1b]0;x\x07 is <b>fair</b>\n\n# so"))
    (here / "loud_coin.py").write_text(text)
    try:
        words = ["study", "loud_coin:COIN", "--quick", "--workers", "1", "--out", "results/o"]
        assert main(words) == 0
        assert main(["studies"]) == 0
    finally:
        sys.modules.pop("loud_coin", None)
    said = capsys.readouterr()
    report = (here / "results" / "o" / "report.md").read_text()
    for output in (said.out, said.err, report):
        assert "\x1b" not in output
        assert "\x07" not in output
    assert "\u241b[31mcoin" in said.out
    assert "<script" not in report
    assert "<b>" not in report
    assert "&lt;script>alert(1)&lt;/script>" in report
    assert "\n# so" not in report


ODD = ['"\\u001b[2J"', "[" * 100_000, '{"schema": "\\u001b[31m"}', "\x00", "9" * 10_000]


def test_one_odd_file_of_results_hides_no_other(here, capsys):
    run = ["study", "my_coin:COIN", "--quick", "--workers", "1", "--out", "results/a-whole"]
    assert main(run) == 0
    whole = json.loads((here / "results" / "a-whole" / "results.json").read_text())
    odd = [json.dumps({**whole, name: value}) for name in whole for value in (None, 3, "x", [1])]
    for claim in ({}, {"statement": "x"}, 3, {**whole["claims"][0], "value": "much"}):
        odd.append(json.dumps({**whole, "claims": [claim]}))
    for index, text in enumerate([*odd, *ODD]):
        place = here / "results" / f"odd-{index:03d}"
        place.mkdir()
        (place / "results.json").write_text(text)
    capsys.readouterr()
    assert main(["studies"]) == 0
    said = capsys.readouterr()
    assert str(Path("results", "a-whole", "results.json")) in said.out
    assert "The coin is fair." in said.out
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err
    for index in range(len(odd), len(odd) + len(ODD)):
        assert f"odd-{index:03d}" in said.err


def test_a_name_that_is_too_long_is_one_sentence(here, capsys):
    name = "x" * 5000
    assert main(["studies", "--results", name]) == 2
    assert main(["study", "my_coin:COIN", "--out", name]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_known_studies_are_found_by_name():
    for study in papers.STUDIES:
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

    monkeypatch.setattr("invariance.studies._catalogue.catalogue", lambda: (COIN,))
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


def kept(folder):
    """How many networks have a record, for somebody who only looks."""
    uri = (folder / "study.db").as_uri() + "?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        return database.execute("SELECT count(*) FROM networks").fetchone()[0]


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
        while not ((here / "running").exists() and kept(here / "o") == 50):
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
