"""Judge committed results again: from the numbers in them, by the rules of this version."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from invariance.core._errors import StudyError
from invariance.core._files import write_atomically
from invariance.studies._config import Config
from invariance.studies._jobs import RESERVED
from invariance.studies._plain_json import finite, plain
from invariance.studies._study import Options, Record, Study
from invariance.studies.claims._claims import Claim, judged
from invariance.studies.report._output import about, command_of, found, notes_of
from invariance.studies.report._overview import read_results
from invariance.studies.report._report import render_markdown

#: Said where single points of a network were left out of committed results.
CLAIMS_ONLY = (
    "Judged again from the claims' own numbers: what was kept of single points is not in this "
    "file, so that tables and correlations are those of the run."
)


def rejudge(path: Path, study: Study) -> dict[str, Any]:
    """Analyse the networks in a ``results.json`` again, and write it and its report anew.

    Where the file does not hold all that the analysis reads, the claims that are in it are
    judged again by themselves.
    """
    results = read_results(path)
    try:
        records = [record_of(entry) for entry in results["networks"]]
        options = options_of(results["options"])
        findings = study.analyse(records, options)
    except (KeyError, StopIteration):
        claims = judged([_sampled_again(claim, study) for claim in results["claims"]])
        new: dict[str, Any] = {"claims": [plain(claim.to_dict(), claim.name) for claim in claims]}
        notes = [note for note in results["notes"] if note != CLAIMS_ONLY] + [CLAIMS_ONLY]
    else:
        folder = path.parent / "figures"
        folder.mkdir(exist_ok=True)
        figures = [
            {"file": Path(file).relative_to(path.parent).as_posix(), "caption": caption}
            for file, caption in study.figures(records, findings, folder)
        ]
        command = command_of(study, options, study.name)
        new = {**found(findings), "figures": figures, "command": command}
        notes = notes_of(study, findings)
    content: dict[str, Any] = finite({**results, **about(study), **new, "notes": notes})
    write_atomically(path.with_name("report.md"), render_markdown(content))
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


def record_of(entry: Mapping[str, Any]) -> Record:
    """Read one network of ``results.json``."""
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["settings"].items()}
    config = Config(entry["recipe"], settings, entry["seed"])
    if config.id != entry["id"]:
        raise StudyError(
            f"Network {entry['id']} is not what its settings say ({config.id}): the file was "
            "changed by hand, or written by a version that spelled settings differently."
        )
    copy: dict[str, Any] = json.loads(json.dumps(entry))
    for place, word in copy.pop("not_finite", {}).items():
        _put(copy, place, {"inf": math.inf, "-inf": -math.inf}.get(word, math.nan))
    measured = {k: v for k, v in copy.items() if k not in RESERVED}
    return Record(config, copy["facts"], measured)


def _put(content: Any, place: str, value: float) -> None:
    """Set the entry that a dotted path names; names may hold dots of their own."""
    if isinstance(content, list):
        head, _, rest = place.partition(".")
        if not rest:
            content[int(head)] = value
        else:
            _put(content[int(head)], rest, value)
        return
    if place in content:
        content[place] = value
        return
    name = next(key for key in content if place.startswith(f"{key}."))
    _put(content[name], place[len(name) + 1 :], value)


def options_of(plain_options: Mapping[str, Any]) -> Options:
    """Read the options of ``results.json``."""
    scale = {k: tuple(v) if isinstance(v, list) else v for k, v in plain_options["scale"].items()}
    return Options(**{**plain_options, "n_train": tuple(plain_options["n_train"]), "scale": scale})


def _sampled_again(plain_claim: Mapping[str, Any], study: Study) -> Claim:
    """Read a claim without what an earlier rule made of its p-value, by the region now fixed."""
    claim = Claim.from_dict({**plain_claim, "p_value": None, "adjusted": "", "p_adjusted": None})
    fixed = study.declared.regions.get(claim.name) if study.declared else None
    return claim if fixed is None else replace(claim, region=fixed)
