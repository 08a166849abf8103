"""What has been found so far: the studies there are, and the results that lie in folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invariance.core._errors import StudyError
from invariance.studies.report._output import RESULTS_SCHEMA
from invariance.studies.report._report import claim_cells


def read_results(path: Path) -> dict[str, Any]:
    """Read one ``results.json``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
        if schema == RESULTS_SCHEMA:
            _require_shown(content)
    except Exception as error:  # of any kind: the file can hold anything
        reason = f"{type(error).__name__}: {error}"
        raise StudyError(f"{path} is not the results of a study ({reason}).") from error
    if schema != RESULTS_SCHEMA:
        raise StudyError(
            f"{path} has schema {schema!r}, this version reads {RESULTS_SCHEMA}. "
            "Run the study again, or read it with the version that wrote it."
        )
    return dict(content)


def _require_shown(content: dict[str, Any]) -> None:
    """Take what is shown of results, so that one odd file is told and hides no other."""
    for name, kind in (
        ("study", str),
        ("title", str),
        ("paper", str),
        ("command", str),
        ("options", dict),
        ("networks", list),
        ("claims", list),
    ):
        if not isinstance(content[name], kind):
            raise TypeError(f"{name!r} must be {kind.__name__}")
    if not isinstance(content["options"]["quick"], bool):
        raise TypeError("'options.quick' must be bool")
    for claim in content["claims"]:
        claim_cells(claim)


def find_results(
    folders: Sequence[Path],
) -> tuple[list[tuple[Path, dict[str, Any]]], list[StudyError]]:
    """Read all results in folders: directly in them, or one folder below."""
    found, problems = [], []
    paths = [
        path
        for folder in folders
        for path in (folder / "results.json", *sorted(folder.glob("*/results.json")))
        if os.path.isfile(path)  # Path.is_file raises where a folder may not be entered
    ]
    for path in dict.fromkeys(paths):
        try:
            found.append((path, read_results(path)))
        except StudyError as error:
            problems.append(error)
    return found, problems


def worth_showing(
    found: Sequence[tuple[Path, Mapping[str, Any]]], study: str
) -> list[tuple[Path, Mapping[str, Any]]]:
    """Choose which results of a study to show: every full run, most networks first.

    Runs of the same study with other options (sizes, tasks) answer for different claims, so
    none of them stands for the others. A quick run is shown only where there is nothing else.
    """
    own = [entry for entry in found if entry[1]["study"] == study]
    own.sort(key=lambda entry: (entry[1]["options"]["quick"], -len(entry[1]["networks"])))
    shown: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for path, content in own:
        size = {name: v for name, v in content["options"].items() if name != "networks"}
        shown.setdefault(json.dumps(size, sort_keys=True), (path, content))
    full = [entry for entry in shown.values() if not entry[1]["options"]["quick"]]
    return full or list(shown.values())[:1]
