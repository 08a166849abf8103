"""A study's folder: records in one SQLite file, weights in safetensors files beside it.

A trained network is kept in two steps. Its weights, with its configuration and what training
said, are written to a file that appears under its name only when it is whole and on the
disk; then its record is committed. Killed between the two, the file is found, verified and
given its record by the next run: whatever was trained is not trained again. Measurements
are kept apart from networks, so that another way to measure trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from invariance.core._errors import StudyError
from invariance.core._files import write_durably
from invariance.studies._config import Config, canonical_json, digest
from invariance.studies._plain_json import to_json
from invariance.studies._study import Record
from invariance.studies.store import _weights as weights
from invariance.studies.store._folder import require_place, told
from invariance.studies.store._lock import RunLock
from invariance.studies.store._schema import DATABASE_FILE, create, open_database, put, read


@dataclass(frozen=True)
class StudyRun:
    """One run of a study; a resumed study has had several.

    Attributes:
        started: When, in UTC.
        seconds: From the start to the last record.
        trained: Networks it trained.
        measured: Networks it measured.
        adopted: Networks whose weights it found without a record.
    """

    started: str
    seconds: float
    trained: int
    measured: int
    adopted: int


class Store:
    """The folder of one study, held by one process."""

    def __init__(self, folder: Path, study: str, *, resume: bool = False) -> None:
        """Open the folder of a study, or make it."""
        self.folder = folder
        self._began = time.monotonic()
        self._run = 0
        require_place(folder, resume=resume)
        self._lock = RunLock(folder)
        try:
            self._path = folder / DATABASE_FILE
            with told(folder / "weights"):
                (folder / "weights").mkdir(exist_ok=True)
                for scratch in (folder / "weights").glob(".*.tmp"):
                    scratch.unlink()
            with told(folder):
                for pattern in (".results.json.*", ".report.md.*", ".invariance-*"):
                    for scratch in folder.glob(pattern):
                        scratch.unlink()
            with told(self._path):
                if not self._path.exists():
                    create(self._path, {"study": study})
                self._database = open_database(self._path, study)
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Close the files and let go of the folder."""
        self._database.close()
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def weights_path(self, network: str) -> Path:
        """Return where the weights of a network lie."""
        return self.folder / "weights" / f"{network}.safetensors"

    def start_run(self) -> None:
        """Note that a run has begun; its records are counted from here."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._transaction():
            self._run = 1 + max((row[0] for row in self._rows("runs")), default=0)
            put(self._database, "runs", self._run, now, 0.0, 0, 0, 0)

    def runs(self) -> list[StudyRun]:
        """Return all runs so far."""
        return [StudyRun(*row) for _, *row in self._rows("runs")]

    def trained(self) -> set[str]:
        """Return the ids of the networks that have a record."""
        return {row[0] for row in self._rows("networks")}

    def measured(self, key: str) -> set[str]:
        """Return the ids of the networks that were measured in this way."""
        return {row[0] for row in self._rows("measurements", key=key)}

    def adopt(self, config: Config) -> bool:
        """Give weights that lie in the folder without a record their record."""
        path = self.weights_path(config.id)
        if not path.exists():
            return False
        with told(path):
            content = path.read_bytes()
        metadata = weights.require_network(content, config, path)
        environment = metadata.get("environment")
        facts = to_json(json.loads(metadata["facts"]))
        self._insert_network(config, facts, content, environment, "adopted")
        return True

    def add_network(self, config: Config, content: bytes, facts: str, environment: str) -> None:
        """Keep a trained network."""
        content = weights.seal(
            content,
            {
                "config": config.canonical(),
                "facts": facts,
                "environment": environment,
                "sha256": weights.data_digest(content),
            },
        )
        path = self.weights_path(config.id)
        with told(path):
            write_durably(path, content)
        self._insert_network(config, facts, content, environment, "trained")

    def add_measurement(
        self, config: Config, settings: Mapping[str, Any], value: str, environment: str
    ) -> None:
        """Keep what was measured on a network."""
        key = measurement_key(settings)
        with self._transaction():
            put(self._database, "settings", key, canonical_json(settings), ignore=True)
            origin = self._environment(environment)
            put(self._database, "measurements", config.id, key, value, origin)
            self._count("measured")

    def load(self, config: Config) -> tuple[bytes, str]:
        """Read a network's weights."""
        path = self.weights_path(config.id)
        ((_, _, facts, expected, _),) = self._rows("networks", id=config.id)
        with told(path):
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise StudyError(
                f"{path} has changed since it was written: its SHA-256 is not the recorded one. "
                "Restore it from a copy; or delete it, and --resume trains this network anew."
            )
        return content, str(facts)

    def records(self, configs: Sequence[Config], key: str) -> list[Record]:
        """Return the finished networks, in the order of ``configs``."""
        facts = {row[0]: row[2] for row in self._rows("networks")}
        values = {row[0]: row[2] for row in self._rows("measurements", key=key)}
        return [
            Record(config, json.loads(facts[config.id]), json.loads(values[config.id]))
            for config in configs
        ]

    def origins(self, configs: Sequence[Config], key: str) -> list[dict[str, Any]]:
        """Say where the networks were trained and measured."""
        wanted = {config.id for config in configs}
        counts: dict[str | None, dict[str, int]] = {}
        rows = {
            "trained": self._rows("networks"),
            "measured": self._rows("measurements", key=key),
        }
        for what, entries in rows.items():
            for network, *_, environment in entries:
                if network in wanted:
                    entry = counts.setdefault(environment, {"trained": 0, "measured": 0})
                    entry[what] += 1
        known = dict(self._rows("environments"))
        return [
            {**counts[name], "environment": json.loads(known[name]) if name else None}
            for name in sorted(counts, key=lambda name: (name is None, name))
        ]

    def _insert_network(
        self, config: Config, facts: str, content: bytes, environment: str | None, what: str
    ) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        with self._transaction():
            # A network trained anew is measured anew.
            self._database.execute("DELETE FROM measurements WHERE network = ?", (config.id,))
            origin = None if environment is None else self._environment(environment)
            row = (config.id, config.canonical(), facts, sha256, origin)
            put(self._database, "networks", *row)
            self._count(what)

    def _environment(self, description: str) -> str:
        name = digest(description)
        put(self._database, "environments", name, description, ignore=True)
        return name

    def _count(self, what: str) -> None:
        for number, started, _, *counts in self._rows("runs", id=self._run):
            counts[("trained", "measured", "adopted").index(what)] += 1
            seconds = round(time.monotonic() - self._began, 3)
            put(self._database, "runs", number, started, seconds, *counts)

    def _rows(self, table: str, **where: object) -> list[tuple[Any, ...]]:
        """Read rows, each compared with its digest."""
        with told(self._path):
            return list(read(self._database, self._path, table, **where))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with told(self._path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def measurement_key(settings: Mapping[str, Any]) -> str:
    """Return the name of a way to measure: the digest of its settings."""
    return digest(canonical_json(settings))
