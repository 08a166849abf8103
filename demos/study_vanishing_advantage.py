"""Flat networks generalise better: or are there just two kinds of networks?

Train with small batches and with large ones, on little and on more data. Pooled, flatness
goes with test accuracy. Within one way of training, and after a random rescaling that changes
no output, see what is left of it.

    python demos/study_vanishing_advantage.py
    invariance study vanishing-advantage      # the size of the committed report
"""

from __future__ import annotations

from common import run_study_quickly

from invariance.papers.bennett.vanishing_advantage._study import STUDY
from invariance.studies.report._output import StudyOutcome

SMALL = {
    "networks": 4,
    "n_train": (60, 120),
    "n_unseen": 300,
}


def main(arguments: list[str] | None = None) -> StudyOutcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    outcome = run_study_quickly(STUDY, __doc__, arguments, SMALL)
    print("Spearman's rho of the Hessian trace with test accuracy:")
    for row in outcome.findings.correlations:
        if (row["measure"], row["target"]) == ("hessian_trace", "test_accuracy"):
            before, after = row["rho"], row["rho_after_rescaling"]
            print(f"  {row['group']:22s} as trained {before:+.2f}   rescaled {after:+.2f}")
    return outcome


if __name__ == "__main__":
    main()
