"""Catches: one flipped bit of what a study keeps that changes a number, or ends in a traceback."""

import json
import random
import re
import shutil
import sqlite3

import pytest
from toy_study import STUDY as TOY

from invariance.core._errors import StudyError
from invariance.studies import run_study

SMALL = TOY.full.but(networks=3)


def resume(folder):
    """Go on with a study; give what it publishes, but for when and how long."""
    outcome = run_study(TOY, SMALL, out=folder, resume=True, workers=1)
    content = json.loads((outcome.folder / "results.json").read_text())
    del content["run"]
    return content


class Flipped:
    """A finished study whose files can be flipped and put back."""

    def __init__(self, folder):
        self.folder = folder
        self.expected = resume(folder)
        self.whole = self.files()

    def files(self):
        return {
            path.relative_to(self.folder): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }

    def with_pending_records(self):
        """Leave half of the records where a killed process leaves them."""
        database = sqlite3.connect(self.folder / "study.db", isolation_level=None)
        rows = database.execute("SELECT * FROM measurements").fetchall()[3:]
        database.execute("DELETE FROM measurements WHERE rowid > 3")
        database.close()
        database = sqlite3.connect(self.folder / "study.db", isolation_level=None)
        for row in rows:
            database.execute("INSERT INTO measurements VALUES (?, ?, ?, ?, ?)", row)
        self.whole = self.files()
        self.whole.pop(next(name for name in self.whole if name.name == "study.db-shm"))
        database.close()

    def restore(self, but=()):
        for name in self.files():
            (self.folder / name).unlink()
        for name, content in self.whole.items():
            if name.name not in but:
                (self.folder / name).write_bytes(content)

    def flip(self, name, bit):
        path = self.folder / name
        content = bytearray(path.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)

    def outcome(self, name):
        """Say what came of a flip: the error, or nothing where nothing has changed."""
        try:
            found = resume(self.folder)
        except StudyError as error:
            message = str(error)
            assert str(self.folder / name) in message, message
            assert re.search("--resume|--out|[Dd]elete", message), message
            return message
        assert found == self.expected
        return None


def flips(flipped, names, count, seed, but=()):
    choose = random.Random(seed)
    places = [(name, index) for name in names for index in range(len(flipped.whole[name]))]
    # SQLite's pages are mostly empty: every second flip is where something stands.
    used = [(name, index) for name, index in places if flipped.whole[name][index]]
    told = []
    for turn in range(count):
        name, index = choose.choice(used if turn % 2 else places)
        bit = 8 * index + choose.randrange(8)
        flipped.restore(but)
        flipped.flip(name, bit)
        try:
            told.append(flipped.outcome(name))
        except BaseException as error:
            error.add_note(f"bit {bit} of {name}")
            raise
    return told


@pytest.fixture
def flipped(tmp_path):
    return Flipped(tmp_path / "toy")


def named(flipped, ending):
    return [name for name in flipped.whole if name.name.endswith(ending)]


@pytest.mark.parametrize("count", [100, pytest.param(800, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_the_records_is_told_or_changes_nothing(flipped, count):
    told = flips(flipped, named(flipped, "study.db"), count, seed=count)
    assert sum(message is not None for message in told) > count / 3


@pytest.mark.parametrize("count", [25, pytest.param(100, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_pending_records_is_told_or_measured_again(flipped, count):
    flipped.with_pending_records()
    (wal,) = named(flipped, "-wal")
    assert len(flipped.whole[wal]) > 4096
    flips(flipped, [wal], count, seed=count)


@pytest.mark.parametrize("count", [25, pytest.param(100, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_weights_without_a_record_is_told(flipped, count):
    names = named(flipped, ".safetensors")
    told = flips(flipped, names, count, seed=count, but=("study.db",))
    assert None not in told


def test_every_table_is_compared_and_the_row_is_named(flipped):
    """A value that SQLite finds in order, in each column of each table."""
    tables = ("meta", "environments", "networks", "measurements", "settings", "runs")
    for table in tables:
        flipped.restore()
        with sqlite3.connect(flipped.folder / "study.db") as database:
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        database.close()
        for column in columns:
            flipped.restore()
            with sqlite3.connect(flipped.folder / "study.db") as database:
                key, value = database.execute(
                    f"SELECT {columns[0]}, {column} FROM {table}"
                ).fetchone()
                changed = value + 1 if isinstance(value, (int, float)) else f"{value}0"
                database.execute(
                    f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT rowid FROM {table} "
                    f"WHERE {columns[0]} = ? LIMIT 1)", (changed, key),
                )  # fmt: skip
            database.close()
            row = changed if column == columns[0] else key
            with pytest.raises(StudyError) as error:
                resume(flipped.folder)
            expected = f"row {row!r} of its table {table} has changed since it was written"
            assert expected in str(error.value), (table, column)
            assert str(flipped.folder / "study.db") in str(error.value)
            assert "--resume" in str(error.value)


def test_a_row_of_another_network_is_no_row_of_this_one(flipped):
    """Whole rows that have changed places: each is in order for itself, not for its name."""
    with sqlite3.connect(flipped.folder / "study.db") as database:
        (first, one), (second, other) = database.execute(
            "SELECT rowid, value FROM measurements LIMIT 2"
        )
        for row, value in ((first, other), (second, one)):
            database.execute("UPDATE measurements SET value = ? WHERE rowid = ?", (value, row))
    database.close()
    with pytest.raises(StudyError, match="of its table measurements has changed"):
        resume(flipped.folder)


def test_what_was_lost_comes_back_as_it_was_by_the_remedy_that_is_named(flipped):
    with sqlite3.connect(flipped.folder / "study.db") as database:
        database.execute("UPDATE measurements SET value = '{}' WHERE rowid = 1")
    database.close()
    with pytest.raises(StudyError, match="move it away"):
        resume(flipped.folder)
    shutil.move(flipped.folder / "study.db", flipped.folder.parent / "damaged.db")
    assert resume(flipped.folder) == flipped.expected


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_the_lock_is_told_or_changes_nothing(flipped, count):
    flips(flipped, named(flipped, "run.lock"), count, seed=count)
