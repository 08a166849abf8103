"""Catches: lost or doubled records, weights trusted that are not what they say."""

import json
import pickle
import shutil
import sqlite3

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from store_cases import (
    CONFIGS,
    KEY,
    MACHINE,
    SETTINGS,
    content,
    damage,
    everything,
    make_old,
    rows_of,
)

from invariance.core._errors import StudyError
from invariance.studies import Config
from invariance.studies.store import _weights as weights
from invariance.studies.store._store import Store, measurement_key

# Weights


def test_the_same_network_is_the_same_file():
    metadata = dict.fromkeys("zyxwvutsr", "x")
    tensors = {name: torch.arange(3) for name in "cab"}
    found = {weights.encode(tensors, metadata) for _ in range(20)}
    turned = [dict(reversed(entries.items())) for entries in (tensors, metadata)]
    found.add(weights.encode(*turned))
    assert len(found) == 1
    assert safetensors.torch.load(found.pop()).keys() == tensors.keys()


def test_weights_are_ordinary_safetensors_with_their_origin(study_folder):
    with safe_open(study_folder / "weights" / f"{CONFIGS[2].id}.safetensors", "pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("w"), torch.full((3,), 2.0))
    assert metadata["schema"] == "2"
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


def test_what_was_kept_comes_back(study_folder):
    with Store(study_folder, "toy", resume=True) as store:
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


def test_pending_records_of_a_killed_process_come_back(finished_study, tmp_path):
    folder = shutil.copytree(finished_study / "pending", tmp_path / "toy")
    with Store(folder, "toy", resume=True) as store:
        assert len(store.records(CONFIGS, KEY)) == 4


@pytest.mark.parametrize("what", ["half", "one page less"])
def test_pending_records_can_make_a_truncated_file_whole(finished_study, tmp_path, what):
    """Here every lost page is among the pending ones, so nothing is lost, nor refused."""
    folder = shutil.copytree(finished_study / "pending", tmp_path / "toy")
    damage(folder, what)
    with Store(folder, "toy", resume=True) as store:
        assert [r.measured["norm"] for r in store.records(CONFIGS, KEY)] == [0.0, 1.0, 2.0, 3.0]
        assert store._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_commits_reach_the_disk(study_folder):
    with Store(study_folder, "toy", resume=True) as store:
        assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_network_trained_anew_is_measured_anew(study_folder):
    with Store(study_folder, "toy", resume=True) as store:
        store.add_network(CONFIGS[1], content(9), '{"epochs":4}', MACHINE)
        assert store.measured(KEY) == {CONFIGS[i].id for i in (0, 2, 3)}


def test_weights_are_verified_when_read(study_folder):
    path = study_folder / "weights" / f"{CONFIGS[0].id}.safetensors"
    whole = path.read_bytes()
    with Store(study_folder, "toy", resume=True) as store:
        assert store.load(CONFIGS[0]) == (whole, '{"epochs":3}')
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StudyError, match=r"SHA-256.*--resume trains this network anew") as bad:
            store.load(CONFIGS[0])
        assert str(path) in str(bad.value)


# Folders of an older version


def test_a_folder_of_schema_1_goes_on_and_nothing_is_lost(study_folder):
    rows = make_old(study_folder)
    weights_before = {k: v for k, v in everything(study_folder).items() if k.suffix != ".db"}
    with Store(study_folder, "toy", resume=True) as store:
        records = store.records(CONFIGS, KEY)
        assert [record.measured["norm"] for record in records] == [0.0, 1.0, 2.0, 3.0]
        assert store.load(CONFIGS[1])[1] == '{"epochs":3}'
        store.start_run()
        assert [run.trained for run in store.runs()] == [4, 0]
        assert store._database.execute("PRAGMA user_version").fetchone() == (2,)
    assert {
        k: v for k, v in everything(study_folder).items() if k.suffix != ".db"
    } == weights_before
    found = rows_of(study_folder)
    assert found.pop("runs")[:1] == rows.pop("runs")
    assert found == rows
    Store(study_folder, "toy", resume=True).close()  # and it is a file of schema 2


def test_a_folder_that_holds_only_what_was_published_starts_anew(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with Store(tmp_path, "toy", resume=True) as store:
        assert store.trained() == set()
    assert (tmp_path / "results.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("table", "column"),
    [("networks", "config"), ("settings", "description"), ("environments", "description")],
)
def test_what_can_be_told_of_a_damaged_file_of_schema_1_is_told(study_folder, table, column):
    make_old(study_folder)
    with sqlite3.connect(study_folder / "study.db") as database:
        database.execute(f"UPDATE {table} SET {column} = {column} || ' '")
    database.close()
    before = everything(study_folder)
    with pytest.raises(StudyError, match=f"of its table {table} has changed since"):
        Store(study_folder, "toy", resume=True)
    assert everything(study_folder) == before


# Weights whose record was lost


def test_weights_without_a_record_are_taken_over_as_they_were(study_folder, tmp_path):
    with Store(study_folder, "toy", resume=True) as store:
        want = sorted(store._database.execute("SELECT * FROM networks"))
    shutil.copytree(study_folder / "weights", tmp_path / "other" / "weights")
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
        ({"schema": "3"}, "schema is '3', expected '2'"),
        ({"schema": "2"}, "it has changed"),
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
