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
from invariance.studies.store._schema import DATABASE_FILE, create, open_database


@dataclass(frozen=True)
class Run:
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
        """Open the folder of a study, or make it.

        Args:
            folder: Where.
            study: The study's name.
            resume: Whether to go on with what is there. A folder that is not there is made
                either way, so that a script can always say it.

        Raises:
            StudyError: If the folder is in use, holds something else, or is damaged; if it
                holds something and ``resume`` is not set.
        """
        self.folder = folder
        self._began = time.monotonic()
        self._run = 0
        require_place(folder, resume=resume)
        self._lock = RunLock(folder)
        try:
            path = folder / DATABASE_FILE
            with told(path):
                (folder / "weights").mkdir(exist_ok=True)
                if not path.exists():
                    create(path, {"study": study})
                for scratch in (folder / "weights").glob(".*.tmp"):
                    scratch.unlink()
                for name in ("results.json", "report.md"):
                    for scratch in folder.glob(f".{name}.*"):
                        scratch.unlink()
            self._database = open_database(path, study)
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
            cursor = self._database.execute(
                "INSERT INTO runs (started, seconds, trained, measured, adopted) "
                "VALUES (?, 0, 0, 0, 0)",
                (now,),
            )
            self._run = int(cursor.lastrowid or 0)

    def runs(self) -> list[Run]:
        """Return all runs so far."""
        rows = self._database.execute(
            "SELECT started, seconds, trained, measured, adopted FROM runs ORDER BY id"
        )
        return [Run(*row) for row in rows]

    def trained(self) -> set[str]:
        """Return the ids of the networks that have a record."""
        return {row[0] for row in self._database.execute("SELECT id FROM networks")}

    def measured(self, key: str) -> set[str]:
        """Return the ids of the networks that were measured in this way."""
        rows = self._database.execute("SELECT network FROM measurements WHERE key = ?", (key,))
        return {row[0] for row in rows}

    def adopt(self, config: Config) -> bool:
        """Give weights that lie in the folder without a record their record.

        Args:
            config: What the network should be.

        Returns:
            Whether there were such weights.

        Raises:
            StudyError: If the file is damaged, or holds another network.
        """
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
        """Keep a trained network.

        Args:
            config: What it is.
            content: Its tensors as safetensors bytes.
            facts: What training said, as JSON.
            environment: Where it was trained, as JSON.
        """
        content = weights.annotate(
            content,
            {
                "schema": weights.WEIGHTS_SCHEMA,
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
        """Keep what was measured on a network.

        Args:
            config: The network.
            settings: How it was measured; see :func:`measurement_key`.
            value: What was found, as JSON.
            environment: Where it was measured, as JSON.
        """
        key = measurement_key(settings)
        with self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO settings VALUES (?, ?)", (key, canonical_json(settings))
            )
            self._database.execute(
                "INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?)",
                (config.id, key, value, self._environment(environment)),
            )
            self._count("measured")

    def load(self, config: Config) -> tuple[bytes, str]:
        """Read a network's weights.

        Args:
            config: The network; it must have a record.

        Returns:
            The file's bytes, verified, and what training said, as JSON.

        Raises:
            StudyError: If the file is not what was written.
        """
        path = self.weights_path(config.id)
        expected, facts = self._database.execute(
            "SELECT weights, facts FROM networks WHERE id = ?", (config.id,)
        ).fetchone()
        with told(path):
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise StudyError(
                f"{path} has changed since it was written: its SHA-256 is not the recorded one. "
                "Restore it from a copy; or delete it, and --resume trains this network anew."
            )
        return content, str(facts)

    def records(self, configs: Sequence[Config], key: str) -> list[Record]:
        """Return the finished networks, in the order of ``configs``.

        Args:
            configs: The networks.
            key: How they were measured.

        Returns:
            Their records.
        """
        found = {
            row[0]: (json.loads(row[1]), json.loads(row[2]))
            for row in self._database.execute(
                "SELECT n.id, n.facts, m.value FROM networks n JOIN measurements m "
                "ON m.network = n.id WHERE m.key = ?",
                (key,),
            )
        }
        return [Record(config, *found[config.id]) for config in configs]

    def origins(self, configs: Sequence[Config], key: str) -> list[dict[str, Any]]:
        """Say where the networks were trained and measured.

        Args:
            configs: The networks.
            key: How they were measured.

        Returns:
            One entry an environment: ``trained``, ``measured`` and ``environment``, which is
            ``None`` for weights whose file does not say.
        """
        wanted = {config.id for config in configs}
        counts: dict[str | None, dict[str, int]] = {}
        queries = (
            ("trained", "SELECT id, environment FROM networks", ()),
            ("measured", "SELECT network, environment FROM measurements WHERE key = ?", (key,)),
        )
        for what, query, values in queries:
            for network, environment in self._database.execute(query, values):
                if network in wanted:
                    entry = counts.setdefault(environment, {"trained": 0, "measured": 0})
                    entry[what] += 1
        known = dict(self._database.execute("SELECT id, description FROM environments"))
        return [
            {**counts[name], "environment": json.loads(known[name]) if name else None}
            for name in sorted(counts, key=lambda name: (name is None, name))
        ]

    def _insert_network(
        self, config: Config, facts: str, content: bytes, environment: str | None, what: str
    ) -> None:
        row = (
            config.id,
            config.canonical(),
            facts,
            hashlib.sha256(content).hexdigest(),
        )
        with self._transaction():
            # A network trained anew is measured anew.
            self._database.execute("DELETE FROM measurements WHERE network = ?", (config.id,))
            origin = None if environment is None else self._environment(environment)
            self._database.execute(
                "INSERT OR REPLACE INTO networks VALUES (?, ?, ?, ?, ?)", (*row, origin)
            )
            self._count(what)

    def _environment(self, description: str) -> str:
        name = digest(description)
        self._database.execute(
            "INSERT OR IGNORE INTO environments VALUES (?, ?)", (name, description)
        )
        return name

    def _count(self, what: str) -> None:
        self._database.execute(
            f"UPDATE runs SET {what} = {what} + 1, seconds = ? WHERE id = ?",
            (round(time.monotonic() - self._began, 3), self._run),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with told(self.folder / DATABASE_FILE):
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
