"""Which of these networks is the best one? Without looking at test data.

Many networks, trained alike on the same points, differ by their seed alone. Rank them by
sharpness, by norms, by counts of regions: how much does any ranking have to do with test
accuracy, and how wide is its interval?

    python demos/study_model_selection.py
    invariance study model-selection      # the size of the committed report
"""

from __future__ import annotations

from common import run_study_quickly

from invariance.papers.bennett.model_selection._study import STUDY
from invariance.studies.report._output import StudyOutcome

SMALL = {
    "networks": 6,
    "n_train": (60,),
    "n_unseen": 300,
    "scale": {"subsets": 1, "subset_networks": 4, "pair_points": 4, "unseen_draws": 2},
}


def main(arguments: list[str] | None = None) -> StudyOutcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    outcome = run_study_quickly(STUDY, __doc__, arguments, SMALL)
    accuracies = [record.measured["targets"]["test_accuracy"] for record in outcome.records]
    print(f"Test accuracy from {min(accuracies):.3f} to {max(accuracies):.3f}: worth choosing.")
    return outcome


if __name__ == "__main__":
    main()
