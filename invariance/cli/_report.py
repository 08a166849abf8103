"""``invariance report``: the whole argument on one screen."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="train small networks, rescale them, and report what moves",
        description=(
            "Train a small MLP and its BatchNorm twin, apply every function-preserving map, "
            "measure before and after; then correlate every measure with the generalization gap "
            "over an ensemble, as trained and after random rescaling."
        ),
    )
    parser.add_argument(
        "--task",
        default="auto",
        metavar="NAME",
        help="mnist, fashion-mnist, digits, or auto (MNIST if at hand, else digits)",
    )
    parser.add_argument("--n-train", type=int, metavar="N", help="training points (500)")
    parser.add_argument("--n-unseen", type=int, default=30, metavar="N", help="unseen points (30)")
    parser.add_argument(
        "--networks",
        type=int,
        default=40,
        metavar="N",
        help="networks in the ensemble (40); 0 leaves the correlations out",
    )
    parser.add_argument(
        "--batch-norm", action="store_true", help="give the ensemble's networks BatchNorm"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the report as JSON")
    parser.add_argument("--html", type=Path, metavar="PATH", help="also write one HTML page")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the experiment, print the report, write the files that were asked for."""
    # Networks this small gain nothing from several threads, and on a busy machine threads
    # that wait for each other cost ten times what they save. Must precede torch's import.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from invariance.checking._experiment import ReportConfig, run_report
    from invariance.cli._progress import Bar, report_console
    from invariance.core._files import require_writable, write_atomically
    from invariance.reporting._terminal import render

    config = ReportConfig(
        task=options.task,
        n_train=options.n_train,
        n_unseen=options.n_unseen,
        networks=options.networks,
        batch_norm=options.batch_norm,
        device=options.device,
        seed=options.seed,
    )
    for path in filter(None, (options.json, options.html)):
        require_writable(path)
    with Bar() as bar:
        report = run_report(config, bar, parallel=True)
    console = report_console()
    console.print(render(report, console.width))
    if options.json:
        write_atomically(options.json, report.to_json())
    if options.html:
        write_atomically(options.html, report.to_html())
    return 1 if report.contradictions else 0
