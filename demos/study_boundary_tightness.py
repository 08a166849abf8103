"""Tight boundaries look sharp: because of the loss, or because of the function?

A small network separates two concentric circles that come closer and closer, without a single
mistake. Its Hessian trace rises. So does its training loss, and the Hessian of the
cross-entropy carries p (1 - p): the networks are compared again at one common loss and at one
common margin, and once more after a random rescaling that changes no output.

    python demos/study_boundary_tightness.py
    invariance study boundary-tightness      # the size of the committed report
"""

from __future__ import annotations

import shutil

from common import options
from rich.console import Console

from invariance.papers.mason_williams.boundary_tightness._study import STUDY
from invariance.studies._engine import run_study
from invariance.studies.report._output import StudyOutcome
from invariance.studies.report._terminal import claims_table


def main(arguments: list[str] | None = None) -> StudyOutcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    chosen = options(__doc__, arguments)
    sizes = STUDY.quick.but(seed=chosen.seed)
    if chosen.small:
        scale = {"factors": (0.3, 0.5, 0.7), "label_shares": (0.3,), "epochs": 60, "splits": 2}
        sizes = sizes.but(networks=2, n_train=(40,), scale=scale)
    outcome = run_study(
        STUDY, sizes, out=chosen.out / "study-boundary-tightness", resume=True, workers=1
    )
    console = Console()
    tightness = outcome.findings.tables[0]
    console.print(f"\n{tightness.title}: networks without a mistake")
    for radius, _, perfect, _, loss, trained, at_loss, at_margin, *_ in tightness.rows:
        console.print(
            f"  inner radius {radius}   {perfect} networks   loss {loss or 0:8.2g}   "
            f"Tr H {trained or 0:7.3g}   at a common loss {at_loss or 0:7.3g}   "
            f"at a common margin {at_margin or 0:7.3g}",
            soft_wrap=True,
            highlight=False,
        )
    console.print(claims_table("Claims", outcome.results["claims"]))
    figure = chosen.out / "study-boundary-tightness.png"
    shutil.copyfile(outcome.folder / "figures" / "boundary-tightness.png", figure)
    print(f"figure: {figure}")
    return outcome


if __name__ == "__main__":
    main()
