"""Catches: damaged files overwritten or trusted, stale locks, lost or doubled records."""

import errno
import hashlib
import json
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from invariance.core import files
from invariance.core.errors import StudyError
from invariance.studies import Config, weights
from invariance.studies.store import Store, measurement_key

CONFIGS = [Config("toy/1", {"lr": 0.1}, seed) for seed in range(4)]
SETTINGS = {"study": "toy", "measurement": {"version": 1}}
KEY = measurement_key(SETTINGS)
MACHINE = '{"torch":"1"}'


def content(seed):
    return weights.encode({"w": torch.full((3,), float(seed)), "b": torch.zeros(2)})


def fill(store, configs=CONFIGS):
    for config in configs:
        store.add_network(config, content(config.seed), '{"epochs":3}', MACHINE)
        store.add_measurement(config, SETTINGS, f'{{"norm":{config.seed}.0}}', MACHINE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study, and one whose last records are not in the main file yet."""
    place = tmp_path_factory.mktemp("finished")
    with Store(place / "closed", "toy") as store:
        store.start_run()
        fill(store)
        shutil.copytree(place / "closed", place / "pending")
    assert (place / "pending" / "study.db-wal").stat().st_size > 0
    assert not (place / "closed" / "study.db-wal").exists()
    return place


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished / "closed", tmp_path / "toy")


def everything(place):
    return {
        path.relative_to(place): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
        and not path.name.startswith("run.lock")
        and not path.name.endswith("-shm")  # an index that SQLite rebuilds at will
    }


# Weights


def test_the_same_network_is_the_same_file():
    metadata = dict.fromkeys("zyxwvutsr", "x")
    tensors = {name: torch.arange(3) for name in "cab"}
    found = {weights.encode(tensors, metadata) for _ in range(20)}
    turned = [dict(reversed(entries.items())) for entries in (tensors, metadata)]
    found.add(weights.encode(*turned))
    assert len(found) == 1
    assert safetensors.torch.load(found.pop()).keys() == tensors.keys()


def test_weights_are_ordinary_safetensors_with_their_origin(folder):
    with safe_open(folder / "weights" / f"{CONFIGS[2].id}.safetensors", "pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("w"), torch.full((3,), 2.0))
    assert metadata["schema"] == "1"
    assert metadata["config"] == CONFIGS[2].canonical()
    assert json.loads(metadata["facts"]) == {"epochs": 3}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_survive_bit_for_bit(dtype):
    base = torch.tensor([[1.5, -0.0], [3e-300, 7.0]]).to(dtype)
    tied = {"a": base.T, "b": base, "empty": base[:0], "scalar": base[0, 0]}
    back, _ = weights.decode(weights.encode(tied), "here")
    for name, tensor in tied.items():
        assert back[name].dtype == dtype
        assert back[name].shape == tensor.shape
        assert (
            back[name]
            .contiguous()
            .view(torch.uint8 if tensor.numel() else dtype)
            .equal(tensor.contiguous().view(torch.uint8 if tensor.numel() else dtype))
            if tensor.ndim
            else back[name].equal(tensor)
        )


def test_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    store = Store(tmp_path / "toy", "toy")
    path = store.weights_path(CONFIGS[0].id)
    for poison in (pickle.dumps(Trap()), b"", b"\x08"):
        path.write_bytes(poison)
        with pytest.raises(StudyError, match="not a whole safetensors file") as failure:
            store.adopt(CONFIGS[0])
        assert path.name in str(failure.value)
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(StudyError, match="not a whole safetensors file"):
        store.adopt(CONFIGS[0])
    store.close()


# Records


def test_what_was_kept_comes_back(folder):
    with Store(folder, "toy", resume=True) as store:
        assert store.trained() == {config.id for config in CONFIGS} == store.measured(KEY)
        records = store.records(CONFIGS[::-1], KEY)
        assert [r.config for r in records] == CONFIGS[::-1]
        assert [r.measured["norm"] for r in records] == [3.0, 2.0, 1.0, 0.0]
        assert records[0].facts == {"epochs": 3}
        assert store.measured(measurement_key({"study": "toy", "measurement": {}})) == set()
        (origin,) = store.origins(CONFIGS[:3], KEY)
        assert origin == {"trained": 3, "measured": 3, "environment": {"torch": "1"}}
        (run,) = store.runs()
        assert (run.trained, run.measured, run.adopted) == (4, 4, 0)
        assert run.seconds > 0


def test_pending_records_of_a_killed_process_come_back(finished, tmp_path):
    folder = shutil.copytree(finished / "pending", tmp_path / "toy")
    with Store(folder, "toy", resume=True) as store:
        assert len(store.records(CONFIGS, KEY)) == 4


@pytest.mark.parametrize("what", ["half", "one page less"])
def test_pending_records_can_make_a_truncated_file_whole(finished, tmp_path, what):
    """Here every lost page is among the pending ones, so nothing is lost, nor refused."""
    folder = shutil.copytree(finished / "pending", tmp_path / "toy")
    damage(folder, what)
    with Store(folder, "toy", resume=True) as store:
        assert [r.measured["norm"] for r in store.records(CONFIGS, KEY)] == [0.0, 1.0, 2.0, 3.0]
        assert store._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_commits_reach_the_disk(folder):
    with Store(folder, "toy", resume=True) as store:
        assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_network_trained_anew_is_measured_anew(folder):
    with Store(folder, "toy", resume=True) as store:
        store.add_network(CONFIGS[1], content(9), '{"epochs":4}', MACHINE)
        assert store.measured(KEY) == {CONFIGS[i].id for i in (0, 2, 3)}


def test_weights_are_verified_when_read(folder):
    path = folder / "weights" / f"{CONFIGS[0].id}.safetensors"
    whole = path.read_bytes()
    with Store(folder, "toy", resume=True) as store:
        assert store.load(CONFIGS[0]) == (whole, '{"epochs":3}')
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StudyError, match=r"SHA-256.*--resume trains this network anew") as bad:
            store.load(CONFIGS[0])
        assert str(path) in str(bad.value)


# Weights whose record was lost


def test_weights_without_a_record_are_taken_over_as_they_were(folder, tmp_path):
    with Store(folder, "toy", resume=True) as store:
        want = sorted(store._database.execute("SELECT * FROM networks"))
    shutil.copytree(folder / "weights", tmp_path / "other" / "weights")
    with Store(tmp_path / "other", "toy", resume=True) as store:
        store.start_run()
        assert all(store.adopt(config) for config in CONFIGS)
        assert not store.adopt(Config("toy/1", {"lr": 0.1}, 99))
        assert sorted(store._database.execute("SELECT * FROM networks")) == want
        assert store.runs()[-1].adopted == 4


def foreign(path, *, tensors=None, **metadata):
    plain = {"config": CONFIGS[0].canonical(), "facts": '{"epochs": 1}', "schema": "1"} | metadata
    safetensors.torch.save_file(
        tensors or {"w": torch.ones(2)}, path, {k: v for k, v in plain.items() if v is not None}
    )


def test_weights_that_do_not_say_where_they_were_trained(tmp_path):
    (tmp_path / "weights").mkdir()
    with Store(tmp_path, "toy", resume=True) as store:
        foreign(store.weights_path(CONFIGS[0].id))
        assert store.adopt(CONFIGS[0])
        store.add_measurement(CONFIGS[0], SETTINGS, "{}", MACHINE)
        first, second = store.origins(CONFIGS, KEY)
        assert first == {"trained": 0, "measured": 1, "environment": {"torch": "1"}}
        assert second == {"trained": 1, "measured": 0, "environment": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": CONFIGS[1].canonical()}, "it holds the network"),
        ({"config": None}, "it holds the network"),
        ({"schema": "2"}, "schema is '2', expected '1'"),
        ({"facts": None}, "how training went"),
        ({"facts": "not json"}, "how training went"),
        ({"sha256": "0" * 64}, "has changed"),
        ({"tensors": {"w": torch.tensor([1.0, float("nan")])}}, "w holds NaN or infinity"),
    ],
)
def test_weights_that_are_not_what_they_should_be_are_refused(tmp_path, change, reason):
    with Store(tmp_path / "toy", "toy") as store:
        path = store.weights_path(CONFIGS[0].id)
        foreign(path, **change)
        before = path.read_bytes()
        with pytest.raises(StudyError, match=reason) as refused:
            store.adopt(CONFIGS[0])
        assert str(path) in str(refused.value)
        assert "trained anew" in str(refused.value)
        assert path.read_bytes() == before
        assert store.trained() == set()


def test_a_network_that_is_known_to_have_diverged_may_hold_nan(tmp_path):
    with Store(tmp_path / "toy", "toy") as store:
        tensors = {"w": torch.tensor([float("nan")])}
        foreign(store.weights_path(CONFIGS[0].id), tensors=tensors, facts='{"diverged": true}')
        assert store.adopt(CONFIGS[0])


# Folders and files that are not what they should be


def damage(folder, what):
    path = folder / "study.db"
    if what == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "one page less":
        path.write_bytes(path.read_bytes()[:-4096])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "text":
        path.write_text("not a database, but long enough to look like one\n" * 100)
    elif what in ("zeroed page", "zeroed last page"):
        whole = bytearray(path.read_bytes())
        start = 4096 if what == "zeroed page" else len(whole) - 4096
        whole[start : start + 4096] = bytes(4096)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *(("closed", what) for what in ("half", "one page less", "empty", "text")),
        *(("closed", what) for what in ("zeroed page", "zeroed last page")),
        *(("pending", what) for what in ("empty", "text", "zeroed page")),
    ],
)
def test_a_damaged_file_is_told_and_left_alone(finished, tmp_path, kind, what):
    folder = shutil.copytree(finished / kind, tmp_path / "toy")
    damage(folder, what)
    before = everything(folder)
    with pytest.raises(StudyError, match="not a whole study file") as failure:
        Store(folder, "toy", resume=True)
    assert str(folder / "study.db") in str(failure.value)
    assert "--resume" in str(failure.value)
    assert everything(folder) == before


@pytest.mark.parametrize(("version", "age"), [(0, "older"), (99, "newer")])
def test_another_schema_is_told_and_left_alone(folder, version, age):
    with sqlite3.connect(folder / "study.db") as database:
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    before = everything(folder)
    with pytest.raises(StudyError, match=f"{age} version of invariance .schema {version}"):
        Store(folder, "toy", resume=True)
    assert everything(folder) == before


def test_a_database_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "weights").mkdir()
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("CREATE TABLE songs (title)")
    database.close()
    before = everything(tmp_path)
    with pytest.raises(StudyError, match="not of a study"):
        Store(tmp_path, "toy", resume=True)
    assert everything(tmp_path) == before


def test_another_study_is_refused(folder):
    with pytest.raises(StudyError, match="holds the study 'toy', not 'other'"):
        Store(folder, "other", resume=True)
    Store(folder, "toy", resume=True).close()  # and the lock was let go


def test_a_missing_file_whose_pending_records_are_there_is_told(folder):
    (folder / "study.db").unlink()
    (folder / "study.db-wal").write_bytes(b"pending")
    with pytest.raises(StudyError, match=r"study.db-wal holds records that belong to study.db"):
        Store(folder, "toy", resume=True)


def test_what_was_half_made_when_the_first_run_was_killed_does_not_count(tmp_path):
    for name in (".study.db.new", ".study.db.new-journal", "run.lock", "run.lock-journal"):
        (tmp_path / name).write_bytes(b"")
    with Store(tmp_path, "toy") as store:
        fill(store)
    assert not (tmp_path / ".study.db.new").exists()


def test_a_folder_with_something_in_it_needs_resume(folder, tmp_path):
    with pytest.raises(StudyError, match=r"not empty.*--resume.*--out"):
        Store(folder, "toy")
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
from invariance.studies.store import Store
with Store(Path(sys.argv[1]), "toy", resume=True) as store:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_told_who_is_at_work_and_a_killed_one_leaves_no_lock(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        for resume in (True, False):
            with pytest.raises(StudyError, match=f"in use by process {holder.pid} on .* since"):
                Store(folder, "toy", resume=resume)
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=30)
        with Store(folder, "toy", resume=True) as store:
            assert len(store.trained()) == 4
    finally:
        holder.kill()
        holder.communicate()


def test_two_runs_in_one_process_exclude_each_other_too(folder):
    with Store(folder, "toy", resume=True), pytest.raises(StudyError, match="in use by process"):
        Store(folder, "toy", resume=True)
    Store(folder, "toy", resume=True).close()


def test_a_damaged_lock_says_what_to_do(folder):
    (folder / "run.lock").write_bytes(b"x" * 5000)
    with pytest.raises(StudyError, match=r"Cannot lock .*run.lock.* delete it"):
        Store(folder, "toy", resume=True)


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


def test_debris_of_a_killed_write_is_removed(folder):
    scratch = folder / "weights" / f".{CONFIGS[0].id}.safetensors.tmp"
    scratch.write_bytes(b"half")
    (folder / ".results.json.abc").write_text("{")
    Store(folder, "toy", resume=True).close()
    assert not scratch.exists()
    assert not (folder / ".results.json.abc").exists()


def test_the_recorded_hash_is_that_of_the_file(folder):
    with Store(folder, "toy", resume=True) as store:
        for name, recorded in store._database.execute("SELECT id, weights FROM networks"):
            assert hashlib.sha256(store.weights_path(name).read_bytes()).hexdigest() == recorded
