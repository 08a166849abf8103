"""``invariance study``: run a study, or go on with it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invariance.studies import Options, Study


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "study",
        help="test a published claim: train many networks, measure them, judge",
        description=(
            "Train the networks of a study, measure them, and say whether the published claim "
            "holds, with an interval. Everything that is finished is kept in a folder: a run "
            "that was stopped or killed goes on with --resume and ends with the same results. "
            "'invariance studies' lists the studies."
        ),
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a study's name, or MODULE:ATTRIBUTE for one of your own",
    )
    parser.add_argument("--task", metavar="T", help="data set: mnist, fashion-mnist, digits, auto")
    parser.add_argument("--networks", type=int, metavar="N", help="networks in each cell")
    parser.add_argument(
        "--n-train", type=int, nargs="+", metavar="N", help="training-set sizes, one or several"
    )
    parser.add_argument("--n-unseen", type=int, metavar="N", help="unseen points")
    parser.add_argument("--seed", type=int, metavar="S", help="first seed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a size that only this study has, such as steps=200 (again for more)",
    )
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda or mps")
    parser.add_argument("--quick", action="store_true", help="a version that ends in a minute")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder (results/NAME, or results/NAME-quick)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with what is in the folder; starts anew where there is none",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes on this machine (one for each core)"
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help=(
            "Dask scheduler to hand the batches to; in a trusted network only: whoever reaches "
            "it runs code on its machines, and its answers can run code here"
        ),
    )
    parser.add_argument(
        "--tls",
        nargs=3,
        type=Path,
        default=(),
        metavar=("CA", "CERT", "KEY"),
        help="PEM files for a scheduler at tls://HOST:PORT, as 'dask scheduler' takes them",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the study, print its verdicts, say where the files are."""
    # Must precede torch's import; see invariance.cli._report.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from invariance.cli._progress import Bar, report_console
    from invariance.cli._study_options import find_study, options_from
    from invariance.core._errors import UsageError
    from invariance.studies._engine import Interrupted, run_study
    from invariance.studies.report._report import duration
    from invariance.studies.report._terminal import claims_table

    if options.scheduler and options.workers is not None:
        raise UsageError("--workers are processes of this machine; leave it out with --scheduler.")
    study = find_study(options.name)
    chosen = options_from(options, study)
    out = options.out or default_folder(study, chosen)
    try:
        with _told(study.name), Bar(counted=False) as bar:
            outcome = run_study(
                study,
                chosen,
                out=out,
                resume=options.resume,
                workers=options.workers,
                scheduler=options.scheduler,
                tls=options.tls,
                progress=bar,
                reference=options.name,
            )
    except Interrupted as stop:
        sys.stderr.write(
            f"\nInterrupted: {stop.kept} of {stop.total} networks are kept in {out}; "
            "go on with --resume.\n"
        )
        return 130
    console = report_console()
    results = outcome.results
    console.print(claims_table(f"{study.name}: {study.title}", results["claims"]))
    for note in results["notes"]:
        console.print(note, style="dim", highlight=False, markup=False)
    seconds = results["run"]["seconds_of_all_runs"]
    console.print(
        f"{len(outcome.records):,} networks, {duration(seconds)}. Report: {out / 'report.md'}, "
        f"data: {out / 'results.json'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what a study's own functions raise, and a machine that is too small, into a sentence."""
    from invariance.core._errors import InvarianceError, StudyError
    from invariance.core._foreign import account

    try:
        yield
    except (KeyboardInterrupt, InvarianceError):
        raise
    except BaseException as error:
        safe = "What is recorded is safe: go on with --resume"
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise StudyError(f"Memory ran out ({error}). {safe}, with fewer --workers.") from error
        if "can't start new thread" in str(error):
            raise StudyError(
                f"This machine allows no further thread ({error}). {safe}, with fewer --workers "
                "or a higher limit (ulimit -u)."
            ) from error
        # A worker has noted what it was doing, with the traceback below.
        doing = "".join(f" {note.splitlines()[0]}" for note in getattr(error, "__notes__", ()))
        raise StudyError(
            f"Study {name!r} {account(error)}.{doing} {safe} when that is put right."
        ) from error


def default_folder(study: Study, options: Options) -> Path:
    """Return where a study goes if nobody says: quick results never replace full ones."""
    return Path("results") / (f"{study.name}-quick" if options.quick else study.name)
