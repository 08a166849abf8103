"""How much does a network leave open?

Freeze its last hidden features. Count the pairs of an unseen point and a class that some
classifier on these features could still realise, with every training point right; and, for a
few points, all labelings at once. Does leaving more open go with better test accuracy?

    python demos/study_pair_proxy.py
    invariance study pair-proxy      # the size of the committed report
"""

from __future__ import annotations

from common import run_study_quickly

from invariance.papers.bennett.pair_proxy._study import STUDY
from invariance.studies.report._output import StudyOutcome

SMALL = {
    "networks": 5,
    "n_train": (60,),
    "n_unseen": 8,
    "scale": {
        "subsets": 1,
        "subset_networks": 4,
        "unseen_draws": 1,
        "extension_points": 2,
        "extension_pool": 5,
    },
}


def main(arguments: list[str] | None = None) -> StudyOutcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    outcome = run_study_quickly(STUDY, __doc__, arguments, SMALL)
    print("A few networks: pairs left open, and labelings of a few points (natural logarithm)")
    for record in [r for r in outcome.records if "extension" in r.measured][:5]:
        pairs = record.measured["measures"]["pair_proxy"]
        extension = record.measured["extension"]
        accuracy = record.measured["targets"]["test_accuracy"]
        print(
            f"  {pairs:5g} pairs   {extension['log_value']:6.2f} for {extension['points']} points "
            f"(relative error {extension['relative_stderr']:.2f})   test accuracy {accuracy:.3f}"
        )
    return outcome


if __name__ == "__main__":
    main()
