"""What every demo shares: its options, and where its figure goes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from invariance.studies._study import Study
    from invariance.studies.report._output import StudyOutcome


def options(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse ``--task``, ``--seed``, ``--out`` and ``--small``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--task", default="auto", help="mnist, fashion-mnist, digits or auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figure")
    parser.add_argument("--small", action="store_true", help="a size that ends in seconds")
    return parser.parse_args(arguments)


def save(figure: Figure, out: Path, name: str) -> Path:
    """Save a figure as PNG and say where it is."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    figure.savefig(path, dpi=150)
    print(f"figure: {path}")
    return path


def run_study_quickly(
    study: Study, description: str | None, arguments: list[str] | None, small: dict[str, Any]
) -> StudyOutcome:
    """Run a study at its quick size, print its verdicts, and say where its figures are.

    Args:
        study: The study.
        description: What ``--help`` says.
        arguments: The command line; that of the process by default.
        small: Options of ``--small`` that differ from the quick ones.

    Returns:
        Records, findings and files.
    """
    from rich.console import Console

    from invariance.studies._engine import run_study
    from invariance.studies.report._terminal import claims_table

    chosen = options(description, arguments)
    sizes = study.quick.but(task=chosen.task, seed=chosen.seed)
    if chosen.small:
        sizes = sizes.but(**small)
    folder = chosen.out / f"study-{study.name}"
    outcome = run_study(study, sizes, out=folder, resume=True, workers=1)
    Console().print(claims_table(study.title, outcome.results["claims"]))
    for figure in outcome.results["figures"]:
        print(f"figure: {folder / figure['file']}")
    return outcome
