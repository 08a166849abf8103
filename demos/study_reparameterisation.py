"""One function, any sharpness.

Multiply one layer of a trained network by a factor and divide the next layer by it. No output
changes. The Hessian trace grows like the square of the factor, along a law that is known
exactly; test accuracy, activation patterns and the pair proxy stay where they are.

    python demos/study_reparameterisation.py
    invariance study reparameterisation      # the size of the committed report
"""

from __future__ import annotations

from common import run_study_quickly

from invariance.papers.bennett.reparameterisation._study import STUDY
from invariance.studies.report._output import StudyOutcome

SMALL = {
    "networks": 2,
    "n_train": (60,),
    "n_unseen": 4,
    "scale": {"narrow_networks": 2, "pattern_points": 200, "wide_pair_points": 0},
}


def main(arguments: list[str] | None = None) -> StudyOutcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    outcome = run_study_quickly(STUDY, __doc__, arguments, SMALL)
    print("One of the networks, layer 1 times the factor, layer 2 divided by it:")
    for point in outcome.records[0].measured["axes"]["beta"]:
        print(
            f"  factor {point['factor']:4g}   trace {point['hessian_trace']:10.4g}   "
            f"law {point['law']:10.4g}   test accuracy {point['test_accuracy']:.4f}   "
            f"labels changed {point['labels_changed']}"
        )
    return outcome


if __name__ == "__main__":
    main()
