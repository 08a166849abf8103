"""One initialisation, seven functions: is sharpness about the function that is learned?

The same small network is trained, from the same weights and on the same points, to fit seven
test functions of optimisation. The fits are equally good and not equally sharp. With raw
targets much of that is the unit of the loss; with standardised targets it is not.

    python demos/study_single_objective.py
    invariance study single-objective        # the size of the committed report
"""

from __future__ import annotations

import shutil

from common import options
from rich.console import Console

from invariance.papers.mason_williams.single_objective._study import STUDY
from invariance.studies._engine import run_study
from invariance.studies.report._output import StudyOutcome
from invariance.studies.report._terminal import claims_table


def main(arguments: list[str] | None = None) -> StudyOutcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    chosen = options(__doc__, arguments)
    sizes = STUDY.quick.but(seed=chosen.seed)
    if chosen.small:
        sizes = sizes.but(networks=2, n_train=(100,), scale={"n_test": 100, "epochs": 50})
    outcome = run_study(
        STUDY, sizes, out=chosen.out / "study-single-objective", resume=True, workers=1
    )
    console = Console()
    for table in outcome.findings.tables[:2]:
        console.print(f"\n{table.title}")
        for row in table.rows:
            name, variance, error, trace, over_variance = row[:5]
            console.print(
                f"  {name:18} Var(y) {variance:9.3g}   test error {error:8.2g}   "
                f"Tr H {trace:9.3g}   Tr H / Var(y) {over_variance:9.3g}",
                soft_wrap=True,
                highlight=False,
            )
    console.print(claims_table("Claims", outcome.results["claims"]))
    figure = chosen.out / "study-single-objective.png"
    shutil.copyfile(outcome.folder / "figures" / "single-objective.png", figure)
    print(f"figure: {figure}")
    return outcome


if __name__ == "__main__":
    main()
