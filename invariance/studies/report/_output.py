"""What a finished study leaves: ``results.json``, figures and a Markdown report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from invariance.core._errors import StudyError
from invariance.core._files import write_atomically
from invariance.studies._config import Config, Setting
from invariance.studies._plain_json import finite, not_finite, plain
from invariance.studies._study import Findings, Options, Record, Study
from invariance.studies.report._report import render_markdown
from invariance.studies.store._store import Store

#: Version of ``results.json``.
RESULTS_SCHEMA = 1


@dataclass(frozen=True)
class StudyOutcome:
    """A finished study.

    Attributes:
        folder: Where it lies.
        records: One network each, in the order of the grid.
        findings: Correlations, claims, tables, notes.
        results: The content of ``results.json``.
    """

    folder: Path
    records: tuple[Record, ...]
    findings: Findings
    results: Mapping[str, Any]


def write_outcome(
    study: Study,
    options: Options,
    store: Store,
    configs: Sequence[Config],
    key: str,
    *,
    environment: Mapping[str, str],
    reference: str,
    run: Mapping[str, Any],
) -> StudyOutcome:
    """Analyse the records of a study and write everything that it found.

    All but ``run`` is a function of the records: a study that was killed and resumed writes
    the same as one that was not. Of the three, ``results.json`` is written last.
    """
    records = tuple(store.records(configs, key))
    findings = study.analyse(records, options)
    figures_folder = store.folder / "figures"
    try:
        figures_folder.mkdir(exist_ok=True)
        figures = study.figures(records, findings, figures_folder)
    except OSError as error:
        raise StudyError(
            f"Cannot write figures to {figures_folder}: {error.strerror or error}. The records "
            "are safe: put that right, then go on with --resume."
        ) from error
    origins = store.origins(configs, key)
    content = {
        "schema": RESULTS_SCHEMA,
        **about(study),
        "options": plain(asdict_options(options)),
        "command": command_of(study, options, reference),
        "environment": dict(environment),
        "origins": origins,
        "networks": [_network(record) for record in records],
        **found(findings),
        "figures": [
            {"file": Path(path).relative_to(store.folder).as_posix(), "caption": caption}
            for path, caption in figures
        ],
        "notes": [*notes_of(study, findings), *_origin_notes(origins, environment)],
        "run": {
            **run,
            "seconds_of_all_runs": round(sum(entry.seconds for entry in store.runs()), 3),
            "runs": [asdict(entry) for entry in store.runs()],
        },
    }
    results = finite(content)
    write_atomically(store.folder / "report.md", render_markdown(results))
    write_atomically(
        store.folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n"
    )
    return StudyOutcome(store.folder, records, findings, results)


def asdict_options(options: Options) -> dict[str, Any]:
    """Return options as plain values, without the device: it is part of the environment."""
    return {
        "task": options.task,
        "networks": options.networks,
        "n_train": list(options.n_train),
        "n_unseen": options.n_unseen,
        "seed": options.seed,
        "device": options.device,
        "quick": options.quick,
        "scale": dict(options.scale),
    }


def command_of(study: Study, options: Options, reference: str) -> str:
    """Return the command that gives these results again."""
    default = study.quick if options.quick else study.full
    words = ["invariance", "study", reference, *(["--quick"] if options.quick else [])]
    for flag, now, before in (
        ("--task", options.task, default.task),
        ("--networks", options.networks, default.networks),
        ("--n-train", options.n_train, default.n_train),
        ("--n-unseen", options.n_unseen, default.n_unseen),
        ("--seed", options.seed, default.seed),
        ("--device", options.device, default.device),
    ):
        if now != before:
            values = now if isinstance(now, tuple) else (now,)
            words += [flag, *(str(value) for value in values)]
    for name, value in options.scale.items():
        if name not in default.scale or default.scale[name] != value:
            words += ["--set", f"{name}={_spelled(value)}"]
    return shlex.join(words)


def _spelled(value: Setting) -> str:
    return value if isinstance(value, str) else json.dumps(plain(value))


def _network(record: Record) -> dict[str, Any]:
    config = record.config
    entry = {
        "id": config.id,
        "recipe": config.recipe,
        "seed": config.seed,
        "settings": plain(config.settings),
        "facts": dict(record.facts),
        "targets": {},
        "measures": {},
        "rescaled": {},
        **record.measured,
    }
    gaps = not_finite(entry)
    return entry | ({"not_finite": gaps} if gaps else {})


def _with_gaps(rows: list[Any]) -> list[Any]:
    """Note in each row which of its numbers JSON cannot hold."""
    return [row | ({"not_finite": gaps} if (gaps := not_finite(row)) else {}) for row in rows]


def about(study: Study) -> dict[str, Any]:
    """Return what results say of their study."""
    return {
        "study": study.name,
        "title": study.title,
        "paper": study.paper,
        "question": study.question,
        **({"rescaling": study.rescaling} if study.rescaling else {}),
        **({"regions": study.declared.to_dict()} if study.declared else {}),
    }


def found(findings: Findings) -> dict[str, Any]:
    """Return what results say of findings, as plain values."""
    return {
        "correlations": _with_gaps([plain(row, "correlation") for row in findings.correlations]),
        "claims": _with_gaps([plain(claim.to_dict(), claim.name) for claim in findings.claims]),
        "tables": [plain(asdict(table), table.title) for table in findings.tables],
    }


def notes_of(study: Study, findings: Findings) -> list[str]:
    """Return the notes of findings, and which claims have no region in the study's file."""
    names = study.declared.check(findings.claims) if study.declared else []
    if not names or study.declared is None:
        return list(findings.notes)
    return [
        *findings.notes,
        f"{study.declared.file} holds the regions of the committed sizes. Those of "
        f"{len(names)} claims here are not in it ({', '.join(names[:4])}"
        f"{', ...' if len(names) > 4 else ''}): they are those of the code.",
    ]


def _origin_notes(
    origins: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> list[str]:
    notes = []
    for origin in origins:
        other = origin["environment"]
        if other is None:
            notes.append(
                f"{origin['trained']} networks were taken over as weights that do not say with "
                "which versions they were trained."
            )
        elif different := {
            name: value for name, value in other.items() if environment.get(name) != value
        }:
            named = ", ".join(
                f"{name} {value} (here {environment.get(name)})"
                for name, value in different.items()
            )
            notes.append(
                f"{origin['trained']} networks were trained and {origin['measured']} measured "
                f"elsewhere: {named}. Their last digits may differ from those trained here."
            )
    return notes
