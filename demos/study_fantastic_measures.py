"""Which famous correlations survive the symmetry group?

A grid of hyperparameters; every measure as trained, after a random rescaling of every network,
and at the gauge-fixed representative of its orbit.

    python demos/study_fantastic_measures.py
    invariance study fantastic-measures      # the full size
"""

from __future__ import annotations

from common import run_study_quickly

from invariance.papers.ours.fantastic_measures._study import STUDY
from invariance.studies.report._output import Outcome

SMALL = {"networks": 1, "n_train": (60,), "n_unseen": 3, "scale": {"epochs": 20}}


def main(arguments: list[str] | None = None) -> Outcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    return run_study_quickly(STUDY, __doc__, arguments, SMALL)


if __name__ == "__main__":
    main()
