"""Catches: results that depend on where they were computed, batches lost with a worker."""

import builtins
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_study import STUDY as TINY

from invariance.cli._main import main
from invariance.core._errors import StudyError, UsageError
from invariance.studies import run_study

HERE = Path(__file__).parent

#: The tiny study, as a module that only this user's folder has; its first batch names the
#: process that holds it and waits to be killed.
DOOMED = """
import os, pathlib, time
from dataclasses import replace
import tiny_study

HERE = pathlib.Path({folder!r})

def train(configs, context):
    try:
        (HERE / "claimed").mkdir()
    except FileExistsError:
        return tiny_study.train(configs, context)
    (HERE / "victim.tmp").write_text(str(os.getpid()))
    (HERE / "victim.tmp").rename(HERE / "victim")
    time.sleep(600)

STUDY = replace(tiny_study.STUDY, train=train)
"""


def content(path):
    plain = json.loads(path.read_text())
    del plain["run"], plain["command"]
    return plain


def weights_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "weights").iterdir()}


class Cluster:
    """A scheduler and workers as a user would start them, on this machine alone."""

    def __init__(self, folder, *words):
        self.folder, self.processes, self.words = folder, [], words
        about = folder / "scheduler.json"
        self._start("dask_scheduler", "--host", "127.0.0.1", "--port", "0",
                    "--no-dashboard", "--scheduler-file", str(about), *words)  # fmt: skip
        while not about.exists():
            assert self.processes[0].poll() is None
            time.sleep(0.05)
        self.address = json.loads(about.read_text())["address"]

    def add_worker(self):
        # No nanny: a worker that dies stays dead.
        self._start("dask_worker", self.address, "--nthreads", "1", "--no-nanny",
                    "--no-dashboard", "--local-directory", str(self.folder),
                    *self.words)  # fmt: skip

    def close(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def _start(self, module, *words):
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *words],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                # Killed twice, a batch is given up.
                env=os.environ | {
                    "PYTHONPATH": str(HERE), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
                },
            )
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one thread each."""
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        cluster.add_worker()
        cluster.add_worker()
        yield cluster
    finally:
        cluster.close()


# Dask's own: sockets of a worker that was killed are closed by the garbage collector.
@pytest.mark.filterwarnings("ignore")
def test_two_workers_one_killed_half_way_give_what_one_process_gives(
    cluster, tmp_path, monkeypatch, capsys
):
    local = run_study(TINY, out=tmp_path / "local", workers=1)
    (tmp_path / "doomed_study.py").write_text(DOOMED.format(folder=str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def kill():
        while not (tmp_path / "victim").exists():
            time.sleep(0.05)
        os.kill(int((tmp_path / "victim").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    words = ["study", "doomed_study:STUDY", "--out", "far", "--scheduler"]
    assert main([*words, cluster.address]) == 0, capsys.readouterr().err
    killer.join(timeout=60)
    assert (tmp_path / "victim").exists()  # the study was disturbed
    far = tmp_path / "far"
    assert content(far / "results.json") == content(local.folder / "results.json")
    assert weights_of(far) == weights_of(local.folder)
    executor = json.loads((far / "results.json").read_text())["run"]["executor"]
    assert executor == f"Dask at {cluster.address}"


@pytest.mark.filterwarnings("ignore")
def test_another_version_on_a_worker_is_refused(cluster, tmp_path, monkeypatch):
    import invariance

    here = invariance.__version__
    monkeypatch.setattr("invariance.core._version.__version__", "99")
    with pytest.raises(StudyError, match=f"invariance is {here}; here it is 99"):
        run_study(TINY, out=tmp_path, resume=True, scheduler=cluster.address)


def fatal(configs, context):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_kills_every_worker_is_told(cluster, tmp_path):
    cluster.add_worker()  # one is left of two
    with pytest.raises(StudyError, match=r"Several workers died .* while training 2 network"):
        run_study(
            replace(TINY, train=fatal), out=tmp_path, resume=True,
            scheduler=cluster.address,
        )  # fmt: skip


def test_without_dask_the_remedy_is_named(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] in {"distributed", "dask"}:
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StudyError, match=r'pip install "invariance\[cluster\]"'):
        run_study(TINY, out=tmp_path, resume=True, scheduler="tcp://127.0.0.1:1")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x"])
def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch, address):
    pytest.importorskip("distributed")
    from invariance.studies.executors import _cluster as cluster

    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    with pytest.raises(StudyError, match=f"No Dask scheduler answers at '{address}'"):
        run_study(TINY, out=tmp_path, resume=True, scheduler=address)


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_dies_half_way_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    from invariance.studies.executors import _cluster as module

    monkeypatch.setattr(module, "_PATIENCE", 10)
    (tmp_path / "dying_study.py").write_text(DOOMED.format(folder=str(tmp_path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    import dying_study

    (tmp_path / "dask").mkdir()
    doomed = Cluster(tmp_path / "dask")

    def kill():
        while not (tmp_path / "victim").exists():
            time.sleep(0.05)
        doomed.processes[0].kill()

    killer = threading.Thread(target=kill, daemon=True)
    try:
        doomed.add_worker()
        killer.start()
        with pytest.raises(StudyError, match=r"scheduler .* while training .*safe.*--resume"):
            run_study(dying_study.STUDY, out=tmp_path / "out", scheduler=doomed.address)
        killer.join(timeout=60)
    finally:
        doomed.close()
        sys.modules.pop("dying_study", None)


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_dies_between_batches_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    from invariance.studies._jobs import train_job
    from invariance.studies.executors import Work
    from invariance.studies.executors import _cluster as module

    monkeypatch.setattr(module, "_PATIENCE", 5)
    doomed = Cluster(tmp_path)
    try:
        doomed.add_worker()
        executor = module.Cluster(doomed.address, TINY)
        assert executor.room()
        doomed.close()
        work = Work(lambda: train_job(TINY, TINY.grid(TINY.quick)[:2], TINY.quick, "cpu"), "it")
        for step in (executor.room, lambda: executor.submit(work) or executor.wait()):
            with pytest.raises(StudyError, match=r"scheduler is gone.*safe.*--resume"):
                step()
        executor.close()
    finally:
        doomed.close()


@pytest.fixture
def certificate(tmp_path):
    """A certificate that vouches for itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-out", str(files[0]), "-keyout", str(files[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_behind_tls(tmp_path, certificate, capsys):
    pytest.importorskip("distributed")
    cert, key = map(str, certificate)
    (tmp_path / "dask").mkdir()
    files = ["--tls-ca-file", cert, "--tls-cert", cert, "--tls-key", key]
    secure = Cluster(tmp_path / "dask", "--protocol", "tls", *files)
    try:
        secure.add_worker()
        assert secure.address.startswith("tls://")
        far = run_study(TINY, out=tmp_path / "far", scheduler=secure.address, tls=(cert, cert, key))
        assert far.results["run"]["executor"] == f"Dask at {secure.address}"
        local = run_study(TINY, out=tmp_path / "local", workers=1)
        assert weights_of(far.folder) == weights_of(local.folder)
    finally:
        secure.close()


def test_tls_files_that_are_of_no_use_are_told(tmp_path, capsys):
    words = ["study", "vanishing-advantage", "--quick", "--out", str(tmp_path / "out")]
    here = str(Path(__file__))
    for scheduler, files, message in (
        (["--scheduler", "tls://127.0.0.1:1"], [here, here, "gone.pem"], "no file 'gone.pem'"),
        (["--scheduler", "tcp://127.0.0.1:1"], [here] * 3, "needs a scheduler at tls://"),
        ([], [here] * 3, "needs a scheduler at tls://"),
    ):
        assert main([*words, *scheduler, "--tls", *files]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match="three files"):
        run_study(TINY, out=tmp_path / "out", scheduler="tls://127.0.0.1:1", tls=(here,))


def test_the_help_says_whom_a_scheduler_trusts(capsys):
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    assert "in a trusted network only" in " ".join(capsys.readouterr().out.split())
