"""What does lowering sharpness do, at a fixed train loss?

From one checkpoint, walk along the level set of the train loss: to lower the Hessian trace, to
lower the least trace over rescalings, to leave unseen points more open, or at random.

    python demos/study_intervention.py
    invariance study intervention      # the full size
"""

from __future__ import annotations

from common import run_study_quickly

from invariance.papers.ours.intervention._study import STUDY
from invariance.studies.report._output import Outcome

SMALL = {
    "networks": 5,
    "n_train": (60,),
    "n_unseen": 3,
    "scale": {"steps": 2, "rate": 0.005},
}


def main(arguments: list[str] | None = None) -> Outcome:
    """Run the study at its quick size (smaller still with ``--small``) and return its outcome."""
    return run_study_quickly(STUDY, __doc__, arguments, SMALL)


if __name__ == "__main__":
    main()
