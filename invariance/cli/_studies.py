"""``invariance studies``: what is claimed, and what was found."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "studies",
        help="list the studies with the paper's number, ours, and the verdict",
        description=(
            "List every study, what it claims, and the results found in folders that "
            "'invariance study' has written."
        ),
    )
    parser.add_argument(
        "--results",
        type=Path,
        action="append",
        metavar="DIR",
        help=(
            "folder with results, or with folders of results (again for more; by default "
            "results and, in a checkout of this project, demos/results)"
        ),
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="PATH", help="write every claim into one Markdown page"
    )
    parser.add_argument(
        "--rejudge",
        action="store_true",
        help=(
            "first judge the results again by the rules of this version, from the numbers in "
            "them, and write results.json and report.md anew"
        ),
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print each study with its claims, or with the command that tests them."""
    from rich.padding import Padding
    from rich.text import Text

    from invariance.cli._progress import report_console
    from invariance.core._errors import UsageError
    from invariance.core._text import printable
    from invariance.studies._catalogue import catalogue
    from invariance.studies.report._overview import find_results, worth_showing
    from invariance.studies.report._terminal import claims_table

    for folder in options.results or ():
        if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
            raise UsageError(f"No folder {folder} to look for results in.")
    folders = options.results or [Path("results"), Path("demos", "results")]
    found, problems = find_results(folders)
    if options.rejudge:
        from invariance.studies.report._rejudge import rejudge

        known = {study.name: study for study in catalogue()}
        for path, entry in found:
            if entry["study"] in known:
                rejudge(path, known[entry["study"]])
        found, problems = find_results(folders)
    for problem in problems:
        sys.stderr.write(printable(f"invariance: skipped: {problem}\n"))
    if options.markdown:
        from invariance.core._files import write_atomically
        from invariance.studies.report._claims_page import claims_page

        write_atomically(options.markdown, claims_page(found, options.markdown))
        sys.stdout.write(f"{options.markdown}: {len(found)} studies\n")
        return 0
    console = report_console()

    def say(text: str, style: str = "") -> None:
        indent = len(text) - len(text.lstrip())
        console.print(Padding(Text(text.strip(), style=style), (0, 0, 0, indent)))

    titles = {study.name: study.title for study in catalogue()}
    for _, entry in found:  # studies of the user's own
        titles.setdefault(entry["study"], entry["title"])
    for name, title in titles.items():
        chosen = worth_showing(found, name)
        if not chosen:
            (study,) = [study for study in catalogue() if study.name == name]
            say(f"{name}: {title}", "bold")
            say(f"  {study.paper}")
            say(f"  {study.question}")
            say(f"  not run yet: invariance study {name} [--quick]", "dim")
        for path, results in chosen:
            console.print(claims_table(f"{name}: {title}", results["claims"]))
            say(f"  {results['paper']}")
            say(f"  from {path}: {results['command']}", "dim")
        say("")
    if not titles:
        say("There are no studies.")
    return 0
