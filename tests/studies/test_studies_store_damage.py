"""Catches: damaged files overwritten or trusted, stale locks, records lost to a full disk."""

import errno
import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
from store_cases import CONFIGS, KEY, MACHINE, SETTINGS, content, damage, everything, fill

from invariance.core import _files as files
from invariance.core._errors import StudyError
from invariance.studies.store._store import Store

# Folders and files that are not what they should be


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *(("closed", what) for what in ("half", "one page less", "empty", "text")),
        *(("closed", what) for what in ("zeroed page", "zeroed last page")),
        *(("pending", what) for what in ("empty", "text", "zeroed page")),
    ],
)
def test_a_damaged_file_is_told_and_left_alone(finished_study, tmp_path, kind, what):
    folder = shutil.copytree(finished_study / kind, tmp_path / "toy")
    damage(folder, what)
    before = everything(folder)
    with pytest.raises(StudyError, match="not a whole study file") as failure:
        Store(folder, "toy", resume=True)
    assert str(folder / "study.db") in str(failure.value)
    assert "--resume" in str(failure.value)
    assert everything(folder) == before


@pytest.mark.parametrize(("version", "age"), [(0, "older"), (3, "newer"), (99, "newer")])
def test_another_schema_is_told_and_left_alone(study_folder, version, age):
    with sqlite3.connect(study_folder / "study.db") as database:
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    before = everything(study_folder)
    with pytest.raises(StudyError, match=f"{age} version of invariance .schema {version}"):
        Store(study_folder, "toy", resume=True)
    assert everything(study_folder) == before


def test_a_database_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "weights").mkdir()
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("CREATE TABLE songs (title)")
    database.close()
    before = everything(tmp_path)
    with pytest.raises(StudyError, match="not of a study"):
        Store(tmp_path, "toy", resume=True)
    assert everything(tmp_path) == before


def test_another_study_is_refused(study_folder):
    with pytest.raises(StudyError, match="holds the study 'toy', not 'other'"):
        Store(study_folder, "other", resume=True)
    Store(study_folder, "toy", resume=True).close()  # and the lock was let go


def test_a_missing_file_whose_pending_records_are_there_is_told(study_folder):
    (study_folder / "study.db").unlink()
    (study_folder / "study.db-wal").write_bytes(b"pending")
    with pytest.raises(StudyError, match=r"study.db-wal holds records that belong to study.db"):
        Store(study_folder, "toy", resume=True)


def test_what_was_half_made_when_the_first_run_was_killed_does_not_count(tmp_path):
    for name in (".study.db.new", ".study.db.new-journal", "run.lock", "run.lock-journal"):
        (tmp_path / name).write_bytes(b"")
    with Store(tmp_path, "toy") as store:
        fill(store)
    assert not (tmp_path / ".study.db.new").exists()


def test_a_folder_with_something_in_it_needs_resume(study_folder, tmp_path):
    with pytest.raises(StudyError, match=r"not empty.*--resume.*--out"):
        Store(study_folder, "toy")
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    with pytest.raises(StudyError, match=r"not empty"):
        Store(home, "toy")
    with pytest.raises(StudyError, match=r"no study to go on with, but other files .letter.txt"):
        Store(home, "toy", resume=True)
    assert sorted(path.name for path in home.iterdir()) == ["letter.txt"]


def test_resume_starts_where_there_is_nothing(tmp_path):
    with Store(tmp_path / "a" / "b", "toy", resume=True) as store:
        fill(store)
        assert len(store.trained()) == 4


def test_a_place_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StudyError, match=r"Cannot use .*file.*--out"):
        Store(tmp_path / "file", "toy")
    with pytest.raises(StudyError, match="Cannot use"):
        Store(tmp_path / "file" / "below", "toy")


# One process at a time

HOLD = """
import sys
from pathlib import Path
from invariance.studies.store._store import Store
with Store(Path(sys.argv[1]), "toy", resume=True) as store:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_told_who_is_at_work_and_a_killed_one_leaves_no_lock(study_folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(study_folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        for resume in (True, False):
            with pytest.raises(StudyError, match=f"in use by process {holder.pid} on .* since"):
                Store(study_folder, "toy", resume=resume)
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=30)
        with Store(study_folder, "toy", resume=True) as store:
            assert len(store.trained()) == 4
    finally:
        holder.kill()
        holder.communicate()


def test_two_runs_in_one_process_exclude_each_other_too(study_folder):
    with (
        Store(study_folder, "toy", resume=True),
        pytest.raises(StudyError, match="in use by process"),
    ):
        Store(study_folder, "toy", resume=True)
    Store(study_folder, "toy", resume=True).close()


def test_a_damaged_lock_says_what_to_do(study_folder):
    (study_folder / "run.lock").write_bytes(b"x" * 5000)
    with pytest.raises(StudyError, match=r"Cannot lock .*run.lock.* delete it"):
        Store(study_folder, "toy", resume=True)


@pytest.mark.parametrize(
    ("name", "offender"),
    [("weights", "weights"), ("run.lock", "run.lock"), ("study.db", "study.db")],
)
def test_the_name_that_is_in_the_way_is_the_one_that_is_told(tmp_path, name, offender):
    """A file where a folder should be, and the other way round."""
    if name == "weights":
        (tmp_path / name).write_text("in the way")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(StudyError) as failure:
        Store(tmp_path, "toy", resume=True)
    assert str(tmp_path / offender) in str(failure.value)
    assert "delete it" not in str(failure.value)


def test_a_folder_that_is_read_only_is_not_the_locks_fault(study_folder, monkeypatch):
    """The owner of all files may write anywhere, so SQLite is made to say what others see."""
    real = sqlite3.connect

    def read_only(path, *arguments, **options):
        path = str(path)
        uri = path if path.startswith("file:") else f"file:{path}?mode=ro"
        return real(uri, *arguments, **{**options, "uri": True})

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(StudyError, match=r"Cannot write to .*run.lock.*writable") as failure:
        Store(study_folder, "toy", resume=True)
    assert "delete" not in str(failure.value)


# A full disk


def test_a_full_disk_while_weights_are_written(tmp_path, monkeypatch):
    with Store(tmp_path / "toy", "toy") as store:
        fill(store, CONFIGS[:2])

        def full(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(StudyError, match=r"No space left on device.*safe.*--resume"):
            store.add_network(CONFIGS[2], content(2), "{}", MACHINE)
        monkeypatch.undo()
        names = {path.stem for path in (tmp_path / "toy" / "weights").iterdir()}
        assert names == {config.id for config in CONFIGS[:2]}  # no half file, no debris
        assert store.trained() == names
        fill(store, CONFIGS[2:])
        assert len(store.records(CONFIGS, KEY)) == 4


def test_a_full_disk_while_a_record_is_written(tmp_path):
    with Store(tmp_path / "toy", "toy") as store:
        fill(store, CONFIGS[:2])
        pages = store._database.execute("PRAGMA page_count").fetchone()[0]
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StudyError, match=r"database or disk is full.*safe.*--resume"):
            store.add_measurement(CONFIGS[0], SETTINGS, json.dumps("x" * 100_000), MACHINE)
        store._database.execute("PRAGMA max_page_count = 1000000")
        assert [r.measured["norm"] for r in store.records(CONFIGS[:2], KEY)] == [0.0, 1.0]
        fill(store, CONFIGS[2:])
    with Store(tmp_path / "toy", "toy", resume=True) as store:
        assert len(store.records(CONFIGS, KEY)) == 4


def test_debris_of_a_killed_write_is_removed(study_folder):
    scratch = study_folder / "weights" / f".{CONFIGS[0].id}.safetensors.tmp"
    scratch.write_bytes(b"half")
    (study_folder / ".results.json.abc").write_text("{")
    Store(study_folder, "toy", resume=True).close()
    assert not scratch.exists()
    assert not (study_folder / ".results.json.abc").exists()


def test_the_recorded_hash_is_that_of_the_file(study_folder):
    with Store(study_folder, "toy", resume=True) as store:
        for name, recorded in store._database.execute("SELECT id, weights FROM networks"):
            assert hashlib.sha256(store.weights_path(name).read_bytes()).hexdigest() == recorded
