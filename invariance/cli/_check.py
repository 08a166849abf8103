"""``invariance check``: a project's own measures, without pytest."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invariance.cli._targets import require_target

if TYPE_CHECKING:
    from invariance.testing.project._project_table import Project, Request


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="check that your measure is invariant as declared",
        description=(
            "Check measures on small trained networks. A function decorated with "
            "invariance.measure is held to what it declares; a plain function (model, x, y) -> "
            "number claims to be unchanged by every rescaling, unless --groups or the table "
            "[tool.invariance] of pyproject.toml says otherwise. Exit code 0: every measure was "
            "tried and holds; 1: a claim is broken, or a measure is faulty; 2: usage error, or a "
            "measure could not be tried."
        ),
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="MODULE:FUNCTION",
        help="measures to check; by default those of [tool.invariance]",
    )
    parser.add_argument(
        "--groups",
        metavar="NAME[,NAME...]",
        help="kinds of map that the measure claims to be unchanged by",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help=(
            "network to check on (again for more): mlp, mlp_batch_norm, cnn, resnet, all, or "
            "MODULE:FUNCTION returning (model, x, y); default: mlp and mlp_batch_norm"
        ),
    )
    parser.add_argument("--dtype", help="check in this precision only, such as float64")
    parser.add_argument("--rtol", type=float, help="relative change to let pass (1e-6)")
    parser.add_argument("--seed", type=int, help="seed of the random maps (0)")
    parser.add_argument("--examples", type=int, metavar="N", help="random maps of each kind (1)")
    parser.add_argument("--json", metavar="PATH", help="write the outcome as JSON; - for stdout")
    parser.add_argument(
        "--snapshot",
        metavar="PATH",
        help="compare how each measure behaves under every kind of map with a recorded table",
    )
    parser.add_argument("--update", action="store_true", help="record the snapshot anew")
    parser.add_argument(
        "--config", type=Path, metavar="PATH", help="pyproject.toml to read (nearest by default)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check, print, and write what was asked for."""
    from invariance.core._errors import UsageError
    from invariance.core._files import working_folder
    from invariance.testing.project._project_table import read_project

    project = read_project(working_folder(), path=options.config)
    requests = _requests(options, project)
    if not requests:
        raise UsageError(
            "Nothing to check. Name a measure as MODULE:FUNCTION, or list measures in "
            "[tool.invariance] of pyproject.toml."
        )
    snapshot = options.snapshot or (None if options.targets else project.snapshot)
    if options.update and snapshot is None:
        raise UsageError("--update records a snapshot; say where with --snapshot PATH.")
    if options.json not in (None, "-"):
        require_target(options.json)
    if snapshot is not None:
        path = Path(snapshot)
        if project.root is not None and not options.snapshot:
            path = project.root / path
        return _snapshot(options, project, requests, path)
    return _check(options, project, requests)


def _check(options: argparse.Namespace, project: Project, requests: list[Request]) -> int:
    from invariance.core._text import printable
    from invariance.testing.project._verdicts import exit_code, run_requests, to_json

    outcomes = run_requests(requests, root=project.root)
    if options.json != "-":
        for outcome in outcomes:
            if outcome.status != "untried":
                found = outcome.status == "holds" and outcome.certificate
                word = " / ".join(found.outcomes) if found else outcome.status
                line = f"[{word}] on {outcome.model}: {outcome.message}\n"
                sys.stdout.write(printable(line))
    _say_untried(outcome.message for outcome in outcomes if outcome.status == "untried")
    _write_json(options.json, to_json(outcomes, requests))
    code = exit_code(outcomes)
    if code == 2:
        sys.stderr.write("invariance: not every measure could be checked.\n")
    return code


def _say_untried(messages: Iterable[str]) -> None:
    """Print each reason once, where errors go: one module may hold every measure."""
    from invariance.core._text import printable

    for message in dict.fromkeys(messages):
        sys.stderr.write(printable(f"invariance: not tried: {message}\n"))


def _snapshot(
    options: argparse.Namespace, project: Project, requests: list[Request], path: Path
) -> int:
    from invariance.core._text import printable
    from invariance.testing.project._snapshot import compare, load_snapshot, render, save_snapshot
    from invariance.testing.project._verdicts import describe_requests

    if options.update:
        require_target(path)
    recorded = None if options.update else load_snapshot(path)
    rows, missing = describe_requests(requests, root=project.root)
    if missing:  # a table with holes is neither recorded nor compared
        _say_untried(missing)
        return 2
    if recorded is None:
        save_snapshot(path, rows)
        text, code, changes = f"snapshot {path}: {len(rows)} rows recorded", 0, []
    else:
        changes = compare(recorded, rows)
        text, code = render(changes, path), int(bool(changes))
    if options.json != "-":
        sys.stdout.write(printable("\n\n".join([*map(str, rows.values()), text]) + "\n"))
    _write_json(
        options.json,
        {
            "schema": 1,
            "exit_code": code,
            "rows": {name: found.to_dict() for name, found in rows.items()},
            "changes": [vars(change) for change in changes],
        },
    )
    return code


def _requests(options: argparse.Namespace, project: Project) -> list[Request]:
    from invariance.core._errors import UsageError
    from invariance.testing._networks import BUILDERS
    from invariance.testing.gate._bound_measure import as_group
    from invariance.testing.project._project_table import Request, checked_settings

    requests = (
        [Request(target, **project.defaults) for target in options.targets]
        if options.targets
        else list(project.requests)
    )
    changes: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("dtype", "rtol", "seed", "examples")
        if getattr(options, name) is not None
    }
    if changes.get("examples", 1) < 1:
        raise UsageError(f"--examples must be at least 1. Got {options.examples}.")
    changes = checked_settings(changes, "command line")
    if options.groups is not None:
        named = [entry.strip() for entry in options.groups.split(",") if entry.strip()]
        if not named:
            raise UsageError("--groups names no group.")
        changes["groups"] = tuple(as_group(entry).value for entry in named)
    if options.model:
        every = tuple(BUILDERS)
        changes["models"] = tuple(
            name for entry in options.model for name in (every if entry == "all" else (entry,))
        )
    return [replace(request, **changes) for request in requests]


def _write_json(path: str | None, content: dict[str, Any]) -> None:
    from invariance.core._files import write_atomically
    from invariance.testing.project._session_report import plain

    if path is None:
        return
    text = json.dumps(plain(content), indent=1, allow_nan=False)
    if path == "-":
        sys.stdout.write(text + "\n")
    else:
        write_atomically(Path(path), text)
