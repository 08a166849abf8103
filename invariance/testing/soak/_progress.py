"""What a soak has done so far: kept on disk, resumed, and summed up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invariance.core._errors import UsageError
from invariance.core._files import require_writable
from invariance.testing.soak._soak import Tally

#: Version of both JSON layouts.
SCHEMA = 1


class SoakProgress:
    """The tallies of every seed; written as they come if there is a file for them.

    The file has one JSON object a line, the last one for a seed and measure counts. Lines are
    appended and flushed whole, so a kill costs what was under way and nothing before it.
    """

    def __init__(self, path: Path | None = None, again: Iterable[str] = ()) -> None:
        self.path = path
        self.tallies: dict[int, dict[str, Tally]] = {}
        if path is None:
            return
        require_writable(path)
        if path.exists():
            self._read(path)
        for name in again:
            for seed, kept in self.tallies.items():
                if name in kept:
                    self.keep(seed, {name: Tally(name)})

    def of(self, seed: int, names: Iterable[str]) -> dict[str, Tally]:
        """Return what came of the named measures under a seed so far."""
        kept = self.tallies.get(seed, {})
        return {name: kept.get(name, Tally(name)) for name in names}

    def keep(self, seed: int, tallies: Mapping[str, Tally]) -> None:
        """Note new tallies, those that changed on disk too."""
        kept = self.tallies.setdefault(seed, {})
        changed = [tally for name, tally in tallies.items() if kept.get(name) != tally]
        kept.update(tallies)
        if self.path is None or not changed:
            return
        line = {"schema": SCHEMA, "seed": seed, "tallies": [entry.to_dict() for entry in changed]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")  # torn: a line whose write was cut off
        for number, line in enumerate(whole.split("\n") if whole else (), 1):
            try:
                entry = json.loads(line)
                kept = self.tallies.setdefault(int(entry["seed"]), {})
                for data in entry["tallies"]:
                    kept[data["measure"]] = Tally.from_dict(data)
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{path}, line {number}, is no progress of a soak ({error}). Name another "
                    "file, or remove this one."
                ) from error
        if torn:
            path.write_text(whole + "\n" if whole else "", encoding="utf-8")


def summary(
    progress: SoakProgress, seeds: Sequence[int], owed: Mapping[str, int]
) -> dict[str, Any]:
    """Sum up the runs of several seeds."""
    measures: dict[str, dict[str, Any]] = {}
    for name, count in owed.items():
        tallies = [progress.of(seed, [name])[name] for seed in seeds]
        kinds: dict[str, int] = {}
        for tally in tallies:
            for kind, number in tally.kinds.items():
                kinds[kind] = kinds.get(kind, 0) + number
        measures[name] = {
            "owed_a_seed": count,
            "seeds_complete": sum(tally.compared >= count for tally in tallies),
            "seeds_given_up": sum(tally.given_up for tally in tallies),
            "compared": sum(tally.compared for tally in tallies),
            "networks": sum(tally.networks for tally in tallies),
            "refused": sum(tally.refused for tally in tallies),
            "declined_after_the_map": sum(tally.declined for tally in tallies),
            "alarms": [alarm for tally in tallies for alarm in tally.alarms],
            "kinds": dict(sorted(kinds.items())),
            "reason": next((tally.reason for tally in tallies if tally.reason), ""),
            "seconds": round(sum(tally.seconds for tally in tallies), 1),
        }
    ended = [
        entry["seeds_complete"] + entry["seeds_given_up"] >= len(seeds)
        for entry in measures.values()
    ]
    return {
        "schema": SCHEMA,
        "seeds": list(seeds),
        "complete": all(ended),
        "compared": sum(entry["compared"] for entry in measures.values()),
        "alarms": sum(len(entry["alarms"]) for entry in measures.values()),
        "measures": measures,
    }
