"""Catches: anything that a SIGKILL, at whatever moment, does to the results of a study."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_cases import make_old, rows_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def run():
    """A function that runs the study in a process of its own, and kills it if told to."""
    server = subprocess.Popen(
        [sys.executable, str(HERE / "kill_server.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def order(out, **kill):
        server.stdin.write(json.dumps({"out": str(out), **kill}) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        assert answer["killed"] or answer["code"] == 0
        return answer

    yield order
    server.communicate(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    """What a study ends with that nobody disturbs, how many events it has, how long it takes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    answer = run(out)
    return everything(out), answer["events"], answer["seconds"]


def everything(out):
    """All that a study leaves, but for when and how long."""
    results = json.loads((out / "results.json").read_text())
    assert [entry["seconds"] >= 0 for entry in results.pop("run")["runs"]]
    report = (out / "report.md").read_text()
    with contextlib.closing(sqlite3.connect(out / "study.db")) as database:
        tables = {
            name: sorted(database.execute(f"SELECT * FROM {name}"))
            for name in ("networks", "measurements", "environments", "settings", "meta")
        }
    return {
        "results": json.dumps(results),  # order and spelling too
        "report": report[: report.index("## Environment")],
        "tables": tables,
        "files": {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in sorted(out.rglob("*"))
            if path.is_file()
            and not path.name.startswith(("study.db", "run.lock", "results.json", "report.md"))
        },
    }


def until_done(run, out, orders):
    """Run with one order after another, then undisturbed; return how many runs were killed."""
    killed = 0
    for order in orders:
        answer = run(out, **order)
        killed += answer["killed"]
        if not answer["killed"]:
            return killed
    run(out)
    return killed


def test_the_undisturbed_study_is_worth_disturbing(undisturbed):
    state, events, _ = undisturbed
    assert len(state["tables"]["networks"]) == len(state["tables"]["measurements"]) == 16
    assert len([name for name in state["files"] if name.startswith("weights/")]) == 16
    assert events > 300


def test_killed_again_and_again_at_random_events(run, undisturbed, tmp_path):
    """One study that never gets further than a few records at a time."""
    choose = random.Random(1)
    orders = [{"event": choose.randint(1, 60)} for _ in range(24)]
    assert until_done(run, tmp_path / "out", orders) == 24
    assert everything(tmp_path / "out") == undisturbed[0]


def test_killed_once_anywhere(run, undisturbed, tmp_path):
    choose = random.Random(2)
    for index in range(6):
        kind = ("event", "torn")[index % 2]
        order = {kind: choose.randint(1, undisturbed[1] - 5)}
        assert until_done(run, tmp_path / str(index), [order]) == 1, order
        assert everything(tmp_path / str(index)) == undisturbed[0], order


def test_killed_at_random_times(run, undisturbed, tmp_path):
    choose = random.Random(3)
    orders = [{"after": choose.uniform(0, undisturbed[2] / 2)} for _ in range(6)]
    until_done(run, tmp_path / "out", orders)
    assert everything(tmp_path / "out") == undisturbed[0]


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The quick study, finished, to begin from; and how many events it takes to look at it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    run(out, quick=True)
    return out


def killed_at(run, begin, folder, points, **order):
    """Kill a run that begins from ``begin`` at each point, then let it end: what it leaves."""
    events = run(shutil.copytree(begin, folder / "undisturbed"), quick=True, **order)["events"]
    expected = everything(folder / "undisturbed")
    choose = random.Random(4)
    for point in sorted(choose.sample(range(1, events), min(points, events - 1))):
        out = shutil.copytree(begin, folder / str(point))
        assert run(out, event=point, quick=True, **order)["killed"]
        yield point, out
        run(out, quick=True, **order)
        assert everything(out) == expected, point


def test_killed_while_an_older_folder_becomes_one_of_this_version(run, finished, tmp_path):
    """At every moment all of its records are there, in the old form or in the new."""
    begin = shutil.copytree(finished, tmp_path / "begin")
    rows = make_old(begin)
    rows.pop("runs")
    for point, out in killed_at(run, begin, tmp_path, 12):
        found = rows_of(out)
        assert found.pop("runs")[0][3:] == (4, 4, 0), point
        assert found == rows, point


def test_killed_while_weights_without_records_are_taken_over(run, finished, tmp_path):
    begin = shutil.copytree(finished, tmp_path / "begin")
    (begin / "study.db").unlink()
    weights = {path.name: path.read_bytes() for path in (begin / "weights").iterdir()}
    for point, out in killed_at(run, begin, tmp_path, 6):
        assert {p.name: p.read_bytes() for p in (out / "weights").iterdir()} == weights, point


def test_killed_while_everything_is_measured_another_way(run, finished, tmp_path):
    """What was measured the first way stays, whatever becomes of the second."""
    first = rows_of(finished)
    for point, out in killed_at(run, finished, tmp_path, 6, unseen=7):
        found = rows_of(out)
        assert found["networks"] == first["networks"], point
        assert set(first["measurements"]) <= set(found["measurements"]), point


@pytest.mark.slow
def test_killed_once_at_every_sixth_event(run, tmp_path):
    """From the first look at an empty folder to the last rename."""
    events = run(tmp_path / "undisturbed", quick=True)["events"]
    expected = everything(tmp_path / "undisturbed")
    assert events > 100
    for event in (*range(1, events, 6), events):
        out = tmp_path / str(event)
        assert run(out, event=event, quick=True)["killed"]
        run(out, quick=True)
        assert everything(out) == expected, event


#: The tiny study with a batch that never ends.
STUCK = """
import pathlib, time
from dataclasses import replace
import tiny_study

def train(configs, context):
    if configs[0].settings["n_train"] == 40:
        pathlib.Path("stuck").touch()
        time.sleep(600)
    return tiny_study.train(configs, context)

STUDY = replace(tiny_study.STUDY, train=train)
"""


def test_a_killed_pool_takes_its_workers_along_and_resumes(run, undisturbed, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "stuck_study.py").write_text(STUCK)
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "invariance", "study", "stuck_study:STUDY", "--out", str(out)]
    parent = subprocess.Popen(
        [*command, "--workers", "2"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    workers = []
    try:
        while not (tmp_path / "stuck").exists():
            assert parent.poll() is None, parent.stdout.read()
            time.sleep(0.01)
        workers = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait(timeout=30)
        deadline = time.monotonic() + 60
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.communicate()
    assert len(workers) >= 2
    assert list(out.glob("weights/*.safetensors"))
    assert not (out / "results.json").exists()
    run(out)
    assert everything(out) == undisturbed[0]


def children(pid):
    """The processes that ``pid`` has started and that compute."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_check_that_can_fail(undisturbed, run, tmp_path):
    """The comparison notices one changed bit of one weight."""
    run(tmp_path / "out")
    path = next((tmp_path / "out" / "weights").iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert everything(tmp_path / "out") != undisturbed[0]
    assert os.path.exists(path)
