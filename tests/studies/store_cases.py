"""A small finished study on disk, and ways to damage it."""

import contextlib
import sqlite3

import torch

from invariance.studies import Config
from invariance.studies.store import _weights as weights
from invariance.studies.store._store import measurement_key

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


def everything(place):
    return {
        path.relative_to(place): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
        and not path.name.startswith("run.lock")
        and not path.name.endswith("-shm")  # an index that SQLite rebuilds at will
    }


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


#: The tables as the first version made them, without digests.
SCHEMA_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE environments (id TEXT PRIMARY KEY, description TEXT NOT NULL);
CREATE TABLE networks (
    id TEXT PRIMARY KEY,       -- Config.id
    config TEXT NOT NULL,      -- canonical JSON
    facts TEXT NOT NULL,       -- JSON
    weights TEXT NOT NULL,     -- SHA-256 of weights/<id>.safetensors
    environment TEXT           -- where it was trained; NULL if its file does not say
);
CREATE TABLE measurements (
    network TEXT NOT NULL REFERENCES networks (id),
    key TEXT NOT NULL,         -- settings.key
    value TEXT NOT NULL,       -- JSON
    environment TEXT NOT NULL,
    PRIMARY KEY (network, key)
);
CREATE TABLE settings (key TEXT PRIMARY KEY, description TEXT NOT NULL);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,
    seconds REAL NOT NULL,     -- up to the last record
    trained INTEGER NOT NULL,
    measured INTEGER NOT NULL,
    adopted INTEGER NOT NULL
);
"""

TABLES = ("meta", "environments", "networks", "measurements", "settings", "runs")


def rows_of(folder):
    """All rows of a study's file, without digests where there are any."""
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as database:
        last = -1 if database.execute("PRAGMA user_version").fetchone()[0] > 1 else None
        return {
            name: [row[:last] for row in database.execute(f"SELECT * FROM {name} ORDER BY rowid")]
            for name in TABLES
        }


def make_old(folder):
    """Write a study's file anew as the first version would have written it."""
    rows = rows_of(folder)
    (folder / "study.db").unlink()
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as database:
        database.executescript(SCHEMA_1)
        for name, content in rows.items():
            for row in content:
                marks = ", ".join("?" * len(row))
                database.execute(f"INSERT INTO {name} VALUES ({marks})", row)
        database.commit()
        database.execute("PRAGMA application_id = 0x69767374")
        database.execute("PRAGMA user_version = 1")
        database.execute("PRAGMA journal_mode = WAL")
    return rows
