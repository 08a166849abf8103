"""``invariance report``: the whole argument on one screen."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invariance.cli._targets import require_target

if TYPE_CHECKING:
    from invariance.checking._experiment import ReportConfig
    from invariance.core._progress import TellProgress
    from invariance.reporting import Report
    from invariance.transforms import Transform


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
    parser.add_argument(
        "--measures",
        metavar="NAME[,NAME...]",
        help="measures to report, by name or MODULE:FUNCTION ('invariance measures' lists them)",
    )
    parser.add_argument(
        "--transforms",
        metavar="NAME[,NAME...]",
        help="maps to apply, by name ('invariance transforms' lists them)",
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help=(
            "report on YOUR network: a function that returns the model, or (model, x, y); "
            "without x and y, the data are those of --data or --task"
        ),
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="with --model: an .npz file with x (n, ...) and y (n,), class labels from 0",
    )
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
    from invariance.core._errors import UsageError
    from invariance.core._files import write_atomically
    from invariance.reporting._terminal import render

    if options.data and not options.model:
        raise UsageError("--data says what YOUR network is measured on; give it with --model.")
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
        require_target(path)
    measures, maps = _measures(options.measures), _transforms(options.transforms)
    with Bar() as bar:
        if options.model:
            report = _own_network(options, config, bar, measures, maps)
        else:
            report = run_report(
                config, bar, parallel=not measures, measures=measures, transforms=maps
            )
    console = report_console()
    console.print(render(report, console.width))
    if options.json:
        write_atomically(options.json, report.to_json())
    if options.html:
        write_atomically(options.html, report.to_html())
    return 1 if report.contradictions else 0


def _names(words: str | None, option: str) -> list[str]:
    from invariance.core._errors import UsageError

    names = [entry.strip() for entry in (words or "").split(",") if entry.strip()]
    if words is not None and not names:
        raise UsageError(f"{option} names nothing.")
    return names


def _measures(words: str | None) -> list[Any] | None:
    """Measures by name, or functions of the user's own; ``None`` if nothing was said."""
    from invariance.measures._registry import resolve
    from invariance.testing.project._project_table import load_function

    chosen: list[Any] = [
        load_function(name) if ":" in name else name for name in _names(words, "--measures")
    ]
    return list(resolve(chosen)) if chosen else None


def _transforms(words: str | None) -> list[Transform] | None:
    """Maps by their class's name or their group's; each is drawn for the network it meets."""
    from invariance.core._errors import unknown_name
    from invariance.transforms import KINDS
    from invariance.transforms._members import MemberOf

    groups = {kind.__name__: kind.group for kind in KINDS}
    groups |= {str(group): group for group in groups.values()}
    found: list[Transform] = []
    for name in _names(words, "--transforms"):
        if name not in groups:
            raise unknown_name("transform", name, groups)
        found.append(MemberOf(groups[name]))
    return found or None


def _own_network(
    options: argparse.Namespace,
    config: ReportConfig,
    progress: TellProgress,
    measures: list[Any] | None,
    maps: list[Transform] | None,
) -> Report:
    """Check what the user's factory returns on the user's data, or on a task."""
    from torch import nn

    from invariance.checking import check
    from invariance.checking._experiment import load_config
    from invariance.core._errors import UsageError
    from invariance.core._foreign import foreign
    from invariance.testing.project._project_table import load_function

    factory: Any = load_function(options.model)
    with foreign(f"The factory {options.model}"):
        made = factory()
    model, *data = made if isinstance(made, tuple) else (made,)
    if not isinstance(model, nn.Module) or len(data) not in (0, 2):
        raise UsageError(
            f"{options.model} must return a model, or (model, x, y). Got {type(made).__name__}."
        )
    if data and options.data:
        raise UsageError(f"{options.model} returns data already; leave --data out.")
    task: Any = tuple(data) or (_read(options.data) if options.data else load_config(config))
    title = options.model.partition(":")[2]
    return check(
        {title: model},
        task,
        measures=measures,
        transforms=maps,
        seed=options.seed,
        progress=progress,
    )


def _read(path: Path) -> tuple[Any, Any]:
    """Read ``x`` and ``y`` from an .npz file, which can run no code."""
    import numpy as np
    import torch

    from invariance.core._errors import DataError

    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = (torch.from_numpy(np.asarray(arrays[name])) for name in ("x", "y"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no .npz file with arrays x and y: {error}.") from error
    return x.float() if x.dtype == torch.float16 else x, y
